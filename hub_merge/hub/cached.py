"""Files of the Hub cache: whether one is whole, and is what the repository describes."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from io import BufferedIOBase
from pathlib import Path

from hub_merge.errors import DamagedDownload
from hub_merge.hub.repositories import RemoteFile

__all__ = ["clear_partial", "has_size", "require_digest", "require_same"]

PATIENCE_FOR_LOCK = 0.1
"""Seconds; whoever holds the lock for longer is downloading."""


def require_digest(target: Path, file: RemoteFile, subject: str) -> None:
    """Raise ``DamagedDownload`` and forget the download if its content is not what the repository describes."""
    with target.open("rb") as content:
        try:
            require_same(content, file, subject)
        except DamagedDownload:
            _forget(target)
            raise


def require_same(content: BufferedIOBase, file: RemoteFile, subject: str) -> None:
    """Raise ``DamagedDownload`` unless ``content`` has the hash that the repository states, if it states one."""
    kind, stated = ("sha256", file.sha256) if file.sha256 else ("git hash", file.git_oid)
    if stated is None:
        return
    found = hashlib.file_digest(content, "sha256").hexdigest() if file.sha256 else _git_oid(content.read())
    if found != stated:
        raise DamagedDownload(
            f"{subject} arrived with {kind} {found[:12]}…, but the repository describes {stated[:12]}….",
            remedy="Do not use it; if it persists, tell its author and the Hub.",
        )


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def clear_partial(target: Path, locks: Path) -> None:
    """Remove what killed downloads of a file left beside it in the cache.

    huggingface_hub holds a lock while it downloads a file, and gives each attempt a name of its own.

    Args:
        target: The file, downloaded by now.
        locks: Folder of the locks of its repository.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    blob = target.resolve()
    left = list(blob.parent.glob(f"{blob.name}.*.incomplete")) if blob.parent.name == "blobs" else []
    if left:
        with suppress(OSError), WeakFileLock(locks / f"{blob.name}.lock", timeout=PATIENCE_FOR_LOCK):
            for path in left:
                path.unlink(missing_ok=True)


def _forget(target: Path) -> None:
    """Remove a file of the cache, and every link on the way to it."""
    while target.is_symlink():
        following = target.parent / target.readlink()
        target.unlink()
        target = following
    target.unlink(missing_ok=True)


def has_size(file: Path, size: int) -> bool:
    """Tell whether ``file`` is there with ``size`` bytes."""
    return file.is_file() and file.stat().st_size == size
