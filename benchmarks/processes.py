"""Timing of whole processes, interleaved, by the operating system's own accounts."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Cost", "interleaved"]

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Cost:
    """What one run took: CPU and wall time in seconds, peak memory in MB."""

    cpu: float
    wall: float
    memory: float


def _run(command: Sequence[str]) -> Cost:
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **ONE_THREAD, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / 1000)


def interleaved(commands: Mapping[str, Callable[[int], Sequence[str]]], runs: int) -> dict[str, Cost]:
    """Return the median cost of each command; they take turns, and the first turn is not counted.

    Args:
        commands: By name, what gives the command of a turn, so that every run can write to a place of its own.
        runs: Turns that count.
    """
    seen: dict[str, list[Cost]] = {name: [] for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            cost = _run(command(turn))
            if turn:
                seen[name].append(cost)
    return {
        name: Cost(*(statistics.median(getattr(cost, field) for cost in costs) for field in ("cpu", "wall", "memory")))
        for name, costs in seen.items()
    }
