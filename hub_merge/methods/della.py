"""``della``: deltas thinned at random, small entries more, merged by elected signs (DELLA, arXiv 2406.11617)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import Space, merge_elementwise, space_cautions
from hub_merge.elementwise import Majority, drop_small_at_random, elected, thin_and_combine
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["della"]


def _cautions(weights: Sequence[float], options: Mapping[str, Any]) -> list[str]:
    told = ["della at density 1 drops nothing and is ties; density=0.5 drops half of the entries"]
    return [*(told if options["density"] == 1 else []), *space_cautions(weights, options)]


@merge_method(
    "della",
    formula="y_t = mask_t * x_t / p_t, p_t = density - epsilon … density + epsilon by rank in the row; then ties",
    paper="2406.11617",
    cautions=_cautions,
)
def della(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    density: Annotated[float, Bounds(0.001, 1)] = 1.0,
    epsilon: Annotated[float, Bounds(0, 1)] = 0.1,
    majority_sign: Majority = "total",
    space: Space = "core",
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the TIES mean of deltas after dropping small entries at random (DELLA).

    In each row of each adapter entries are ranked by magnitude; the chance of keeping one rises with its rank from
    ``density - epsilon`` to ``density + epsilon``, and what is kept is divided by its chance. Then signs are elected
    and the values that agree averaged, as in ``ties``. Epsilon is narrowed where chances would leave [0, 1]. At the
    default density 1 nothing is dropped and the result is that of ``ties``.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; the result is their mean, not their sum.
        rank: Largest rank of the result, truncated optimally; the sum of the ranks by default.
        density: Mean chance of keeping an entry, [0.001, 1].
        epsilon: Half the spread of chances in a row, [0, 1].
        majority_sign: Whether signs vote with their values (``total``) or by count (``frequency``).
        space: Whose entries are meant: those in joint bases of both sides (``core``) or of the output side (``knots``),
            of the dense deltas (``delta``; only the closest update of the result's rank is kept), or of A and B apart
            (``factors``, as PEFT; has cross terms).
        rng: Seeds the masks; each adapter has its own, whatever the order of adapters.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    rule = thin_and_combine(drop_small_at_random(density, epsilon), elected(majority_sign))
    return merge_elementwise(parts, weights, rule, space=space, rank=rank, rng=rng)
