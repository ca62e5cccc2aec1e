"""The list to choose from: the samples, or what the Hub has for a base model, for words, or beside a pasted adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from hub_merge.bulk import Verdict, check_listed
from hub_merge.errors import AdapterNotFound, HubMergeError, HubUnavailable
from hub_merge.sources import open_headers
from hub_merge.studio.samples import address_of, is_sample, normal, samples, title_of

if TYPE_CHECKING:
    from hub_merge.hub import Hub, Listing, PinnedRepo

__all__ = ["MOST_ROWS", "Row", "SortKey", "detailed", "find", "row_of", "sample_rows"]

SortKey = Literal["downloads", "likes", "last_modified", "created_at", "trending_score"]

MOST_ROWS = 12
"""Adapters of one list: each costs the Hub three small requests for its rank and size."""


@dataclass(frozen=True, slots=True)
class Row:
    """One adapter of the list; what is not known is ``None``.

    Attributes:
        reference: What names it.
        title: Headline, for a sample.
        base_model: Base model that it states.
        license: Licence that it states.
        rank: Largest rank.
        size: Bytes of its config and weights.
        downloads: Of the last month.
        likes: Number of likes.
        gated: Whether access has to be requested.
        trouble: Why it cannot be merged, empty where nothing is known to forbid it.
        commit: Commit that was listed.
    """

    reference: str
    title: str = ""
    base_model: str | None = None
    license: str | None = None
    rank: int | None = None
    size: int | None = None
    downloads: int | None = None
    likes: int | None = None
    gated: bool = False
    trouble: str = ""
    commit: str | None = None


def sample_rows(hub: Hub) -> list[Row]:
    """Return the samples; nothing is asked of the Hub."""
    return [row_of(reference, hub) for reference in samples()]


def row_of(reference: str, hub: Hub) -> Row:
    """Return one adapter, read from its headers.

    Raises:
        HubMergeError: It is not there, or no adapter that can be read.
    """
    named = normal(reference)
    opened = open_headers(address_of(named), hub=hub, tokens=False, download=False)
    adapter = opened.adapter
    return Row(
        reference=named,
        title=title_of(named) if is_sample(named) else "",
        base_model=adapter.base_model,
        license=adapter.origin.license,
        rank=adapter.rank,
        size=opened.bytes_total,
        gated=adapter.origin.gated,
        commit=adapter.origin.commit,
    )


def find(
    text: str, *, hub: Hub, license: str | None = None, sort: SortKey = "downloads", limit: int = MOST_ROWS
) -> list[Row]:
    """Return adapters for what a visitor typed.

    The id of a base model lists its adapters, an adapter lists itself and others of its base, words are looked for in
    names, and nothing at all lists the samples.

    Args:
        text: What was typed or pasted.
        hub: Connection to look with.
        license: Licence identifier that all have to state.
        sort: What puts an adapter first.
        limit: Most adapters to list.

    Raises:
        AdapterNotFound: There is nothing of that name.
        HubUnavailable: The Hub did not answer.
        RecipeError: An address that leads to no model.
    """
    text = text.strip()
    if not text or is_sample(text):
        return sample_rows(hub)
    asked: dict[str, Any] = {"license": license or None, "sort": sort, "limit": limit}
    if not _is_name(text):
        return [_listed(found) for found in hub.search(text=text, **asked)]
    named = normal(text)
    model = hub.model(named.partition("@")[0].partition(":")[0])
    if model is None:
        raise AdapterNotFound(
            f"{named} is no model that can be seen here.",
            remedy="Check the spelling; sign in first if it is private.",
        )
    if "@" in named or ":" in named or _is_adapter(model):
        return _beside(row_of(named, hub), hub, asked)
    return [_listed(found) for found in hub.search(named, **asked)]


def _is_name(text: str) -> bool:
    """Whether ``text`` names one repository, rather than words to look for."""
    return not any(map(str.isspace, text)) and "/" in text


def _is_adapter(model: PinnedRepo) -> bool:
    return "adapter_config.json" in model.files or "peft" in model.tags or "lora" in model.tags


def _beside(row: Row, hub: Hub, asked: dict[str, Any]) -> list[Row]:
    """Return ``row`` and other adapters of its base, as far as the Hub lists them."""
    others: Sequence[Listing] = ()
    if row.base_model:
        try:
            others = hub.search(row.base_model, **asked)
        except HubMergeError:  # a base that is a path, or that nobody can see
            others = ()
    own = row.reference.partition("@")[0].partition(":")[0]
    return [row, *(_listed(found) for found in others if found.repo_id != own)]


def _listed(found: Listing) -> Row:
    return Row(
        reference=found.repo_id,
        base_model=found.base_model,
        license=found.license,
        size=found.size,
        downloads=found.downloads,
        likes=found.likes,
        gated=found.gated,
        commit=found.commit,
    )


def detailed(rows: Sequence[Row], *, hub: Hub) -> list[Row]:
    """Return ``rows`` with rank, size and what forbids a merge, read from headers; a Hub that fails adds nothing."""
    due = [row for row in rows if row.rank is None]
    known = {verdict.repo_id: verdict for verdict in _verdicts(due, hub)}
    return [_with(row, known.get(row.reference)) for row in rows]


def _verdicts(rows: Sequence[Row], hub: Hub) -> Iterator[Verdict]:
    from hub_merge.hub import Listing

    for base, group in groupby(sorted(rows, key=_base), key=_base):
        listings = [
            Listing(row.reference, row.commit, row.base_model, row.license, None, 0, 0, None, row.gated, None, "tag")
            for row in group
        ]
        try:
            yield from check_listed(listings, base, hub=hub)
        except HubUnavailable:
            return


def _base(row: Row) -> str:
    return row.base_model or ""


def _with(row: Row, verdict: Verdict | None) -> Row:
    if verdict is None or verdict.verdict == "unavailable":
        return row
    refused = verdict.verdict in ("blocked", "unreadable")
    return replace(
        row,
        rank=verdict.rank,
        size=verdict.bytes_total or row.size,
        license=row.license or verdict.license,
        trouble=_brief(verdict) if refused else "",
    )


def _brief(verdict: Verdict) -> str:
    """Return the reason of a verdict without the name and the commit that the row shows anyway."""
    text = verdict.reason.replace(f"@{verdict.commit}", "")
    while text.startswith(verdict.repo_id):
        text = text.removeprefix(verdict.repo_id).removeprefix(":").lstrip()
    return text.removeprefix("(").replace(") ", " ", 1) if text.startswith("(") else text
