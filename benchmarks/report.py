"""From measured costs to Markdown. Nothing in the text is a figure that was not measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.claims import CLAIMS, complete_commands
from benchmarks.parts import COMBINATIONS, PARTS, counterpart
from benchmarks.processes import Cost

__all__ = ["Measured", "read", "render"]

PACKAGES = ("hub-merge", "numpy", "ml_dtypes", "safetensors", "peft", "torch", "transformers")

INTRODUCTION = """# Benchmarks

`make bench` measures and writes this page; `python -m benchmarks gpt2` only a part of it. Every row is a process of its
own with one BLAS thread, held to one core unless it says two, started by turns with the others. Times are medians; the
first turn warms the page cache, leaves compiled bytecode and is watched for memory instead, and what takes at most ten
seconds is run untimed right before each timed run, for a virtual machine makes the first writer pay for pages that it
had taken back. Of what takes PEFT long one turn counts: its other combinations on GPT-2, `cat` of the 8B, `svd` of one
layer; of that of the 8B the first. Adapters are random, of the named model's shapes; those of the Llamas have rank 16
on all linear modules, in bfloat16.

- **merge**: open, check, read, merge, write, which is what PEFT's rows do too, but for the check. *Work* is reading,
  merging and writing alone.
- **command**: the whole `hub-merge` command, which also scores, proves what it wrote, and writes record and card.
- **PEFT**: load the adapters on a base whose weights are never touched, merge, save. *Work* is `add_weighted_adapter`
  alone. `svd` is the reduced one (`svd_full_matrices=False`), which is faster than PEFT's default.
- **copy**: `shutil.copyfile` of the adapters' files.
- **extrapolated**: measured on a base of one layer, the work added once for each further layer; memory is that of one.
- **private** is the peak of anonymous memory, **resident** has mapped files too; looked at every 2 ms, in 10^6 bytes,
  for a process and those it forks together, what they share counted in each.
"""

CLAIMS_NOTE = """Each figure of a claim has to keep its threshold. Costs of PEFT are set against ours as whole
processes, all others as work without start-up. Memory counts as flat if four times the modules take at most a quarter
more. Eight adapters are set against three at a quarter of the layers: what it takes to write some hundred megabytes
depends on the state of a virtual machine's memory more than on the work, as the rows of all layers show.
"""

COMMANDS_NOTE = """The complete command does more than PEFT's merge: it scores the adapters, proves what it wrote,
hashes every file, and writes record and card. How many times cheaper it still is, without a threshold:
"""

COMBINATIONS_NOTE = """Every combination of PEFT, as whole processes, at density 0.5. PEFT's `linear`, `ties`,
`dare_linear`, `dare_ties` and `magnitude_prune` work on A and B apart, so that their deltas have cross terms; ours is
set to the same (`space=factors`). For `…_svd` it is set to dense deltas (`space=delta`).
"""


@dataclass(frozen=True)
class Measured:
    """What a part gave, on which machine and with which versions."""

    runs: int
    setting: str
    rows: Mapping[str, Cost]

    @classmethod
    def now(cls, runs: int, rows: Mapping[str, Cost]) -> Measured:
        """Return the costs with a line on where they were measured."""
        return cls(runs, _setting(), rows)

    def write(self, path: Path) -> None:
        """Write the numbers, so that the parts can be measured one at a time."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Measured]:
    """Return the parts that have been measured."""
    parts = {}
    for part in PARTS:
        if (path := folder / f"{part}.json").is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            rows = {name: Cost(**cost) for name, cost in content["rows"].items()}
            parts[part] = Measured(content["runs"], content["setting"], rows)
    return parts


def _setting() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{versions}; Python {platform.python_version()}; {_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def render(parts: Mapping[str, Measured], picture: str) -> str:
    """Return the report.

    Args:
        parts: Measured parts by name; the others are left out.
        picture: File of the picture, beside the report.
    """
    sections = [INTRODUCTION, f"## Claims\n\n{CLAIMS_NOTE}", _claims(parts), COMMANDS_NOTE, _commands(parts)]
    sections.append(f"![CPU time and memory]({picture})\n")
    for name, measured in parts.items():
        title = (PARTS[name].__doc__ or "").splitlines()[0].rstrip(".")
        sections.append(
            f"## {name}\n\n{title}. Runs: {measured.runs}.\n\n{_costs(measured.rows)}\n{measured.setting}.\n"
        )
        if name == "gpt2":
            sections.append(f"{COMBINATIONS_NOTE}\n{_combinations(measured.rows)}")
    return "\n".join(sections)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], texts: int = 1) -> str:
    """Return a Markdown table whose first ``texts`` columns are text and whose others are numbers."""
    rule = ["---"] * texts + ["--:"] * (len(head) - texts)
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, tuple(rule), *rows))


def _claims(parts: Mapping[str, Measured]) -> str:
    words = {True: "yes", False: "**no**", None: "not measured"}
    lines = []
    for claim in CLAIMS:
        if claim.part in parts:
            rows = parts[claim.part].rows
            lines.append((claim.part, claim.text, claim.threshold, claim.measured(rows), words[claim.holds(rows)]))
    return _table(("part", "claim", "threshold", "measured", "holds"), lines, texts=5)


def _commands(parts: Mapping[str, Measured]) -> str:
    lines = []
    for part, text, figures in complete_commands():
        if part in parts:
            values = (f"{_seconds(figure(parts[part].rows))}× {name}" for name, figure in figures.items())
            lines.append((part, text, ", ".join(values)))
    return _table(("part", "processes", "times cheaper"), lines, texts=3)


def _costs(rows: Mapping[str, Cost]) -> str:
    head = ("process", "CPU s", "wall s", "work CPU s", "work wall s", "private MB", "resident MB")
    lines = [
        (
            name,
            *(_seconds(value) for value in (cost.cpu, cost.wall, cost.work_cpu, cost.work_wall)),
            *("–" if value is None else f"{value:.0f}" for value in (cost.private, cost.resident)),
        )
        for name, cost in rows.items()
    ]
    return _table(head, lines)


def _combinations(rows: Mapping[str, Cost]) -> str:
    head = ("PEFT", "ours", "PEFT CPU s", "our CPU s", "times")
    lines = []
    for combination in COMBINATIONS:
        theirs, ours = rows[f"PEFT {combination}"], rows[counterpart(combination)]
        name = counterpart(combination).removeprefix("merge ")
        figures = (_seconds(theirs.cpu), _seconds(ours.cpu), f"{theirs.cpu / ours.cpu:.1f}")
        lines.append((f"`{combination}`", f"`{name}`", *figures))
    return _table(head, lines, texts=2)


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"
