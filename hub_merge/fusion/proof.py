"""Proof that a fused model is base plus delta: every byte of what was written is read again and compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from hub_merge.errors import AdapterFormatError
from hub_merge.formats.tensors import SafetensorsStore, TensorInfo
from hub_merge.fusion.folding import Block, Plan, blocks, delta_rows, numbers
from hub_merge.gram import Float64
from hub_merge.parallel import map_modules
from hub_merge.proof import Check

__all__ = ["FusionProof", "prove_fusion"]

ROOM = 0.51
"""Units in the last place by which the nearest number of a dtype may be off, with some room for rounding twice."""


@dataclass(frozen=True, slots=True)
class FusionProof:
    """What re-reading a fused model showed.

    Attributes:
        passed: Whether every check passed.
        changed: Tensors that the adapter changes.
        copied: Tensors that are those of the base, bit for bit.
        rounding: ``‖written - base - delta‖ / ‖delta‖`` over all changed tensors: what the dtype lost of the delta.
        worst_rounding: The same for the tensor that lost most.
        worst_tensor: Its name.
        change: ``‖delta‖ / ‖base‖`` over all changed tensors.
        differing: Tensors that are not what they should be.
        checks: Everything that was looked at.
    """

    passed: bool
    changed: int
    copied: int
    rounding: float | None
    worst_rounding: float | None
    worst_tensor: str | None
    change: float | None
    checks: tuple[Check, ...]
    differing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the proof as plain data."""
        content = asdict(self)
        if not self.differing:
            del content["differing"]
        return content


@dataclass(slots=True, eq=False)
class _Seen:
    """What comparing one changed tensor adds up to.

    Attributes:
        off: Largest distance of a written number to the exact one, in units of the written number's last place.
        squares: Squared norms of the rounding error, of the delta and of the base.
    """

    off: float
    squares: Float64


def prove_fusion(plan: Plan, folder: Path, progress: Callable[[str], None] = lambda tensor: None) -> FusionProof:
    """Return what comparing the weights in ``folder`` with base and adapter shows.

    Args:
        plan: What should have been written.
        folder: Where it was.
        progress: Called with each tensor's name when it is compared.
    """
    try:
        written = {file: SafetensorsStore(folder / file) for file in plan.shards}
    except (OSError, AdapterFormatError) as error:
        return _verdict({}, [], 0, [Check("files", False, str(error))])
    checks = [_parser_check(plan, folder), _layout_check(plan, written)]
    seen: dict[str, _Seen] = {}
    differing: list[str] = []
    if all(check.passed for check in checks):
        for name, found in _compare(plan, written, progress):
            if found is None:
                differing.append(name)
            elif name in seen:
                seen[name].off = max(seen[name].off, found.off)
                seen[name].squares += found.squares
            else:
                seen[name] = found
        checks += [_copy_check(plan, differing), _delta_check(seen)]
    copied = sum(fold.module is None for fold in plan.folds) - len(set(differing))
    return _verdict(seen, differing, copied, checks)


def _verdict(seen: Mapping[str, _Seen], differing: Sequence[str], copied: int, checks: Sequence[Check]) -> FusionProof:
    lost = {name: _ratio(entry.squares[0], entry.squares[1]) or 0.0 for name, entry in seen.items()}
    worst = max(lost, key=lambda name: lost[name], default=None)
    error, delta, base = sum((entry.squares for entry in seen.values()), np.zeros(3))
    return FusionProof(
        passed=all(check.passed for check in checks),
        changed=len(seen),
        copied=copied,
        rounding=_ratio(error, delta),
        worst_rounding=None if worst is None else lost[worst],
        worst_tensor=worst,
        change=_ratio(delta, base),
        checks=tuple(checks),
        differing=tuple(sorted({*differing, *(name for name, entry in seen.items() if entry.off > ROOM)})),
    )


def _ratio(square: float, of: float) -> float | None:
    ratio = math.sqrt(square / of) if of > 0 else math.nan
    return ratio if math.isfinite(ratio) else None


def _parser_check(plan: Plan, folder: Path) -> Check:
    """Let the safetensors library judge the files."""
    count = 0
    try:
        for file in plan.shards:
            with safetensors.safe_open(folder / file, framework="numpy") as opened:
                count += len(opened.keys())
    except (OSError, safetensors.SafetensorError) as error:
        return Check("parser", False, f"safetensors cannot open {file}: {error}")
    return Check("parser", count == len(plan.folds), f"safetensors reads {count} tensors of {len(plan.folds)}")


def _layout_check(plan: Plan, written: Mapping[str, SafetensorsStore]) -> Check:
    def told(info: TensorInfo) -> tuple[str, tuple[int, ...]]:
        return info.dtype, info.shape

    wrong = [
        fold.name
        for file, folds in plan.shards.items()
        for fold in folds
        if fold.name not in written[file].infos or told(written[file].infos[fold.name]) != told(fold.info)
    ]
    return Check("layout", not wrong, f"{len(wrong)} tensors of another dtype or shape{_first(wrong)}")


def _first(names: list[str]) -> str:
    return f" ({', '.join(names[:3])})" if names else ""


def _copy_check(plan: Plan, differing: list[str]) -> Check:
    copies = sum(fold.module is None for fold in plan.folds)
    wrong = sorted(set(differing))
    return Check("copies", not wrong, f"{len(wrong)} of {copies} unchanged tensors differ from the base{_first(wrong)}")


def _delta_check(seen: Mapping[str, _Seen]) -> Check:
    worst = max(seen, key=lambda name: seen[name].off, default=None)
    if worst is None:
        return Check("delta", False, "no tensor changed")
    off = seen[worst].off
    detail = f"numbers are at most {off:.3g} units in the last place off base + delta, in {worst}; {ROOM} accepted"
    return Check("delta", off <= ROOM, detail)


def _compare(
    plan: Plan, written: Mapping[str, SafetensorsStore], progress: Callable[[str], None]
) -> Iterator[tuple[str, _Seen | None]]:
    """Yield each block of a changed tensor with what it adds, and each block that should be a copy but is none."""

    def compared(block: Block) -> tuple[Block, _Seen | None, bool]:
        fold = block.fold
        base = plan.base.store(fold.source).read_bytes(fold.source, block.start, block.stop)
        new = home[fold.name].read_bytes(fold.name, block.start, block.stop)
        if fold.module is None:
            return block, None, np.array_equal(base, new)
        return block, _measured(delta_rows(block), numbers(block, base), numbers(block, new)), True

    home = {fold.name: written[file] for file, folds in plan.shards.items() for fold in folds}
    for block, seen, equal in map_modules(compared, blocks(plan.adapter, plan.folds)):
        if seen is not None or not equal:
            yield block.fold.name, seen
        if block.stop == block.fold.info.end - block.fold.info.begin:
            progress(block.fold.name)


def _measured(delta: Float64, base: Any, new: Any) -> _Seen:
    """Compare some rows: ``new`` should be ``base + delta``, rounded to its dtype."""
    info: Any = ml_dtypes.finfo(new.dtype)  # type: ignore[no-untyped-call]
    old, got = base.astype(np.float64), new.astype(np.float64)
    squares = [np.vdot(delta, delta), np.vdot(old, old)]
    error = got - old
    error -= delta
    squares.insert(0, np.vdot(error, error))
    np.maximum(np.abs(got, out=got), float(info.smallest_normal), out=got)
    last_place = np.ldexp(float(info.eps), np.frexp(got)[1] - 1)
    with np.errstate(invalid="ignore"):  # infinity over infinity is as far off as can be
        off = float(np.max(np.abs(error, out=error) / last_place, initial=0.0))
    return _Seen(math.inf if math.isnan(off) else off, np.array(squares, np.float64))
