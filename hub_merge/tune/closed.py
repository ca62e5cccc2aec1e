"""The composite of rank k whose modules answer most like each adapter, on the inputs that adapter sees: a closed form.

Regression of the outputs (RegMean, arXiv 2212.09849) within the span of the adapters' units. With the units of all
adapters side by side, ``B`` scaled and ``A`` stacked, adapter i is ``B E_i A``, ``E_i`` the identity on its own units.
What it does to its inputs X_i depends on ``z = A x`` alone, so the Gram matrix ``S_i = mean z zᵀ`` of shape (R, R) is
all that is kept of the data. The best composite ``B M A`` minimises ``sum_i mean ‖B (M - E_i) z‖²``, solved by
``M* = (sum_i E_i S_i) (sum_i S_i)⁻¹`` for any B; the rest is ``‖B (M - M*) S^½‖²``, so that the best one of rank k is a
truncated SVD in whitened coordinates (Eckart and Young). Nothing is larger than R x R but B itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.gram import Float64, column_products
from hub_merge.mixtures import Mixture

__all__ = ["Frame", "closest", "frame_of"]

RIDGE = 1e-3
"""Share of what each unit responds that is added to the Gram matrices: what the rows leave open goes to the mean."""

NULL = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Coordinates of mixtures in which what the units respond is white, and the columns of B are orthonormal.

    Attributes:
        left: Turns ``out`` into these coordinates, ``(R, R)``.
        right: Turns ``inward`` into them, ``(R, R)``.
        undo_left: Turns the first coordinates back into ``out``, ``(R, R)``.
        undo_right: Turns the second ones back into ``inward``, ``(R, R)``.
    """

    left: Float64
    right: Float64
    undo_left: Float64
    undo_right: Float64


def closest(parts: Sequence[LoraFactors], products: Sequence[Float64], rank: int, ridge: float = RIDGE) -> Mixture:
    """Return the mixture of rank ``rank`` that answers most like each adapter on its own inputs.

    Args:
        parts: One module's factors, one entry an adapter; empty ones for adapters that lack it.
        products: For each adapter the mean of ``z zᵀ`` over its inputs, ``z`` the stacked ``A x``, ``(R, R)``.
        rank: Largest rank of the result.
        ridge: Share of each unit's mean square that is added to the diagonal of each of ``products``.
    """
    frame = frame_of(parts, products, ridge)
    owner = np.repeat(np.arange(len(parts)), [part.rank for part in parts])
    grams = _regular(products, ridge)
    wanted = sum(((owner == i)[:, None] * gram for i, gram in enumerate(grams)), np.zeros_like(frame.left))
    U, S, Vt = np.linalg.svd(frame.left @ np.linalg.solve(np.sum(grams, axis=0), wanted.T).T @ frame.right)
    keep = np.sqrt(S[: min(rank, len(owner))])
    return Mixture(frame.undo_left @ U[:, : len(keep)] * keep, keep[:, None] * Vt[: len(keep)] @ frame.undo_right)


def frame_of(parts: Sequence[LoraFactors], products: Sequence[Float64], ridge: float = RIDGE) -> Frame:
    """Return the coordinates that belong to these responses; see ``closest``."""
    columns = np.concatenate([part.B.astype(np.float64) * part.scaling for part in parts], axis=1)
    left, undo_left = _roots(column_products(columns, columns))
    right, undo_right = _roots(np.sum(_regular(products, ridge), axis=0))
    return Frame(left, right, undo_left, undo_right)


def _regular(products: Sequence[Float64], ridge: float) -> list[Float64]:
    """Return the Gram matrices with a ridge that does not depend on how long the rows of A are."""
    squares = np.diag(np.sum(products, axis=0))
    if not squares.any():  # units that never respond are as good as unit inputs
        return [np.eye(len(squares)) for _ in products]
    squares = np.where(squares > 0, squares, squares[squares > 0].mean())
    return [product + ridge / len(products) * np.diag(squares) for product in products]


def _roots(gram: Float64) -> tuple[Float64, Float64]:
    """Return the symmetric square root of a Gram matrix, and its pseudo-inverse."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > NULL * max(values[-1], 0.0)
    roots = np.sqrt(values[kept])
    vectors = vectors[:, kept]
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
