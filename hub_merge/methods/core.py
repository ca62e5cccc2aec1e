"""``core``: deltas in joint bases of all their factors and merged there (Core Space, arXiv 2509.17786)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import Basis, merge_elementwise
from hub_merge.elementwise import Majority, NamedRule, named_rule
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["core"]


@merge_method(
    "core",
    formula="delta_i = U M_i V, U and V of all B and A; delta = U @ rule(w_1 M_1, …, w_T M_T) @ V",
    paper="2509.17786",
    presets={"faithful": {"basis": "factors"}},
)
def core(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    rule: NamedRule = "ties",
    density: Annotated[float, Bounds(0.001, 1)] = 1.0,
    majority_sign: Majority = "total",
    basis: Basis = "deltas",
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the merge of the deltas in joint bases of both their sides (Core Space).

    The left singular vectors of all B side by side and the right singular vectors of all A on top of each other give
    each delta a small matrix ``M_i`` (R x R, R the sum of ranks) without loss; the rule merges those entry by entry.
    With ``sum`` the result is the exact sum. In the paper the bases come from the factors as they were trained, so one
    delta factored in two ways gives two results; here they come from the deltas, and the preset ``faithful`` does as
    the paper does.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part.
        rank: Largest rank of the result, truncated optimally; the sum of the ranks by default.
        rule: ``sum``, ``ties`` or ``dare_ties``, see the methods of these names.
        density: Share of entries that ``ties`` keeps, chance of keeping one in ``dare_ties``, [0.001, 1].
        majority_sign: Whether signs vote with their values (``total``) or by count (``frequency``).
        basis: ``deltas`` balances each adapter by its own SVD first, so that the result depends on the deltas only;
            ``factors`` takes A and B as they are.
        rng: Seeds the masks of ``dare_ties``.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    chosen = named_rule(rule, density, majority_sign)
    return merge_elementwise(parts, weights, chosen, space="core", basis=basis, rank=rank, rng=rng)
