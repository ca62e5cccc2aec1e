"""How far a step of the work is, told to whoever wants to know."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Progress", "counter", "silent"]

Progress = Callable[[str, int, int], None]
"""Called with the step, what is done and what there is to do."""


def silent(step: str, done: int, total: int) -> None:
    """Report nothing."""


def counter(step: str, total: int, progress: Progress) -> Callable[[str], None]:
    progress(step, 0, total)
    done = iter(range(1, total + 1))
    return lambda module: progress(step, next(done), total)
