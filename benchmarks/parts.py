"""What each part of the benchmark runs. A part is a function from a workshop to the cost of each process by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.adapters import GPT2, LLAMA_1B, LLAMA_8B, Shape, build
from benchmarks.processes import OUTPUT, Command, Cost, interleaved

__all__ = [
    "COMBINATIONS",
    "EXTRAPOLATED",
    "INTERPRETER",
    "PARTS",
    "QUARTER",
    "SIZES",
    "Workshop",
    "counterpart",
    "sized",
]

INTERPRETER = "`import numpy`"
EXTRAPOLATED = ", extrapolated from one layer"
SLOW_RUNS = 1
"""Most turns for what takes PEFT long."""

PRUNED = {"density": 0.5}
FACTORS = {**PRUNED, "space": "factors"}
DELTAS = {**PRUNED, "space": "delta"}

COMBINATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "cat": ("sum", {}),
    "linear": ("linear", {}),
    "svd": ("svd", {}),
    "ties": ("ties", FACTORS),
    "ties_svd": ("ties", DELTAS),
    "dare_linear": ("dare_linear", FACTORS),
    "dare_linear_svd": ("dare_linear", DELTAS),
    "dare_ties": ("dare_ties", FACTORS),
    "dare_ties_svd": ("dare_ties", DELTAS),
    "magnitude_prune": ("magnitude_prune", FACTORS),
    "magnitude_prune_svd": ("magnitude_prune", DELTAS),
}
"""PEFT's types of combination, each with the method and options of ours that it is held against."""


@dataclass
class Workshop:
    """Where adapters are built, and how often what is done with them is timed."""

    root: Path
    runs: int
    shrink: Callable[[Shape], Shape] = lambda shape: shape
    """Applied to every shape; tests time small ones."""

    def adapters(self, shape: Shape, count: int = 3) -> Adapters:
        """Return adapters of ``shape``; each is written when it is first asked for."""
        shape = self.shrink(shape)
        folder = self.root / f"{shape.base.replace('/', '-')}-{shape.layers}"
        paths = [folder / f"adapter_{seed}" for seed in range(count)]
        return Adapters(
            shape, tuple(str(path if path.exists() else build(shape, path, seed)) for seed, path in enumerate(paths))
        )


@dataclass(frozen=True)
class Adapters:
    """Adapters of one shape, and the processes to run on them."""

    shape: Shape
    paths: tuple[str, ...]

    def ours(self, job: str, cores: int = 1, **settings: Any) -> Command:
        """Return the process that opens, merges and writes, or does another job of ``our_merge``."""
        given = (sys.executable, "-m", "benchmarks.our_merge", job, OUTPUT, *self.paths)
        return Command((*given, "--settings", json.dumps(settings)), cores)

    def command(self, job: str, *options: str) -> Command:
        """Return the command a user would run: ``score``, or ``merge`` with the method ``job``."""
        start = (sys.executable, "-m", "hub_merge")
        if job == "score":
            return Command((*start, "score", *self.paths, "--quiet"))
        return Command((*start, "merge", *self.paths, "--method", job, *options, "--quiet", "-o", OUTPUT))

    def peft(self, combination: str) -> Command:
        """Return PEFT's merge, with the same rank and density as ours and, where it has one, the reduced svd."""
        settings: dict[str, Any] = {}
        if combination.endswith("svd"):
            settings = {"svd_rank": self.shape.rank, "svd_full_matrices": False}
        if "density" in COMBINATIONS[combination][1]:
            settings |= PRUNED
        base = json.dumps({**self.shape.config, "num_hidden_layers": self.shape.layers, "dtype": self.shape.dtype})
        given = (sys.executable, "-m", "benchmarks.peft_merge", combination, base, OUTPUT, *self.paths)
        return Command((*given, "--settings", json.dumps(settings)))

    def merges(self) -> dict[str, Command]:
        """Return our merges that every part times."""
        rank = self.shape.rank
        return {
            "merge sum": self.ours("sum"),
            "merge svd": self.ours("svd", rank=rank),
            "merge lego": self.ours("lego", rank=rank),
        }

    def commands(self) -> dict[str, Command]:
        """Return the complete commands that every part times."""
        rank = ("--rank", str(self.shape.rank))
        return {
            "command sum": self.command("sum"),
            "command svd": self.command("svd", *rank),
            "command lego": self.command("lego", *rank),
            "command score": self.command("score"),
        }


def _extrapolated_svd(workshop: Workshop, shape: Shape, runs: int) -> dict[str, Cost]:
    """Return what PEFT's svd of all layers would cost, from that of a base with one layer."""
    alone = workshop.adapters(replace(shape, layers=1)).peft("svd")
    cost = interleaved({"PEFT svd": alone}, runs)["PEFT svd"]
    return {f"PEFT svd{EXTRAPOLATED}": cost.extrapolated(workshop.shrink(shape).layers)}


def gpt2(workshop: Workshop) -> dict[str, Cost]:
    """Three adapters of GPT-2, and every combination that PEFT has."""
    three = workshop.adapters(GPT2)
    quick = {**three.merges(), **three.commands(), "PEFT cat": three.peft("cat"), "PEFT svd": three.peft("svd")}
    rest = {}
    for combination in COMBINATIONS:
        if combination not in ("cat", "svd"):
            rest[counterpart(combination)] = _counterpart(three, combination)
            rest[f"PEFT {combination}"] = three.peft(combination)
    return interleaved(quick, workshop.runs) | interleaved(rest, min(workshop.runs, SLOW_RUNS))


def counterpart(combination: str) -> str:
    """Return the name of our row that is held against PEFT's ``combination``."""
    method, options = COMBINATIONS[combination]
    return f"merge {method}" + (f" in {options['space']} space" if options else "")


def _counterpart(adapters: Adapters, combination: str) -> Command:
    method, options = COMBINATIONS[combination]
    rank = {"rank": adapters.shape.rank} if combination.endswith("svd") else {}
    return adapters.ours(method, **options, **rank)


def llama_1b(workshop: Workshop) -> dict[str, Cost]:
    """Three adapters of Llama-3.2-1B."""
    three = workshop.adapters(LLAMA_1B)
    timed = interleaved({**three.merges(), **three.commands(), "PEFT cat": three.peft("cat")}, workshop.runs)
    return timed | _extrapolated_svd(workshop, LLAMA_1B, min(workshop.runs, SLOW_RUNS))


def llama_8b(workshop: Workshop) -> dict[str, Cost]:
    """Three adapters of Llama-3.1-8B: beside copying their files, and on one core and two."""
    three = workshop.adapters(LLAMA_8B)
    rank = three.shape.rank
    timed = interleaved(
        {
            INTERPRETER: Command((sys.executable, "-c", "import numpy")),
            "copy": three.ours("copy"),
            **three.merges(),
            "score": three.ours("score"),
            "score with spectra": three.ours("score", spectra=True),
            "merge sum, two cores": three.ours("sum", cores=2),
            "merge svd, two cores": three.ours("svd", cores=2, rank=rank),
            "merge lego, two cores": three.ours("lego", cores=2, rank=rank),
            **three.commands(),
        },
        workshop.runs,
    )
    slow = interleaved({"PEFT cat": three.peft("cat")}, min(workshop.runs, SLOW_RUNS))
    return timed | slow | _extrapolated_svd(workshop, LLAMA_8B, 0)


def scaling(workshop: Workshop) -> dict[str, Cost]:
    """Eight adapters of Llama-3.1-8B beside three, with all layers and with fewer."""
    commands = {INTERPRETER: Command((sys.executable, "-c", "import numpy"))}
    for count, share in SIZES:
        some = workshop.adapters(replace(LLAMA_8B, layers=LLAMA_8B.layers // share), count)
        chosen = {**some.merges(), "score": some.ours("score"), "command sum": some.command("sum")}
        commands |= {f"{name}{sized(count, share)}": command for name, command in chosen.items()}
    return interleaved(commands, workshop.runs)


QUARTER = 4
"""Share of the layers whose files are so small that they are written to pages that are there; see ``BRIEF``."""

SIZES = ((3, QUARTER), (8, QUARTER), (3, 2), (3, 1), (8, 1))
"""How many adapters, and which share of the layers each has."""


def sized(count: int, share: int = 1) -> str:
    """Return what marks the rows of ``count`` adapters with one ``share``-th of the layers."""
    return f", {count} adapters of {LLAMA_8B.layers // share} layers"


PARTS: Mapping[str, Callable[[Workshop], dict[str, Cost]]] = {
    "gpt2": gpt2,
    "llama-1b": llama_1b,
    "llama-8b": llama_8b,
    "scaling": scaling,
}
