"""``sce``: the entries that vary most, adapters weighed by energy, minority signs erased (SCE, arXiv 2408.07990)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import Space, merge_elementwise, space_cautions
from hub_merge.elementwise import select_and_erase
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["sce"]


@merge_method(
    "sce",
    formula="x_ij = sum of c_t * w_t * x_t,ij / sum of c_t over the t of elected sign, c_t ~ ‖selected x_t‖²",
    paper="2408.07990",
    cautions=space_cautions,
)
def sce(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    density: Annotated[float, Bounds(0.001, 1)] = 1.0,
    space: Space = "core",
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the mean, entry by entry, of the adapters of an elected sign, weighed by energy (SCE).

    The entries of largest variance across adapters are selected (S); an adapter's coefficient is its share of the
    squares of what is selected (C); values of the minority sign are erased (E), and the others averaged with these
    coefficients. Entries on which adapters agree count as unimportant and are dropped first when density is below 1. At
    the default density 1 all entries are selected.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; the result is their mean, not their sum.
        rank: Largest rank of the result, truncated optimally; the sum of the ranks by default.
        density: Share of the entries that is selected, [0.001, 1]; entries equal to the threshold stay.
        space: Whose entries are meant: those in joint bases of both sides (``core``) or of the output side (``knots``),
            of the dense deltas (``delta``; only the closest update of the result's rank is kept), or of A and B apart
            (``factors``, as PEFT; has cross terms).
        rng: Not used but for the fit in ``delta``.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    return merge_elementwise(parts, weights, select_and_erase(density), space=space, rank=rank, rng=rng)
