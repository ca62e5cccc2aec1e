"""``knots``: deltas aligned by a joint SVD and merged there (KnOTS, arXiv 2410.19735)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import merge_elementwise
from hub_merge.elementwise import Majority, NamedRule, named_rule
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["knots"]


@merge_method(
    "knots",
    formula="[delta_1 | … | delta_T] = U [P_1 | … | P_T]; delta = U @ rule(w_1 P_1, …, w_T P_T)",
    paper="2410.19735",
)
def knots(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    rule: NamedRule = "ties",
    density: Annotated[float, Bounds(0.001, 1)] = 1.0,
    majority_sign: Majority = "total",
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the merge of the deltas in the left basis that a joint SVD gives them (KnOTS).

    The deltas side by side have one SVD, whose left singular vectors are shared; each adapter's ``P_i = S V_iᵀ`` are
    its coordinates there, and the rule merges those entry by entry. The SVD comes from R x R matrices (R the sum of
    ranks); directions below the numerical rank are dropped. With ``sum`` the result is the exact sum. The authors' code
    trims nothing for ``ties`` and multiplies the result by 0.5, and takes density 0.2 and 0.4 for ``dare_ties``; give
    such factors as weights.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part.
        rank: Largest rank of the result, truncated optimally; the sum of the ranks by default.
        rule: ``sum``, ``ties`` or ``dare_ties``, see the methods of these names.
        density: Share of entries that ``ties`` keeps, chance of keeping one in ``dare_ties``, [0.001, 1].
        majority_sign: Whether signs vote with their values (``total``) or by count (``frequency``).
        rng: Seeds the masks of ``dare_ties``.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    chosen = named_rule(rule, density, majority_sign)
    return merge_elementwise(parts, weights, chosen, space="knots", rank=rank, rng=rng)
