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
    runs = [_lloyd(gram, seeds.tolist(), clusters) for seeds in _seeds(gram, clusters, starts, rng)]
    return min(runs, key=lambda run: run[1])[0]


def _seeds(gram: Float64, clusters: int, starts: int, rng: np.random.Generator) -> Labels:
    """Choose the seeds of all starts, ``(starts, clusters)``.

    Each next seed is the best of a few points drawn in proportion to their squared distance from those chosen.
    """
    distances = _distances_to_points(gram, np.diag(gram), np.arange(len(gram)))
    start, candidates = np.arange(starts), 2 + int(math.log(clusters))
    chosen = rng.integers(len(gram), size=(starts, 1))
    nearest = distances[chosen[:, 0]]
    while chosen.shape[1] < clusters:
        drawn = _draw(nearest, chosen, candidates, rng)
        closest = np.minimum(nearest[:, None], distances[drawn])
        best = closest.sum(axis=2).argmin(axis=1)
        chosen = np.column_stack([chosen, drawn[start, best]])
        nearest = closest[start, best]
    return chosen


def _draw(nearest: Float64, chosen: Labels, count: int, rng: np.random.Generator) -> Labels:
    """Draw points in proportion to ``nearest``; evenly among the rest where only copies of the chosen are left."""
    rest = np.ones_like(nearest)
    np.put_along_axis(rest, chosen, 0.0, axis=1)
    mass = np.cumsum(np.where(nearest.sum(axis=1, keepdims=True) > 0, nearest, rest), axis=1)
    levels = rng.random((len(nearest), count)) * mass[:, -1:]
    drawn: Labels = np.minimum((mass[:, None] <= levels[:, :, None]).sum(axis=2), nearest.shape[1] - 1)
    return drawn


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
