"""Which files of a folder make an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from hub_merge.choice import PICKLED_WEIGHTS, PICKLES, all_shards
from hub_merge.errors import AdapterFormatError, UnsupportedAdapter
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
    if WEIGHTS_FILE in present:
        return (WEIGHTS_FILE,)
    listed = indexed_files(index, INDEX_FILE) if index is not None else []
    shards = all_shards(listed or present) or listed
    if missing := [shard for shard in shards if shard not in present]:
        raise AdapterFormatError(f"Shard {missing[0]} is missing.", remedy="Download the adapter again.")
    if shards:
        return tuple(shards)
    if allow_pickle and PICKLED_WEIGHTS in present:
        return (PICKLED_WEIGHTS,)
    if pickles := sorted(name for name in present if name.endswith(PICKLES)):
        raise UnsupportedAdapter(
            f"The weights are only there as {pickles[0]}, a pickle, which can run code when it is opened.",
            remedy="Read it with --allow-pickle (allow_pickle=True), which runs none of it, or ask for safetensors."
            if PICKLED_WEIGHTS in pickles
            else "Ask its author for safetensors.",
        )
    raise AdapterFormatError(f"There is no {WEIGHTS_FILE}.", remedy="Ask its author to upload the weights.")


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
