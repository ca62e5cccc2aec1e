"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hub_merge.errors import OutputExists
from hub_merge.layout import RECORD_FILE

__all__ = ["STAGE", "require_free", "staged"]

STAGE = ".hub-merge."
"""How the names of our temporary files and folders begin."""


@contextmanager
def staged(folder: Path, force: bool, own: Collection[str]) -> Iterator[Path]:
    """Yield an empty folder whose content becomes that of ``folder`` at the end, or vanishes after an error.

    Parents of ``folder`` that had to be created vanish too. A folder that stands already keeps its place, its
    permissions and the links that lead to it; only what is in it changes.

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
    root = Path(tempfile.mkdtemp(prefix=STAGE, dir=folder if folder.is_dir() else folder.parent))
    stage, old = root / "new", root / "old"
    try:
        stage.mkdir()  # with the permissions of the user's umask, unlike root
        yield stage
        require_free(folder, force, own)
        if folder.is_dir():
            _exchange(stage, folder, old)
            shutil.rmtree(old, ignore_errors=True)
        else:
            stage.rename(folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        for left in (old, root, *created):
            with suppress(OSError):  # not empty: the folder stands, or somebody else came
                left.rmdir()


def require_free(folder: Path, force: bool, own: Collection[str]) -> None:
    """Raise ``OutputExists`` unless ``folder`` may be created, or replaced because that was asked for.

    What is to be replaced has to be a composite with nothing beside it but files named in ``own``.
    """
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
    """Return what is in ``folder`` but for our temporary folders."""
    return [path for path in folder.iterdir() if not path.name.startswith(STAGE)]


def _exchange(stage: Path, folder: Path, old: Path) -> None:
    """Move what is in ``folder`` to ``old`` and what is in ``stage`` to ``folder``; all comes back if that fails."""
    old.mkdir()
    moves = [(path, goal / path.name) for place, goal in ((folder, old), (stage, folder)) for path in _content(place)]
    try:
        for path, goal in moves:
            path.rename(goal)
    except BaseException:
        for path, goal in reversed(moves):
            if os.path.lexists(goal) and not os.path.lexists(path):
                goal.rename(path)
        raise
