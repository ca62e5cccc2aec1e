"""``dare_linear``: the sum of randomly thinned and rescaled deltas (DARE, arXiv 2311.03099)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import Space, merge_elementwise, space_cautions
from hub_merge.elementwise import added, drop_at_random, thin_and_combine
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["dare_linear"]


def _cautions(weights: Sequence[float], options: Mapping[str, Any]) -> list[str]:
    told = ["dare_linear at density 1 drops nothing and is the plain sum; density=0.5 drops half of the entries"]
    return [*(told if options["density"] == 1 else []), *space_cautions(weights, options)]


@merge_method(
    "dare_linear",
    formula="x = sum_i w_i * mask_i * x_i / p, mask_i ~ Bernoulli(p) by entry, p = density",
    paper="2311.03099",
    aliases=("dare",),
    cautions=_cautions,
)
def dare_linear(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    density: Annotated[float, Bounds(0.001, 1)] = 1.0,
    space: Space = "core",
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the weighted sum of the deltas after dropping entries at random (DARE).

    Each entry of each adapter is kept with probability ``density`` and divided by it, so the sum is right on average;
    its standard deviation is ``sqrt((1 - p) / p * sum_i ‖w_i delta_i‖²)``. In ``factors`` the average has PEFT's cross
    terms. At the default density 1 nothing is dropped and the result is the exact sum.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part.
        rank: Largest rank of the result, truncated optimally; the sum of the ranks by default.
        density: Probability of keeping an entry, [0.001, 1].
        space: Whose entries are meant: those in joint bases of both sides (``core``) or of the output side (``knots``),
            of the dense deltas (``delta``; only the closest update of the result's rank is kept), or of A and B apart
            (``factors``, as PEFT; has cross terms).
        rng: Seeds the masks; each adapter has its own, whatever the order of adapters.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    rule = thin_and_combine(drop_at_random(density), added)
    return merge_elementwise(parts, weights, rule, space=space, rank=rank, rng=rng)
