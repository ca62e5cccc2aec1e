"""JSON from strangers: bounded in size and depth, without duplicate keys and without text that cannot be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hub_merge.errors import AdapterFormatError

__all__ = ["parse_json", "read_bounded", "unique"]

MAX_DEPTH = 32
"""Objects and lists inside each other; configs have three."""

UPLOAD_AGAIN = "Ask its author to upload it again."


def parse_json(text: bytes, subject: str, *, most: int) -> Any:
    """Return what ``text`` says. A byte order mark and the literals NaN and Infinity, which Python writes, may occur.

    Args:
        text: UTF-8.
        subject: Names the file in messages.
        most: Largest number of bytes.

    Raises:
        AdapterFormatError: It is no JSON, too long or too deep, or ambiguous.
    """
    if text.startswith(b"version https://git-lfs"):
        raise AdapterFormatError(
            f"{subject} is a git-lfs pointer, not the file itself.", remedy="Fetch the file: git lfs pull."
        )
    if len(text) > most:
        raise _too_long(subject, len(text), most)
    try:
        content = json.loads(text.decode("utf-8-sig"), object_pairs_hook=unique)
        _require_flat(content, MAX_DEPTH)
        json.dumps(content, ensure_ascii=False).encode()  # refuses halves of surrogate pairs
    except (ValueError, RecursionError) as error:
        raise AdapterFormatError(f"{subject} is not valid JSON: {str(error)[:200]}.", remedy=UPLOAD_AGAIN) from error
    return content


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return ``pairs`` as a mapping; a name that occurs twice would mean one thing here and another elsewhere."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name occurs twice")
    return content


def _require_flat(content: Any, depth: int) -> None:
    if isinstance(content, (dict, list)):
        if depth == 0:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH}")
        for entry in content.values() if isinstance(content, dict) else content:
            _require_flat(entry, depth - 1)


def read_bounded(path: Path, *, most: int) -> bytes:
    """Return the content of a small file; one that is too long is not read.

    Raises:
        AdapterFormatError: It has more than ``most`` bytes.
    """
    size = path.stat().st_size
    if size > most:
        raise _too_long(path.name, size, most)
    with path.open("rb") as file:
        return file.read(most)


def _too_long(subject: str, size: int, most: int) -> AdapterFormatError:
    return AdapterFormatError(
        f"{subject} has {size} bytes, expected at most {most}.", remedy="Ask its author to mend it."
    )
