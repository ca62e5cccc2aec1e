"""``lego``: a composite of any rank from clusters of Minimal Semantic Units (LoRA-LEGO, arXiv 2409.16167)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.clustering import Labels, kmeans, ward
from hub_merge.gram import Float64, best_rank_k, result_dtype, stack
from hub_merge.methods.registry import Bounds, merge_method

__all__ = ["lego"]

Canonical = Literal["none", "balance", "svd"]
Clustering = Literal["kmeans", "ward"]


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
    feature: Literal["raw", "unit_halves"] = "raw",
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
    pools = [_units(part, weight, canonicalize) for part, weight in zip(parts, weights, strict=True) if weight]
    if not any(len(a) for a, _ in pools):
        return LoraFactors.empty(parts[0].shape)
    A = np.concatenate([a for a, _ in pools], axis=0)
    B = np.concatenate([b for _, b in pools], axis=0)
    if order == "canonical":
        sequence = _canonical_order(A, B)
        A, B = A[sequence], B[sequence]
    ranks = [len(a) for a, _ in pools if len(a)]
    clusters = min(rank or max(part.rank for part in parts), len(A))
    labels = _cluster(A, B, clusters, feature, clustering, starts, rng)
    centroid_a, centroid_b = _centroids(A, B, labels, clusters, parameter_reweight)
    spread = {
        "sqrt_rank_over_k": math.sqrt(sum(ranks) / len(ranks) / clusters),
        "sqrt_total_over_k": math.sqrt(len(A) / clusters),
        "none": 1.0,
    }[output_reweight]
    return LoraFactors(centroid_a, spread * centroid_b.T).astype(result_dtype(parts))


def _units(part: LoraFactors, weight: float, canonicalize: Canonical) -> tuple[Float64, Float64]:
    """Return the units of one adapter as rows: halves a ``(N, in)`` and b ``(N, out)``, weight and scaling included."""
    factor = weight * part.scaling
    if canonicalize == "svd":
        part = best_rank_k(stack([part]), part.rank)
        factor = weight
    root = math.sqrt(abs(factor))
    a = root * np.array(part.A, np.float64, order="C")  # the order in memory decides the last bit of a norm
    b = math.copysign(root, factor) * np.array(part.B.T, np.float64, order="C")
    if canonicalize == "none":
        return a, b
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    alive = (norm_a > 0) & (norm_b > 0)
    a, b, ratio = a[alive], b[alive], np.sqrt(norm_b[alive] / norm_a[alive])
    peak = np.take_along_axis(a, np.abs(a).argmax(axis=1)[:, None], axis=1)[:, 0] if len(a) else np.zeros(0)
    balance = np.copysign(ratio, peak)[:, None]
    return a * balance, b / balance


def _canonical_order(A: Float64, B: Float64) -> list[int]:
    """Return the units' order by the first values of a; by all bytes where those are equal, as for a shared a."""
    values = A[:, :32].tolist()
    if len(set(map(tuple, values))) == len(values):
        return sorted(range(len(A)), key=values.__getitem__)
    return sorted(range(len(A)), key=lambda j: (values[j], A[j].tobytes(), B[j].tobytes()))


def _cluster(
    A: Float64,
    B: Float64,
    clusters: int,
    feature: str,
    clustering: Clustering,
    starts: int,
    rng: np.random.Generator,
) -> Labels:
    if clusters == len(A):
        return np.arange(len(A))
    if feature == "unit_halves":
        A, B = (X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), np.finfo(float).tiny) for X in (A, B))
    gram = A @ A.T + B @ B.T
    return ward(gram, clusters) if clustering == "ward" else kmeans(gram, clusters, starts=starts, rng=rng)


def _centroids(A: Float64, B: Float64, labels: Labels, clusters: int, reweight: str) -> tuple[Float64, Float64]:
    """Return the halves of the centroids as rows, rescaled to their clusters' average norm."""
    member = np.zeros((clusters, len(labels)))
    member[labels, np.arange(len(labels))] = 1.0
    member /= member.sum(axis=1, keepdims=True)
    a, b = member @ A, member @ B
    if reweight == "none":
        return a, b
    wanted, present = member @ _unit_norms(A, B, reweight), _unit_norms(a, b, reweight)
    rescale = np.divide(wanted, present, out=np.ones(clusters), where=present > 0)[:, None]
    return a * rescale, b * rescale


def _unit_norms(A: Float64, B: Float64, norm: str) -> Float64:
    """Return the norm of each ``[a; b]``."""
    order = np.inf if norm == "inf" else 2
    halves = np.stack([np.linalg.norm(A, order, axis=1), np.linalg.norm(B, order, axis=1)])
    norms: Float64 = np.linalg.norm(halves, order, axis=0)
    return norms
