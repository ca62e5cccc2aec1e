"""A time limit and bounded retries for every request, without touching other users of huggingface_hub.

huggingface_hub shares one HTTP client per process, whose requests may wait for ever; only some of its functions take a
timeout or retry, and those that retry do so on their own, up to minutes between two attempts. Replacing the client's
factory would change it for everybody and close connections in use. Instead, hooks on the shared client watch what is
sent and answered, and only inside ``time_limit``; the requests of others pass them unchanged. The threads in which
huggingface_hub puts several LFS files at once, and hf_xet's own connections, are beyond their reach.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import httpx2

__all__ = ["PATIENCE", "Gate", "GivenUp", "retried", "time_limit", "wait_asked_for"]

Answer = TypeVar("Answer")

PATIENCE = 60.0
"""Seconds after which no further attempt is started."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
LEAST_SPEED = 1000
"""Bytes a second below which an answer counts as stalled."""
TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


class GivenUp(RuntimeError):
    """The client of huggingface_hub would go on, but enough was tried."""


class Gate(Protocol):
    """Lets requests of several workers through one at a time, and none while the Hub asks for a pause."""

    def take(self) -> float:
        """Return the seconds to wait before the next request."""

    def close(self, seconds: float) -> None:
        """Let no request begin for so long."""


@dataclass
class _Watch:
    """What the hooks keep to, and what they have seen.

    Attributes:
        seconds: Time limit for a connection, for the next bytes, and for bytes that come slower than ``LEAST_SPEED``.
        patience: Seconds without any progress after which nothing more is asked, and longest wait that is kept.
        repeats: Whether the caller repeats what fails, so that the client need not.
        moved: When an answer last came on.
    """

    seconds: float
    patience: float
    repeats: bool
    moved: float = field(default_factory=time.monotonic)


_watch: ContextVar[_Watch | None] = ContextVar("hub_merge_watch", default=None)


def _before(request: httpx2.Request) -> None:
    """Fill in the time limit, or give up."""
    watch = _watch.get()
    if watch is None:
        return
    idle = time.monotonic() - watch.moved
    if watch.repeats and idle > watch.patience + watch.seconds:
        raise GivenUp(f"nothing has come for {idle:.0f} s")
    if not any((request.extensions.get("timeout") or {}).values()):
        phases = dict.fromkeys(("connect", "read", "write", "pool"), watch.seconds)
        request.extensions = {**request.extensions, "timeout": phases}


def _after(response: httpx2.Response) -> None:
    """Hand errors that pass to our own retries, and see that the body keeps coming."""
    from huggingface_hub import hf_raise_for_status

    watch = _watch.get()
    if watch is None:
        return
    response.stream = _steady(response.stream, watch)
    if response.status_code in TRANSIENT and (watch.repeats or (wait_asked_for(response) or 0) > watch.patience):
        response.read()
        hf_raise_for_status(response)


def _steady(stream: Any, watch: _Watch) -> Any:
    """Return ``stream`` as one that fails when its bytes come too slowly."""
    from httpx2 import ReadTimeout, SyncByteStream

    class Steady(SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            started, received = time.monotonic(), 0
            for chunk in stream:
                received += len(chunk)
                now = time.monotonic()
                if now - started > watch.seconds + received / LEAST_SPEED:
                    raise ReadTimeout(f"only {received} bytes came in {now - started:.0f} s")
                if received > LEAST_SPEED * watch.seconds:
                    watch.moved = now
                yield chunk

        def close(self) -> None:
            stream.close()

    return Steady()


@contextmanager
def time_limit(seconds: float, patience: float = PATIENCE, *, repeats: bool = False) -> Iterator[None]:
    """Let no request inside wait longer than ``seconds`` for the connection or for the next bytes.

    Args:
        seconds: The limit; bytes that come slower than ``LEAST_SPEED`` do not extend it.
        patience: Seconds that the client may go on asking without progress, or wait if a server asks for it.
        repeats: Whether the caller repeats what fails for a moment: then the client does not do that too.
    """
    from huggingface_hub import get_session

    hooks = get_session().event_hooks
    for hook, moment in ((_before, "request"), (_after, "response")):
        if hook not in hooks[moment]:
            hooks[moment].append(hook)
    token = _watch.set(_Watch(seconds, patience, repeats))
    try:
        yield
    finally:
        _watch.reset(token)


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
            with time_limit(timeout, patience, repeats=True):
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
