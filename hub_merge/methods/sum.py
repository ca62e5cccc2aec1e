"""``sum``: the exact sum of deltas (arXiv 2508.11985, 2212.04089)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from hub_merge.adapter import Array, LoraFactors
from hub_merge.gram import Float64, best_rank_k, result_dtype, stack
from hub_merge.methods.registry import merge_method

__all__ = ["combination", "concatenated", "weighted_sum"]

BLOCK = 2**18
"""Numbers of B that are worked on at a time."""


def combination(
    parts: Sequence[LoraFactors], coefficients: Sequence[float], dtype: DTypeLike = np.float64
) -> LoraFactors:
    """Return ``sum_i coefficients[i] * delta_i`` by putting the factors side by side.

    A stays as it is stored, in its dtype if the parts share one; coefficient and scaling go into B, in float64, and B
    is rounded to ``dtype``.
    """
    present = [(part, number) for part, number in zip(parts, coefficients, strict=True) if part.rank and number]
    if not present:
        return LoraFactors.empty(parts[0].shape)
    dtypes = {part.A.dtype for part, _ in present}
    shared = dtypes.pop() if len(dtypes) == 1 else result_dtype(parts)
    A = np.concatenate([part.A.astype(shared, copy=False) for part, _ in present], axis=0)
    factors = np.repeat([number * part.scaling for part, number in present], [part.rank for part, _ in present])
    return LoraFactors(A, _scaled([part.B for part, _ in present], factors, np.dtype(dtype)))


def _scaled(columns: Sequence[Array], factors: Float64, dtype: np.dtype[Any]) -> Array:
    """Return the columns side by side, each times its factor, computed as in float64 and rounded to ``dtype``.

    float64 holds every product of float32 numbers; where all are, float32 therefore rounds the products just so. A
    block of rows is worked on at a time, small enough for the processor's cache.
    """
    narrow = max(part.dtype.itemsize for part in columns) <= 4 and dtype.itemsize <= 4
    wide = np.dtype(np.float32 if narrow and (factors == factors.astype(np.float32)).all() else np.float64)
    B = np.empty((len(columns[0]), len(factors)), dtype)
    height = max(1, BLOCK // len(factors))
    for start in range(0, len(B), height):
        rows = slice(start, start + height)
        block = B[rows] if dtype == wide else np.empty(B[rows].shape, wide)
        np.concatenate([part[rows] for part in columns], axis=1, out=block)
        block *= factors.astype(wide)
        if dtype != wide:
            B[rows] = block
    return B


def concatenated(parts: Sequence[LoraFactors], coefficients: Sequence[float]) -> LoraFactors:
    """Return ``combination`` with B in float32, or in float64 if a part is."""
    return combination(parts, coefficients, result_dtype(parts))


@merge_method(
    "sum",
    formula="delta = sum_i w_i * delta_i",
    paper="2508.11985",
    aliases=("cat",),
    coefficients=lambda weights, present: weights,
)
def weighted_sum(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    rng: np.random.Generator,
) -> LoraFactors:
    """Return the weighted sum of the deltas: exact, or with a rank the closest update of that rank.

    Without a rank the factors are put side by side, ``[w_1 s_1 B_1 …][A_1; …]``, which equals the sum of the deltas;
    adding the factors themselves would not, for ``(B_1 + B_2)(A_1 + A_2)`` has cross terms. With a rank the sum is
    truncated optimally in Frobenius norm (Eckart and Young); what is lost is the tail of its singular values.

    Args:
        parts: One module's factors, all of one ``(out, in)`` shape. Not modified.
        weights: One number a part.
        rank: Largest rank of the result.
        rng: Not used.

    Returns:
        Factors with scaling 1, float32 (float64 if a part is); without a rank A keeps the dtype that the parts share.
    """
    if rank is None or rank >= sum(part.rank for part in parts):
        return concatenated(parts, weights)
    return best_rank_k(stack(parts, weights), rank).astype(result_dtype(parts))
