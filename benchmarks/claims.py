"""What the benchmark has to show, as bounds on figures that are taken from the measured rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.parts import EXTRAPOLATED, INTERPRETER, QUARTER, sized
from benchmarks.processes import Cost

__all__ = ["CLAIMS", "Claim", "Rows", "complete_commands"]

Rows = Mapping[str, Cost]
Figure = Callable[[Rows], float]

FLAT = 1.25
"""Most that memory may grow with four times the modules."""


@dataclass(frozen=True)
class Claim:
    """A bound on one or more figures of a part; all have to keep it."""

    part: str
    text: str
    sign: Literal["≥", "≤"]
    bound: float
    figures: Mapping[str, Figure]
    """By what they are in: CPU time, wall time or memory."""
    unit: str = "×"

    @property
    def threshold(self) -> str:
        """Return the bound in words."""
        return f"{self.sign} {self._shown(self.bound)}"

    def measured(self, rows: Rows) -> str:
        """Return the figures in words."""
        values = {name: figure(rows) for name, figure in self.figures.items()}
        return ", ".join(f"{self._shown(value)} {name}" for name, value in values.items() if not math.isnan(value))

    def holds(self, rows: Rows) -> bool | None:
        """Whether every figure keeps the bound; ``None`` where one could not be measured."""
        values = [figure(rows) for figure in self.figures.values()]
        if any(math.isnan(value) for value in values):
            return None
        return all(value >= self.bound if self.sign == "≥" else value <= self.bound for value in values)

    def _shown(self, value: float) -> str:
        digits = 0 if value >= 100 or value == round(value) else 1 if value >= 10 else 2
        return f"{value:,.{digits}f}{self.unit}"


def _field(row: str, field: str) -> Figure:
    """Return what reads one field of a row; NaN where that is not known."""

    def read(rows: Rows) -> float:
        value = getattr(rows[row], field)
        return math.nan if value is None else float(value)

    return read


def _ratio(over: Figure, under: Figure) -> Figure:
    return lambda rows: over(rows) / under(rows)


def _whole(over: str, under: str) -> Mapping[str, Figure]:
    """Return how often the one process costs the other, in CPU and in wall time."""
    return {name: _ratio(_field(over, name.lower()), _field(under, name.lower())) for name in ("CPU", "wall")}


def _work(over: str, under: str, names: tuple[str, ...] = ("CPU", "wall")) -> Mapping[str, Figure]:
    """Return how often the work of the one process, start-up apart, costs that of the other."""
    return {name: _ratio(*(_field(row, f"work_{name.lower()}") for row in (over, under))) for name in names}


def _own_memory(row: str) -> Figure:
    """Return the private memory of a process above that of an interpreter with numpy."""
    own, interpreter = _field(row, "private"), _field(INTERPRETER, "private")
    return lambda rows: own(rows) - interpreter(rows)


PAIRS = (
    ("gpt2", "sum", "cat", 10),
    ("gpt2", "svd", "svd", 20),
    ("llama-1b", "sum", "cat", 10),
    ("llama-1b", "svd", f"svd{EXTRAPOLATED}", 1000),
    ("llama-1b", "lego", f"svd{EXTRAPOLATED}", 1000),
)
"""Part, our method, PEFT's combination, and how many times cheaper the merge has to be."""


def _against_peft() -> Iterator[Claim]:
    for part, job, theirs, bound in PAIRS:
        text = f"`{job}`: times cheaper than PEFT's {theirs}"
        yield Claim(part, text, "≥", bound, _whole(f"PEFT {theirs}", f"merge {job}"))


def complete_commands() -> Iterator[tuple[str, str, Mapping[str, Figure]]]:
    """Yield part, text and figures of what the complete command costs beside a merge of PEFT, which does much less."""
    for part, job, theirs, _ in PAIRS:
        yield part, f"`hub-merge merge` by `{job}` beside PEFT's {theirs}", _whole(f"PEFT {theirs}", f"command {job}")


def _of_the_work() -> Iterator[Claim]:
    part = "llama-8b"
    yield Claim(part, "`sum` against copying the adapters' files", "≤", 3, _work("merge sum", "copy"))
    for row in ("score", "score with spectra", "merge svd", "merge lego"):
        yield Claim(part, f"`{row.removeprefix('merge ')}` against `sum`", "≤", 5, _work(row, "merge sum"))
    for job in ("svd", "lego"):
        over, under = f"merge {job}, two cores", f"merge {job}"
        yield Claim(part, f"`{job}` on two cores against one", "≤", 0.6, _work(over, under, ("wall",)))


def _of_memory() -> Iterator[Claim]:
    merges = (f"merge {job}, two cores" for job in ("sum", "svd", "lego"))
    for row in (*merges, "score", "command sum", "command svd", "command lego", "command score"):
        text = f"{row}: private memory above an interpreter with numpy"
        yield Claim("llama-8b", text, "≤", 150, {"private": _own_memory(row)}, unit=" MB")


def _of_scaling() -> Iterator[Claim]:
    few, all_layers, many = sized(3, QUARTER), sized(3), sized(8, QUARTER)
    for job, bound in (("sum", 8 / 3), ("svd", 6), ("lego", 6)):
        over, under = f"merge {job}{many}", f"merge {job}{few}"
        text = f"`{job}` of eight adapters against three, a quarter of the layers"
        yield Claim("scaling", text, "≤", bound, _work(over, under))
    for row in ("merge sum", "merge svd", "merge lego", "score", "command sum"):
        figure = _ratio(_own_memory(row + all_layers), _own_memory(row + few))
        text = f"{row}: private memory for 224 modules against 56"
        yield Claim("scaling", text, "≤", FLAT, {"private": figure})


CLAIMS = (*_against_peft(), *_of_the_work(), *_of_memory(), *_of_scaling())
