"""``tsv_m``: every adapter's singular vectors side by side, decorrelated (Task Singular Vectors, arXiv 2412.00081)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import CoreSpace, core_space
from hub_merge.gram import Float64, result_dtype
from hub_merge.methods.registry import merge_method

__all__ = ["polar", "significant", "tsv_merge", "weighted_core"]

ROUNDING = 1e-7
"""Singular values below ``ROUNDING * largest`` are rounding of the stored factors, not directions."""


@merge_method(
    "tsv_m",
    formula="delta = polar([U_1 … U_T]) @ diag(S_1 … S_T) @ polar([V_1 … V_T])ᵀ, w_i delta_i = U_i S_i V_iᵀ",
    paper="2412.00081",
    aliases=("tsvm",),
)
def tsv_merge(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    keep: Literal["all", "share"] = "all",
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the deltas' singular triplets with their vectors made orthogonal across adapters (TSV-M).

    The singular vectors of all weighted deltas are put side by side, left and right, and each set is replaced by the
    nearest orthonormal one, its polar factor; the singular values stay. Orthogonal adapters give their sum, and what
    adapters share is not counted twice. All of it happens in the joint space of the adapters, of R dimensions: in the
    full space, as first published, null vectors of the deltas would take part.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; ``delta_i`` becomes ``w_i * delta_i`` first.
        rank: Largest rank of the result, truncated optimally.
        keep: ``all`` takes every singular triplet of an adapter, ``share`` the largest 1/T of them, at least one.
        rng: Not used.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    space, deltas = weighted_core(parts, weights)
    if not len(deltas):
        return LoraFactors.empty(parts[0].shape)
    kept = [_triplets(delta, len(deltas) if keep == "share" else 1) for delta in deltas]
    U, S, V = (np.concatenate(pieces, axis=-1) for pieces in zip(*kept, strict=True))
    return space.lift((polar(U) * S) @ polar(V).T, rank).astype(result_dtype(parts))


def weighted_core(parts: Sequence[LoraFactors], weights: Sequence[float]) -> tuple[CoreSpace, Float64]:
    """Return the core space of the parts that have a weight, and their weighted deltas in it that are not zero.

    Returns:
        The space and ``w_i * M_i`` as ``(T, p, q)``; T is 0 if there is nothing to merge.
    """
    kept = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part.rank and weight]
    if not kept:
        kept = [(LoraFactors.empty(parts[0].shape), 0.0)]
    space = core_space([part for part, _ in kept])
    deltas = np.array([weight for _, weight in kept])[:, None, None] * space.M
    return space, deltas[deltas.any(axis=(1, 2))]


def significant(values: Float64) -> int:
    """Return how many singular values, largest first, are more than rounding."""
    return int(np.count_nonzero(values > ROUNDING * values[:1].sum()))


def polar(columns: Float64) -> Float64:
    """Return the orthonormal columns nearest to ``columns``, ``(n, k)``; dependent ones share what they span."""
    U, S, Vt = np.linalg.svd(columns, full_matrices=False)
    rank = significant(S)
    nearest: Float64 = U[:, :rank] @ Vt[:rank]
    return nearest


def _triplets(delta: Float64, among: int) -> tuple[Float64, Float64, Float64]:
    """Return the singular triplets ``(U, S, V)`` of ``delta``, the largest one of every ``among``, at least one."""
    U, S, Vt = np.linalg.svd(delta, full_matrices=False)
    rank = max(significant(S) // among, 1)
    return U[:, :rank], S[:rank], Vt[:rank].T
