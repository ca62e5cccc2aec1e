"""The delta of one written module beside the one that was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hub_merge.adapter import Adapter, Array, LoraFactors
from hub_merge.composite import Composite
from hub_merge.gram import (
    Float64,
    Parts,
    Stack,
    combined_products,
    cross_products,
    inner_products,
    result_dtype,
    stack,
)
from hub_merge.methods.sum import combination

__all__ = ["Measured", "difference", "left_out", "measure"]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What one module adds.

    Attributes:
        module: Its name.
        error: Relative error of the written delta against the wanted one.
        distance: Norm of the difference between the written delta and the exact combination.
        squares: Squared norms of the written delta, the wanted one, the exact one and each parent, ``(3 + T,)``.
        along: Inner products of the written and of the wanted delta with each parent, ``(2, T)``.
    """

    module: str
    error: float
    distance: float
    squares: Float64
    along: Float64


def measure(module: str, parents: Parts, written: Adapter, asked: Composite) -> Measured:
    """Compare the written delta of ``module`` with the wanted one."""
    parts, weights = asked.parts(module, parents)
    count = len(parents)
    coefficients = list(asked.coefficients(weights, parts))
    wanted = combination(parts, coefficients) if asked.is_linear else asked.merged(module, parents)
    got = _trimmed(written.factors(module), wanted.rank)
    stacked = stack(parents)
    own = inner_products(stacked, count)
    combined = combined_products(own, np.concatenate([[coefficients], np.eye(count)]))
    exact = float(combined[0, 0])
    apart = difference(got, wanted)
    if asked.is_linear:
        along, squares = combined[:1, 1:], combined[:1, 0]
        if apart:
            along_got, squares_got = _against([got], stacked, count)
            along, squares = np.concatenate([along_got, along]), np.concatenate([squares_got, squares])
        else:
            along, squares = np.repeat(along, 2, axis=0), np.repeat(squares, 2)
    else:
        along, squares = _against([got, wanted], stacked, count)
    went_in = math.sqrt(sum((w**2) * own[i, i] for i, w in enumerate(weights)))
    scale = max(math.sqrt(max(squares[1], 0.0)), went_in)
    to_exact = squares[0] - 2 * float(along[0] @ coefficients) + exact
    return Measured(
        module,
        error=math.inf if math.isnan(apart) else apart / (scale or 1.0),
        distance=apart if asked.is_linear else math.sqrt(max(to_exact, 0.0)),
        squares=np.concatenate([squares, [exact], np.diag(own)]),
        along=along,
    )


def _against(deltas: Sequence[LoraFactors], stacked: Stack, count: int) -> tuple[Float64, Float64]:
    """Return the inner products of ``deltas`` with each parent, ``(n, T)``, and their own squared norms, ``(n,)``."""
    own = stack(deltas)
    return cross_products(own, stacked, (len(deltas), count)), np.diag(inner_products(own, len(deltas)))


def left_out(module: str, parents: Parts) -> Measured:
    """Return what a module adds that the composite lacks: the parents' own norms."""
    own = np.diag(inner_products(stack(parents), len(parents)))
    return Measured(module, 0.0, 0.0, np.concatenate([np.zeros(3), own]), np.zeros((2, len(parents))))


def _trimmed(factors: LoraFactors, rank: int) -> LoraFactors:
    """Return the factors without the zero rows and columns that pad them beyond ``rank``."""
    if factors.A[rank:].any() or factors.B[:, rank:].any():
        return factors
    return LoraFactors(factors.A[:rank], factors.B[:, :rank], factors.scaling)


def difference(x: LoraFactors, y: LoraFactors) -> float:
    """Return ``‖delta_x - delta_y‖`` (Frobenius).

    For factors of one rank the difference is formed factor by factor, so that equal parts cancel exactly.
    """
    dtype = result_dtype([x, y])  # exact for both
    Ax: Array = x.A.astype(dtype, copy=False)
    Ay: Array = y.A.astype(dtype, copy=False)
    Bx, By = _scaled(x), _scaled(y)
    if x.rank != y.rank:
        pieces = LoraFactors(np.concatenate([Ax, Ay]), np.concatenate([Bx, -By], axis=1))
    elif np.array_equal(Ax, Ay):
        if np.array_equal(Bx, By):
            return 0.0
        pieces = LoraFactors(Ax, Bx - By)
    else:
        pieces = LoraFactors(np.concatenate([Ax, Ax - Ay]), np.concatenate([Bx - By, By], axis=1))
    return math.sqrt(max(float(inner_products(stack([pieces]), 1)[0, 0]), 0.0))


def _scaled(factors: LoraFactors) -> Float64:
    return np.multiply(factors.B, factors.scaling, dtype=np.float64)
