"""Filling an index: what is due is read by an engine's workers, and written here, by one writer, as it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub_merge.errors import HubMergeError, HubUnavailable
from hub_merge.mistyped import may_be_path
from hub_merge.sources import open_adapter, resolved
from hub_merge.zoo.engines import Engine, here
from hub_merge.zoo.entries import Entry
from hub_merge.zoo.index import Index, Writer
from hub_merge.zoo.reading import Access, Missed, Task, key_of, local_entry, read, stated_base

if TYPE_CHECKING:
    from hub_merge.hub import Hub, Reference

__all__ = ["Built", "Found", "add", "build", "fill", "update"]

MOST_MISSED = 20
"""Adapters in a row that may fail to arrive before a build is given up."""

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Built:
    """What a build did: adapters by what became of them.

    Attributes:
        listed: Adapters that were found.
        indexed: New or changed ones that have a fingerprint now.
        unchanged: Those that were left alone: indexed at this commit, or their files are the same.
        unusable: Those that have none, for a reason that the index keeps.
        missed: Those that did not arrive whole; another build asks for them again.
        left_out: Why some are unusable of which the index keeps nothing, as they are local, or nowhere.
    """

    listed: int = 0
    indexed: int = 0
    unchanged: int = 0
    unusable: int = 0
    missed: int = 0
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter to index: where it is, the commit it has now, and the base model it was found for."""

    reference: Reference
    base: str | None


def build(
    folder: Path,
    base: str,
    *,
    access: Access,
    engine: Engine | None = None,
    limit: int | None = None,
    retry: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> Built:
    """Index every adapter that the Hub lists for a base model, and note the search for updates.

    Args:
        folder: Folder of the index; created if it is not there, continued if it is.
        base: Hub id of the base model.
        access: How to reach the Hub.
        engine: Where the work is done; in this process by default.
        limit: Most adapters to list, the most downloaded first; all by default.
        retry: Try again what could not be used at this commit.
        progress: Told how far the work is.

    Raises:
        HubUnavailable: The Hub did not answer; what is done stays.
        HubMergeError: Another process writes to the index, the engine failed, or this machine has no room.
    """
    index = Index.create(folder)
    hub = access.connect()
    canonical = hub.canonical(base) or base
    found = list(_listed(hub, base, canonical, limit))
    search = {"base": canonical, "limit": limit}
    return fill(index, found, search, access=access, engine=engine, retry=retry, progress=progress)


def _listed(hub: Hub, base: str, canonical: str, limit: int | None) -> Iterator[Found]:
    from hub_merge.hub import Reference

    for listing in hub.search(base, limit=limit or UNLIMITED):
        yield Found(Reference(listing.repo_id, listing.commit), canonical)


UNLIMITED = 10_000_000


def fill(
    index: Index,
    found: Iterable[Found],
    search: Mapping[str, Any] | None = None,
    *,
    access: Access,
    engine: Engine | None = None,
    retry: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> Built:
    """Index what was found, and note the search that found it; see ``build``.

    What the index has of the same commit is left alone, whether it could be used or not.
    """
    found = list(found)
    built = Built(listed=len(found))
    with index.writing() as writer:
        if search is not None:
            writer.remember(search)
        known = index.known()
        due = [one for one in found if not _is_done(one, known, retry)]
        built.unchanged = len(found) - len(due)
        tasks = [Task(one.reference, one.base, _content(one, known), access) for one in due]
        _read_all(index, writer, tasks, engine or here(), built, progress)
    return built


def _is_done(one: Found, known: Mapping[str, Mapping[str, Any]], retry: bool) -> bool:
    """Whether the index has an adapter at the commit it has now."""
    entry = known.get(key_of(one.reference))
    same = entry is not None and one.reference.revision is not None and entry["commit"] == one.reference.revision
    return same and not (retry and entry is not None and entry["reason"])


def _content(one: Found, known: Mapping[str, Mapping[str, Any]]) -> str | None:
    entry = known.get(key_of(one.reference))
    return entry["content"] if entry and not entry["reason"] else None


def _read_all(
    index: Index, writer: Writer, tasks: Sequence[Task], engine: Engine, built: Built, progress: Progress
) -> None:
    in_a_row = 0
    for done, result in enumerate(engine(read, tasks), 1):
        progress("index", done, len(tasks))
        if isinstance(result, Missed):
            built.missed += 1
            in_a_row += 1
            if in_a_row == min(MOST_MISSED, len(tasks)):
                raise _given_up(result)
            continue
        in_a_row = 0
        if result.reason is not None:
            built.unusable += 1
            writer.put(result)
        elif result.fingerprint is not None:
            built.indexed += 1
            writer.put(result)
        else:
            built.unchanged += 1
            _keep(index, writer, result)


def _given_up(missed: Missed) -> HubMergeError:
    if missed.here:
        return HubMergeError(
            missed.reason, remedy="Free space and mend the rights, then build again: what is done stays in the index."
        )
    return HubUnavailable(missed.reason, remedy="Build again later: what is done stays in the index.")


def _keep(index: Index, writer: Writer, described: Entry) -> None:
    """Write what the Hub says now of an adapter whose files did not change, with the fingerprint that it has."""
    before = index.entry(described.key)
    if before is not None and before.commit != described.commit:
        kept = {name: getattr(before, name) for name in ("base", "fingerprint", "task_type", "bytes")}
        writer.put(replace(described, **kept))


def update(folder: Path, **settings: Any) -> Built:
    """Repeat the searches that filled an index; args and errors are those of ``build``."""
    index, total = Index(folder), Built()
    for search in index.searches:
        built = build(folder, search["base"], limit=search["limit"], **settings)
        for name in Built.__dataclass_fields__:
            setattr(total, name, getattr(total, name) + getattr(built, name))
    return total


def add(
    index: Index,
    references: Sequence[str],
    *,
    access: Access,
    base: str | None = None,
    engine: Engine | None = None,
    progress: Progress = lambda step, done, total: None,
) -> Built:
    """Index the adapters that are named: of the Hub, or of this machine, which are kept by name without their path.

    Args:
        index: The index.
        references: ``owner/name[@revision][:subfolder]``, addresses, folders or files.
        access: How to reach the Hub.
        base: Base model of those that do not name a Hub id.
        engine: Where those of the Hub are read.
        progress: Told how far the work is.

    Raises:
        HubUnavailable: The Hub delivered none of those that it has; what is done stays.
        HubMergeError: Another process writes to the index, or the engine failed.
    """
    from hub_merge.hub import parse_reference

    hub = access.connect()
    found, left_out = [], []
    with index.writing() as writer:
        for text in references:
            try:
                if _is_local(text):
                    adapter = open_adapter(text, hub=hub)
                    writer.put(local_entry(adapter, stated_base(adapter, hub, base)))
                    continue
                if may_be_path(text):
                    resolved(text, hub=hub)  # its error tells of the folder that was meant
                found.append(Found(parse_reference(text), base))
            except HubMergeError as error:
                left_out.append(str(error))
    built = fill(index, found, access=access, engine=engine, retry=True, progress=progress)
    built.indexed += len(references) - len(found) - len(left_out)
    built.listed = len(references)
    built.unusable += len(left_out)
    built.left_out = tuple(left_out)
    return built


def _is_local(reference: str) -> bool:
    return reference.startswith((".", "/", "~", "\\")) or Path(reference).exists()
