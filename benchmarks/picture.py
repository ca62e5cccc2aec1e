"""The picture beside the tables: CPU time against PEFT's, and memory by size of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.adapters import LLAMA_8B
from benchmarks.parts import EXTRAPOLATED, INTERPRETER, SIZES, sized
from benchmarks.processes import Cost
from benchmarks.report import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

SLOW = f"PEFT svd{EXTRAPOLATED}"
BARS = {
    "hub-merge, merge only": "#0072b2",
    "hub-merge, complete command": "#56b4e9",
    "PEFT (svd of the Llamas extrapolated)": "#d55e00",
}
SERIES = {
    "merge sum": ("#0072b2", "o"),
    "merge svd": ("#d55e00", "s"),
    "merge lego": ("#009e73", "^"),
    "command sum": ("#cc79a7", "D"),
}


def draw(parts: Mapping[str, Measured], path: Path) -> None:
    """Draw what has been measured to the PNG file ``path``."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        times, memory = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_times(times, parts)
        _draw_memory(memory, parts)
        figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_times(axes: Axes, parts: Mapping[str, Measured]) -> None:
    """Draw bars for our merge, our command and PEFT's merge, in groups of one model and one kind of merge."""
    groups = [
        (f"{part}\n{job}", part, (f"merge {job}", f"command {job}", theirs))
        for part, svd in (("gpt2", "PEFT svd"), ("llama-1b", SLOW), ("llama-8b", SLOW))
        for job, theirs in (("sum", "PEFT cat"), ("svd", svd))
        if part in parts
    ]
    for bar, (label, colour) in enumerate(BARS.items()):
        costs = [parts[part].rows[names[bar]].cpu for _, part, names in groups]
        axes.barh([place + 0.27 * (bar - 1) for place in range(len(groups))], costs, 0.25, color=colour, label=label)
    axes.set_yticks(range(len(groups)), [label for label, *_ in groups])
    axes.set_xlabel("CPU seconds of the whole process")
    if groups:
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.legend(frameon=False)


def _draw_memory(axes: Axes, parts: Mapping[str, Measured]) -> None:
    """Draw private memory by number of modules, three adapters each."""
    rows = parts["scaling"].rows if "scaling" in parts else {}
    shares = [share for count, share in SIZES if count == 3]
    modules = [LLAMA_8B.modules // share for share in shares]
    for name, (colour, marker) in SERIES.items() if rows else ():
        heights = [_above(rows[name + sized(3, share)], rows[INTERPRETER]) for share in shares]
        axes.plot(modules, heights, color=colour, marker=marker, label=name)
    axes.set(
        xlabel="modules of Llama-3.1-8B",
        ylabel="private MB above the interpreter",
        xlim=(0, None),
        ylim=(0, None),
    )
    if rows:
        axes.legend(frameon=False)


def _above(cost: Cost, interpreter: Cost) -> float:
    known = cost.private is not None and interpreter.private is not None
    return cost.private - interpreter.private if known else math.nan
