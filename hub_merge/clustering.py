"""Clustering of points that are known by their inner products only.

With ``F = X Xᵀ`` every squared distance to a centroid is ``F_ii - 2 mean_j F_ij + mean_jk F_jk`` over the members j, k
of the cluster, so neither k-means nor Ward's linkage touches the long vectors themselves.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hub_merge.gram import Float64

__all__ = ["Labels", "kmeans", "ward"]

MAX_ITERATIONS = 300

ROUNDING = 1e-13
"""A point moves only if another centroid is nearer by more than this share of its squared norm and distance: among
copies of one point, rounding alone would move it to and fro between equal centroids."""

TIE = 1e-6
"""Sums of squared distances that differ by less, relatively, count as one. Units of one adapter in singular form are
orthogonal, so that joining 1 with 2 and 3 with 4 is as good as 1 with 3 and 2 with 4, and rounding would choose."""

Labels = NDArray[np.intp]


def kmeans(gram: Float64, clusters: int, *, starts: int, rng: np.random.Generator) -> Labels:
    """Return the label of each point: Lloyd's algorithm from greedy k-means++ seeds, the best of several starts.

    Args:
        gram: Inner products of the points, ``(N, N)``.
        clusters: Number of clusters, [1, N]; none of them ends up empty.
        starts: Number of starts; the one of least inertia counts.
        rng: Source of the seeds.
    """
    distances = _distances(gram)
    labels, inertia = _lloyd(gram, distances[:, _seeds(distances, clusters, starts, rng)])
    best: Labels = labels[:, _first_least(inertia)]
    return best


def ward(gram: Float64, clusters: int) -> Labels:
    """Return the label of each point by Ward's linkage: join the two nearest clusters until ``clusters`` are left.

    Clusters of n and m points with centroids c and d are ``n m / (n + m) ‖c - d‖²`` apart, what their union adds to the
    inertia (Ward 1963, by the recurrence of Lance and Williams 1967). Among equals the pair with the earliest points is
    joined; nothing is drawn.

    Args:
        gram: Inner products of the points, ``(N, N)``.
        clusters: Number of clusters, [1, N]; none is empty. They are numbered in the order of their first points.
    """
    apart, sizes, first = _distances(gram) / 2, np.ones(len(gram)), np.arange(len(gram))
    np.fill_diagonal(apart, np.inf)
    for _ in range(len(gram) - clusters):
        i, j = sorted(divmod(int(apart.argmin()), len(gram)))
        joined = (sizes + sizes[i]) * apart[i] + (sizes + sizes[j]) * apart[j] - sizes * apart[i, j]
        apart[i] = apart[:, i] = joined / (sizes + sizes[i] + sizes[j])
        apart[j] = apart[:, j] = np.inf
        sizes[i] += sizes[j]
        first[first == j] = i
    return np.unique(first, return_inverse=True)[1]


def _first_least(sums: Float64) -> NDArray[np.intp]:
    """Return where the last axis is least, the first of equals."""
    first: NDArray[np.intp] = (sums <= sums.min(axis=-1, keepdims=True) * (1 + TIE)).argmax(axis=-1)
    return first


def _distances(gram: Float64) -> Float64:
    """Return the squared distances between all points, ``(N, N)``."""
    squares = np.diag(gram)
    return np.maximum(squares[:, None] - 2 * gram + squares, 0.0)


def _seeds(distances: Float64, clusters: int, starts: int, rng: np.random.Generator) -> Labels:
    """Choose the seeds of all starts, ``(starts, clusters)``.

    Each next seed is the best of a few points drawn in proportion to their squared distance from those chosen.
    """
    start, candidates = np.arange(starts), 2 + int(math.log(clusters))
    chosen = np.empty((starts, clusters), np.intp)
    chosen[:, 0] = rng.integers(len(distances), size=starts)
    nearest = distances[chosen[:, 0]]
    for count, levels in enumerate(rng.random((clusters - 1, starts, candidates)), 1):
        drawn = _drawn(_mass(nearest, chosen[:, :count]), levels)
        closest = np.minimum(nearest[:, None], distances.take(drawn, axis=0))
        best = _first_least(closest.sum(axis=2))
        chosen[:, count] = drawn[start, best]
        nearest = closest[start, best]
    return chosen


def _mass(nearest: Float64, chosen: Labels) -> Float64:
    """Return the running sums of ``nearest``; of ones for all but the chosen where only copies of those are left."""
    mass: Float64 = nearest.cumsum(axis=1)
    if not mass[:, -1].all():
        rest = np.ones_like(nearest)
        np.put_along_axis(rest, chosen, 0.0, axis=1)
        mass = np.where(mass[:, -1:] > 0, mass, rest.cumsum(axis=1))
    return mass


def _drawn(mass: Float64, levels: Float64) -> Labels:
    """Return the first points whose running sum exceeds a share of the whole, ``(starts, candidates)``."""
    sought = levels * mass[:, -1:]
    mass[:, -1] = np.inf  # rounding must not leave one without a point
    drawn: Labels = (mass[:, None] > sought[:, :, None]).argmax(axis=2)
    return drawn


def _lloyd(gram: Float64, distances: Float64) -> tuple[Labels, Float64]:
    """Run Lloyd's algorithm from all starts at once, until no point in any of them is nearer to another centroid.

    Args:
        gram: Inner products of the points, ``(N, N)``.
        distances: Squared distances of the points to the seeds, ``(N, starts, clusters)``.

    Returns:
        The labels, ``(N, starts)``, and the inertia of each start.
    """
    labels = _fill_empty(distances, distances.argmin(axis=2))
    for _ in range(MAX_ITERATIONS):
        distances = _distances_to_centroids(gram, labels, distances.shape[2])
        nearest = distances.argmin(axis=2)
        own = _of(distances, labels)
        moves = own - _of(distances, nearest) > ROUNDING * (own + np.diag(gram)[:, None])
        if not moves.any():
            break
        labels = _fill_empty(distances, np.where(moves, nearest, labels))
    return labels, own.sum(axis=0)


def _of(distances: Float64, labels: Labels) -> Float64:
    """Return the squared distance of each point to the centroid that its label names, ``(N, starts)``."""
    named: Float64 = np.take_along_axis(distances, labels[:, :, None], axis=2)[:, :, 0]
    return named


def _distances_to_centroids(gram: Float64, labels: Labels, clusters: int) -> Float64:
    """Return the squared distances of the points to the means of their clusters, ``(N, starts, clusters)``."""
    share = np.eye(clusters)[labels]
    share /= share.sum(axis=0)
    cross = (gram @ share.reshape(len(gram), -1)).reshape(share.shape)
    squares: Float64 = (share * cross).sum(axis=0)
    return np.maximum(np.diag(gram)[:, None, None] - 2 * cross + squares, 0.0)


def _fill_empty(distances: Float64, labels: Labels) -> Labels:
    """Give each empty cluster the point that lies farthest from its own centroid and is not alone there."""
    labels, (_, starts, clusters) = labels.copy(), distances.shape
    sizes = np.zeros((starts, clusters), np.intp)
    np.add.at(sizes, (np.arange(starts), labels), 1)
    for start, cluster in np.argwhere(sizes == 0):
        crowded = sizes[start, labels[:, start]] > 1
        farthest = np.where(crowded, _of(distances, labels)[:, start], -1.0).argmax()
        sizes[start, labels[farthest, start]] -= 1
        sizes[start, cluster] += 1
        labels[farthest, start] = cluster
    return labels
