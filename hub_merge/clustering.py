"""Clustering of points that are known by their inner products only.

With ``F = X Xᵀ`` every squared distance to a centroid is ``F_ii - 2 mean_j F_ij + mean_jk F_jk`` over the members j, k
of the cluster, so k-means never touches the long vectors themselves.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hub_merge.gram import Float64

__all__ = ["kmeans"]

MAX_ITERATIONS = 300

Labels = NDArray[np.intp]


def kmeans(gram: Float64, clusters: int, *, starts: int, rng: np.random.Generator) -> Labels:
    """Return the label of each point: Lloyd's algorithm from greedy k-means++ seeds, the best of several starts.

    Args:
        gram: Inner products of the points, ``(N, N)``.
        clusters: Number of clusters, [1, N]; none of them ends up empty.
        starts: Number of starts; the one of least inertia counts.
        rng: Source of the seeds.
    """
    runs = [_lloyd(gram, _seeds(gram, clusters, rng), clusters) for _ in range(starts)]
    return min(runs, key=lambda run: run[1])[0]


def _seeds(gram: Float64, clusters: int, rng: np.random.Generator) -> list[int]:
    """Choose seeds: each next one is the best of a few points drawn in proportion to their squared distance."""
    squares = np.diag(gram)
    candidates = 2 + int(math.log(clusters))
    chosen = [int(rng.integers(len(gram)))]
    nearest = _distances_to_points(gram, squares, chosen)[:, 0]
    while len(chosen) < clusters:
        free = np.setdiff1d(np.arange(len(gram)), chosen)
        mass = nearest[free]
        share = mass / mass.sum() if mass.sum() > 0 else np.full(len(free), 1 / len(free))
        drawn = rng.choice(free, size=candidates, p=share)
        closest = np.minimum(nearest[:, None], _distances_to_points(gram, squares, drawn))
        best = int(closest.sum(axis=0).argmin())
        chosen.append(int(drawn[best]))
        nearest = closest[:, best]
    return chosen


def _distances_to_points(gram: Float64, squares: Float64, points: list[int] | Labels) -> Float64:
    return np.maximum(squares[:, None] - 2 * gram[:, points] + squares[points], 0.0)


def _lloyd(gram: Float64, seeds: list[int], clusters: int) -> tuple[Labels, float]:
    distances = _distances_to_points(gram, np.diag(gram), seeds)
    labels = _fill_empty(distances, distances.argmin(axis=1), clusters)
    for _ in range(MAX_ITERATIONS):
        distances = _distances_to_centroids(gram, labels, clusters)
        moved = _fill_empty(distances, distances.argmin(axis=1), clusters)
        if np.array_equal(moved, labels):
            break
        labels = moved
    return labels, float(distances[np.arange(len(labels)), labels].sum())


def _distances_to_centroids(gram: Float64, labels: Labels, clusters: int) -> Float64:
    member = np.zeros((clusters, len(labels)))
    member[labels, np.arange(len(labels))] = 1.0
    member /= member.sum(axis=1, keepdims=True)
    cross = gram @ member.T
    return np.maximum(np.diag(gram)[:, None] - 2 * cross + np.diag(member @ cross), 0.0)


def _fill_empty(distances: Float64, labels: Labels, clusters: int) -> Labels:
    """Give each empty cluster the point that lies farthest from its own centroid and is not alone there."""
    labels = labels.copy()
    for cluster in np.setdiff1d(np.arange(clusters), labels):
        own = distances[np.arange(len(labels)), labels]
        crowded = np.bincount(labels, minlength=clusters)[labels] > 1
        labels[np.where(crowded, own, -1.0).argmax()] = cluster
    return labels
