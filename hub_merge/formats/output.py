"""The formats an adapter can be written in, and what each can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hub_merge.adapter import Adapter
from hub_merge.errors import MergeError
from hub_merge.formats.diffusers import require_diffusers, write_diffusers
from hub_merge.formats.kohya import require_kohya, write_kohya
from hub_merge.formats.mlx import require_mlx, write_mlx
from hub_merge.formats.peft import only_component, write_folder
from hub_merge.layout import CONFIG_FILE, DIFFUSERS_FILE, KOHYA_FILE, MLX_FILE, WEIGHTS_FILE

__all__ = ["FileFormat", "get_format"]


class Writer(Protocol):
    """Writes an adapter into an empty folder; see ``peft.write_folder``."""

    def __call__(
        self,
        adapter: Adapter,
        folder: Path,
        *,
        base_model: str | None,
        dtype: str,
        rank: int | None,
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
        mixed_ranks: Whether modules can have ranks of their own. The other formats' loaders know one rank, or mix up
            the alphas of files in which ranks differ (diffusers).
    """

    name: str
    files: tuple[str, ...]
    tensors: int
    write: Writer
    require: Callable[[Adapter], object]
    mixed_ranks: bool = False

    def require_profile(self, profile: str) -> None:
        """Raise ``MergeError`` unless the format can hold a composite of this profile."""
        if profile == "peft" and not self.mixed_ranks:
            raise MergeError(
                f"Profile peft gives each module a rank of its own, which format {self.name} cannot hold.",
                remedy="Write --format peft, or leave out --profile.",
            )

    def require_content(self, adapter: Adapter) -> None:
        """Raise ``MergeError`` unless the format can hold everything that ``adapter`` consists of."""
        if self.name != "peft" and (adapter.extras or adapter.target_parameters):
            what = "tensors beside its factors" if adapter.extras else "factors of experts (target_parameters)"
            raise MergeError(
                f"The adapter has {what}, which format {self.name} cannot hold.",
                remedy="Write --format peft" + (", or leave them out with --extras drop." if adapter.extras else "."),
            )
        self.require(adapter)


FORMATS: Mapping[str, FileFormat] = {
    entry.name: entry
    for entry in (
        FileFormat("peft", (CONFIG_FILE, WEIGHTS_FILE), 2, write_folder, only_component, mixed_ranks=True),
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
