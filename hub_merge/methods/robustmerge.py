"""``robustmerge``: trimmed factors added up, B rescaled for what the trimming took from A (arXiv 2502.17159)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.gram import Float64, best_rank_k, result_dtype, stack
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["robust_merge"]

FLOOR = 0.8
"""Quantile of an adapter's compensations below which they are raised to it."""


def _cross_terms(weights: Sequence[float], options: Mapping[str, Any]) -> list[str]:
    told = "robustmerge adds up the A and the B apart: the composite has cross terms B_i A_j, which are in no adapter"
    return [told] if len(weights) > 1 else []


@merge_method(
    "robustmerge",
    formula="delta = scale * (sum_i s_i trim(B_i) / sum_i s_i) @ sum_i trim(A_i), s_i = ‖a_i‖₁ / ‖trim(a_i)‖₁ by row",
    paper="2502.17159",
    default_rank="largest",
    cautions=_cross_terms,
    breaks=frozenset({"identity"}),
)
def robust_merge(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    density: Annotated[float, Bounds(0, 1)] = 0.2,
    scale: Annotated[float, Bounds(0)] = 4.0,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the product of summed factors, trimmed to their largest entries and rebalanced (RobustMerge).

    Of each A and each B the ``density`` largest entries stay. What the trimming took from row k of ``A_i`` is made good
    by the weight ``s_ik`` that column k of ``B_i`` has in the mean of the B; small weights are raised to the adapter's
    upper quintile. The A are added, so the product has cross terms ``B_i A_j``, which no delta contains, and it depends
    on how the factors are written. A shorter adapter has no share in the rows it lacks.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; both factors carry the square root of weight times scaling, B its sign.
        rank: Largest rank of the result, truncated optimally; the largest rank among the parts by default.
        density: Share of entries kept in each factor, [0, 1].
        scale: Multiplier of the result, dimensionless; the paper's code doubles both factors.
        rng: Not used.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    kept = [(part, weight * part.scaling) for part, weight in zip(parts, weights, strict=True) if part.rank and weight]
    out_features, in_features = parts[0].shape
    rows = max((part.rank for part, _ in kept), default=0)
    A, B, total = np.zeros((rows, in_features)), np.zeros((out_features, rows)), np.zeros(rows)
    for part, factor in kept:
        a = math.sqrt(abs(factor)) * part.A.astype(np.float64)
        b = math.copysign(math.sqrt(abs(factor)), factor) * part.B.astype(np.float64)
        trimmed, taken = _trim(a, density), slice(part.rank)
        share = _compensation(a, trimmed)
        A[taken] += trimmed
        B[:, taken] += share * _trim(b, density)
        total[taken] += share
    B *= scale * np.divide(1.0, total, out=np.zeros(rows), where=total > 0)
    merged = LoraFactors(A, B)
    if rank is not None and rank < rows:
        merged = best_rank_k(stack([merged]), rank)
    return merged.astype(result_dtype(parts))


def _trim(X: Float64, density: float) -> Float64:
    """Return ``X`` with zeros for all but the ``density`` largest magnitudes; equal ones stay together."""
    size = np.abs(X)
    dropped = X.size - math.ceil(density * X.size)
    if not dropped:
        return X
    if dropped == X.size:
        return np.zeros_like(X)
    return np.where(size >= np.partition(size, dropped, axis=None)[dropped], X, 0.0)


def _compensation(A: Float64, trimmed: Float64) -> Float64:
    """Return ``‖a‖₁ / ‖trim(a)‖₁`` by row, raised to its upper quintile; 0 stands in for rows that are gone."""
    left = np.abs(trimmed).sum(axis=1)
    ratio = np.divide(np.abs(A).sum(axis=1), left, out=np.zeros(len(A)), where=left > 0)
    raised: Float64 = np.maximum(ratio, np.sort(ratio)[int(FLOOR * len(ratio))])
    return raised
