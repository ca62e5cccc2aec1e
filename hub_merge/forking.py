"""Forked processes that share the work of this one, item by item.

Threads of Python hand the interpreter to each other at every step of numpy, and the steps of a module are many and
short. Forked processes have an interpreter each and need no start-up. They live for one call, hold no lock, touch no
network, and end with the process that made them, at the latest when they have something to tell it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NoReturn, TypeVar

__all__ = ["can_fork", "in_processes"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def can_fork() -> bool:
    """Whether this process may be forked: on Linux, as long as it has no other threads of Python."""
    return sys.platform == "linux" and threading.active_count() == 1


def in_processes(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Yield ``work(item)`` for each item, in order; this process does every ``workers``-th, forked ones do the others.

    An item whose process was killed, or raised what no pickle can carry, is worked on here.

    Args:
        work: What it changes outside of itself must be files alone; what it returns or raises is pickled.
        items: What to work on.
        workers: Number of processes, this one included.
    """
    forked: list[_Forked] = []
    try:
        for place in range(1, min(workers, len(items))):
            forked.append(_Forked(work, items[place::workers], forked))
        for number, item in enumerate(items):
            place = number % workers
            yield work(item) if not place else forked[place - 1].receive(work, item)
    finally:
        for process in forked:
            process.stop()


class _Forked:
    """A forked process that works on some items and sends what comes of each."""

    def __init__(self, work: Callable[[Item], Result], items: Sequence[Item], older: Sequence[_Forked]) -> None:
        reading, writing = os.pipe()
        with warnings.catch_warnings():  # of threads that are not of Python, which the work does not touch
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            os.close(reading)
            for process in older:
                process.results.close()  # or a sibling would not notice that its reader is gone
            _work_on(work, items, writing)
        os.close(writing)
        self.results: BinaryIO = os.fdopen(reading, "rb")

    def receive(self, work: Callable[[Item], Result], item: Item) -> Result:
        """Return what came of the next item, or raise what it raised."""
        try:
            error, result = pickle.load(self.results)
        except (EOFError, pickle.UnpicklingError):
            return work(item)
        if error is not None:
            raise error
        found: Result = result
        return found

    def stop(self) -> None:
        """End the process, whether it is done or not."""
        self.results.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _work_on(work: Callable[[Item], Result], items: Sequence[Item], writing: int) -> NoReturn:
    """Do the work in a process that was forked for it, and end that."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that forked decides
        with os.fdopen(writing, "wb") as results:
            for item in items:
                results.write(_outcome(work, item))
                results.flush()
    finally:
        os._exit(0)


def _outcome(work: Callable[[Item], Result], item: Item) -> bytes:
    """Return the pickled pair of what an item raised and what it returned."""
    try:
        return pickle.dumps((None, work(item)))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        told = pickle.dumps((error, None))
        pickle.loads(told)  # one that cannot be made again ends this process, and comes up where it can be raised
        return told
