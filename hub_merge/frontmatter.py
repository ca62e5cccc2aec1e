"""The YAML block at the head of a model card, and what it says of the licence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hub_merge.errors import HubMergeError

__all__ = ["LicenseDetails", "license_in_card", "read_front_matter", "split_front_matter"]

FRONT_MATTER = re.compile(r"\A\s*---\n(.*?)(?:\n|(?<=\A---\n))---[ \t]*(?:\n|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LicenseDetails:
    """Where a source says which licence it has, and what it says beside the identifier.

    Attributes:
        found_in: ``card``, ``tag`` or the name of a licence file; ``None`` where nothing says it.
        name: The card's ``license_name``, which goes with ``other``.
        link: The card's ``license_link``.
        texts: Each licence, notice and policy file, and the identifier of the licence whose text it is, if known.
    """

    found_in: str | None = None
    name: str | None = None
    link: str | None = None
    texts: tuple[tuple[str, str | None], ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LicenseDetails:
        """Read what ``dataclasses.asdict`` and JSON made of it."""
        return cls(**{**content, "texts": tuple((name, known) for name, known in content["texts"])})


def license_in_card(card: Mapping[str, Any], tagged: Iterable[str] = ()) -> tuple[str | None, LicenseDetails]:
    """Return the licence that a card states, else the repository's tags, and the details.

    Several identifiers are read as holding together and joined with ``AND``.

    Args:
        card: Metadata of the card.
        tagged: Identifiers in tags of the repository.
    """
    name, link = _text(card.get("license_name")), _text(card.get("license_link"))
    stated = card.get("license")
    for found_in, several in (("card", stated if isinstance(stated, list) else [stated]), ("tag", list(tagged))):
        if texts := [text for text in map(_text, several) if text]:
            return " AND ".join(dict.fromkeys(texts)), LicenseDetails(found_in, name, link)
    return None, LicenseDetails(None, name, link)


def _text(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def split_front_matter(card: str) -> tuple[dict[str, Any], str]:
    """Return the metadata of a card, empty without any, and its body.

    Raises:
        HubMergeError: The metadata is not a YAML mapping.
    """
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
        return split_front_matter(readme.read_text(encoding="utf-8"))[0]
    except (HubMergeError, OSError, UnicodeDecodeError):
        return {}
