"""Judging a written file: its structure, then its deltas, module by module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from hub_merge.adapter import Adapter
from hub_merge.composite import Composite
from hub_merge.gram import Float64
from hub_merge.parallel import map_modules
from hub_merge.proof.deltas import Measured, left_out, measure
from hub_merge.proof.results import Check, Loss, Proof, Retention
from hub_merge.proof.structure import structure_checks
from hub_merge.scores import ModuleScores, Scoring, modules_of, parents_of

__all__ = ["prove"]

TOLERANCES = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 2e-3}
"""Largest relative error that rounding both factors to a dtype explains, with some room."""

MOST_LOSSES = 5
"""Modules that are named with what they lost."""


def prove(
    folder: Path,
    written: Adapter,
    asked: Composite,
    progress: Callable[[str], None] = lambda module: None,
    scoring: Scoring | None = None,
) -> Proof:
    """Return what comparing the file in ``folder`` with the recipe shows.

    Args:
        folder: Folder of the written composite.
        written: The same, opened.
        asked: The merge that it should be.
        progress: Called with each module's name when it is compared.
        scoring: Sees the parents' factors of every module too, while they are at hand.
    """
    dtype = next(iter(written.modules.values())).dtype if written.modules else asked.dtype
    tolerance = TOLERANCES.get(dtype, TOLERANCES["float32"])
    checks = structure_checks(folder, written, asked)
    measured: list[Measured] = []
    if all(check.passed for check in checks):
        measured.extend(_visit_modules(written, asked, progress, scoring))
    compared = [entry for entry in measured if entry.module in asked.modules]
    worst = max(compared, key=lambda entry: entry.error, default=None)
    squares = sum((entry.squares for entry in measured), np.zeros(3 + len(asked.parents)))
    along = sum((entry.along for entry in measured), np.zeros((2, len(asked.parents))))
    retention = tuple(
        Retention(parent.name, ratio(along[0, i], squares[3 + i]), ratio(along[1, i], squares[3 + i]))
        for i, parent in enumerate(asked.parents)
    )
    if worst is not None:
        norms = np.sqrt(np.maximum(squares, 0.0))
        detail = f"largest relative error {worst.error:.3g} in {worst.module}, at most {tolerance:g} accepted"
        checks = (
            *checks,
            Check("delta", worst.error <= tolerance, detail),
            _retention_check(retention, norms, tolerance),
        )
    distance = math.sqrt(sum(entry.distance**2 for entry in compared))
    distance_to_sum = ratio(distance, math.sqrt(max(squares[2], 0.0)))
    return Proof(
        passed=all(check.passed for check in checks),
        tolerance=tolerance,
        max_error=worst.error if worst else None,
        worst_module=worst.module if worst else None,
        modules=len(compared),
        reference="definition" if asked.is_linear else "recomputed",
        distance_to_sum=distance_to_sum,
        energy_kept=ratio(squares[0], squares[2]),
        losses=_losses(compared, asked) if (distance_to_sum or 0.0) > tolerance else (),
        retention=retention,
        checks=checks,
    )


def _visit_modules(
    written: Adapter, asked: Composite, progress: Callable[[str], None], scoring: Scoring | None
) -> Iterator[Measured]:
    """Measure every module of the parents, also those that the composite lacks because every weight there is zero."""

    def visit(module: str) -> tuple[Measured, ModuleScores | None]:
        parents = parents_of(asked.parents, module)
        measured = measure(module, parents, written, asked) if module in asked.modules else left_out(module, parents)
        return measured, None if scoring is None else scoring.measure(module, parents)

    for measured, scores in map_modules(visit, modules_of(asked.parents), forks=True):
        if scoring is not None and scores is not None:
            scoring.add(scores)
        yield measured
        if measured.module in asked.modules:
            progress(measured.module)


def _losses(measured: Sequence[Measured], asked: Composite) -> tuple[Loss, ...]:
    """Return the modules that lack most of the exact combination, largest part first."""
    total = sum(entry.distance**2 for entry in measured)
    most = sorted(measured, key=lambda entry: (-entry.distance, entry.module))[:MOST_LOSSES]
    return tuple(
        Loss(
            entry.module,
            asked.modules[entry.module].rank,
            lost=ratio(entry.distance**2, entry.squares[2]),
            share=entry.distance**2 / total,
        )
        for entry in most
        if entry.distance
    )


def _retention_check(retention: Sequence[Retention], norms: Float64, tolerance: float) -> Check:
    """Check that measured and predicted agree to what an error of ``tolerance`` in the composite can move them."""
    room = tolerance * (norms[0] + norms[3:].sum())
    off = [
        f"{entry.name}: measured {entry.measured:.7g}, predicted {entry.predicted:.7g}"
        for entry, norm in zip(retention, norms[3:], strict=True)
        if entry.measured is not None and entry.predicted is not None
        if not abs(entry.measured - entry.predicted) * norm <= room
    ]
    return Check("retention", not off, "; ".join(off) or "each parent's share is what was predicted")


def ratio(value: float, of: float) -> float | None:
    return float(value / of) if of > 0 else None
