"""The YAML block at the head of a model card, and what it says of the licence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from hub_merge.errors import HubMergeError

__all__ = [
    "LicenseDetails",
    "is_license",
    "license_in_card",
    "read_front_matter",
    "require_flat",
    "split_front_matter",
]

LICENSE = re.compile(r"[A-Za-z0-9(][A-Za-z0-9 .+_()-]{0,99}")
LINK = re.compile(r"[A-Za-z0-9.][!#-;=?-Z_a-z~]{0,299}")
FRONT_MATTER = re.compile(r"\A\s*---\n(.*?)(?:\n|(?<=\A---\n))---[ \t]*(?:\n|\Z)", re.DOTALL)
MOST = 100_000
"""Bytes of the longest card that is read from a folder; a parser of YAML takes seconds for a megabyte."""

DEEPEST = 100


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
        """Read what ``dataclasses.asdict`` and JSON made of it; ``TypeError`` if a field is not of its kind."""
        texts = tuple((name, known) for name, known in content["texts"])
        details = cls(**{**content, "texts": texts})
        optional = (details.found_in, details.name, details.link, *(known for _, known in texts))
        if not all(isinstance(text, str) for text in (*(name for name, _ in texts), *filter(None, optional))):
            raise TypeError("a text about a licence is none")
        return details


def license_in_card(card: Mapping[str, Any], tagged: Iterable[str] = ()) -> tuple[str | None, LicenseDetails]:
    """Return the licence that a card states, else the repository's tags, and the details.

    Several identifiers are read as holding together and joined with ``AND``. What can be no identifier is not passed
    on: as a licence it counts as ``other``, as a name or link as nothing.

    Args:
        card: Metadata of the card.
        tagged: Identifiers in tags of the repository.
    """
    name, link = _text(card.get("license_name"), LICENSE), _text(card.get("license_link"), LINK)
    stated = card.get("license")
    for found_in, several in (("card", stated if isinstance(stated, list) else [stated]), ("tag", list(tagged))):
        texts = [text.strip() for text in several if isinstance(text, str) and text.strip()]
        if texts:
            told = dict.fromkeys(text if is_license(text) else "other" for text in texts)
            return " AND ".join(told), LicenseDetails(found_in, name, link)
    return None, LicenseDetails(None, name, link)


def is_license(text: str) -> bool:
    """Whether ``text`` can be the identifier of a licence, or several joined with operators."""
    return LICENSE.fullmatch(text) is not None


def _text(value: object, kind: re.Pattern[str]) -> str | None:
    text = value.strip() if isinstance(value, str) else ""
    return text if kind.fullmatch(text) else None


def require_flat(text: str) -> None:
    """Raise ``ValueError`` for lists in lists without end: YAML's parser takes the square of their depth."""
    steps = (1 if character in "[{" else -1 for character in text if character in "[{]}")
    if max(accumulate(steps), default=0) > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST}")


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
        require_flat(found[1])
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
