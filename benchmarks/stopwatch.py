"""Timing of a part of a process, by itself, with the processes that it forks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["stopwatch"]


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Time the body; the dictionary has the seconds when it is over."""
    took: dict[str, float] = {}
    cpu, wall = _cpu(), time.perf_counter()
    yield took
    took.update(work_cpu=_cpu() - cpu, work_wall=time.perf_counter() - wall)


def _cpu() -> float:
    """Return the CPU time of this process and of those that it has waited for."""
    past = os.times()
    return time.process_time() + past.children_user + past.children_system
