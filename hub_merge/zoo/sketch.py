"""Sketches of low-rank deltas: short vectors whose inner products estimate the Frobenius inner products of deltas.

A CountSketch adds the entries of a vector, each with a random sign, into ``SIZE`` buckets. The sketch of a rank-one
piece ``b aᵀ`` is the circular convolution of the CountSketches of ``a`` and ``b``, a product of their Fourier
transforms (TensorSketch, Pham and Pagh 2013); that of a delta is the sum over its pieces and modules, so that nothing
is ever densified. Hashes follow from version, base model, module and side alone: sketches made apart agree.

Estimates of inner products are unbiased. For deltas of norm one and cosine c their standard deviation is about
``sqrt((1 + c²) / SIZE)``, and never more than ``sqrt(11 / SIZE)`` (Avron, Nguyen and Woodruff 2014), which takes deltas
whose weight sits in a few entries.

Folding a sketch, which adds its halves, gives exactly the sketch of half the size.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hub_merge.gram import Float64, Stack

__all__ = [
    "SIZE",
    "START_SIZE",
    "VERSION",
    "ModuleSketch",
    "bound",
    "deviation",
    "fold",
    "from_spectrum",
    "sketch_module",
]

VERSION = 1
"""Of hashes and sizes; sketches of two versions cannot be compared."""
SIZE = 4096
"""Numbers of a sketch: a power of two, at most 2**15."""
START_SIZE = 256
"""Numbers of the sketch of the rows of all A."""

PIECES = 32
"""Rank-one pieces that are transformed at once: enough to pay, few enough to stay in the processor's cache."""
HASHED_SIDES = 1024
"""Sides of modules whose hashes are kept; those of a model of 8 billion parameters take about 50 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class _Hashes:
    """Where a side of a module puts its features, and with which signs."""

    buckets: NDArray[np.intp]
    signs: Float64


@dataclass(frozen=True, slots=True, eq=False)
class ModuleSketch:
    """What one module adds to the fingerprint.

    Attributes:
        spectrum: Fourier transform of the sketch of its delta over ``scale``, ``(SIZE // 2 + 1,)`` complex.
        start: Sum of the sketches of A's rows at unit length, each under a sign of its own, ``(START_SIZE,)``.
        rows: Number of rows of A that are not zero.
    """

    spectrum: NDArray[np.complex128]
    start: Float64
    rows: int


def deviation(cosine: float, size: int = SIZE) -> float:
    """Return the standard deviation that an estimate of ``cosine`` is expected to have."""
    return math.sqrt((1 + cosine * cosine) / size)


def bound(cosine: float, size: int = SIZE) -> float:
    """Return how far an estimate of ``cosine`` is off at most in 98 of 100 cases: 2.5 standard deviations."""
    return 2.5 * deviation(cosine, size)


def sketch_module(base: str, module: str, stacked: Stack, scale: float) -> ModuleSketch:
    """Return the sketch of one module's delta, and of how its A began.

    Args:
        base: Canonical id of the base model; upper case does not matter.
        module: Name of the module.
        stacked: Its factors, brought to unit rows and columns.
        scale: What the lengths of its pieces are divided by, so that no number runs out of range.
    """
    left, right = (_hashes(base, module, side, n) for side, n in zip("BA", stacked.shape, strict=True))
    spectrum = np.zeros(SIZE // 2 + 1, np.complex128)
    start = np.zeros(START_SIZE)
    row_signs = _hashes(base, module, "rows", len(stacked.lengths)).signs
    alive = np.diag(stacked.gram_a) > 0
    pieces = stacked.pieces
    for first in range(0, len(stacked.lengths), PIECES):
        some = slice(first, first + PIECES)
        rows = _counted(pieces.A[some] / pieces.norms_a[some, None], right)
        columns = _counted((pieces.B[:, some] / pieces.norms_b[some]).T, left)
        lengths = stacked.lengths[some] / scale
        spectrum += np.einsum("rk,rk,r->k", np.fft.rfft(rows), np.fft.rfft(columns), lengths)
        start += fold((row_signs[some] * alive[some]) @ rows, START_SIZE)
    return ModuleSketch(spectrum, start, int(alive.sum()))


def from_spectrum(spectrum: NDArray[np.complex128]) -> Float64:
    """Return the sketch, ``(SIZE,)``, that has this Fourier transform."""
    return np.fft.irfft(spectrum, SIZE)


def fold(sketches: NDArray[np.floating], size: int) -> NDArray[np.floating]:
    """Return the sketches of ``size`` numbers that those of more numbers contain, ``(..., size)``.

    Buckets are taken modulo ``size``, and circular convolution commutes with that.
    """
    folded: NDArray[np.floating] = sketches.reshape(*sketches.shape[:-1], -1, size).sum(axis=-2)
    return folded


def _counted(rows: NDArray[np.floating], hashes: _Hashes) -> Float64:
    """Return the CountSketch of each row, ``(rows, SIZE)``."""
    signed = rows * hashes.signs
    return np.stack([np.bincount(hashes.buckets, row, SIZE) for row in signed])


@lru_cache(maxsize=HASHED_SIDES)
def _hashes(base: str, module: str, side: str, features: int) -> _Hashes:
    """Return bucket and sign of each feature, two bytes of a SHAKE-128 stream each.

    A stream has no end, so that a vocabulary that grows keeps the hashes of the tokens it had.
    """
    text = "\0".join(("hub-merge zoo", str(VERSION), base.casefold(), module, side))
    stream = hashlib.shake_128(text.encode()).digest(2 * features)
    numbers = np.frombuffer(stream, "<u2")
    signs = 1 - 2 * (numbers >> 15).astype(np.float64)
    return _Hashes((numbers & (SIZE - 1)).astype(np.intp), signs)
