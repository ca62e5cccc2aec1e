"""``pico``: a step before any other method that turns down crowded output directions (Pico, arXiv 2604.16826)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import core_space
from hub_merge.gram import Float64, inner_products, result_dtype, stack
from hub_merge.methods.registry import MethodName, get_method, merge_method

__all__ = ["calibrated_merge"]


def _cautions(weights: Sequence[float], options: Mapping[str, Any]) -> Sequence[str]:
    method = get_method(options["then"])
    return method.cautions(weights, method.parse_options({})) if method.cautions else []


@merge_method(
    "pico",
    formula="delta = c * METHOD(P delta_1 … P delta_T), P = I + sum_j (1/(1 + (T-1) e_j) - 1) u_j u_jᵀ, Σ e_j = 1",
    paper="2604.16826",
    cautions=_cautions,
)
def calibrated_merge(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    then: Annotated[str, MethodName()] = "sum",
    directions: Literal["deltas", "factors"] = "deltas",
    rng: np.random.Generator,
) -> LoraFactors:
    """Return what another method makes of the adapters after their shared output directions were turned down (Pico).

    Adapters get into each other's way mostly in the output directions that many of them use. Each direction ``u_j``,
    left singular vector of all weighted deltas side by side, has a share ``e_j`` of their energy; every B is shrunk
    along it by ``1 / (1 + (T-1) e_j)``. Then the other method merges, with its default options, and the result is
    scaled to the mean norm of the weighted deltas. One adapter comes back as that method gives it.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; enters the energies and the norm as ``w_i * delta_i``, and the other method.
        rank: Rank of the result, as the other method understands it.
        then: The other method.
        directions: ``deltas`` takes them and their energies from the deltas; ``factors`` from the B with weight and
            scaling, as the paper does, which depends on how length is shared between A and B.
        rng: Passed on to the other method.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    kept = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part.rank and weight]
    if not kept:
        return LoraFactors.empty(parts[0].shape)
    present, numbers = [part for part, _ in kept], [weight for _, weight in kept]
    norms = np.sqrt(np.diag(inner_products(stack(present, numbers), len(kept))))
    count = int(np.count_nonzero(norms))
    calibrated = _calibrated(present, numbers, directions, count)
    method = get_method(then)
    merged = method.kernel(calibrated, numbers, rank=rank, rng=rng, **method.parse_options({}))
    norm = np.sqrt(inner_products(stack([merged]), 1)[0, 0])
    length = norms.sum() / count / norm if norm > 0 else 0.0
    return LoraFactors(merged.A, length * merged.scaling * merged.B.astype(np.float64)).astype(result_dtype(parts))


def _calibrated(parts: Sequence[LoraFactors], weights: Sequence[float], kind: str, count: int) -> list[LoraFactors]:
    """Return the parts with each B shrunk along the output directions that ``count`` adapters share."""
    space = core_space(parts)
    basis = space.stacked.left(space.left)
    columns = [basis.T @ part.B.astype(np.float64) for part in parts]
    if kind == "deltas":
        counted = [weight * delta for weight, delta in zip(weights, space.M, strict=True)]
    else:
        counted = [weight * part.scaling * own for weight, part, own in zip(weights, parts, columns, strict=True)]
    shrink = _shrink(np.concatenate(counted, axis=1), count)
    return [
        LoraFactors(part.A, part.B + basis @ (shrink @ own), part.scaling)
        for part, own in zip(parts, columns, strict=True)
    ]


def _shrink(columns: Float64, count: int) -> Float64:
    """Return ``sum_j (1/(1 + (T-1) e_j) - 1) u_j u_jᵀ`` for the left singular vectors and energies of ``columns``."""
    U, S, _ = np.linalg.svd(columns, full_matrices=False)
    share = S**2 / (S**2).sum()
    shrink: Float64 = (U * (1 / (1 + (count - 1) * share) - 1)) @ U.T
    return shrink
