"""The formats an adapter can be written in, and what each can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from hub_merge.adapter import Adapter
from hub_merge.errors import MergeError
from hub_merge.formats.diffusers import require_diffusers, write_diffusers
from hub_merge.formats.kohya import require_kohya, write_kohya
from hub_merge.formats.mlx import require_mlx, write_mlx
from hub_merge.formats.peft import only_component, write_portable
from hub_merge.layout import CONFIG_FILE, DIFFUSERS_FILE, KOHYA_FILE, MLX_FILE, WEIGHTS_FILE

__all__ = ["FileFormat", "get_format"]


class Writer(Protocol):
    """Writes an adapter into an empty folder; see ``peft.write_portable``."""

    def __call__(
        self,
        adapter: Adapter,
        folder: Any,
        *,
        base_model: str | None,
        dtype: str,
        rank: int,
        progress: Callable[[str], None],
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A format to write.

    Attributes:
        name: What it is called on the command line.
        files: Names of the files it consists of, the weights last.
        tensors: How many tensors a module has.
        write: Writes an adapter.
        require: Raises ``MergeError`` for an adapter that the format cannot hold.
    """

    name: str
    files: tuple[str, ...]
    tensors: int
    write: Writer
    require: Callable[[Adapter], object]


FORMATS: Mapping[str, FileFormat] = {
    entry.name: entry
    for entry in (
        FileFormat("peft", (CONFIG_FILE, WEIGHTS_FILE), 2, write_portable, only_component),
        FileFormat("kohya", (KOHYA_FILE,), 3, write_kohya, require_kohya),
        FileFormat("diffusers", (DIFFUSERS_FILE,), 2, write_diffusers, require_diffusers),
        FileFormat("mlx", (CONFIG_FILE, MLX_FILE), 2, write_mlx, require_mlx),
    )
}


def get_format(name: str) -> FileFormat:
    """Return the format called ``name``.

    Raises:
        MergeError: There is none.
    """
    if name not in FORMATS:
        raise MergeError(f"{name!r} is no format to write.", remedy=f"It is one of {', '.join(FORMATS)}.")
    return FORMATS[name]
