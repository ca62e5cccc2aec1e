"""The index of a file that was cut into shards."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from hub_merge.errors import AdapterFormatError

__all__ = ["indexed_files"]


def indexed_files(index: bytes, name: str) -> list[str]:
    """Return the files that a shard index names, sorted.

    Args:
        index: Content of the index.
        name: Its name, for messages.

    Raises:
        AdapterFormatError: It is no index, or points out of its folder.
    """
    try:
        shards = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterFormatError(f"{name} is not a shard index: {error!r}.", remedy="Upload it again.") from error
    if outside := [shard for shard in shards if not isinstance(shard, str) or PurePosixPath(shard).name != shard]:
        raise AdapterFormatError(f"{name} points to {outside[0]!r}, out of its folder.", remedy="Do not use it.")
    return shards
