"""``svd``: the sum of deltas at the largest rank of its parts, truncated optimally."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.methods.registry import merge_method
from hub_merge.methods.sum import weighted_sum

__all__ = ["truncated_sum"]


@merge_method("svd", formula="delta = rank-k SVD of sum_i w_i * delta_i", paper="2212.04089", default_rank="largest")
def truncated_sum(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the update of rank k that is closest to the weighted sum of the deltas.

    The same as ``sum`` with a rank, but the rank defaults to the largest among the parts, so the composite is as small
    as its parents. The singular values come from R x R matrices (R the sum of ranks), never from a dense delta.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part.
        rank: Rank of the result; the largest rank among the parts by default.
        rng: Not used.

    Returns:
        Factors with scaling 1 that carry the square roots of the singular values, float32 (float64 if a part is).
    """
    largest = max(part.rank for part in parts)
    return weighted_sum(parts, weights, rank=largest if rank is None else rank, rng=rng)
