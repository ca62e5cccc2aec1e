"""``karcher``: the mean of the deltas' directions on the sphere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.gram import NULL, Float64, inner_products, stack
from hub_merge.methods.registry import merge_method
from hub_merge.methods.sum import weighted_sum

__all__ = ["karcher_mean", "mean_direction"]

MAX_ITERATIONS = 1000
SETTLED = 1e-14
OPPOSITE = 1e-7
"""Below this sine an angle near 180 degrees has no direction that could be told from rounding."""


@merge_method(
    "karcher",
    formula="delta = mean‖w_i delta_i‖ * argmin_{‖x‖=1} sum_i |w_i| angle(x, sign(w_i) delta_i)²",
)
def karcher_mean(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the mean of the deltas' directions on the sphere (Karcher mean), at the deltas' mean norm.

    An average of deltas shrinks the more they disagree; the mean direction does not. It is the unit delta with the
    smallest sum of squared angles to all others, found by averaging them in the tangent space at the present guess.
    Everything it needs are the inner products of the deltas, and it is a combination of them, so without a rank
    nothing is lost. Where the directions cancel, there is no mean direction and the delta is zero.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part. ``delta_i`` becomes ``w_i * delta_i`` and counts with ``|w_i|`` in both means.
        rank: Largest rank of the result, truncated optimally.
        rng: Not used.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is).
    """
    kept = [(part, weight) for part, weight in zip(parts, weights, strict=True) if part.rank and weight]
    if not kept:
        return LoraFactors.empty(parts[0].shape)
    present, numbers = [part for part, _ in kept], [weight for _, weight in kept]
    directed = _coefficients(inner_products(stack(present, numbers), len(kept)), np.abs(numbers))
    coefficients: Float64 = np.array(numbers) * directed
    return weighted_sum(present, coefficients.tolist(), rank=rank, rng=rng)


def _coefficients(products: Float64, shares: Float64) -> Float64:
    """Return the coefficients of the weighted deltas; a delta that is zero has no direction and does not count."""
    norms = np.sqrt(np.diag(products))
    coefficients, alive = np.zeros(len(norms)), norms > 0
    if alive.any():
        norms, shares = norms[alive], shares[alive] / shares[alive].sum()
        cosines = np.clip(products[np.ix_(alive, alive)] / np.outer(norms, norms), -1.0, 1.0)
        coefficients[alive] = (shares @ norms) * mean_direction(cosines, shares) / norms
    return coefficients


def mean_direction(cosines: Float64, shares: Float64) -> Float64:
    """Return the coefficients of the Karcher mean of unit vectors; all zero where their directions cancel.

    Args:
        cosines: Inner products of the unit vectors, ``(T, T)``.
        shares: Weight of each in the mean, positive, of sum one.
    """
    length = shares @ cosines @ shares
    if length <= OPPOSITE**2:
        return np.zeros(len(shares))
    values, vectors = np.linalg.eigh(cosines)
    span = vectors[:, values > NULL * values[-1]]  # elsewhere coefficients change nothing, and could drift away
    mean = shares / np.sqrt(length)
    for _ in range(MAX_ITERATIONS):
        angles = np.arccos(np.clip(cosines @ mean, -1.0, 1.0))
        stretch = np.where(np.pi - angles > OPPOSITE, 1.0 / np.sinc(np.minimum(angles, np.pi - OPPOSITE) / np.pi), 0.0)
        pull = shares * stretch
        tangent = span @ (span.T @ (pull - (pull @ np.cos(angles)) * mean))
        step = np.sqrt(np.maximum(tangent @ cosines @ tangent, 0.0))
        mean = np.cos(step) * mean + np.sinc(step / np.pi) * tangent
        mean /= np.sqrt(mean @ cosines @ mean)
        if np.abs(tangent).max() < SETTLED:
            break
    return mean
