"""``lego``: a composite of any rank from clusters of Minimal Semantic Units (LoRA-LEGO, arXiv 2409.16167)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hub_merge.adapter import Array, LoraFactors
from hub_merge.clustering import Labels, kmeans, ward
from hub_merge.gram import Float64, at_unit_length, best_rank_k, column_products, result_dtype, row_products, stack
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["Pool", "canonical_order", "lego", "pool_units", "unit_products"]

Canonical = Literal["none", "balance", "svd"]
Clustering = Literal["kmeans", "ward"]
FOLD = 32
"""Rows that are reduced as one."""

Feature = Literal["raw", "unit_halves"]


def _mixed_signs(weights: Sequence[float], options: Mapping[str, Any]) -> list[str]:
    if min(weights) < 0 < max(weights):
        return ["lego with weights of both signs: units that should cancel may be averaged in one cluster instead"]
    return []


@merge_method(
    "lego",
    formula="k clusters of all units [a_j; b_j]; [a; b]_c = rho_c * mean of cluster c; delta = tau * sum_c b_c a_cᵀ",
    paper="2409.16167",
    aliases=("msu",),
    default_rank="largest",
    presets={"canonical": {}, "faithful": {"canonicalize": "none", "order": "given"}},
    cautions=_mixed_signs,
)
def lego(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    feature: Feature = "raw",
    canonicalize: Canonical = "balance",
    order: Literal["canonical", "given"] = "canonical",
    parameter_reweight: Literal["inf", "l2", "none"] = "inf",
    output_reweight: Literal["sqrt_rank_over_k", "sqrt_total_over_k", "none"] = "sqrt_rank_over_k",
    clustering: Clustering = "kmeans",
    starts: Annotated[int, Bounds(1, 1000)] = 10,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return a composite of rank k whose rank-one units are centroids of clusters of all adapters' units.

    Row j of A and column j of B form one Minimal Semantic Unit. The units of all adapters, each carrying the square
    root of its weight and scaling on both halves, go into one pool; k-means, or Ward's linkage, makes k clusters of
    ``[a; b]``. Each centroid is rescaled to the average norm of its cluster (*parameter reweighting*, against norms
    that shrink by averaging) and the whole by sqrt(r/k) (*output reweighting*, against variance that grows with k).

    The plain method depends on how the factors are written, not only on the delta: flipping the sign of one unit
    changes the result. By default the units are therefore brought to a canonical form and order first. The preset
    ``faithful`` leaves them as they come, as independent re-implementations of the paper do; the paper's own code is
    not public, so the norm (infinity) and the factor sqrt(r/k) are inferred from those.

    k-means is the default because the paper uses it and Ward's linkage gave no better answer perplexity in the one
    comparison made, on pairs and the triple of three adapters of one small base (``benchmarks/results/clustering.md``).

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part.
        rank: Number of clusters k; the largest rank among the parts by default. With fewer units than k, each stays.
        feature: What is clustered: ``[a; b]`` as it is, or with both halves scaled to length one.
        canonicalize: ``balance`` gives both halves one length and a sign rule; ``svd`` rewrites each adapter in
            singular form, so that only its delta matters; ``none`` leaves the units as they are.
        order: ``canonical`` sorts the units, so that the order of adapters does not matter; ``given`` keeps it.
        parameter_reweight: Norm that the centroid takes over as the cluster's average, or ``none``.
        output_reweight: ``sqrt_rank_over_k`` with r the mean rank of the parts, ``sqrt_total_over_k`` with the
            number of units, or ``none``.
        clustering: ``kmeans``, or ``ward`` for Ward's linkage, which draws nothing: no seed and no starts.
        starts: Starts of k-means; the clustering of least inertia counts.
        rng: Seeds k-means.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    pool = pool_units(parts, weights, canonicalize)
    if not pool.count:
        return LoraFactors.empty(parts[0].shape)
    if order == "canonical":
        pool = pool.ordered(canonical_order(pool))
    ranks = [part.rank for part, weight in zip(parts, weights, strict=True) if part.rank and weight]
    clusters = min(rank or max(part.rank for part in parts), pool.count)
    labels = _cluster(pool, clusters, feature, clustering, starts, rng)
    a, b = _centroids(pool, labels, clusters, parameter_reweight)
    spread = {
        "sqrt_rank_over_k": math.sqrt(sum(ranks) / len(ranks) / clusters),
        "sqrt_total_over_k": math.sqrt(pool.count / clusters),
        "none": 1.0,
    }[output_reweight]
    return LoraFactors(a, b * b.dtype.type(spread))


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Units of several adapters: unit j is ``[scale_a[j] * A[j]; scale_b[j] * B[:, j]]``.

    Attributes:
        A: Rows, ``(N, in)``.
        B: Columns, ``(out, N)``.
        scale_a: Weight, scaling and canonical form of the first half, ``(N,)``.
        scale_b: The same of the second half.
    """

    A: Array
    B: Array
    scale_a: Float64
    scale_b: Float64

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.scale_a)

    def ordered(self, order: NDArray[np.intp]) -> Pool:
        """Return the units in another order, or some of them."""
        return Pool(self.A[order], np.take(self.B, order, axis=1), self.scale_a[order], self.scale_b[order])

    def norms(self, norm: str) -> Float64:
        """Return the norm of each unit, ``inf`` or ``l2``, ``(N,)``."""
        if norm == "inf":
            return np.maximum(np.abs(self.scale_a) * _row_peaks(self.A), np.abs(self.scale_b) * _column_peaks(self.B))
        norms: Float64 = np.hypot(self.scale_a * _lengths(self.A, 1), self.scale_b * _lengths(self.B, 0))
        return norms


def _row_peaks(X: Array) -> Float64:
    """Return the largest absolute value of each row."""
    peaks: Float64 = np.maximum(X.max(axis=1), -X.min(axis=1)).astype(np.float64)
    return peaks


def _column_peaks(X: Array) -> Float64:
    """Return the largest absolute value of each column.

    Several rows are taken as one, for numpy is slow to reduce short rows.
    """
    rows, columns = X.shape
    even = rows - rows % FOLD
    folded = np.ascontiguousarray(X[:even]).reshape(-1, FOLD * columns)
    both = [np.maximum(block.max(axis=0, initial=0), -block.min(axis=0, initial=0)) for block in (folded, X[even:])]
    peaks: Float64 = np.maximum(both[0].reshape(FOLD, columns).max(axis=0), both[1]).astype(np.float64)
    return peaks


def _lengths(X: Array, axis: int) -> Float64:
    """Return lengths along ``axis``, each from its own vector alone, so that none depends on the others' order."""
    lengths: Float64 = np.sqrt(np.square(X, dtype=np.float64, order="C").sum(axis))
    return lengths


def pool_units(parts: Sequence[LoraFactors], weights: Sequence[float], canonicalize: Canonical) -> Pool:
    """Return the units of all parts that have a weight, in the order given."""
    pools = [_units(part, weight, canonicalize) for part, weight in zip(parts, weights, strict=True) if weight]
    if not pools:
        return _units(LoraFactors.empty(parts[0].shape), 1.0, "none")
    dtype = result_dtype(parts)
    return Pool(
        np.concatenate([pool.A for pool in pools], axis=0, dtype=dtype),
        np.concatenate([pool.B for pool in pools], axis=1, dtype=dtype),
        np.concatenate([pool.scale_a for pool in pools]),
        np.concatenate([pool.scale_b for pool in pools]),
    )


def _units(part: LoraFactors, weight: float, canonicalize: Canonical) -> Pool:
    """Return the units of one adapter, with the root of weight and scaling on both halves."""
    part = best_rank_k(stack([part]), part.rank) if canonicalize == "svd" else part.astype(result_dtype([part]))
    factor = weight * part.scaling
    root = math.sqrt(abs(factor))
    units = Pool(part.A, part.B, np.full(part.rank, root), np.full(part.rank, math.copysign(root, factor)))
    if canonicalize == "none" or not part.rank:
        return units
    lengths_a, lengths_b = _lengths(part.A, 1), _lengths(part.B, 0)
    leads_up = part.A.max(axis=1) >= -part.A.min(axis=1)
    alive = (lengths_a > 0) & (lengths_b > 0)
    if not alive.all():
        kept = np.flatnonzero(alive)
        units, leads_up, lengths_a, lengths_b = units.ordered(kept), leads_up[kept], lengths_a[kept], lengths_b[kept]
    balance = np.where(leads_up, 1.0, -1.0) * np.sqrt(lengths_b / lengths_a)
    return replace(units, scale_a=units.scale_a * balance, scale_b=units.scale_b / balance)


def canonical_order(pool: Pool) -> NDArray[np.intp]:
    """Sort the units by their first numbers, by all of them where those are equal."""
    head = pool.scale_a[:, None] * pool.A[:, :32]
    order = np.lexsort(head.T[::-1])
    if not (head[order[1:]] == head[order[:-1]]).all(axis=1).any():
        return order

    def key(j: int) -> tuple[list[float], bytes, bytes]:
        return head[j].tolist(), (pool.scale_a[j] * pool.A[j]).tobytes(), (pool.scale_b[j] * pool.B[:, j]).tobytes()

    return np.array(sorted(range(pool.count), key=key))


def _cluster(
    pool: Pool, clusters: int, feature: Feature, clustering: Clustering, starts: int, rng: np.random.Generator
) -> Labels:
    if clusters == pool.count:
        return np.arange(clusters)
    gram = unit_products(pool, feature)
    return ward(gram, clusters) if clustering == "ward" else kmeans(gram, clusters, starts=starts, rng=rng)


def unit_products(pool: Pool, feature: Feature) -> Float64:
    """Return the inner products of what is clustered, ``(N, N)``."""
    gram_a = row_products(pool.A, pool.A) * np.outer(pool.scale_a, pool.scale_a)
    gram_b = column_products(pool.B, pool.B) * np.outer(pool.scale_b, pool.scale_b)
    if feature == "unit_halves":
        gram_a, gram_b = at_unit_length(gram_a)[1], at_unit_length(gram_b)[1]
    return gram_a + gram_b


def _centroids(pool: Pool, labels: Labels, clusters: int, reweight: str) -> tuple[Array, Array]:
    """Return the rows of A and the columns of B of the centroids, rescaled to their clusters' average norm."""
    member = (labels == np.arange(clusters)[:, None]).astype(np.float64)
    member /= member.sum(axis=1, keepdims=True)
    a = (member * pool.scale_a).astype(pool.A.dtype) @ pool.A
    b = pool.B @ (member * pool.scale_b).T.astype(pool.B.dtype)
    if reweight == "none":
        return a, b
    present = Pool(a, b, np.ones(clusters), np.ones(clusters)).norms(reweight)
    rescale = np.divide(member @ pool.norms(reweight), present, out=np.ones(clusters), where=present > 0)
    rescale = rescale.astype(a.dtype)
    return a * rescale[:, None], b * rescale
