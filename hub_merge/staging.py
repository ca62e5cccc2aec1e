"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hub_merge.errors import OutputExists

__all__ = ["require_free", "staged"]

OWN_FILE = "adapter_config.json"
"""A folder without it holds no adapter and is never replaced."""


@contextmanager
def staged(folder: Path, force: bool) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` that takes its place at the end, or vanishes after an error.

    Parents of ``folder`` that had to be created vanish too.
    """
    folder = folder.absolute()
    require_free(folder, force)
    created = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        stage = root / "new"
        stage.mkdir()  # with the permissions of the user's umask, unlike root
        yield stage
        require_free(folder, force)
        _take_place(stage, folder, root / "old")
    finally:
        shutil.rmtree(root, ignore_errors=True)
        for parent in created:
            with suppress(OSError):  # not empty: the folder stands, or somebody else came
                parent.rmdir()


def require_free(folder: Path, force: bool) -> None:
    """Raise ``OutputExists`` unless ``folder`` may be created, or replaced because that was asked for."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not force:
        raise OutputExists(
            f"{folder} exists already.", remedy="Choose another folder, or pass --force (force=True) to replace it."
        )
    if not (folder / OWN_FILE).is_file():
        raise OutputExists(
            f"{folder} holds no adapter, so it is not replaced even with --force.", remedy="Choose another folder."
        )


def _take_place(stage: Path, folder: Path, old: Path) -> None:
    """Rename ``stage`` to ``folder``; what was there becomes ``old``, and comes back if that fails."""
    if not os.path.lexists(folder):
        stage.rename(folder)
        return
    folder.rename(old)
    try:
        stage.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
