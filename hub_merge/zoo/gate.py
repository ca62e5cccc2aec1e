"""Turns at the Hub: when it limits the rate of requests, all workers of a build wait, not only the one it told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

__all__ = ["LocalGate", "SharedGate", "Turns"]


class Turns:
    """Hands out moments at which a request may begin.

    Args:
        spacing: Least seconds between two of them.
    """

    def __init__(self, spacing: float = 0.0) -> None:
        self.spacing = spacing
        self.next_turn = 0.0

    def take(self) -> float:
        """Return the seconds to wait before the next request."""
        now = time.time()
        moment = max(now, self.next_turn)
        self.next_turn = moment + self.spacing
        return moment - now

    def close(self, seconds: float) -> None:
        """Let no request begin for so long."""
        self.next_turn = max(self.next_turn, time.time() + seconds)


class LocalGate:
    """The gate of the threads of one process."""

    def __init__(self, spacing: float = 0.0) -> None:
        self._turns, self._lock = Turns(spacing), threading.Lock()

    def take(self) -> float:
        """Return the seconds to wait before the next request."""
        with self._lock:
            return self._turns.take()

    def close(self, seconds: float) -> None:
        """Let no request begin for so long."""
        with self._lock:
            self._turns.close(seconds)


class SharedGate:
    """The gate of a pool's processes, which share one number: the moment of the next turn."""

    def __init__(self, context: BaseContext, spacing: float = 0.0) -> None:
        self._spacing = spacing
        self._moment: Any = context.Value("d", 0.0)

    def take(self) -> float:
        """Return the seconds to wait before the next request."""
        with self._shared() as turns:
            return turns.take()

    def close(self, seconds: float) -> None:
        """Let no request begin for so long."""
        with self._shared() as turns:
            turns.close(seconds)

    @contextmanager
    def _shared(self) -> Iterator[Turns]:
        with self._moment.get_lock():
            turns = Turns(self._spacing)
            turns.next_turn = self._moment.value
            yield turns
            self._moment.value = turns.next_turn
