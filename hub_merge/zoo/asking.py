"""From the name of an adapter to an entry that an index can be asked about."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hub_merge.adapter import Adapter
from hub_merge.errors import HubMergeError
from hub_merge.hub import Hub, parse_reference
from hub_merge.sources import open_adapter
from hub_merge.zoo.entries import Entry
from hub_merge.zoo.exact import exactly
from hub_merge.zoo.loaded import Loaded
from hub_merge.zoo.queries import Exact
from hub_merge.zoo.reading import Access, key_of, local_entry, stated_base

__all__ = ["Question", "ask_about"]


@dataclass(frozen=True, slots=True)
class Question:
    """An adapter to ask about, and what computes exact cosines to it, if its numbers can be had and are wanted."""

    entry: Entry
    exact: Exact | None


def ask_about(
    zoo: Loaded, reference: str, *, hub: Hub, access: Access, base: str | None = None, exact: bool = True
) -> Question:
    """Return the question about an adapter, which need not be in the index.

    Args:
        zoo: The index.
        reference: Hub id, address, folder or file; or the key of a local adapter of the index.
        hub: Client to pull it with.
        access: How to pull the adapters that it is compared with.
        base: Its base model, where it does not name a Hub id.
        exact: Whether exact cosines are wanted.

    Raises:
        HubMergeError: It is not in the index, and cannot be had.
    """
    place = zoo.place(reference)
    if place is not None and not exact:
        return Question(zoo.entry(place), None)
    try:
        adapter = open_adapter(reference, hub=hub)
    except HubMergeError:
        if place is None:
            raise
        return Question(zoo.entry(place), None)
    entry = zoo.entry(place) if place is not None else _entry(adapter, reference, hub, base)
    return Question(entry, exactly(adapter, access) if exact else None)


def _entry(adapter: Adapter, reference: str, hub: Hub, base: str | None) -> Entry:
    entry = local_entry(adapter, stated_base(adapter, hub, base))
    if adapter.origin.repo_id is None:
        return entry
    asked = parse_reference(reference)
    named = replace(asked, repo_id=adapter.origin.repo_id)
    return replace(entry, key=key_of(named), repo_id=adapter.origin.repo_id, commit=adapter.origin.commit)
