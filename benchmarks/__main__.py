"""Compare merges of three rank-4 GPT-2 adapters with PEFT's and write ``results/gpt2.md``."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.adapters import GPT2, build
from benchmarks.processes import Cost, interleaved

RESULTS = Path(__file__).resolve().parent / "results"
RUNS = 5


def main() -> None:
    """Measure and write the table."""
    with tempfile.TemporaryDirectory() as root:
        adapters = [str(build(GPT2, Path(root) / f"adapter_{seed}", seed)) for seed in range(3)]

        def ours(*options: str) -> Callable[[int], Sequence[str]]:
            name = "-".join(options).replace("-", "")
            return lambda turn: [
                *(sys.executable, "-m", "hub_merge", "merge", *adapters, *options, "--quiet"),
                *("-o", f"{root}/ours-{name}-{turn}"),
            ]

        def peft(kind: str) -> Callable[[int], Sequence[str]]:
            return lambda turn: [
                *(sys.executable, "-m", "benchmarks.peft_merge", kind, f"{root}/peft-{kind}-{turn}", *adapters)
            ]

        costs = interleaved(
            {
                "hub-merge sum": ours(),
                "PEFT cat": peft("cat"),
                "hub-merge svd": ours("--method", "svd", "--rank", "4"),
                "PEFT svd (reduced)": peft("svd"),
                "hub-merge lego": ours("--method", "lego", "--rank", "4"),
            },
            RUNS,
        )
    report = _report(costs)
    (RESULTS / "gpt2.md").write_text(report, encoding="utf-8")
    print(report)


def _report(costs: dict[str, Cost]) -> str:
    rows = "\n".join(f"| {name} | {c.cpu:.2f} | {c.wall:.2f} | {c.memory:.0f} |" for name, c in costs.items())
    ratios = [
        f"- {kind}: PEFT takes {costs[theirs].cpu / costs[ours].cpu:.1f} times the CPU time "
        f"and {costs[theirs].memory / costs[ours].memory:.1f} times the memory."
        for kind, ours, theirs in (
            ("sum against cat", "hub-merge sum", "PEFT cat"),
            ("svd at rank 4", "hub-merge svd", "PEFT svd (reduced)"),
        )
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in ("hub-merge", "numpy", "peft", "torch", "transformers"))
    return f"""# Three rank-4 adapters of GPT-2 shapes

Whole processes with one thread each, start-up, reading and writing included; ours also check, score, prove and write
the card. Medians of {RUNS} interleaved runs after one that is not counted.

| process | CPU s | wall s | peak MB |
|---|---|---|---|
{rows}

{chr(10).join(ratios)}

{versions}; Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores.
"""


if __name__ == "__main__":
    main()
