"""The YAML block at the head of a model card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hub_merge.errors import HubMergeError

__all__ = ["read_front_matter", "split_front_matter"]

FRONT_MATTER = re.compile(r"\A\s*---\n(.*?)(?:\n|(?<=\A---\n))---[ \t]*(?:\n|\Z)", re.DOTALL)


MOST = 100_000
"""Bytes of the longest card that is read from a folder; a parser of YAML takes seconds for a megabyte."""


def split_front_matter(card: str) -> tuple[dict[str, Any], str]:
    """Return the metadata of a card, empty without any, and its body.

    Raises:
        HubMergeError: The metadata is not a YAML mapping.
    """
    import yaml

    text = card.removeprefix("\ufeff").replace("\r\n", "\n")
    found = FRONT_MATTER.match(text)
    if found is None:
        return {}, text
    try:
        data = yaml.safe_load(found[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise HubMergeError(
            f"The metadata of the existing README.md is not valid YAML: {error}", remedy="Mend or remove it."
        ) from error
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise HubMergeError("The metadata of the existing README.md is not a mapping.", remedy="Mend or remove it.")
    return data, text[found.end() :]


def read_front_matter(readme: Path) -> dict[str, Any]:
    """Return the metadata of a card on disk, empty where there is none that can be read."""
    try:
        if readme.stat().st_size > MOST:
            return {}
        return split_front_matter(readme.read_text(encoding="utf-8"))[0]
    except (HubMergeError, OSError, UnicodeDecodeError):
        return {}
