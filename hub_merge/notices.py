"""What a composite carries for its sources' sake: their licence texts, a NOTICE, a list of licences where needed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, count
from pathlib import Path

from hub_merge.adapter import Origin
from hub_merge.card import render_licenses
from hub_merge.layout import LICENSES_FILE, LICENSES_FOLDER, NOTICE_FILE
from hub_merge.licenses import LicenseVerdict, prescribed_notice, recognise, terms_files
from hub_merge.recipe import MergeRecord

__all__ = ["FUSED", "carried_names", "carried_texts", "notice_texts", "write_texts"]

CHANGED = (
    "The weights here were made by merging LoRA adapters; no file of theirs is unchanged. README.md names every source "
    f"with its licence, and {LICENSES_FOLDER}/ holds their texts as far as they came with the sources."
)
FUSED = (
    "The weights here were made by folding a LoRA adapter into a model and are not those of that model. README.md "
    f"names every source with its licence, and {LICENSES_FOLDER}/ holds the adapter's texts as far as it has some."
)


def carried_texts(record: MergeRecord, base: Origin | None, parents: Sequence[Origin]) -> dict[str, str]:
    """Return the licence texts of the sources by their names in the composite's folder.

    Args:
        record: What was done; it names the files.
        base: Where the base's licence files are.
        parents: Where each parent is, in the record's order.
    """
    texts: dict[str, str] = {}
    for place, origin in zip(_places(record), (base, *parents), strict=True):
        if origin is not None and origin.folder is not None:
            texts |= {f"{place}/{name}": text for name, text in terms_files(origin.folder).items()}
    return texts


def notice_texts(verdict: LicenseVerdict, carried: Mapping[str, str], changed: str = CHANGED) -> dict[str, str]:
    """Return NOTICE and the list of licences, each where the licences of the sources need it.

    Args:
        verdict: What the licences of the sources come to together.
        carried: Texts of the sources; the wording that one of them prescribes is taken before that of our table, and
            a NOTICE that stands among them at the top is continued.
        changed: Sentence that says what was changed.
    """
    texts = {}
    given = carried.get(NOTICE_FILE, "").strip()
    if lines := [line for line in _prescribed(verdict, carried) if line not in given]:
        texts[NOTICE_FILE] = "\n\n".join(filter(None, [given, *lines, changed])) + "\n"
    if verdict.link == LICENSES_FILE:
        texts[LICENSES_FILE] = render_licenses(verdict)
    return texts


def _prescribed(verdict: LicenseVerdict, carried: Mapping[str, str]) -> Iterator[str]:
    own_words = {recognise(text): prescribed_notice(text) for text in carried.values()}
    for license, line in verdict.notices:
        yield own_words.get(license) or line


def carried_names(record: MergeRecord) -> list[str]:
    """Return the names of the licence texts that a composite's folder holds, as its record tells."""
    details = (record.base_license_details, *(parent.license_details for parent in record.parents))
    return [
        f"{place}/{name}" for place, source in zip(_places(record), details, strict=True) for name, _ in source.texts
    ]


def _places(record: MergeRecord) -> list[str]:
    """Return the folder of each source's texts, base first; names that differ in case or odd characters stay apart."""
    taken: dict[str, str] = {}
    for name in ("base", *(parent.name for parent in record.parents)):
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "source"
        numbered = (f"{plain}-{number}" for number in count(2))
        free = next(text for text in chain([plain], numbered) if text.casefold() not in taken)
        taken[free.casefold()] = free
    return [f"{LICENSES_FOLDER}/{name}" for name in taken.values()]


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write ``texts`` by name into ``folder``."""
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
