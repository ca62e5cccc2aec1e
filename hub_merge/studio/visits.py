"""One visitor's connection to the Hub: their token and nobody else's, and nothing closed is left behind."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hub_merge.workspace import workspace

if TYPE_CHECKING:
    from hub_merge.hub import Hub

__all__ = ["quick", "tidy", "tidy_up", "visiting"]

MOST_CACHED = 20 * 10**9
"""Bytes of public adapters that are kept for the next visitor."""

IN_USE = 3600.0
"""Seconds for which a cached repository may still be read by somebody."""

TIMEOUT, PATIENCE, RETRIES = 10.0, 20.0, 2
"""A visitor waits at the other end: less patient than the command line."""

GIVE_UP = 3.0
"""Seconds to wait for what would be good to know and is not needed."""


@contextmanager
def visiting(token: str | None, *, offline: bool = False) -> Iterator[Hub]:
    """Yield a connection for one request.

    Without a token nothing is sent, whatever this process is logged in as. What private and gated repositories hold is
    kept in a folder of its own, which is gone afterwards.

    Args:
        token: The visitor's token, ``None`` for an anonymous visitor.
        offline: Whether nothing of the Hub is needed.
    """
    from hub_merge.hub import Hub

    with workspace() as closed:
        yield Hub(
            token=token or False,
            offline=offline,
            closed_cache_dir=closed,
            progress=False,
            timeout=TIMEOUT,
            patience=PATIENCE,
            retries=RETRIES,
        )


def quick(hub: Hub) -> Hub:
    """Return ``hub``, or for work without the Hub an anonymous connection that is given up soon."""
    from hub_merge.hub import Hub

    return Hub(token=False, endpoint=hub.endpoint, timeout=GIVE_UP, retries=0) if hub.offline else hub


def tidy(folder: Path, most: int = MOST_CACHED) -> list[str]:
    """Delete the repositories of a cache that were used longest ago, until ``most`` bytes are left; return their names.

    What was used within the last hour stays.
    """
    repositories = sorted((_last_used(path), path) for path in folder.glob("models--*") if path.is_dir())
    sizes = {path: sum(file.stat().st_size for file in path.glob("blobs/*")) for _, path in repositories}
    total, deleted = sum(sizes.values()), []
    for used, path in repositories:
        if total <= most or time.time() - used < IN_USE:
            break
        shutil.rmtree(path, ignore_errors=True)
        total -= sizes[path]
        deleted.append(path.name)
    return deleted


def _last_used(path: Path) -> float:
    return max((max(file.stat().st_atime, file.stat().st_mtime) for file in path.glob("blobs/*")), default=0.0)


def tidy_up() -> None:
    """Keep the cache of public adapters within its size."""
    from huggingface_hub import constants

    tidy(Path(constants.HF_HUB_CACHE))
