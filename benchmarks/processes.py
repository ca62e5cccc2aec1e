"""Timing of whole processes, interleaved, by the operating system's own accounts."""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

__all__ = ["OUTPUT", "Command", "Cost", "interleaved"]

ROOT = Path(__file__).resolve().parents[1]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
OUTPUT = "{output}"
"""Stands in a command for a path that is new in every run."""
SAMPLING = 0.002
"""Seconds between two looks at the memory of a process."""
BRIEF = 10.0
"""Seconds; what takes no longer is run untimed right before each run that counts. It leaves as many pages free as that
will write: the host of a virtual machine takes unused pages back, and who writes next pays for their return."""


@dataclass(frozen=True)
class Command:
    """A process to time."""

    arguments: Sequence[str]
    cores: int = 1
    """How many cores it may use. BLAS has one thread in any case."""


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds, and MB (10^6 bytes) at the peak; ``None`` is not known."""

    cpu: float
    wall: float
    work_cpu: float | None = None
    """Of the work itself, start-up apart, as the process tells."""
    work_wall: float | None = None
    private: float | None = None
    """Memory of its own (anonymous) and of the processes it forks; pages of mapped files, which the system can take
    back, do not count."""
    resident: float | None = None

    def extrapolated(self, times: int) -> Cost:
        """Return the cost if the work itself were done ``times`` times."""
        assert self.work_cpu is not None
        assert self.work_wall is not None
        return replace(
            self,
            cpu=self.cpu + (times - 1) * self.work_cpu,
            wall=self.wall + (times - 1) * self.work_wall,
            work_cpu=times * self.work_cpu,
            work_wall=times * self.work_wall,
        )


def interleaved(commands: Mapping[str, Command], runs: int) -> dict[str, Cost]:
    """Return the median cost of each command; they take turns.

    The first turn, which warms the page cache, is watched for memory and not timed, unless it is the only one.

    Args:
        commands: What to run, by name. A last line of output that is a JSON object tells what the work itself took.
        runs: Turns that count, from 0.
    """
    seen: dict[str, list[Cost]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as root:
        for turn in range(runs + 1):
            for name, command in commands.items():
                if turn and seen[name][0].wall <= BRIEF:
                    _run(command, Path(root) / "output", watched=False)
                seen[name].append(_run(command, Path(root) / "output", watched=turn == 0))
                print(f"turn {turn} of {runs}: {name}, {seen[name][-1].wall:.2f} s", file=sys.stderr)
    return {name: _median(costs) for name, costs in seen.items()}


def _median(costs: Sequence[Cost]) -> Cost:
    timed = costs[1:] or costs
    return replace(
        costs[0],
        **{
            field: None if None in (values := [getattr(cost, field) for cost in timed]) else statistics.median(values)
            for field in ("cpu", "wall", "work_cpu", "work_wall")
        },
    )


def _run(command: Command, output: Path, *, watched: bool) -> Cost:
    arguments = [str(output) if argument == OUTPUT else argument for argument in command.arguments]
    environment = {**os.environ, **ONE_THREAD, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages are compiled, a clone is by its first turn
    with tempfile.TemporaryFile("w+", encoding="utf-8") as told:
        with _on_cores(command.cores):
            start = time.perf_counter()
            process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=told)
        status, usage, peaks = _wait(process.pid, watched)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        shutil.rmtree(output, ignore_errors=True)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, arguments)
        return Cost(usage.ru_utime + usage.ru_stime, wall, **peaks, **_work(told))


@contextmanager
def _on_cores(count: int) -> Iterator[None]:
    """Let processes that are started meanwhile run on the last ``count`` cores only, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(ours)[-count:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def _wait(pid: int, watched: bool) -> tuple[int, resource.struct_rusage, dict[str, float]]:
    """Return exit status and usage of a process when it is over, and, if it is to be watched, its peaks of memory."""
    peaks: dict[str, float] = {}
    ended, status, usage = os.wait4(pid, os.WNOHANG if watched else 0)
    while not ended:
        for field, megabytes in _memory(pid).items():
            peaks[field] = max(peaks.get(field, 0.0), megabytes)
        time.sleep(SAMPLING)
        ended, status, usage = os.wait4(pid, os.WNOHANG)
    return status, usage, peaks


def _memory(pid: int) -> dict[str, float]:
    """Return the memory of a process that has not been waited for and of its children, in MB, as far as known."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    family = [pid, *map(int, children.read_text().split())] if children.exists() else [pid]
    fields = {"private": "RssAnon", "resident": "VmRSS"}
    peaks: dict[str, float] = {}
    for member in family:
        with suppress(OSError):  # a child that has just ended
            lines = dict(line.split(":", 1) for line in Path(f"/proc/{member}/status").read_text().splitlines())
            for field, line in fields.items():
                if line in lines:
                    peaks[field] = peaks.get(field, 0.0) + int(lines[line].split()[0]) * 1024 / 1e6
    return peaks


def _work(told: IO[str]) -> dict[str, float]:
    told.seek(0)
    lines = told.read().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
