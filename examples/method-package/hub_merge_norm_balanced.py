"""``norm_balanced``: deltas scaled to one norm, then added up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.gram import inner_products, stack
from hub_merge.methods import Bounds, merge_method
from hub_merge.methods.sum import weighted_sum

__all__ = ["norm_balanced"]


@merge_method(
    "norm_balanced", formula="delta = sum_i w_i * (n / ‖delta_i‖)^strength * delta_i, n = norm of all ‖delta_i‖"
)
def norm_balanced(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    norm: Literal["mean", "median"] = "mean",
    strength: Annotated[float, Bounds(0, 1)] = 1.0,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the weighted sum of the deltas after scaling each to the mean norm of all.

    In a plain sum an adapter with large updates drowns one with small updates; here the weights alone say how much each
    counts. Norms are Frobenius norms, module by module, from Gram matrices of the factors. A delta that hardly learned
    anything is enlarged like any other; a smaller ``strength`` holds that back.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; a part of weight 0 has no say in the common norm.
        rank: Largest rank of the result, truncated optimally; the sum of the ranks by default.
        norm: The common norm: the mean or the median of the deltas that are not zero.
        strength: 1 gives all deltas the common norm, 0 is the plain sum, between them a geometric mean, [0, 1].
        rng: Not used.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    norms = [math.sqrt(inner_products(stack([part]), 1)[0, 0]) for part in parts]
    counted = [length for length, weight in zip(norms, weights, strict=True) if length and weight]
    common = float(np.median(counted) if norm == "median" else np.mean(counted)) if counted else 0.0
    balanced = [
        weight * (common / length) ** strength if length else 0.0 for length, weight in zip(norms, weights, strict=True)
    ]
    return weighted_sum(parts, balanced, rank=rank, rng=rng)
