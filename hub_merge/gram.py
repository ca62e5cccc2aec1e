"""Linear algebra of low-rank updates without ever forming one.

For stacked factors, ``A`` of shape ``(R, in)`` and ``B`` of shape ``(out, R)``, the two R x R matrices ``A Aᵀ`` and
``Bᵀ B`` hold everything that norms, cosines, angles and the best low-rank approximation need. They are formed in
float64 after the rows of A and the columns of B were scaled to unit length, the lengths being kept aside: without that,
factors graded over many orders of magnitude would lose their small parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hub_merge.adapter import Array, LoraFactors

__all__ = [
    "Float64",
    "Stack",
    "best_rank_k",
    "combined_products",
    "inner_products",
    "orthonormal",
    "result_dtype",
    "singular_values",
    "stack",
]

Float64 = NDArray[np.float64]

NULL = 1e-14
"""Eigenvalues of a Gram matrix of unit vectors below ``NULL * largest`` are rounding, not directions."""


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Several updates of one module side by side: ``sum_i weights[i] * delta_i = B @ diag(lengths) @ A``.

    Attributes:
        A: Unit rows, ``(R, in)`` float32 or float64; a zero row stays zero.
        B: Unit columns, ``(out, R)``.
        lengths: Signed magnitude of each rank-one piece, ``(R,)``: weight x scaling x ‖a‖ x ‖b‖.
        gram_a: ``A @ A.T``, ``(R, R)``.
        gram_b: ``B.T @ B``, ``(R, R)``.
        owner: Index of the update that each piece belongs to, ``(R,)``.
    """

    A: Array
    B: Array
    lengths: Float64
    gram_a: Float64
    gram_b: Float64
    owner: NDArray[np.intp]


def stack(parts: Sequence[LoraFactors], weights: Sequence[float] | None = None) -> Stack:
    """Return the parts of one module side by side, with their Gram matrices.

    Args:
        parts: Factors of one ``(out, in)`` shape. Not modified.
        weights: One number a part, 1.0 by default; goes into ``lengths``.
    """
    weights = [1.0] * len(parts) if weights is None else weights
    A = np.concatenate([part.A.astype(np.float64) for part in parts], axis=0)
    B = np.concatenate([part.B.astype(np.float64) for part in parts], axis=1)
    norms_a, norms_b = np.linalg.norm(A, axis=1), np.linalg.norm(B, axis=0)
    A /= np.where(norms_a > 0, norms_a, 1.0)[:, None]
    B /= np.where(norms_b > 0, norms_b, 1.0)
    ranks = [part.rank for part in parts]
    factor = np.repeat([weight * part.scaling for weight, part in zip(weights, parts, strict=True)], ranks)
    return Stack(A, B, factor * norms_a * norms_b, A @ A.T, B.T @ B, np.repeat(np.arange(len(parts)), ranks))


def inner_products(stacked: Stack, count: int) -> Float64:
    """Return the Frobenius inner products of the updates, ``(count, count)``.

    ``<delta_i, delta_j> = sum((B_iᵀ B_j) * (A_i A_jᵀ))`` over the pieces of i and j, lengths included. An update whose
    pieces cancel to rounding counts as zero.
    """
    pieces = stacked.gram_a * stacked.gram_b * np.outer(stacked.lengths, stacked.lengths)
    member = np.zeros((count, len(stacked.owner)))
    member[stacked.owner, np.arange(len(stacked.owner))] = 1.0
    return _combined(pieces, member, np.abs(stacked.lengths))


def combined_products(products: Float64, rows: Float64) -> Float64:
    """Return the inner products of linear combinations of updates.

    Args:
        products: Inner products of the updates, ``(n, n)``.
        rows: Coefficients of each combination, ``(m, n)``. One that cancels to rounding counts as zero.
    """
    return _combined(products, rows, np.sqrt(np.maximum(np.diag(products), 0.0)))


def _combined(products: Float64, rows: Float64, norms: Float64) -> Float64:
    combined: Float64 = rows @ products @ rows.T
    cancelled = np.diag(combined) <= NULL * (np.abs(rows) @ norms) ** 2
    combined[cancelled] = combined[:, cancelled] = 0.0
    return combined


def orthonormal(gram: Float64) -> tuple[Float64, Float64]:
    """Factor the Gram matrix of unit vectors ``X`` (columns) as ``X = Q @ R`` without forming Q.

    Returns:
        ``(W, R)`` with ``Q = X @ W``: W is ``(R, n)``, R is ``(n, R)``, n the numerical rank.
    """
    values, vectors = np.linalg.eigh(gram)
    keep = values > NULL * max(values[-1], 0.0) if len(values) else np.zeros(0, bool)
    roots = np.sqrt(values[keep])
    return vectors[:, keep] / roots, (vectors[:, keep] * roots).T


def _core_svd(stacked: Stack) -> tuple[Float64, Float64, Float64, Float64, Float64]:
    """Return ``(Wb, U, S, Vt, Wa)``: the SVD of the sum is ``(B Wb U) diag(S) (Vt Waᵀ A)``."""
    Wb, Rb = orthonormal(stacked.gram_b)
    Wa, Ra = orthonormal(stacked.gram_a)
    U, S, Vt = np.linalg.svd((Rb * stacked.lengths) @ Ra.T, full_matrices=False)
    return Wb, U, S, Vt, Wa


def singular_values(stacked: Stack) -> Float64:
    """Return the singular values of the sum of the stacked updates, largest first."""
    return _core_svd(stacked)[2]


def best_rank_k(stacked: Stack, rank: int) -> LoraFactors:
    """Return the update of at most ``rank`` that is closest to the sum in Frobenius norm (Eckart and Young), float64.

    Both factors get the square roots of the singular values, so ``Bᵀ B == A Aᵀ``. Pieces beyond the numerical rank
    are left out, so the result may have a smaller rank.
    """
    Wb, U, S, Vt, Wa = _core_svd(stacked)
    keep = min(rank, int(np.count_nonzero(S > NULL * (S[0] if len(S) else 0.0))))
    roots = np.sqrt(S[:keep])
    left, right = Wb @ (U[:, :keep] * roots), (roots[:, None] * Vt[:keep]) @ Wa.T
    return LoraFactors(right @ stacked.A, stacked.B @ left)


def result_dtype(parts: Sequence[LoraFactors]) -> type[np.float32] | type[np.float64]:
    """Return float64 if any factor is float64, else float32: the dtype in which a method hands back its result."""
    return np.float64 if any(np.float64 in (part.A.dtype, part.B.dtype) for part in parts) else np.float32
