"""The index of a file that was cut into shards."""

from __future__ import annotations

from pathlib import PurePosixPath

from hub_merge.errors import AdapterFormatError
from hub_merge.formats.strict_json import parse_json

__all__ = ["MAX_INDEX", "indexed_files"]

MAX_INDEX = 4_000_000
"""Bytes of the longest shard index that is read."""


def indexed_files(index: bytes, name: str, *, most: int = MAX_INDEX) -> list[str]:
    """Return the files that a shard index names, sorted.

    Args:
        index: Content of the index.
        name: Its name, for messages.
        most: Largest number of bytes.

    Raises:
        AdapterFormatError: It is no index, or points out of its folder.
    """
    try:
        shards = sorted(set(parse_json(index, name, most=most)["weight_map"].values()))
    except (AdapterFormatError, KeyError, TypeError, AttributeError) as error:
        raise AdapterFormatError(f"{name} is not a shard index: {error}.", remedy="Upload it again.") from error
    if outside := [shard for shard in shards if not isinstance(shard, str) or PurePosixPath(shard).name != shard]:
        raise AdapterFormatError(f"{name} points to {outside[0]!r}, out of its folder.", remedy="Do not use it.")
    return shards
