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

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.gram import Float64, column_products
from hub_merge.mixtures import Mixture

__all__ = ["closest"]

RIDGE = 1e-3
"""Share of their mean eigenvalue that is added to the Gram matrices: what the rows leave open goes to the mean."""

NULL = 1e-12


def closest(parts: Sequence[LoraFactors], products: Sequence[Float64], rank: int, ridge: float = RIDGE) -> Mixture:
    """Return the mixture of rank ``rank`` that answers most like each adapter on its own inputs.

    Args:
        parts: One module's factors, one entry an adapter; empty ones for adapters that lack it.
        products: For each adapter the mean of ``z zᵀ`` over its inputs, ``z`` the stacked ``A x``, ``(R, R)``.
        rank: Largest rank of the result.
        ridge: Share of the mean eigenvalue that is added to each of ``products``.
    """
    owner = np.repeat(np.arange(len(parts)), [part.rank for part in parts])
    lengths = np.sqrt(np.diag(sum(products)))
    lengths[lengths == 0] = 1.0
    products = [product / np.outer(lengths, lengths) for product in products]
    mean = sum(np.trace(product) for product in products) / (len(parts) * len(owner))
    floor = ridge * mean if mean else 1.0  # units that never respond are as good as unit inputs
    grams = [product + floor * np.eye(len(owner)) for product in products]
    total = sum(grams, np.zeros((len(owner), len(owner))))
    wanted = sum(((owner == i)[:, None] * gram for i, gram in enumerate(grams)), np.zeros_like(total))
    columns = np.concatenate([part.B.astype(np.float64) * part.scaling for part in parts], axis=1) * lengths
    left, undo_left = _roots(column_products(columns, columns))
    right, undo_right = _roots(total)
    U, S, Vt = np.linalg.svd(left @ np.linalg.solve(total, wanted.T).T @ right)
    keep = np.sqrt(S[: min(rank, len(owner))])
    out, inward = undo_left @ U[:, : len(keep)] * keep, keep[:, None] * Vt[: len(keep)] @ undo_right
    return Mixture(lengths[:, None] * out, inward / lengths)


def _roots(gram: Float64) -> tuple[Float64, Float64]:
    """Return the symmetric square root of a Gram matrix, and its pseudo-inverse."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > NULL * max(values[-1], 0.0)
    roots = np.sqrt(values[kept])
    vectors = vectors[:, kept]
    return (vectors * roots) @ vectors.T, (vectors / roots) @ vectors.T
