"""``dare_ties``: randomly thinned and rescaled deltas merged by elected signs (DARE, arXiv 2311.03099, and TIES)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import Space, merge_elementwise, space_cautions
from hub_merge.elementwise import Majority, drop_at_random, elected, thin_and_combine
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["dare_ties"]


def _cautions(weights: Sequence[float], options: Mapping[str, Any]) -> list[str]:
    told = ["dare_ties at density 1 drops nothing and is ties; density=0.5 drops half of the entries"]
    return [*(told if options["density"] == 1 else []), *space_cautions(weights, options)]


@merge_method(
    "dare_ties",
    formula="y_t = mask_t * x_t / p; x_ij = (1/n_ij) * sum of w_t * y_t,ij over the n_ij t of elected sign",
    paper="2311.03099",
    cautions=_cautions,
)
def dare_ties(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    density: Annotated[float, Bounds(0.001, 1)] = 1.0,
    majority_sign: Majority = "total",
    space: Space = "core",
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the TIES mean of deltas after dropping entries at random (DARE-TIES).

    Each entry of each adapter is kept with probability ``density`` and divided by it; then signs are elected and the
    values that agree averaged, as in ``ties``. Where few adapters keep an entry there is less to disagree about. At the
    default density 1 nothing is dropped and the result is that of ``ties``; KnOTS used 0.2.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; the result is their mean, not their sum.
        rank: Largest rank of the result, truncated optimally; the sum of the ranks by default.
        density: Probability of keeping an entry, [0.001, 1].
        majority_sign: Whether signs vote with their values (``total``) or by count (``frequency``).
        space: Whose entries are meant: those in joint bases of both sides (``core``) or of the output side (``knots``),
            of the dense deltas (``delta``; only the closest update of the result's rank is kept), or of A and B apart
            (``factors``, as PEFT; has cross terms).
        rng: Seeds the masks; each adapter has its own, whatever the order of adapters.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    rule = thin_and_combine(drop_at_random(density), elected(majority_sign))
    return merge_elementwise(parts, weights, rule, space=space, rank=rank, rng=rng)
