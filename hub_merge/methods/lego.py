"""``lego``: a composite of any rank from clusters of Minimal Semantic Units (LoRA-LEGO, arXiv 2409.16167)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hub_merge.adapter import Array, LoraFactors
from hub_merge.clustering import Labels, kmeans, ward
from hub_merge.gram import (
    Float64,
    at_unit_length,
    best_rank_k,
    cholesky_if_apart,
    column_products,
    result_dtype,
    row_products,
    stack,
)
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["Pool", "Units", "canonical_order", "clustered_products", "lego", "pool_units", "scaled_units"]

Canonical = Literal["none", "balance", "svd"]
Clustering = Literal["kmeans", "ward"]
Feature = Literal["raw", "unit_halves"]

FOLD = 32
"""Rows that are reduced as one."""

NEARLY_NOTHING = 1e-300
"""Stands for the root of a factor of zero where that is divided by."""

TINY = 2.0**-40
"""Length of a vector below which squares of its numbers may be too small for float32."""


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
    if order == "canonical":
        pool = pool.ordered(canonical_order(pool, canonicalize))
    units = scaled_units(pool, canonicalize)
    if not units.count:
        return LoraFactors.empty(parts[0].shape)
    ranks = [part.rank for part, weight in zip(parts, weights, strict=True) if part.rank and weight]
    clusters = min(rank or max(part.rank for part in parts), units.count)
    labels = _cluster(units, clusters, feature, clustering, starts, rng)
    a, b = _centroids(units, labels, clusters, parameter_reweight)
    spread = {
        "sqrt_rank_over_k": math.sqrt(sum(ranks) / len(ranks) / clusters),
        "sqrt_total_over_k": math.sqrt(units.count / clusters),
        "none": 1.0,
    }[output_reweight]
    b *= b.dtype.type(spread)
    return LoraFactors(a, b)


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Units of several adapters as they are stored: unit j stands for ``factors[j] * B[:, j] A[j]``.

    Attributes:
        A: Rows, ``(N, in)``.
        B: Columns, ``(out, N)``.
        factors: Weight times scaling, ``(N,)``.
    """

    A: Array
    B: Array
    factors: Float64

    def ordered(self, order: NDArray[np.intp]) -> Pool:
        """Return the units in another order, or some of them."""
        return Pool(self.A[order], np.take(self.B, order, axis=1), self.factors[order])


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Units as they are clustered: unit j is ``[scale_a[j] * A[j]; scale_b[j] * B[:, j]]``.

    Attributes:
        A: Rows, ``(N, in)``.
        B: Columns, ``(out, N)``.
        scale_a: Weight, scaling and canonical form of the first half, ``(N,)``.
        scale_b: The same of the second half.
        gram_a: Inner products of the first halves, ``(N, N)``.
        gram_b: The same of the second halves.
    """

    A: Array
    B: Array
    scale_a: Float64
    scale_b: Float64
    gram_a: Float64
    gram_b: Float64

    @property
    def count(self) -> int:
        """Number of units."""
        return len(self.scale_a)

    def norms(self, norm: str) -> Float64:
        """Return the norm of each unit, ``inf`` or ``l2``, ``(N,)``."""
        if norm == "l2":
            norms: Float64 = np.sqrt(np.diag(self.gram_a) + np.diag(self.gram_b))
            return norms
        return np.maximum(np.abs(self.scale_a) * _row_peaks(self.A), np.abs(self.scale_b) * _column_peaks(self.B))


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


def pool_units(parts: Sequence[LoraFactors], weights: Sequence[float], canonicalize: Canonical) -> Pool:
    """Return the units of all parts that have a weight, in the order given."""
    kept = [(part, weight) for part, weight in zip(parts, weights, strict=True) if weight]
    if canonicalize == "svd":
        kept = [(best_rank_k(stack([part]), part.rank), weight) for part, weight in kept]
    kept = kept or [(LoraFactors.empty(parts[0].shape), 1.0)]
    dtype = result_dtype(parts)
    return Pool(
        np.concatenate([part.A for part, _ in kept], axis=0, dtype=dtype),
        np.concatenate([part.B for part, _ in kept], axis=1, dtype=dtype),
        np.repeat([weight * part.scaling for part, weight in kept], [part.rank for part, _ in kept]),
    )


def _leads(pool: Pool) -> Float64:
    """Return the first entry of each row of A that is largest by magnitude, 1 for a zero row, ``(N,)``."""
    high, low = pool.A.max(axis=1, initial=0), pool.A.min(axis=1, initial=0)
    leads: Float64 = np.where(high >= -low, high, low).astype(np.float64)
    for row in np.flatnonzero((high == -low) & (high > 0)):  # frequent in bfloat16, which has few numbers
        leads[row] = pool.A[row, np.abs(pool.A[row]).argmax()]
    return np.where(leads == 0, 1.0, leads)


def canonical_order(pool: Pool, canonicalize: Canonical) -> NDArray[np.intp]:
    """Sort the units by their first numbers, by all of them where those are equal.

    Units of a canonical form are compared without the sign and length of A, which go over to B.
    """
    plain = canonicalize == "none"
    divisor = 1 / np.maximum(np.sqrt(np.abs(pool.factors)), NEARLY_NOTHING) if plain else _leads(pool)
    head = pool.A[:, :32] / divisor[:, None]  # where the lead is among them it becomes 1, exactly, in every form
    order = np.lexsort(head.T[::-1])
    if not (head[order[1:]] == head[order[:-1]]).all(axis=1).any():
        return order

    def key(j: int) -> tuple[list[float], bytes, bytes]:
        rest = pool.factors[j] * divisor[j]
        return head[j].tolist(), (pool.A[j] / divisor[j]).tobytes(), (rest * pool.B[:, j]).tobytes()

    return np.array(sorted(range(len(head)), key=key), np.intp)


def scaled_units(pool: Pool, canonicalize: Canonical) -> Units:
    """Return the units with the root of weight and scaling on both halves, in canonical form, zero ones left out."""
    (lengths_a, gram_a), (lengths_b, gram_b) = _unit_products(pool)
    scale_a = np.sqrt(np.abs(pool.factors))
    scale_b = np.copysign(scale_a, pool.factors)
    if canonicalize != "none":
        if not (alive := (np.diag(gram_a) > 0) & (np.diag(gram_b) > 0)).all():
            return scaled_units(pool.ordered(np.flatnonzero(alive)), canonicalize)
        balance = np.copysign(np.sqrt(lengths_b / lengths_a), _leads(pool))
        scale_a, scale_b = scale_a * balance, scale_b / balance
    return Units(
        pool.A,
        pool.B,
        scale_a,
        scale_b,
        _at_length(gram_a, scale_a * lengths_a),
        _at_length(gram_b, scale_b * lengths_b),
    )


def _unit_products(pool: Pool) -> tuple[tuple[Float64, Float64], tuple[Float64, Float64]]:
    """Return lengths and unit inner products of the rows of A, and of the columns of B; see ``at_unit_length``.

    Which units are alike shows in float32, in half the time of float64, if they are float32 and well apart.
    """
    if pool.A.dtype == np.float32:
        with np.errstate(over="ignore", invalid="ignore"):
            found = [at_unit_length(gram) for gram in _products(pool, np.float32)]
        if all(lengths.min(initial=1.0) > TINY and cholesky_if_apart(gram) is not None for lengths, gram in found):
            return found[0], found[1]
    a, b = _products(pool, np.float64)
    return at_unit_length(a), at_unit_length(b)


def _products(pool: Pool, wide: type[np.floating[Any]]) -> tuple[Float64, Float64]:
    return row_products(pool.A, pool.A, wide), column_products(pool.B, pool.B, wide)


def _at_length(gram: Float64, lengths: Float64) -> Float64:
    """Return inner products of vectors of these lengths, from those at unit length."""
    return gram * np.outer(lengths, lengths)


def _cluster(
    units: Units, clusters: int, feature: Feature, clustering: Clustering, starts: int, rng: np.random.Generator
) -> Labels:
    if clusters == units.count:
        return np.arange(clusters)
    gram = clustered_products(units, feature)
    return ward(gram, clusters) if clustering == "ward" else kmeans(gram, clusters, starts=starts, rng=rng)


def clustered_products(units: Units, feature: Feature) -> Float64:
    """Return the inner products of what is clustered, ``(N, N)``."""
    if feature == "unit_halves":
        return at_unit_length(units.gram_a)[1] + at_unit_length(units.gram_b)[1]
    return units.gram_a + units.gram_b


def _centroids(units: Units, labels: Labels, clusters: int, reweight: str) -> tuple[Array, Array]:
    """Return the rows of A and the columns of B of the centroids, rescaled to their clusters' average norm."""
    member = (labels == np.arange(clusters)[:, None]).astype(np.float64)
    member /= member.sum(axis=1, keepdims=True)
    a = (member * units.scale_a).astype(units.A.dtype) @ units.A
    b = units.B @ (member * units.scale_b).T.astype(units.B.dtype)
    if reweight == "none":
        return a, b
    if reweight == "l2":
        present = np.sqrt(np.einsum("ij,jk,ik->i", member, units.gram_a + units.gram_b, member))
    else:
        present = np.maximum(_row_peaks(a), _column_peaks(b))
    rescale = np.divide(member @ units.norms(reweight), present, out=np.ones(clusters), where=present > 0)
    a *= rescale[:, None].astype(a.dtype)
    b *= rescale.astype(b.dtype)
    return a, b
