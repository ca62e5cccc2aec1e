"""A time limit and bounded retries for every request, without touching other users of huggingface_hub.

huggingface_hub shares one HTTP client per process, whose requests may wait for ever; only some of its functions take a
timeout or retry. Replacing the client's factory would change it for everybody and close connections in use. Instead, a
hook on the shared client fills in a time limit for requests that have none, and only inside ``time_limit``; the
requests of others pass it unchanged. The threads in which huggingface_hub puts several LFS files at once, and hf_xet's
own connections, are beyond its reach.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import httpx2

__all__ = ["PATIENCE", "Gate", "retried", "time_limit", "wait_asked_for"]

Answer = TypeVar("Answer")

PATIENCE = 60.0
"""Seconds after which no further attempt is started."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


class Gate(Protocol):
    """Lets requests of several workers through one at a time, and none while the Hub asks for a pause."""

    def take(self) -> float:
        """Return the seconds to wait before the next request."""

    def close(self, seconds: float) -> None:
        """Let no request begin for so long."""


_limit: ContextVar[float | None] = ContextVar("hub_merge_time_limit", default=None)


def _fill_in_limit(request: httpx2.Request) -> None:
    seconds = _limit.get()
    given = request.extensions.get("timeout") or {}
    if seconds is not None and not any(given.values()):
        phases = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
        request.extensions = {**request.extensions, "timeout": phases}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let no request inside wait longer than ``seconds`` for the connection or for the next bytes."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks["request"]
    if _fill_in_limit not in hooks:
        hooks.append(_fill_in_limit)
    token = _limit.set(seconds)
    try:
        yield
    finally:
        _limit.reset(token)


def wait_asked_for(response: httpx2.Response) -> float | None:
    """Return the seconds that the server asks to wait before the next request, ``None`` if it names none."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    seconds = response.headers.get("retry-after", "").strip()
    return float(seconds) if seconds.isdecimal() else None


def retried(
    call: Callable[[], Answer], *, timeout: float, retries: int, patience: float = PATIENCE, gate: Gate | None = None
) -> Answer:
    """Return what ``call`` returns; try again after errors that pass.

    Pauses grow exponentially, with jitter, unless the server names a wait. No attempt is started when ``patience``
    seconds would be exceeded. With a ``gate``, each attempt waits for its turn, and a limit of the rate stops all.
    """
    from httpx2 import NetworkError, RemoteProtocolError, TimeoutException
    from huggingface_hub.errors import HfHubHTTPError

    started = time.monotonic()
    attempt = 0
    while True:
        try:
            if gate is not None:
                time.sleep(gate.take())
            with time_limit(timeout):
                return call()
        except (HfHubHTTPError, TimeoutException, NetworkError, RemoteProtocolError) as error:
            response = error.response if isinstance(error, HfHubHTTPError) else None
            if attempt == retries or (response is not None and response.status_code not in TRANSIENT):
                raise
            pause = _pause(response, attempt)
            if time.monotonic() - started + pause > patience:
                raise
            if gate is not None and response is not None and response.status_code == 429:
                gate.close(pause)
        time.sleep(pause)
        attempt += 1


def _pause(response: httpx2.Response | None, attempt: int) -> float:
    asked = None if response is None else wait_asked_for(response)
    jitter = random.uniform(0.5, 1.0)
    if asked is None:
        return jitter * min(LONGEST_PAUSE, FIRST_PAUSE * (1 << attempt))
    return asked + jitter * FIRST_PAUSE
