"""``iso_c``: the sum of deltas with all its singular values made equal (Iso-C, arXiv 2502.04959)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.gram import result_dtype
from hub_merge.methods.registry import merge_method
from hub_merge.methods.tsv_m import significant, weighted_core

__all__ = ["isotropic_merge"]


@merge_method(
    "iso_c",
    formula="delta = mean(S) * U Vᵀ, U diag(S) Vᵀ = sum_i w_i delta_i",
    paper="2502.04959",
    breaks=frozenset({"identity"}),
)
def isotropic_merge(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the weighted sum of the deltas with every singular value replaced by their mean (Iso-C).

    Directions in which adapters agree dominate a sum; with a flat spectrum every direction counts alike, and the
    nuclear norm stays. Only the R directions that the sum has are used: averaging in the zeros of a full spectrum, as
    code for full matrices does, would fill the null space with arbitrary vectors. A single adapter is flattened too,
    so it does not come back as it was.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; ``delta_i`` becomes ``w_i * delta_i`` first.
        rank: Largest rank of the result: the directions with the largest singular values of the sum stay. As all of
            the result's are equal, no truncation is nearer to it.
        rng: Not used.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    space, deltas = weighted_core(parts, weights)
    U, S, Vt = np.linalg.svd(deltas.sum(axis=0), full_matrices=False)
    directions = significant(S)
    if not directions:
        return LoraFactors.empty(parts[0].shape)
    kept = slice(directions if rank is None else min(rank, directions))
    return space.lift(S[:directions].mean() * U[:, kept] @ Vt[kept]).astype(result_dtype(parts))
