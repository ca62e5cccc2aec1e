"""``wudi``: the delta that acts like each adapter on that adapter's own inputs (WUDI, arXiv 2503.08099)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.gram import NULL, result_dtype
from hub_merge.methods.registry import Bounds, merge_method
from hub_merge.methods.tsv_m import weighted_core

__all__ = ["least_interference"]


def _experimental(weights: Sequence[float], options: Mapping[str, Any]) -> list[str]:
    told = "wudi is experimental: nearly parallel A can make the composite much larger than the sum (see energy_kept)"
    return [f"{told}; a larger ridge than {options['ridge']:g} holds it back"] if len(weights) > 1 else []


@merge_method(
    "wudi",
    formula="delta = argmin_D sum_i ‖(D - d_i) d_iᵀ‖² / ‖d_i‖² + ridge * ‖D - sum_i d_i‖², d_i = w_i delta_i",
    paper="2503.08099",
    cautions=_experimental,
)
def least_interference(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    ridge: Annotated[float, Bounds(0)] = 0.1,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the delta with least interference on the inputs that each adapter responds to (WUDI, closed form).

    The rows of ``A_i`` stand in for adapter i's inputs: there the composite should act like ``delta_i``. WUDI minimises
    the squared difference by a few hundred steps of gradient descent from the sum; the objective is quadratic, so here
    it is solved exactly, and ``ridge`` takes over what stopping early did: it holds the result near the sum. Adapters
    with orthogonal input spaces give their sum. With nearly parallel ones and a small ridge the norm can grow far
    beyond the sum's (three adapters of one seed: 20 times its energy at ridge 0, 3.4 at 0.01, 0.8 at 0.1). The closed
    form is not what the paper measured: experimental.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; ``delta_i`` becomes ``w_i * delta_i`` first.
        rank: Largest rank of the result, truncated optimally.
        ridge: Pull towards the sum, from 0, dimensionless; an adapter's own pull, ``delta_iᵀ delta_i / ‖delta_i‖²``,
            has trace 1.
        rng: Not used.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    space, deltas = weighted_core(parts, weights)
    pulls = deltas.transpose(0, 2, 1) @ deltas
    pulls /= np.trace(pulls, axis1=1, axis2=2)[:, None, None]
    start = deltas.sum(axis=0)
    downhill = ((deltas - start) @ pulls).sum(axis=0)
    values, vectors = np.linalg.eigh(pulls.sum(axis=0))
    reached = values > NULL * values[-1:].sum()
    step = (downhill @ vectors[:, reached]) / (values[reached] + ridge) @ vectors[:, reached].T
    return space.lift(start + step, rank).astype(result_dtype(parts))
