"""Timing of a part of a process, by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["stopwatch"]


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Time the body; the dictionary has the seconds when it is over."""
    took: dict[str, float] = {}
    cpu, wall = time.process_time(), time.perf_counter()
    yield took
    took.update(work_cpu=time.process_time() - cpu, work_wall=time.perf_counter() - wall)
