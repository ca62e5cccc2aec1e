"""Hidden folders for what is not finished, each locked by the run that fills it; what killed runs left is cleared away.

A run makes a folder whose name begins with ``.hub-merge.`` beside what it writes, and holds a lock on a file in it. The
system frees the lock when the process ends, however it ends: a folder that can be locked has nobody who works in it.
Where files cannot be locked, nothing is cleared away and nobody is kept out.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hub_merge.errors import OutputExists

if sys.platform != "win32":
    import fcntl

__all__ = ["PREFIX", "clear", "entered", "workspace", "write_whole"]

PREFIX = ".hub-merge."
"""How the names of our temporary folders begin."""
LOCK_FILE = "lock"
PAUSE = 0.02
LONGEST_WAIT = 60.0
"""Seconds to wait for another run to leave a folder that only one may be in."""


@contextmanager
def workspace(place: Path | None = None) -> Iterator[Path]:
    """Yield a folder of our own in ``place``, or among the system's temporary files; it vanishes at the end.

    What killed runs left in ``place`` vanishes too.
    """
    place = Path(tempfile.gettempdir()) if place is None else place
    clear(place)
    lock = None
    while lock is None:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        lock = _locked(folder)
    try:
        yield folder
    finally:
        _remove(folder, lock)


@contextmanager
def entered(folder: Path, patience: float = LONGEST_WAIT) -> Iterator[Path]:
    """Yield ``folder``, created if need be, as the only run that is in it; it vanishes at the end.

    It is not empty if a run was killed in it.

    Args:
        folder: The folder.
        patience: Seconds to wait for another run to leave it.

    Raises:
        OutputExists: Another run stays in it too long.
    """
    deadline = time.monotonic() + patience
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        lock = _locked(folder)
        if lock is not None:
            break
        if time.monotonic() >= deadline:
            raise OutputExists(f"Another run writes to {folder.parent}.", remedy="Wait for it, then try again.")
        time.sleep(PAUSE)
    try:
        yield folder
    finally:
        _remove(folder, lock)


def write_whole(path: Path, content: str | bytes, place: Path | None = None) -> None:
    """Write ``content`` to ``path``, which has its old content or all of the new at any moment.

    Args:
        path: File to write.
        content: Text, as UTF-8, or bytes.
        place: Folder on the same disk for what is not finished; that of ``path`` by default.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    path = path.resolve()
    with workspace(place or path.parent) as folder:
        fresh = folder / path.name
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)
        if path.exists():
            shutil.copymode(path, fresh)
        fresh.replace(path)


def clear(place: Path) -> None:
    """Remove the folders that killed runs of this user left in ``place``."""
    for folder in place.glob(f"{PREFIX}*") if place.is_dir() else ():
        with suppress(OSError):
            if folder.is_symlink() or not folder.is_dir() or not _is_ours(folder):
                continue
            if not any(folder.iterdir()):
                folder.rmdir()  # a run that has just made it makes another
            elif (folder / LOCK_FILE).is_file() and (lock := _locked(folder, surely=True)) is not None:
                _remove(folder, lock)


def _is_ours(folder: Path) -> bool:
    return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()


def _locked(folder: Path, *, surely: bool = False) -> int | None:
    """Return a handle that locks ``folder``, ``None`` if another run has it or has just cleared it away.

    Where files cannot be locked, the handle locks nothing, or is ``None`` if it has to do so ``surely``.
    """
    path = folder / LOCK_FILE
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        if (_lock(lock) or not surely) and path.stat().st_ino == os.fstat(lock).st_ino:
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(lock)
    return None


def _lock(handle: int) -> bool:
    """Lock a file, and tell whether that can be done here.

    Raises:
        BlockingIOError: Somebody else has locked it.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
    return True


def _remove(folder: Path, lock: int) -> None:
    """Remove a locked folder with all that is in it, the lock last, and let go of it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK_FILE:
            path.unlink(missing_ok=True)
    with suppress(OSError):
        (folder / LOCK_FILE).unlink()
        folder.rmdir()
    os.close(lock)
