"""``breadcrumbs``: deltas without their largest and smallest entries, added up (arXiv 2312.06795)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import Space, merge_elementwise, space_cautions
from hub_merge.elementwise import added, drop_outliers, thin_and_combine
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["breadcrumbs"]


def _cautions(weights: Sequence[float], options: Mapping[str, Any]) -> list[str]:
    told = ["breadcrumbs at density 1 drops nothing and is the plain sum; density=0.9 drops outliers and a tail"]
    return [*(told if options["density"] == 1 else []), *space_cautions(weights, options)]


@merge_method(
    "breadcrumbs",
    formula="x = sum_i w_i * crumbs(x_i), crumbs drops the gamma * size largest and keeps the density * size next",
    paper="2312.06795",
    cautions=_cautions,
)
def breadcrumbs(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    density: Annotated[float, Bounds(0.001, 1)] = 1.0,
    gamma: Annotated[float, Bounds(0, 1)] = 0.01,
    space: Space = "core",
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the weighted sum of the deltas after dropping their largest and their smallest entries (Breadcrumbs).

    Of each adapter's entries in a module the ``gamma`` share of largest magnitude is dropped as outliers, the
    ``density`` share after them is kept, and the rest is dropped as small. The number kept comes first: with density +
    gamma above 1 fewer outliers are dropped. So at the default density 1 the result is the exact sum.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part.
        rank: Largest rank of the result, truncated optimally; the sum of the ranks by default.
        density: Share of an adapter's entries that is kept, [0.001, 1].
        gamma: Share of the largest entries that is dropped, [0, 1].
        space: Whose entries are meant: those in joint bases of both sides (``core``) or of the output side (``knots``),
            of the dense deltas (``delta``; only the closest update of the result's rank is kept), or of A and B apart
            (``factors``, as PEFT; has cross terms).
        rng: Not used but for the fit in ``delta``.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    rule = thin_and_combine(drop_outliers(density, gamma), added)
    return merge_elementwise(parts, weights, rule, space=space, rank=rank, rng=rng)
