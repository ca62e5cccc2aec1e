"""``iso_cts``: equal singular values over common and task-specific directions (Iso-CTS, arXiv 2502.04959)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.gram import Float64, result_dtype
from hub_merge.methods.registry import Bounds, merge_method
from hub_merge.methods.tsv_m import ROUNDING, polar, significant, weighted_core

__all__ = ["common_and_specific_merge"]

Triplets = tuple[Float64, Float64, Float64]


@merge_method(
    "iso_cts",
    formula="delta = mean(S) * polar(U) polar(V)ᵀ, (U, S, V) = top of sum_i w_i delta_i, then top of each one's rest",
    paper="2502.04959",
    breaks=frozenset({"identity"}),
)
def common_and_specific_merge(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    common: Annotated[float, Bounds(0, 1)] = 0.8,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return equal singular values over the sum's main directions and each adapter's own (Iso-CTS).

    Of the R directions that the weighted sum has, the ``common`` largest stay. The others are replaced by what they
    represent worst: the largest directions of each delta outside the common output space, as many from each adapter.
    All are made orthogonal, left and right, by their polar factors and get the mean of their singular values. As in
    ``iso_c``, nothing outside the adapters' own directions is used, and a single adapter does not come back as it was.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; ``delta_i`` becomes ``w_i * delta_i`` first.
        rank: Largest rank of the result: common directions stay first, then the largest of the others.
        common: Share of directions taken from the sum, [0, 1], rounded so that every adapter gets as many of the rest.
        rng: Not used.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    space, deltas = weighted_core(parts, weights)
    total = _svd(deltas.sum(axis=0))
    directions = len(total[1])
    if not directions:
        return LoraFactors.empty(parts[0].shape)
    each = min(round((directions - int(common * directions)) / len(deltas)), directions // len(deltas))
    shared = _top(total, directions - len(deltas) * each)
    norms = np.linalg.norm(deltas, ord=2, axis=(1, 2))
    rest = deltas - shared[0] @ (shared[0].T @ deltas)
    specific = _joined([_top(_svd(outside, norm), each) for outside, norm in zip(rest, norms, strict=True)])
    U, S, V = _joined([shared, _top(specific, len(specific[1]))])
    kept = slice(rank)
    return space.lift(S.mean() * polar(U)[:, kept] @ polar(V)[:, kept].T).astype(result_dtype(parts))


def _svd(delta: Float64, norm: float = 0.0) -> Triplets:
    """Return the triplets ``(U, S, V)`` of ``delta``, part of something of that norm, that are not rounding."""
    U, S, Vt = np.linalg.svd(delta, full_matrices=False)
    kept = slice(min(significant(S), np.count_nonzero(S > ROUNDING * norm)))
    return U[:, kept], S[kept], Vt[kept].T


def _top(triplets: Triplets, count: int) -> Triplets:
    """Return the ``count`` triplets of largest singular value, in order."""
    order = np.argsort(-triplets[1], kind="stable")[:count]
    return triplets[0][:, order], triplets[1][order], triplets[2][:, order]


def _joined(sets: Sequence[Triplets]) -> Triplets:
    U, S, V = (np.concatenate(pieces, axis=-1) for pieces in zip(*sets, strict=True))
    return U, S, V
