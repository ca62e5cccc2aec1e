"""``linear``: factors added up one by one, as PEFT's ``linear`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import merge_elementwise
from hub_merge.elementwise import added, keep_all, thin_and_combine
from hub_merge.methods.registry import merge_method

__all__ = ["linear"]


def _cautions(weights: Sequence[float], options: Mapping[str, Any]) -> list[str]:
    if np.count_nonzero(weights) < 2:
        return []
    return ["linear adds cross terms B_i A_j (i ≠ j) that belong to no adapter; sum is the exact sum of deltas"]


@merge_method(
    "linear",
    formula="delta = (sum_i sqrt|c_i| B_i) (sum_i sign(c_i) sqrt|c_i| A_i), c_i = w_i * scaling_i",
    aliases=("peft_linear",),
    default_rank="largest",
    cautions=_cautions,
)
def linear(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the product of the summed factors: PEFT's ``linear``, for comparison with it.

    The product has the wanted terms ``c_i B_i A_i`` and the cross terms ``B_i A_j`` of every pair, which belong to no
    adapter: two adapters of equal norm give a result that is off by about its own size. It depends on how the deltas
    are factored, too. The rank stays that of the adapters; smaller ones are filled up with zeros, where PEFT refuses.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part.
        rank: Largest rank of the result, truncated optimally; the largest rank among the parts by default.
        rng: Not used.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    rule = thin_and_combine(keep_all, added)
    return merge_elementwise(parts, weights, rule, space="factors", rank=rank, rng=rng)
