"""Files of the Hub cache: whether one is whole, and is what the repository describes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hub_merge.errors import AdapterFormatError

__all__ = ["has_size", "require_digest"]


def require_digest(target: Path, sha256: str | None, subject: str) -> None:
    """Raise ``AdapterFormatError`` and forget the download if its content is not what the repository describes."""
    if sha256 is None:
        return
    with target.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        _forget(target)
        raise AdapterFormatError(
            f"{subject} arrived with sha256 {found[:12]}…, but the repository describes {sha256[:12]}….",
            remedy="Do not use it; if it persists, tell its author and the Hub.",
        )


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
