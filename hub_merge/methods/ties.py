"""``ties``: trimmed deltas, one elected sign an entry, the mean of those that have it (TIES, arXiv 2306.01708)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import Space, merge_elementwise, space_cautions
from hub_merge.elementwise import Majority, elected, keep_largest, thin_and_combine
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["ties"]


@merge_method(
    "ties",
    formula="x_ij = (1/n_ij) * sum of w_t * trim(x_t)_ij over the n_ij t of elected sign",
    paper="2306.01708",
    cautions=space_cautions,
)
def ties(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    density: Annotated[float, Bounds(0.001, 1)] = 1.0,
    majority_sign: Majority = "total",
    space: Space = "core",
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the mean, entry by entry, of the adapters that agree with an elected sign (TIES).

    Each adapter keeps its entries of largest magnitude, the sum of what is kept elects a sign for each entry, and the
    values of that sign are averaged with their weights; the others are left out. The paper trims over the whole model,
    this trims each module, as PEFT does: modules of small updates keep their share. Signs are elected before weights
    are applied, so an adapter of negative weight still votes for its own sign. At the default density 1 nothing is
    trimmed, as in KnOTS; the TIES paper uses 0.2.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; the result is their mean, not their sum.
        rank: Largest rank of the result, truncated optimally; the sum of the ranks by default.
        density: Share of an adapter's entries that is kept, [0.001, 1]; entries equal to the threshold stay.
        majority_sign: Whether signs vote with their values (``total``) or by count (``frequency``).
        space: Whose entries are meant: those in joint bases of both sides (``core``) or of the output side (``knots``),
            of the dense deltas (``delta``; only the closest update of the result's rank is kept), or of A and B apart
            (``factors``, as PEFT; has cross terms).
        rng: Not used but for the fit in ``delta``.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    rule = thin_and_combine(keep_largest(density), elected(majority_sign))
    return merge_elementwise(parts, weights, rule, space=space, rank=rank, rng=rng)
