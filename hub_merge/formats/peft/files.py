"""Which files of a folder make an adapter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from hub_merge.errors import AdapterFormatError, UnsupportedAdapter
from hub_merge.layout import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE

__all__ = ["PICKLES", "adapter_files", "weight_files"]

PICKLES = (".bin", ".pt", ".pth")
PICKLED_WEIGHTS = "adapter_model.bin"
SHARD = re.compile(r"adapter_model-\d{5}-of-\d{5}\.safetensors")


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
    shards = _indexed(index) if index is not None else sorted(filter(SHARD.fullmatch, present))
    if missing := [shard for shard in _all_shards(shards) if shard not in present]:
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


def _indexed(index: bytes) -> list[str]:
    try:
        shards = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterFormatError(f"{INDEX_FILE} is not a shard index: {error!r}.", remedy="Upload it again.") from error
    if outside := [shard for shard in shards if not isinstance(shard, str) or PurePosixPath(shard).name != shard]:
        raise AdapterFormatError(
            f"{INDEX_FILE} points to {outside[0]!r}, out of its folder.", remedy="Do not use this adapter."
        )
    return shards


def _all_shards(shards: Sequence[str]) -> list[str]:
    """Return every name that a numbered set of shards must have."""
    if not shards or not SHARD.fullmatch(shards[0]):
        return list(shards)
    count = shards[0].rpartition("-of-")[2].partition(".")[0]
    return [f"adapter_model-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1)]


def adapter_files(folder: Path, *, allow_pickle: bool = False) -> tuple[str, ...]:
    """Return the names of the files an adapter is read from: its config, then its weights.

    Raises:
        AdapterFormatError: A file is missing.
        UnsupportedAdapter: The weights are a pickle.
    """
    index = (folder / INDEX_FILE).read_bytes() if (folder / INDEX_FILE).is_file() else None
    return (
        CONFIG_FILE,
        *weight_files((path.name for path in folder.iterdir() if path.is_file()), index, allow_pickle=allow_pickle),
    )
