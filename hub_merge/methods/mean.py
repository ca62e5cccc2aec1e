"""``mean``: the weighted mean of deltas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.methods.registry import merge_method
from hub_merge.methods.sum import weighted_sum

__all__ = ["weighted_mean"]


def mean_coefficients(weights: Sequence[float], present: Sequence[bool]) -> Sequence[float]:
    """Return each weight divided by the number of adapters that have the module."""
    return [weight / (sum(present) or 1) for weight in weights]


@merge_method(
    "mean",
    formula="delta = (1/T) * sum_i w_i * delta_i, T adapters",
    paper="2212.04089",
    aliases=("average",),
    coefficients=mean_coefficients,
)
def weighted_mean(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the sum of the weighted deltas divided by the number of adapters that have the module.

    With equal norms it halves two adapters where ``sum`` adds them at full strength; adapters that were trained alone
    often interfere less that way. A module of one adapter only stays at full strength; an adapter of weight 0 does not
    count.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part.
        rank: Largest rank of the result, truncated optimally.
        rng: Not used.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    coefficients = mean_coefficients(weights, [part.rank > 0 for part in parts])
    return weighted_sum(parts, coefficients, rank=rank, rng=rng)
