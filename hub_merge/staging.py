"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hub_merge.errors import OutputExists

__all__ = ["require_free", "staged"]

OWN_FILE = "adapter_config.json"
"""A folder without it holds no adapter and is never replaced."""


@contextmanager
def staged(folder: Path, force: bool) -> Iterator[Path]:
    """Yield an empty folder beside ``folder`` that takes its place at the end, or vanishes after an error."""
    require_free(folder, force)
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield stage
        stage.chmod(0o777 & ~_umask())
        require_free(folder, force)
        _take_place(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


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


def _take_place(stage: Path, folder: Path) -> None:
    """Rename ``stage`` to ``folder``; what was there goes only after the new folder stands."""
    if not os.path.lexists(folder):
        stage.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent)) / "old"
    folder.rename(old)
    try:
        stage.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
