"""Work on many modules at once, in order and in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from hub_merge.forking import can_fork, in_processes

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["default_workers", "map_modules"]

Item = TypeVar("Item")
Result = TypeVar("Result")


KEPT = 2**25 - 2**16
"""Bytes; a little below the largest block that glibc learns from."""


def default_workers() -> int:
    """Return how many modules are worked on at once: one a processor that this process may use, at most four."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(4, usable or 1)


def _keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next module.

    glibc hands freed memory back to the system, and takes it again page by page, until it has seen a block as large as
    this one freed. Nothing is written to the block, so it costs nothing; without it, a third of the time goes into page
    faults. Other C libraries do not mind.
    """
    np.empty(KEPT, np.uint8)


def map_modules(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None, *, forks: bool = False
) -> Iterator[Result]:
    """Yield ``work(item)`` for each item, in order, with few of them begun or waiting.

    BLAS is held to one thread meanwhile: matrices of a module are small, and threads inside a product only wait for
    each other. Parallel work over modules pays instead.

    Args:
        work: Called once for each item.
        items: What to work on.
        workers: How many items are worked on at once; ``default_workers`` by default.
        forks: Whether forked processes may do the work, which wait for each other far less than threads do. What it
            changes outside of itself must then be files alone, and what it returns small and fit for a pickle.
    """
    workers = workers or default_workers()
    queue = iter(items)
    _keep_freed_memory()
    with threadpool_limits(1, user_api="blas"):
        if workers == 1:
            yield from map(work, queue)
        elif forks and can_fork():
            yield from in_processes(work, list(queue), workers)
        else:
            yield from _in_threads(work, queue, workers)


def _in_threads(work: Callable[[Item], Result], queue: Iterator[Item], workers: int) -> Iterator[Result]:
    from concurrent.futures import ThreadPoolExecutor  # not needed on one core, and slow to import

    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque(pool.submit(work, item) for item in islice(queue, 2 * workers + 1))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(queue, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
