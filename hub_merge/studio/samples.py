"""The example adapters that come with the package, and what a visitor may name: those, or adapters of the Hub.

A page that serves strangers opens no path of theirs: a reference is one of the samples, or it goes to the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote

from hub_merge.errors import RecipeError
from hub_merge.layout import CONFIG_FILE

__all__ = ["PREFIX", "address_of", "all_samples", "is_sample", "normal", "samples", "title_of"]

PREFIX = "examples/zoo/"
"""How a sample is named; in a clone of the repository the same words find it on the command line."""

PLACES = (Path(__file__).parent / "zoo", Path(__file__).parents[2] / "examples" / "zoo")
"""Where a wheel and where a clone keep them."""


@cache
def samples() -> Mapping[str, Path]:
    """Return the folders of the samples by their names, such as ``examples/zoo/math``."""
    place = next((folder for folder in PLACES if folder.is_dir()), None)
    folders = sorted(path.parent for path in place.glob(f"*/{CONFIG_FILE}")) if place else []
    return {f"{PREFIX}{folder.name}": folder for folder in folders}


def is_sample(reference: str) -> bool:
    """Tell whether ``reference`` names a sample."""
    return reference in samples()


def all_samples(references: Sequence[str]) -> bool:
    """Tell whether nothing of the Hub is among ``references``."""
    return all(map(is_sample, references))


def title_of(reference: str) -> str:
    """Return the headline of a sample's card."""
    card = (samples()[reference] / "README.md").read_text(encoding="utf-8")
    return next((line.removeprefix("# ") for line in card.splitlines() if line.startswith("# ")), reference)


def normal(text: str) -> str:
    """Return how ``text`` is written as a reference: the name of a sample, or ``owner/name[@revision][:subfolder]``.

    Raises:
        RecipeError: It names nothing that this page opens.
    """
    from hub_merge.hub import parse_reference

    text = text.strip()
    if is_sample(text):
        return text
    if text.startswith((".", "/", "~", "\\")) or text[1:3] == ":\\":
        raise RecipeError(
            "This page opens adapters of the Hub and its own samples, no files.",
            remedy="Name an adapter as owner/name, or merge folders on your machine: pip install hub-merge",
        )
    return str(parse_reference(text))


def address_of(reference: str) -> str:
    """Return the address that opens ``reference`` and can be no path of this machine but that of a sample.

    Raises:
        RecipeError: It names nothing that this page opens.
    """
    from hub_merge.hub import parse_reference

    named = normal(reference)
    if is_sample(named):
        return str(samples()[named])
    place = parse_reference(named)
    revision = f"@{quote(place.revision, safe='')}" if place.revision else ""
    return f"hf://{place.repo_id}{revision}/{place.place}".rstrip("/")
