"""``magnitude_prune``: the sum of deltas reduced to their largest entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import Space, merge_elementwise, space_cautions
from hub_merge.elementwise import added, keep_largest, thin_and_combine
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["magnitude_prune"]


def _cautions(weights: Sequence[float], options: Mapping[str, Any]) -> list[str]:
    told = ["magnitude_prune at density 1 drops nothing and is the plain sum; density=0.5 drops half of the entries"]
    return [*(told if options["density"] == 1 else []), *space_cautions(weights, options)]


@merge_method(
    "magnitude_prune",
    formula="x = sum_i w_i * trim(x_i), trim keeps the density * size entries of largest magnitude",
    paper="",
    cautions=_cautions,
)
def magnitude_prune(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    density: Annotated[float, Bounds(0.001, 1)] = 1.0,
    space: Space = "core",
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the weighted sum of the deltas after dropping their smallest entries.

    Each adapter keeps its entries of largest magnitude, counted over the module; what is dropped is lost, and nothing
    makes up for the norm that goes with it. At the default density 1 the result is the exact sum.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part.
        rank: Largest rank of the result, truncated optimally; the sum of the ranks by default.
        density: Share of an adapter's entries that is kept, [0.001, 1]; entries equal to the threshold stay.
        space: Whose entries are meant: those in joint bases of both sides (``core``) or of the output side (``knots``),
            of the dense deltas (``delta``; only the closest update of the result's rank is kept), or of A and B apart
            (``factors``, as PEFT; has cross terms).
        rng: Not used but for the fit in ``delta``.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    rule = thin_and_combine(keep_largest(density), added)
    return merge_elementwise(parts, weights, rule, space=space, rank=rank, rng=rng)
