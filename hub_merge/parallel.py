"""Work on many modules at once, in order and in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from threadpoolctl import threadpool_limits

__all__ = ["map_modules"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_modules(work: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None) -> Iterator[Result]:
    """Yield ``work(item)`` for each item, in order, with at most ``workers + 1`` results waiting.

    BLAS is held to one thread meanwhile: matrices of a module are small, and threads inside a product only wait for
    each other. Parallel work over modules pays instead.
    """
    workers = workers or min(4, os.cpu_count() or 1)
    queue = iter(items)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque(pool.submit(work, item) for item in islice(queue, workers + 1))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(queue, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
