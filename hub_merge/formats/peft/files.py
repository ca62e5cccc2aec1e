"""Which files of a folder make an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from hub_merge.choice import peft_weights, pickled
from hub_merge.errors import AdapterFormatError
from hub_merge.formats.shards import MAX_INDEX, indexed_files
from hub_merge.formats.strict_json import read_bounded
from hub_merge.layout import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE

__all__ = ["adapter_files", "contained", "weight_files"]


def weight_files(names: Iterable[str], index: bytes | None = None, *, allow_pickle: bool = False) -> tuple[str, ...]:
    """Return which of ``names`` hold the adapter's tensors: one file, or its shards.

    Args:
        names: File names in the adapter's folder.
        index: Content of the shard index, if there is one.
        allow_pickle: Take ``adapter_model.bin`` where there is no safetensors file.

    Raises:
        AdapterFormatError: A shard is missing, or the index points out of the folder.
        UnsupportedAdapter: The weights are a pickle.
    """
    present = set(names)
    listed = indexed_files(index, INDEX_FILE) if index is not None and WEIGHTS_FILE not in present else []
    files = peft_weights(present, listed, allow_pickle=allow_pickle)
    if missing := [file for file in files if file not in present]:
        raise AdapterFormatError(f"Shard {missing[0]} is missing.", remedy="Download the adapter again.")
    if not files:
        raise pickled(present) or AdapterFormatError(
            f"There is no {WEIGHTS_FILE}.", remedy="Ask its author to upload the weights."
        )
    return files


def contained(folder: Path, name: str) -> Path:
    """Return the file ``name`` of ``folder``, or raise if it is a link to somewhere else.

    A link may stay inside the folder, or lead to the blobs of the Hub cache that the folder is a snapshot of.

    Raises:
        AdapterFormatError: It leads out of the folder.
    """
    path, root = folder / name, folder.resolve()
    target = path.resolve()
    if any(target.is_relative_to(place) for place in (root, *_blobs(root))):
        return path
    raise AdapterFormatError(
        f"{name} is a link that leads out of its folder.", remedy="Put the file itself there if you trust it."
    )


def _blobs(folder: Path) -> Iterator[Path]:
    """Yield where the Hub cache keeps the files of the snapshot that ``folder`` is or lies in, alone and shared."""
    for place in (folder, *folder.parents):
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
            yield from (place.parent.parent / "blobs", place.parent.parent.parent / "blobs")


def adapter_files(folder: Path, *, allow_pickle: bool = False) -> tuple[str, ...]:
    """Return the names of the files an adapter is read from: its config, then its weights.

    Raises:
        AdapterFormatError: A file is missing, or a link that leads out of the folder.
        UnsupportedAdapter: The weights are a pickle.
    """
    index = None
    if (folder / INDEX_FILE).is_file():
        index = read_bounded(contained(folder, INDEX_FILE), most=MAX_INDEX)
    present = [path.name for path in folder.iterdir() if path.is_file()]
    names = (CONFIG_FILE, *weight_files(present, index, allow_pickle=allow_pickle))
    for name in names:
        contained(folder, name)
    return names
