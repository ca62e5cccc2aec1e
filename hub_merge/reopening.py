"""The adapters of a record had again: from the Hub at their commits, or from folders by their hashes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hub_merge.adapter import Adapter
from hub_merge.errors import AdapterFormatError, AdapterNotFound, UnsupportedAdapter
from hub_merge.recipe import Parent
from hub_merge.sources import digests, open_adapter
from hub_merge.verification import Difference, Missing, changed_files

if TYPE_CHECKING:
    from hub_merge.hub import Hub

__all__ = ["Reopened", "reopen"]


class Reopened(NamedTuple):
    """What became of the adapters of a record.

    Attributes:
        adapters: All of them, in the record's order; ``None`` unless every one could be opened.
        differences: What is not as recorded.
        missing: Those that cannot be had.
    """

    adapters: list[Adapter] | None
    differences: list[Difference]
    missing: tuple[Missing, ...]


def reopen(parents: Sequence[Parent], given: Iterable[str | Path], hub: Hub) -> Reopened:
    """Open the adapters of a record again, and compare their files with those that were recorded.

    Args:
        parents: The adapters as the record has them.
        given: Folders and files that may hold those that were local.
        hub: Client to pull with.

    Raises:
        HubUnavailable: The Hub did not answer.
        HubMergeError: One of ``given`` is none of the adapters and cannot be opened.
    """
    local = _Local(given, parents, hub)
    adapters: list[Adapter] = []
    differences: list[Difference] = []
    missing: list[Missing] = []
    for parent in parents:
        try:
            adapter = local.find(parent) if parent.repo_id is None else _pulled(parent, hub)
        except AdapterNotFound as error:
            is_local = parent.repo_id is None and bool(parent.files)
            missing.append(Missing(parent.name, parent.model, error.problem, error.remedy, is_local))
        except (AdapterFormatError, UnsupportedAdapter) as error:
            differences.append(Difference(parent.name, "", (), error.problem))
        else:
            differences += changed_files(digests(adapter), parent.files, parent.name)
            adapters.append(adapter.renamed(parent.name))
    return Reopened(adapters if len(adapters) == len(parents) else None, differences, tuple(missing))


def _pulled(parent: Parent, hub: Hub) -> Adapter:
    """Return a parent as it is on the Hub at its commit."""
    from hub_merge.hub import Reference

    weights = parent.files[-1]["name"] if parent.files else ""
    place = Reference(str(parent.repo_id), parent.commit, parent.subfolder, weights)  # refuses what leads elsewhere
    return open_adapter(f"hf://{place.repo_id}/{place.place}".rstrip("/"), revision=place.revision, hub=hub)


class _Local:
    """Folders and files that were given, opened."""

    def __init__(self, given: Iterable[str | Path], parents: Sequence[Parent], hub: Hub) -> None:
        self.opened: list[Adapter] = []
        self.damaged: dict[str, AdapterFormatError | UnsupportedAdapter] = {}
        for place in map(Path, given):
            try:
                self.opened.append(open_adapter(place, hub=hub))
            except (AdapterFormatError, UnsupportedAdapter) as error:
                if place.name not in {parent.name for parent in parents}:
                    raise
                self.damaged[place.name] = error

    def find(self, parent: Parent) -> Adapter:
        """Return the one with the recorded hashes, else the one of the recorded name."""
        if not parent.files:
            raise AdapterNotFound(
                f"Parent {parent.name} was only in memory, so nothing can be compared with it.",
                remedy="Save such a parent first and merge what was saved.",
            )
        wanted = [dict(entry) for entry in parent.files]
        alike = [adapter for adapter in self.opened if [asdict(digest) for digest in digests(adapter)] == wanted]
        named = [adapter for adapter in self.opened if adapter.name == parent.name]
        if alike or named:
            return (alike or named)[0]
        if parent.name in self.damaged:
            raise self.damaged[parent.name]
        seen = ", ".join(f"{entry['name']} sha256 {entry['sha256'][:12]}…" for entry in parent.files)
        raise AdapterNotFound(
            f"Parent {parent.name} was a local folder, and none of those given holds its files ({seen}).",
            remedy="Name it too, where it is now.",
        )
