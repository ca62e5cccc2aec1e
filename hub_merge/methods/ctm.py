"""``ctm``: all adapters compressed into one pair of subspaces, then merged there (Compress-then-Merge, 2606.03723)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import core_space
from hub_merge.elementwise import NamedRule, apply_rule, named_rule, seeds_of
from hub_merge.gram import Float64, result_dtype
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["compress_then_merge", "shared_subspaces"]

ROUNDING = 1e-12
"""Entries of a core below ``ROUNDING * ‖delta‖`` are zero, so that no rule counts or elects their sign."""


@merge_method(
    "ctm",
    formula="delta = U RULE(Uᵀ w_i delta_i V) Vᵀ; U, V = argmax sum_i ‖Uᵀ z_i V‖² of rank k, z_i ∝ w_i delta_i",
    paper="2606.03723",
    aliases=("compress_then_merge",),
    default_rank="largest",
)
def compress_then_merge(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    rule: NamedRule = "ties",
    density: Annotated[float, Bounds(0.001, 1)] = 1.0,
    beta: Annotated[float, Bounds(0, 1)] = 0.25,
    iterations: Annotated[int, Bounds(0, 1000)] = 20,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return a composite of rank k, merged entry by entry in the k x k coordinates that all adapters share best.

    Truncating after a merge by signs undoes part of it; here the adapters are compressed first. Two subspaces of k
    dimensions, output and input side, are chosen to keep as much of all weighted deltas as possible (Tucker
    decomposition: singular vectors of the deltas side by side, improved by alternating iterations). The rule then
    merges the k x k cores, and the result has rank k by construction. What lies outside the subspaces is lost; with k
    the sum of the ranks nothing is.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part; ``delta_i`` becomes ``w_i * delta_i`` first.
        rank: Rank k of the result; the largest rank among the parts by default.
        rule: ``sum``; ``ties`` keeps each core's largest entries, elects a sign for each entry and averages those that
            have it; ``dare_ties`` keeps entries at random instead.
        density: Share of each core's entries that ``ties`` and ``dare_ties`` keep, [0.001, 1]; the paper runs 0.25.
        beta: How far large deltas count for more in the choice of the subspaces: 0 not at all, 1 by their norm.
        iterations: Alternating improvements of the subspaces.
        rng: Source of the entries that ``dare_ties`` keeps.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    kept = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part.rank and weight]
    if not kept:
        return LoraFactors.empty(parts[0].shape)
    present, numbers = [part for part, _ in kept], [weight for _, weight in kept]
    space = core_space(present)
    deltas = np.array(numbers)[:, None, None] * space.M
    norms = np.linalg.norm(deltas, axis=(1, 2), keepdims=True)
    if not norms.any():
        return LoraFactors.empty(parts[0].shape)
    largest = max(part.rank for part in parts)
    U, V, _ = shared_subspaces(_proxies(deltas, norms, beta), largest if rank is None else rank, iterations)
    cores = U.T @ deltas @ V
    cores[np.abs(cores) <= ROUNDING * norms] = 0.0
    entropy = int(rng.integers(2**63))
    chosen = named_rule(rule, density, "total")
    merged = apply_rule(chosen, cores, np.ones(len(cores)).tolist(), lambda: seeds_of(present, numbers, entropy))
    return space.lift(U @ merged @ V.T, rank).astype(result_dtype(parts))


def _proxies(deltas: Float64, norms: Float64, beta: float) -> Float64:
    """Return the deltas with norms drawn to their mean by ``1 - beta``; those that are zero stay and do not count."""
    wanted = beta * norms + (1 - beta) * norms[norms > 0].mean()
    proxies: Float64 = deltas * np.divide(wanted, norms, out=np.zeros_like(norms), where=norms > 0)
    return proxies


def shared_subspaces(deltas: Float64, rank: int, iterations: int) -> tuple[Float64, Float64, list[float]]:
    """Return the subspaces that keep most of several matrices: HOSVD, improved by HOOI (Tucker-2).

    Args:
        deltas: ``(T, p, q)``.
        rank: Their dimension, cut to p and q.
        iterations: Number of HOOI iterations.

    Returns:
        ``(U, V, kept)``: orthonormal columns ``(p, k)`` and ``(q, k)``, and the energy ``sum_i ‖Uᵀ delta_i V‖²`` at the
        start and after each iteration, which never falls.
    """
    flipped = deltas.transpose(0, 2, 1)
    U, V = _leading(deltas, rank), _leading(flipped, rank)
    kept = [float(np.square(U.T @ deltas @ V).sum())]
    for _ in range(iterations):
        U = _leading(deltas @ V, rank)
        V = _leading(flipped @ U, rank)
        kept.append(float(np.square(U.T @ deltas @ V).sum()))
    return U, V, kept


def _leading(matrices: Float64, rank: int) -> Float64:
    """Return the ``rank`` leading left singular vectors of ``(T, p, q)`` matrices side by side."""
    U, _, _ = np.linalg.svd(np.concatenate(list(matrices), axis=1), full_matrices=False)
    leading: Float64 = U[:, :rank]
    return leading
