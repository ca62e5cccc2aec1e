"""The closest update of a rank to a matrix that is only ever seen in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.gram import NULL, Float64

__all__ = ["closest_update", "truncated"]

SMALL = 2**18
"""A matrix with at most so many entries is decomposed exactly."""

PASSES, OVERSAMPLING = 4, 10
"""Power iterations, and directions beyond the rank wanted, in the search for the range of a larger one."""


def truncated(matrix: Float64, rank: int | None) -> LoraFactors:
    """Return the balanced factors of a small dense matrix, of its numerical rank or the closest of at most ``rank``."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    keep = int(np.count_nonzero(s > NULL * s[:1].sum()))
    keep = keep if rank is None else min(keep, rank)
    roots = np.sqrt(s[:keep])
    return LoraFactors(roots[:, None] * vt[:keep], u[:, :keep] * roots)


def closest_update(
    blocks: Callable[[], Iterable[Float64]], shape: tuple[int, int], rank: int, rng: np.random.Generator
) -> LoraFactors:
    """Return the update of at most ``rank`` that is closest, or nearly so, to a matrix D.

    Each pass sees D once, block by block, and multiplies the search space by ``Dᵀ D`` (randomised range finder with
    power iterations, arXiv 0909.4061, algorithm 4.4).

    Args:
        blocks: Yields D in blocks of rows, in order; called once a pass.
        shape: Shape of D, ``(rows, columns)``.
        rank: Largest rank of the result.
        rng: Source of the first search space.

    Returns:
        Balanced factors with scaling 1, float64, singular values falling.
    """
    rows, columns = shape
    if rows * columns <= SMALL:
        return truncated(np.concatenate(list(blocks())), rank)
    width = min(rank + OVERSAMPLING, rows, columns)
    basis = rng.standard_normal((columns, width))
    for _ in range(PASSES):
        image = np.zeros((columns, width))
        for block in blocks():
            image += block.T @ (block @ basis)
        basis, _ = np.linalg.qr(image)
    Q, T = np.linalg.qr(np.concatenate([block @ basis for block in blocks()]))
    core = truncated(T, rank)
    return LoraFactors(core.A @ basis.T, Q @ core.B)
