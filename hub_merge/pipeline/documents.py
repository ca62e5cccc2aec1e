"""What stands beside the weights of a composite for people to read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hub_merge.card import render_card, update_card
from hub_merge.formats.peft import contained
from hub_merge.layout import CARD_FILE, PICTURE_FILE, RECIPE_FILE, RECORD_FILE
from hub_merge.measurements import Measurement
from hub_merge.provenance import read_record
from hub_merge.recipe import MergeRecord
from hub_merge.scores import Scores
from hub_merge.workspace import write_whole

__all__ = ["add_measurements", "card_of", "document", "keep_words", "picture_in"]


def document(record: MergeRecord, stage: Path, pictured: Scores | None) -> None:
    """Write record, recipe, card and, with scores to draw, a picture beside the proved files in ``stage``."""
    (stage / RECORD_FILE).write_text(record.to_json(), encoding="utf-8")
    (stage / RECIPE_FILE).write_text(record.recipe.to_yaml(), encoding="utf-8")
    if pictured is not None:
        from hub_merge.plots import heat_map

        heat_map(pictured, stage / PICTURE_FILE)
    card = render_card(record, picture=PICTURE_FILE if pictured is not None else None)
    (stage / CARD_FILE).write_text(card, encoding="utf-8")


def keep_words(replaced: Path, card: Path) -> None:
    """Carry over to ``card`` what the user wrote around our part of the card that it replaces."""
    text = update_card(replaced.read_text(encoding="utf-8"), card.read_text(encoding="utf-8"))
    card.write_text(text, encoding="utf-8")


def card_of(folder: Path, *, repo_id: str | None = None, write: bool = False) -> str:
    """Return the model card that the record in ``folder`` gives, with what the user wrote around ours.

    Args:
        folder: Folder of a composite.
        repo_id: Repository to name in the usage section.
        write: Write it to the folder's README.md.
    """
    text = render_card(read_record(folder), repo_id=repo_id, picture=picture_in(folder))
    path = contained(folder, CARD_FILE)
    if path.is_file():
        text = update_card(path.read_text(encoding="utf-8"), text)
    if write:
        write_whole(path, text)
    return text


def picture_in(folder: Path) -> str | None:
    return PICTURE_FILE if (folder / PICTURE_FILE).is_file() else None


def add_measurements(folder: Path, measured: Iterable[Measurement]) -> MergeRecord:
    """Add what was measured to the record and the card of the composite in ``folder``, and return the new record.

    A newer figure replaces an older one of the same data, metric and subject; what the user wrote around our part of
    the card stays. The weights are not touched.

    Raises:
        AdapterNotFound: The folder holds no composite.
        RecipeError: The record is damaged, or of a newer version.
    """
    record = read_record(folder)
    entries = {entry.key: entry for entry in (*record.measured, *measured)}
    record = replace(record, measured=tuple(entries.values()))
    card = contained(folder, CARD_FILE)
    text = render_card(record, picture=picture_in(folder))
    if card.is_file():
        text = update_card(card.read_text(encoding="utf-8"), text)
    write_whole(contained(folder, RECORD_FILE), record.to_json())
    write_whole(card, text)
    return record
