"""DoRA as plain factors: the exact delta of each module, formed from the base's weight and factorised again.

DoRA (arXiv 2402.09353, equation 5) trains a magnitude m for every output and computes with ``m (W + sBA) / ‖W + sBA‖``,
the norm taken over each row of the ``(out, in)`` weight. As a delta that is ``(g - 1) W + g s B A`` with the gain
``g = m / ‖W + sBA‖``: the first term has full rank, so factors of rank k are the best approximation, and its error is
stated.

PEFT rounds the norm to the dtype it computes in, for the first magnitudes and in every step. In half precision only the
gain with rounded norms leaves untrained rows alone; of exact norms and norms rounded to the dtype of the stored weight,
those count that bring the gain nearer to one.

The weight is walked in blocks of rows; only one module's weight is in memory, in the dtype it is stored in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from hub_merge.adapter import Adapter, Array, LoraFactors
from hub_merge.errors import AdapterFormatError, UnsupportedAdapter
from hub_merge.gram import Float64
from hub_merge.parallel import map_modules

__all__ = ["DoraDelta", "default_rank", "materialize", "truncated"]

RANKS = 4
"""Rank of the factors by default, in ranks of the adapter."""

BLOCK = 2**21
"""Numbers of the weight that are in double precision at a time."""

SMALL = 2**20
"""Up to this many numbers a delta is factorised exactly, beyond it by subspace iteration."""

ITERATIONS = 4

PLAIN = "dora"
"""Code of the findings that are settled here."""


@dataclass(frozen=True, slots=True, eq=False)
class DoraDelta:
    """The delta of one DoRA module, ``(gain - 1) * W + B @ A``, formed in blocks of rows.

    Attributes:
        weight: The base's weight, ``(out, in)``, in the dtype it is stored in.
        gain: What DoRA multiplies each row of ``W + s B A`` with, ``(out,)``.
        A: ``(rank, in)``.
        B: ``(out, rank)``, with gain and scaling in it.
    """

    weight: Array
    gain: Float64
    A: Float64
    B: Float64

    @classmethod
    def of(cls, weight: Array, factors: LoraFactors, magnitude: Array) -> DoraDelta:
        """Return the delta of ``factors`` with ``magnitude``, ``(out,)``, on ``weight``, ``(out, in)``.

        Raises:
            AdapterFormatError: The magnitude has another shape, or a row of the weight is zero.
        """
        if magnitude.size != weight.shape[0]:
            raise AdapterFormatError(
                f"The magnitudes have shape {list(magnitude.shape)}, expected [{weight.shape[0]}].",
                remedy="Ask its author to upload the adapter again.",
            )
        plain = cls(
            weight,
            np.full(weight.shape[0], 2.0),  # (2 - 1) W + s B A is what the norm is taken of
            factors.A.astype(np.float64),
            np.multiply(factors.B, factors.scaling, dtype=np.float64),
        )
        norms = np.concatenate([np.linalg.norm(block, axis=1) for _, block in plain.blocks()])
        if not norms.all():
            raise AdapterFormatError(
                f"Row {int(np.argmin(norms))} of the weight is zero, so DoRA is not defined there.",
                remedy="Give the base that the adapter was trained on: --base-weights FOLDER_OR_REPO",
            )
        trained = magnitude.reshape(-1).astype(np.float64)
        gains = [trained / norms, trained / norms.astype(weight.dtype).astype(np.float64)]
        gain = min(gains, key=lambda gain: float(np.median(np.abs(gain - 1.0))))
        return replace(plain, gain=gain, B=plain.B * gain[:, None])

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.B.shape[0], self.A.shape[1]

    def blocks(self) -> Iterator[tuple[slice, Float64]]:
        """Yield blocks of rows of the dense delta."""
        out_features, in_features = self.shape
        height = max(1, BLOCK // in_features)
        for start in range(0, out_features, height):
            rows = slice(start, min(start + height, out_features))
            block = self.weight[rows].astype(np.float64)
            block *= self.gain[rows, None] - 1.0
            block += self.B[rows] @ self.A
            yield rows, block

    def times(self, right: Float64) -> Float64:
        """Return ``delta @ right``."""
        return np.concatenate([block @ right for _, block in self.blocks()])

    def projected(self, left: Float64) -> Float64:
        """Return ``left.T @ delta``."""
        total = np.zeros((left.shape[1], self.shape[1]))
        for rows, block in self.blocks():
            total += left[rows].T @ block
        return total

    def square(self) -> float:
        """Return the squared Frobenius norm."""
        return sum(float(np.vdot(block, block)) for _, block in self.blocks())


def truncated(delta: DoraDelta, rank: int, rng: np.random.Generator) -> tuple[LoraFactors, float, float]:
    """Return factors of ``rank``, the squared norm of ``delta`` and the squared norm of what they lose.

    The factors of a small delta are the best of their rank (Eckart and Young). Those of a large one come from four
    steps of subspace iteration with twice the rank (arXiv 0909.4061, algorithm 4.4); the loss stated is theirs, not an
    estimate.
    """
    rank = min(rank, *delta.shape)
    basis = _exact_basis(delta, rank) if math.prod(delta.shape) <= SMALL else _iterated_basis(delta, rank, rng)
    left, values, right = np.linalg.svd(delta.projected(basis), full_matrices=False)
    roots = np.sqrt(values[:rank])
    B = basis @ (left[:, :rank] * roots)
    A = roots[:, None] * right[:rank]
    square = delta.square()
    lost = max(0.0, square - float(values[:rank] @ values[:rank]))
    return LoraFactors(A.astype(np.float32), B.astype(np.float32)), square, lost


def _exact_basis(delta: DoraDelta, rank: int) -> Float64:
    """Return an orthonormal basis of the main output directions, ``(out, rank)``, from the smaller Gram matrix."""
    dense = np.concatenate([block for _, block in delta.blocks()])
    out_features, in_features = delta.shape
    if out_features <= in_features:
        return np.asarray(np.linalg.eigh(dense @ dense.T)[1][:, -rank:])
    return np.linalg.qr(dense @ np.linalg.eigh(dense.T @ dense)[1][:, -rank:])[0]


def _iterated_basis(delta: DoraDelta, rank: int, rng: np.random.Generator) -> Float64:
    width = min(2 * rank + 8, *delta.shape)
    basis = np.linalg.qr(delta.times(rng.standard_normal((delta.shape[1], width))))[0]
    for _ in range(ITERATIONS):
        other = np.linalg.qr(delta.projected(basis).T)[0]
        basis = np.linalg.qr(delta.times(other))[0]
    return basis


def default_rank(adapter: Adapter) -> int:
    """Return the rank that ``materialize`` takes by itself: four times the adapter's."""
    return RANKS * adapter.rank


def materialize(
    adapter: Adapter,
    weight: Callable[[str], Array],
    rank: int | None,
    progress: Callable[[str], None],
) -> Adapter:
    """Return a DoRA adapter as a plain LoRA adapter, whose factors are computed here and now.

    Args:
        adapter: Its magnitudes must be readable.
        weight: Returns the base's weight of a module, ``(out, in)``.
        rank: Rank of the factors; ``None`` takes ``default_rank``.
        progress: Called with each module's name when it is done.

    Raises:
        UnsupportedAdapter: It is no DoRA adapter.
        AdapterFormatError: A magnitude is missing or has another shape.
    """
    load_magnitude = adapter.load_magnitude
    if load_magnitude is None:
        raise UnsupportedAdapter(f"{adapter.name} is no DoRA adapter.", remedy="Merge it as it is.")
    rank = rank or default_rank(adapter)

    def factorise(module: str) -> tuple[str, LoraFactors, float, float]:
        try:
            delta = DoraDelta.of(weight(module), adapter.factors(module), load_magnitude(module))
        except AdapterFormatError as error:
            raise AdapterFormatError(f"{adapter.name}, {module}: {error.problem}", remedy=error.remedy) from error
        return module, *truncated(delta, rank, np.random.default_rng(_seed(module)))

    factors: dict[str, LoraFactors] = {}
    squares: dict[str, tuple[float, float]] = {}
    for module, part, square, lost in map_modules(factorise, adapter.modules):
        factors[module], squares[module] = part, (square, lost)
        progress(module)
    specs = {
        module: replace(spec, rank=factors[module].rank, scaling=1.0, dtype="float32")
        for module, spec in adapter.modules.items()
    }
    total, lost = (sum(pair[i] for pair in squares.values()) for i in (0, 1))
    errors = {module: _relative(*pair) for module, pair in squares.items()}
    return replace(
        adapter,
        modules=specs,
        load=factors.__getitem__,
        findings=tuple(found for found in adapter.findings if found.code != PLAIN),
        load_magnitude=None,
        converted={"from": "dora", "rank": rank, "error": _relative(total, lost), "errors": errors},
    )


def _relative(square: float, lost: float) -> float:
    return math.sqrt(lost / square) if square > 0 else 0.0


def _seed(module: str) -> int:
    return int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "little")
