"""The fingerprint of one adapter: a sketch of its delta, and what is exact beside it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from hub_merge.adapter import Adapter
from hub_merge.errors import AdapterFormatError
from hub_merge.gram import inner_products, stack
from hub_merge.zoo.sketch import SIZE, START_SIZE, VERSION, from_spectrum, sketch_module

__all__ = ["Fingerprint", "fingerprint"]

Half = NDArray[np.float16]

NUMBERED = re.compile(r"\.\d+(?=\.|$)")
MOST_GROUPS = 64
"""Groups whose norms are kept apart; the rest of an adapter that has more is one."""
REST = "(others)"


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """What the zoo knows of an adapter's numbers.

    Attributes:
        base: Canonical id of the base model that the hashes follow from.
        sketch: Sketch of the delta at norm one, ``(SIZE,)`` float16, whose rounding is a thousandth of its error; zeros
            for a delta of zero.
        start: Sketch of the rows of all A at unit length, ``(START_SIZE,)`` float16, of norm about one: tells whether
            two trainings began alike.
        norm: Frobenius norm of the whole delta, exact.
        groups: Norm by group of modules, which are those that differ in the number of their layer only; exact.
        rank: Largest rank.
        modules: Number of adapted modules.
        parameters: Numbers in the factors.
        signature: Hash of the names and shapes of the modules.
        version: Of the hashes.
    """

    base: str
    sketch: Half
    start: Half
    norm: float
    groups: Mapping[str, float]
    rank: int
    modules: int
    parameters: int
    signature: str
    version: int = VERSION

    def cosine(self, other: Fingerprint) -> float | None:
        """Return an estimate of the cosine of the two deltas, [-1, 1]; ``None`` where one is zero.

        The lengths of the sketches are divided out, so that equal deltas have cosine 1.
        """
        return _cosine(self.sketch, other.sketch)

    def one_start(self, other: Fingerprint) -> float | None:
        """Return an estimate of the mean cosine of the rows of A, [-1, 1]: high if both trainings began alike."""
        return _cosine(self.start, other.start)


def fingerprint(adapter: Adapter, base: str, progress: Callable[[str], None] = lambda module: None) -> Fingerprint:
    """Return the fingerprint of an adapter whose numbers can be read; one module is in memory at a time.

    Args:
        adapter: The adapter.
        base: Canonical id of its base model.
        progress: Told each module that is done.

    Raises:
        AdapterFormatError: A number is not finite.
    """
    with _threads().limit(limits=1, user_api="blas"):  # the matrices are small
        return _sketched(adapter, base, progress)


@cache
def _threads() -> ThreadpoolController:
    """Return what limits the threads of BLAS; to look for its library takes as long as a small fingerprint."""
    return ThreadpoolController()


def _sketched(adapter: Adapter, base: str, progress: Callable[[str], None]) -> Fingerprint:
    spectrum = np.zeros(SIZE // 2 + 1, np.complex128)
    start, rows = np.zeros(START_SIZE), 0
    squares: dict[str, float] = {}
    for module in sorted(adapter.modules):
        stacked = stack([adapter.factors(module)])
        scale = float(np.abs(stacked.lengths).max(initial=0.0))
        lengths = np.concatenate([[scale], np.diag(stacked.gram_a), np.diag(stacked.gram_b)])
        if not np.isfinite(lengths).all():
            raise AdapterFormatError(
                f"{adapter.name}: {module} holds numbers that are not finite.", remedy="Take another revision."
            )
        if scale > 0:
            part = sketch_module(base, module, stacked, scale)
            spectrum += scale * part.spectrum
            start += part.start
            rows += part.rows
            squares[module] = float(inner_products(stacked, 1)[0, 0])
        progress(module)
    norm = math.sqrt(math.fsum(squares.values()))
    sketch = from_spectrum(spectrum / norm) if norm else np.zeros(SIZE)
    return Fingerprint(
        base=base,
        sketch=sketch.astype(np.float16),
        start=(start / math.sqrt(rows or 1)).astype(np.float16),
        norm=norm,
        groups=_grouped(squares),
        rank=adapter.rank,
        modules=len(adapter.modules),
        parameters=sum(spec.rank * sum(spec.shape) for spec in adapter.modules.values()),
        signature=_signature(adapter),
    )


def _grouped(squares: Mapping[str, float]) -> dict[str, float]:
    """Return the norm of each group, the largest first."""
    sums: dict[str, float] = {}
    for module, square in squares.items():
        group = NUMBERED.sub(".*", module)
        sums[group] = sums.get(group, 0.0) + square
    ordered = sorted(sums, key=lambda group: -sums[group])
    norms = {group: math.sqrt(sums[group]) for group in ordered[:MOST_GROUPS]}
    if rest := ordered[MOST_GROUPS:]:
        norms[REST] = math.sqrt(math.fsum(sums[group] for group in rest))
    return norms


def _signature(adapter: Adapter) -> str:
    shapes = sorted((name, *spec.shape) for name, spec in adapter.modules.items())
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]


def _wide(numbers: Half) -> NDArray[np.float64]:
    return numbers.astype(np.float64)


def _cosine(first: Half, second: Half) -> float | None:
    x, y = _wide(first), _wide(second)
    lengths = math.sqrt(float(x @ x) * float(y @ y))
    return max(-1.0, min(1.0, float(x @ y) / lengths)) if lengths else None
