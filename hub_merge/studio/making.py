"""Merging for a visitor: a folder of their own with proof, record and card, its archive, and its publication."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hub_merge.errors import AdapterNotFound, PublishError
from hub_merge.layout import CARD_FILE, RECIPE_FILE, WEIGHTS_FILE
from hub_merge.licenses import LicenseVerdict, verdict_of
from hub_merge.pipeline import merge_to_folder, push_folder
from hub_merge.pipeline.progress import Progress, silent
from hub_merge.recipe import MergeRecord, Recipe
from hub_merge.sources import open_headers
from hub_merge.studio.limits import Limits
from hub_merge.studio.samples import address_of, is_sample, samples
from hub_merge.workspace import workspace

if TYPE_CHECKING:
    from hub_merge.hub import Hub
    from hub_merge.publish import Published

__all__ = ["Made", "Place", "card_body", "make", "publish", "suggested_name", "with_card"]

Place = Literal["private", "public", "pull request"]

MOST_CARD = 200_000
"""Characters of the longest card that is taken."""

PICTURE = re.compile(r"!\[([^\]]*)\]\([^)]*\)")


@dataclass(frozen=True, slots=True)
class Made:
    """One merge of one visitor, in a folder that nobody clears away while this process lives.

    Attributes:
        folder: The composite.
        archive: The same as one file.
        record: What was done.
        room: Closing it deletes all of it.
    """

    folder: Path
    archive: Path
    record: MergeRecord
    room: ExitStack = field(repr=False)

    @property
    def weights(self) -> Path:
        """The adapter's weights alone."""
        return self.folder / WEIGHTS_FILE

    @property
    def recipe(self) -> Path:
        """The recipe that makes it again."""
        return self.folder / RECIPE_FILE

    @property
    def card(self) -> str:
        """The model card."""
        return (self.folder / CARD_FILE).read_text(encoding="utf-8")

    @property
    def licenses(self) -> LicenseVerdict:
        """What it may be used for."""
        return verdict_of(self.record)

    def discard(self) -> None:
        """Delete it."""
        self.room.close()


def make(
    recipe: Recipe,
    *,
    hub: Hub,
    limits: Limits,
    picture: bool = True,
    progress: Progress = silent,
) -> Made:
    """Carry out ``recipe`` in a new folder, whole or not at all.

    Raises:
        BudgetExceeded: It is too much for this page, known before the download, or takes too long.
        HubMergeError: An adapter cannot be had, or the merge cannot be carried out.
    """
    references = [source.model for source in recipe.models]
    limits.require_adapters(len(references))
    limits.require_bytes(
        sum(open_headers(address_of(name), hub=hub, tokens=False, download=False).bytes_total for name in references)
    )
    with ExitStack() as room:
        folder = room.enter_context(workspace()) / suggested_name(references)
        record = merge_to_folder(
            _placed(recipe),
            folder,
            hub=hub,
            parents=[samples()[name] for name in references if is_sample(name)],
            picture=picture,
            progress=limits.timed(progress),
        )
        return Made(folder, _archived(folder), record, room.pop_all())


def _placed(recipe: Recipe) -> Recipe:
    """Return the recipe with addresses that lead to the samples or to the Hub and nowhere else."""
    models = tuple(
        replace(
            source, model=f"./{samples()[source.model].name}" if is_sample(source.model) else address_of(source.model)
        )
        for source in recipe.models
    )
    return replace(recipe, models=models)


def _archived(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", root_dir=folder.parent, base_dir=folder.name))


def suggested_name(references: Sequence[str]) -> str:
    """Return a name for the composite of ``references``: their own, in order."""
    names = [
        re.sub(r"[^A-Za-z0-9.-]+", "-", name.partition("@")[0].rpartition("/")[2]).strip("-.") for name in references
    ]
    return "-".join(filter(None, names))[:80].strip("-.") or "composite"


def card_body(card: str) -> str:
    """Return a card as it is previewed: without its metadata, and with the names of pictures in their place, so that
    looking at it asks nothing of other hosts."""
    _, mark, rest = card.removeprefix("---\n").partition("\n---\n") if card.startswith("---\n") else ("", "", card)
    return PICTURE.sub(r"*(picture: \1)*", rest if mark or not card.startswith("---\n") else card)


def with_card(made: Made, card: str) -> Made:
    """Return the merge with ``card`` as its model card, in the archive too.

    Raises:
        PublishError: The card is longer than any card.
    """
    if len(card) > MOST_CARD:
        raise PublishError(f"The card has {len(card)} characters; at most {MOST_CARD} are taken.", remedy="Shorten it.")
    if card != made.card:
        (made.folder / CARD_FILE).write_text(card, encoding="utf-8", newline="\n")
        _archived(made.folder)
    return made


def publish(
    made: Made | None, repo_id: str, place: Place, *, card: str, hub: Hub, accept_unknown_license: bool = False
) -> Published:
    """Publish a merge under the visitor's name, with the card as they left it.

    Args:
        made: What to publish.
        repo_id: ``owner/name``, or ``name`` in the visitor's own namespace.
        place: A new private or public repository, or a pull request to one that is there.
        card: Text of the model card.
        hub: Connection with the visitor's token.
        accept_unknown_license: Publish although a licence is not known.

    Raises:
        AdapterNotFound: Nothing was merged yet, or it was too long ago.
        PublishError: The licences do not allow it, or the Hub refused.
        HubUnavailable: The Hub did not answer.
    """
    if made is None or not made.folder.is_dir():
        raise AdapterNotFound("There is no merge to publish any more.", remedy="Merge again, then publish.")
    if not repo_id.strip():
        raise PublishError("The repository has no name.", remedy="Give one, such as math-medicine.")
    with_card(made, card)
    return push_folder(
        made.folder,
        repo_id.strip(),
        hub=hub,
        private=None if place == "pull request" else place == "private",
        create_pr=place == "pull request",
        accept_unknown_license=accept_unknown_license,
    )
