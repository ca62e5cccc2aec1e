"""Folders that appear whole or not at all, whatever happens to the run that writes them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hub_merge.errors import OutputExists
from hub_merge.layout import RECORD_FILE
from hub_merge.workspace import PREFIX, clear, entered, workspace

__all__ = ["require_free", "staged"]

EXCHANGE = ".hub-merge-exchange"
"""Folder in a folder whose content is being replaced. In it are, one after the other:

``new``      what is to come
``leaving``  what was there, while it moves out
``left``     the same, when all of it is out and what is new moves in
"""


@contextmanager
def staged(folder: Path, force: bool, own: Collection[str]) -> Iterator[Path]:
    """Yield an empty folder whose content becomes that of ``folder`` at the end, or vanishes after an error.

    Parents of ``folder`` that had to be created vanish too. A folder that stands already keeps its place, its
    permissions and the links that lead to it; only what is in it changes. What a killed run left there is put in order.

    Args:
        folder: Where the content goes.
        force: Replace a composite that is there.
        own: Names of the files that may be replaced, and of folders, with a slash behind.

    Raises:
        OutputExists: ``folder`` may not be created or replaced; see ``require_free``.
    """
    require_free(folder, force, own)
    folder = folder.resolve()
    created = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with workspace(folder if folder.is_dir() else folder.parent) as place:
            stage = place / "new"
            stage.mkdir()  # with the permissions of the user's umask, unlike its place
            yield stage
            _put(stage, folder, force, own)
    finally:
        for parent in created:
            with suppress(OSError):  # not empty: the folder stands, or somebody else came
                parent.rmdir()


def require_free(folder: Path, force: bool, own: Collection[str]) -> None:
    """Raise ``OutputExists`` unless ``folder`` may be created, or replaced because that was asked for.

    What is to be replaced has to be a composite with nothing beside it but files named in ``own``. What killed runs
    left there is put in order first.
    """
    for place in (folder.resolve().parent, folder):
        clear(place)
    while True:
        _settle(folder)
        seen = _changed(folder)
        try:
            _require_free(folder, force, own)
            return
        except OutputExists:
            if _changed(folder) == seen and not (folder / EXCHANGE).is_dir():
                raise  # else another run was about to replace it


def _settle(folder: Path) -> None:
    """Wait for the exchange that is under way, or end that in which a run was killed."""
    if (folder / EXCHANGE).is_dir():
        with entered(folder / EXCHANGE) as place:
            _recover(place, folder)


def _changed(folder: Path) -> int:
    """Return when something came into ``folder`` or left it, in nanoseconds; 0 if it is not there."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _require_free(folder: Path, force: bool, own: Collection[str]) -> None:
    if not os.path.lexists(folder) or (folder.is_dir() and not _content(folder)):
        return
    if not force:
        raise OutputExists(
            f"{folder} exists already.", remedy="Choose another folder, or pass --force (force=True) to replace it."
        )
    if not (folder / RECORD_FILE).is_file():
        raise OutputExists(
            f"{folder} holds no composite of hub-merge, so it is not replaced even with --force.",
            remedy="Choose another folder.",
        )
    if foreign := sorted(path.name for path in _content(folder) if _written(path) not in own):
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise OutputExists(
            f"{folder} holds {', '.join(foreign[:3])}{more} too, so it is not replaced even with --force.",
            remedy="Choose another folder, or move them away first.",
        )


def _written(path: Path) -> str:
    """Return the name of ``path`` as ``own`` writes it."""
    return path.name if path.is_file() else f"{path.name}/"


def _content(folder: Path) -> list[Path]:
    """Return what is in ``folder`` but for our temporary folders, with what readers look for first at the end."""
    found = [path for path in folder.iterdir() if not path.name.startswith((PREFIX, EXCHANGE))]
    return sorted(found, key=lambda path: (path.name == RECORD_FILE, path.suffix == ".json", path.name))


def _put(stage: Path, folder: Path, force: bool, own: Collection[str]) -> None:
    """Give ``folder`` the content of ``stage``: at once if it is not there yet."""
    if not folder.is_dir():
        _require_free(folder, force, own)
        try:
            stage.rename(folder)
            return
        except OSError:
            if not folder.is_dir():
                raise  # else another run was faster
    with entered(folder / EXCHANGE) as place:
        _recover(place, folder)
        _require_free(folder, force, own)
        _exchange(stage.rename(place / "new"), folder)


def _exchange(new: Path, folder: Path) -> None:
    """Move what is in ``folder`` out and what is in ``new`` in; all comes back if that fails."""
    leaving, left = new.with_name("leaving"), new.with_name("left")
    arriving = _content(new)
    try:
        leaving.mkdir()
        _move(reversed(_content(folder)), leaving)
        leaving.rename(left)
        _move(arriving, folder)
    except BaseException:
        if left.is_dir():
            _move([folder / path.name for path in arriving], new)
            left.rename(leaving)
        if leaving.is_dir():
            _move(_content(leaving), folder)
        raise


def _recover(place: Path, folder: Path) -> None:
    """End the exchange in which a run was killed: what is new is there if all that was there is out, else it is not."""
    new, leaving, left = place / "new", place / "leaving", place / "left"
    if left.is_dir():
        _move(_content(new) if new.is_dir() else [], folder)
    elif leaving.is_dir():
        _move(_content(leaving), folder)


def _move(paths: Iterable[Path], target: Path) -> None:
    """Move ``paths`` into ``target``; what is gone, or would replace something, stays away."""
    for path in paths:
        goal = target / path.name
        if os.path.lexists(path) and not os.path.lexists(goal):
            path.rename(goal)
