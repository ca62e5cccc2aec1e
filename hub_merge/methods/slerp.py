"""``slerp``: a point on the arc between two deltas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.errors import MergeError
from hub_merge.gram import Float64, inner_products, stack
from hub_merge.methods.registry import Bounds, merge_method
from hub_merge.methods.sum import weighted_sum

__all__ = ["spherical_interpolation"]

STRAIGHT = 1e-6
"""Sine of the angle below which the deltas span no plane that could be told from rounding."""


@merge_method(
    "slerp",
    formula="delta = (sin((1-t)·θ) * w_1 delta_1 + sin(t·θ) * w_2 delta_2) / sin θ, θ the angle between both",
    most_adapters=2,
)
def spherical_interpolation(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    t: Annotated[float, Bounds(0, 1)] = 0.5,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the point at ``t`` on the arc from the first delta to the second.

    Two deltas at an angle lose norm when they are averaged; on the arc they keep it. The angle follows from three inner
    products, and the result is a combination of both deltas, so without a rank nothing is lost. Deltas on one line have
    no arc between them and are interpolated linearly; a module that only one adapter changes keeps that change.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; ``delta_i`` becomes ``w_i * delta_i``.
        rank: Largest rank of the result, truncated optimally.
        t: Place on the arc, [0, 1]: 0 is the first adapter, 1 the second.
        rng: Not used.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).

    Raises:
        MergeError: More than two adapters have the module and a weight.
    """
    kept = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part.rank and weight]
    if not kept:
        return LoraFactors.empty(parts[0].shape)
    if len(kept) > 2:
        raise MergeError(
            f"slerp goes from one adapter to another, and {len(kept)} have a weight here.",
            remedy="Give two adapters a weight and the others 0, or use karcher, the mean of any number on the sphere.",
        )
    present, numbers = [part for part, _ in kept], [weight for _, weight in kept]
    shares = _shares(inner_products(stack(present, numbers), len(kept)), t)
    coefficients = [weight * share for weight, share in zip(numbers, shares, strict=True)]
    return weighted_sum(present, coefficients, rank=rank, rng=rng)


def _shares(products: Float64, t: float) -> tuple[float, ...]:
    """Return the coefficients of the weighted deltas from their inner products."""
    norms = np.sqrt(np.diag(products))
    if np.count_nonzero(norms) < 2:
        return tuple(1.0 for _ in norms)
    angle = math.acos(np.clip(products[0, 1] / (norms[0] * norms[1]), -1.0, 1.0))
    if math.sin(angle) < STRAIGHT:
        return 1 - t, t
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
