"""Linear algebra of low-rank updates without ever forming one.

For stacked factors, ``A`` of shape ``(R, in)`` and ``B`` of shape ``(out, R)``, the two R x R matrices ``A Aᵀ`` and
``Bᵀ B`` hold everything that norms, cosines, angles and the best low-rank approximation need. They are formed in
float64 and brought to unit rows of A and unit columns of B, the lengths being kept aside: without that, factors graded
over many orders of magnitude would lose their small parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hub_merge.adapter import Array, LoraFactors

__all__ = [
    "Float64",
    "Parts",
    "Pieces",
    "Stack",
    "at_unit_length",
    "best_rank_k",
    "cholesky_if_apart",
    "column_products",
    "combined_products",
    "cross_products",
    "inner_products",
    "norm_and_peak",
    "orthonormal",
    "result_dtype",
    "row_products",
    "stack",
]

Float64 = NDArray[np.float64]
Wide = type[np.floating[Any]]

FEW = 32
"""Vectors; of fewer, numpy's product of a matrix and its own transpose takes longer than that of two matrices."""

BLOCK = 2**17
"""Numbers of a factor that are widened to float64 at a time."""

SHORT = 2048
"""Features of few vectors that are, so that they stay in the processor's cache."""

APART = 0.1
"""Unit vectors that each keep more than this length beside those before them are well apart: factored by Cholesky's
method, which takes a tenth of the time of an eigendecomposition and is then as exact."""

SURE = 1e-3
"""Share of its bound below which a squared norm is not left to sums in float32."""

NULL = 1e-14
"""Eigenvalues of a Gram matrix of unit vectors below ``NULL * largest`` are rounding, not directions."""


class Parts(tuple[LoraFactors, ...]):
    """The factors of one module, whose Gram matrices are formed once, at first need, for all who ask for them."""

    _pieces: Pieces | None = None

    @property
    def pieces(self) -> Pieces:
        """The factors side by side. (A ``cached_property`` of Python 3.11 works for one thread at a time.)"""
        if self._pieces is None:
            self._pieces = _side_by_side(self)
        return self._pieces


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Several updates of one module side by side, as they are stored.

    Attributes:
        A: Rows, ``(R, in)`` float32 or float64.
        B: Columns, ``(out, R)``.
        norms_a: Lengths of the rows, ``(R,)``; 1 for a zero row.
        norms_b: Lengths of the columns, ``(R,)``; 1 for a zero column.
        gram_a: Inner products of the rows at unit length, ``(R, R)``.
        gram_b: Inner products of the columns at unit length, ``(R, R)``.
    """

    A: Array
    B: Array
    norms_a: Float64
    norms_b: Float64
    gram_a: Float64
    gram_b: Float64


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Several updates of one module side by side: ``sum_i weights[i] * delta_i = B @ diag(lengths) @ A``.

    A and B are here the stored factors with unit rows and unit columns; ``left`` and ``right`` multiply with them.

    Attributes:
        pieces: The factors as they are stored.
        lengths: Signed magnitude of each rank-one piece, ``(R,)``: weight x scaling x ‖a‖ x ‖b‖.
        gram_a: ``A @ A.T``, ``(R, R)``.
        gram_b: ``B.T @ B``, ``(R, R)``.
        owner: Index of the update that each piece belongs to, ``(R,)``.
    """

    pieces: Pieces
    lengths: Float64
    gram_a: Float64
    gram_b: Float64
    owner: NDArray[np.intp]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(out, in)`` of the updates."""
        return self.pieces.B.shape[0], self.pieces.A.shape[1]

    def left(self, P: Float64, rows: slice = slice(None)) -> Array:
        """Return ``(B @ P)[rows]`` for P of shape ``(R, n)``, float32 if the factors are."""
        return self.pieces.B[rows] @ (P / self.pieces.norms_b[:, None]).astype(self.pieces.B.dtype)

    def right(self, Q: Float64) -> Array:
        """Return ``Q @ A`` for Q of shape ``(n, R)``, float32 if the factors are."""
        return (Q / self.pieces.norms_a).astype(self.pieces.A.dtype) @ self.pieces.A


def stack(parts: Sequence[LoraFactors], weights: Sequence[float] | None = None) -> Stack:
    """Return the parts of one module side by side, with their Gram matrices.

    Args:
        parts: Factors of one ``(out, in)`` shape. Not modified. ``Parts`` keep their Gram matrices for the next call.
        weights: One number a part, 1.0 by default; goes into ``lengths``.
    """
    weights = [1.0] * len(parts) if weights is None else weights
    pieces = parts.pieces if isinstance(parts, Parts) else _side_by_side(parts)
    ranks = [part.rank for part in parts]
    factor = np.repeat([weight * part.scaling for weight, part in zip(weights, parts, strict=True)], ranks)
    alive = (np.diag(pieces.gram_a) > 0) & (np.diag(pieces.gram_b) > 0)
    lengths = np.where(alive, factor * pieces.norms_a * pieces.norms_b, 0.0)
    return Stack(pieces, lengths, pieces.gram_a, pieces.gram_b, np.repeat(np.arange(len(parts)), ranks))


def _side_by_side(parts: Sequence[LoraFactors]) -> Pieces:
    dtype = result_dtype(parts)
    A: Array = np.concatenate([part.A for part in parts], axis=0, dtype=dtype)
    B: Array = np.concatenate([part.B for part in parts], axis=1, dtype=dtype)
    norms_a, gram_a = at_unit_length(row_products(A, A))
    norms_b, gram_b = at_unit_length(column_products(B, B))
    return Pieces(A, B, norms_a, norms_b, gram_a, gram_b)


def row_products(X: Array, Y: Array, wide: Wide = np.float64) -> Float64:
    """Return ``X @ Y.T`` in float64, a block at a time, so that no wide copy of a whole factor is made.

    The product of a block is formed in ``wide``; the blocks are added in float64.
    """
    products, once = np.zeros((len(X), len(Y))), X is Y and len(X) >= FEW
    width = BLOCK // len(X) if once else SHORT
    for start in range(0, X.shape[1], width):
        block = X[:, start : start + width].astype(wide, copy=False)
        products += block @ (block if once else Y[:, start : start + width].astype(wide, copy=False)).T
    return products


def column_products(X: Array, Y: Array, wide: Wide = np.float64) -> Float64:
    """Return ``X.T @ Y`` in float64, a block at a time; see ``row_products``."""
    products, once = np.zeros((X.shape[1], Y.shape[1])), X is Y and X.shape[1] >= FEW
    height = BLOCK // X.shape[1] if once else SHORT
    for start in range(0, len(X), height):
        block = X[start : start + height].astype(wide, copy=False)
        products += block.T @ (block if once else Y[start : start + height].astype(wide, copy=False))
    return products


def at_unit_length(products: Float64) -> tuple[Float64, Float64]:
    """Return the lengths of the vectors that have these inner products, 1 for a zero vector, and the products at unit
    length. Scaling a Gram matrix afterwards loses no more than scaling the vectors before."""
    lengths = np.sqrt(np.diag(products))
    norms = np.where(lengths > 0, lengths, 1.0)
    return norms, products / np.outer(norms, norms)


def cholesky_if_apart(gram: Float64) -> Float64 | None:
    """Return the Cholesky factor of the Gram matrix of unit vectors that are well apart; ``None`` for others."""
    with suppress(np.linalg.LinAlgError):
        L = np.linalg.cholesky(gram).astype(np.float64, copy=False)
        if np.diag(L).min(initial=1.0) > APART:
            return L
    return None


def inner_products(stacked: Stack, count: int) -> Float64:
    """Return the Frobenius inner products of the updates, ``(count, count)``.

    ``<delta_i, delta_j> = sum((B_iᵀ B_j) * (A_i A_jᵀ))`` over the pieces of i and j, lengths included. An update whose
    pieces cancel to rounding counts as zero.
    """
    pieces = stacked.gram_a * stacked.gram_b * np.outer(stacked.lengths, stacked.lengths)
    return _combined(pieces, _membership(stacked, count), np.abs(stacked.lengths))


def cross_products(x: Stack, y: Stack, counts: tuple[int, int]) -> Float64:
    """Return the Frobenius inner products of the updates of two stacks of one module, ``counts``; see above."""
    gram_a, gram_b = row_products(x.pieces.A, y.pieces.A), column_products(x.pieces.B, y.pieces.B)
    norms = np.outer(x.pieces.norms_a * x.pieces.norms_b, y.pieces.norms_a * y.pieces.norms_b)
    products = gram_a * gram_b / norms * np.outer(x.lengths, y.lengths)
    summed: Float64 = _membership(x, counts[0]) @ products @ _membership(y, counts[1]).T
    return summed


def _membership(stacked: Stack, count: int) -> Float64:
    """Return which piece belongs to which update, ``(count, R)`` of zeros and ones."""
    member: Float64 = (stacked.owner == np.arange(count)[:, None]).astype(np.float64)
    return member


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
    if (L := cholesky_if_apart(gram)) is not None:
        return np.linalg.inv(L).T.astype(np.float64, copy=False), L.T
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


def norm_and_peak(factors: LoraFactors) -> tuple[float, float, int]:
    """Return squared Frobenius norm, squared largest singular value and number of pieces of an update, without a stack.

    Pieces that are zero do not count. A factor that holds NaN or infinity makes the norm and the singular value NaN. An
    update whose pieces cancel to rounding counts as zero.
    Factors of 16 bits or fewer are multiplied in float32, which holds each product exactly, where the sums neither
    overflow nor cancel: rounding is then below 1e-4 of the results, and about 1e-6.
    """
    short = max(factors.A.dtype.itemsize, factors.B.dtype.itemsize) <= 2
    grams, square, bound = _products(factors, np.float32) if short else _products(factors, np.float64)
    if short and not (math.isfinite(square) and square > SURE * bound):
        grams, square, bound = _products(factors, np.float64)
    if not math.isfinite(square):
        return math.nan, math.nan, factors.rank
    pieces = int(np.count_nonzero(grams[0].diagonal() * grams[1].diagonal()))
    if square <= NULL * bound:
        return 0.0, 0.0, pieces
    root = _root(grams[0])
    largest = float(np.linalg.eigvalsh(root.T @ grams[1] @ root)[-1])
    return factors.scaling**2 * square, factors.scaling**2 * largest, pieces


def _products(factors: LoraFactors, wide: Wide) -> tuple[tuple[Float64, Float64], float, float]:
    """Return the Gram matrices of A and B, ``‖B A‖²``, and the most that it could be if no pieces cancelled."""
    with np.errstate(over="ignore", invalid="ignore"):
        gram_a, gram_b = row_products(factors.A, factors.A, wide), column_products(factors.B, factors.B, wide)
        lengths = np.sqrt(gram_a.diagonal() * gram_b.diagonal())
        return (gram_a, gram_b), float((gram_a * gram_b).sum()), float(lengths.sum()) ** 2


def _root(gram: Float64) -> Float64:
    """Return L with ``L @ L.T == gram``."""
    with suppress(np.linalg.LinAlgError):
        return np.linalg.cholesky(gram).astype(np.float64, copy=False)
    values, vectors = np.linalg.eigh(gram)
    root: Float64 = vectors * np.sqrt(np.maximum(values, 0.0))
    return root


def best_rank_k(stacked: Stack, rank: int) -> LoraFactors:
    """Return the update of at most ``rank`` that is closest to the sum in Frobenius norm (Eckart and Young).

    Both factors get the square roots of the singular values, so ``Bᵀ B == A Aᵀ``. Pieces beyond the numerical rank
    are left out, so the result may have a smaller rank.
    """
    Wb, U, S, Vt, Wa = _core_svd(stacked)
    keep = min(rank, int(np.count_nonzero(S > NULL * (S[0] if len(S) else 0.0))))
    roots = np.sqrt(S[:keep])
    left, right = Wb @ (U[:, :keep] * roots), (roots[:, None] * Vt[:keep]) @ Wa.T
    return LoraFactors(stacked.right(right), stacked.left(left))


def result_dtype(parts: Sequence[LoraFactors]) -> type[np.float32] | type[np.float64]:
    """Return float64 if any factor is float64, else float32: the dtype in which a method hands back its result."""
    return np.float64 if any(np.float64 in (part.A.dtype, part.B.dtype) for part in parts) else np.float32
