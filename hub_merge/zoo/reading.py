"""What a worker does: one adapter of the Hub becomes an entry, with its fingerprint or the reason why it has none."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hub_merge.adapter import Adapter
from hub_merge.bases import read_base
from hub_merge.errors import DamagedDownload, DiskFull, HubMergeError, HubUnavailable, RecipeError
from hub_merge.pipeline import followers
from hub_merge.privacy import one_line
from hub_merge.sources import digests, needed_files, open_factors
from hub_merge.workspace import workspace
from hub_merge.zoo.entries import Entry
from hub_merge.zoo.fingerprint import fingerprint

if TYPE_CHECKING:
    from hub_merge.hub import Hub, PinnedRepo, Reference
    from hub_merge.hub.transport import Gate

__all__ = ["Access", "Missed", "Task", "base_of", "key_of", "local_entry", "read", "stated_base"]

Follow = Callable[[str], str | None]

MOST_REASON = 300
TROUBLE_HERE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
}
"""What the system says where this machine, and no adapter, is the trouble."""


@dataclass(frozen=True, slots=True)
class Access:
    """How workers reach the Hub.

    Attributes:
        endpoint: Its address, ``None`` for the usual one.
        token: Token to send; ``None`` takes the one that is stored where the worker runs.
        patience: Seconds that a request may wait for the Hub's limits in all.
    """

    endpoint: str | None = None
    token: str | bool | None = None
    patience: float = 900.0

    def connect(self, gate: Gate | None = None, cache_dir: Path | None = None) -> Hub:
        """Return a connection."""
        from hub_merge.hub import Hub

        return Hub(
            token=self.token,
            endpoint=self.endpoint,
            cache_dir=cache_dir,
            progress=False,
            patience=self.patience,
            gate=gate,
        )


@dataclass(frozen=True, slots=True)
class Task:
    """One adapter to look at.

    Attributes:
        reference: Where it is, at a commit if that is known.
        base: Base model that it was found for, canonical; ``None`` leaves it to the adapter.
        content: Hash of the files that its present entry comes from, ``None`` without such an entry.
        access: How to reach the Hub.
    """

    reference: Reference
    base: str | None
    content: str | None
    access: Access


@dataclass(frozen=True, slots=True)
class Missed:
    """An adapter that did not arrive, which says nothing about the adapter.

    Attributes:
        task: What was to be done.
        reason: Why it was not.
        here: Whether it failed on this machine, rather than at the Hub or on the way.
    """

    task: Task
    reason: str
    here: bool = False


def read(task: Task, gate: Gate | None = None) -> Entry | Missed:
    """Return the entry of an adapter; of one whose files are those of its present entry, without a fingerprint.

    Nothing stays on the disk. No adapter ends the build of a zoo, whatever is in its files.
    """
    with workspace() as cache:
        hub = task.access.connect(gate, cache)
        known = Entry(key_of(task.reference), task.reference.repo_id, task.reference.revision, task.base or "")
        try:
            pinned = hub.resolve(task.reference)
            known = _described(pinned, task)
            content, weights = _hashes(pinned, needed_files(pinned, hub))
            known = replace(known, content=content, weights_hash=weights)
            if content == task.content:
                return known
            adapter = open_factors(pinned, hub)
            base = base_of(adapter, *_lookups(task.access), asked=task.base)
            if base is None:
                stated = read_base(adapter.base_model).label
                return replace(known, reason=f"Its base model is no Hub id: {one_line(stated)}.")
            entry = replace(known, base=base, task_type=adapter.task_type, bytes=_size(pinned, hub))
            return replace(entry, fingerprint=fingerprint(adapter, base))
        except (HubUnavailable, DamagedDownload) as error:
            return Missed(task, one_line(str(error)))
        except Exception as error:
            problem = one_line(_problem(error))
            if _is_trouble_here(error):
                return Missed(task, problem, here=True)
            return replace(known, reason=problem[:MOST_REASON])


def _problem(error: Exception) -> str:
    return error.problem if isinstance(error, HubMergeError) else f"Unexpected {type(error).__name__}: {error}"


def _is_trouble_here(error: BaseException | None) -> bool:
    """Whether an error comes from the disk, or another limit, of this machine."""
    while error is not None:
        if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in TROUBLE_HERE):
            return True
        error = error.__cause__
    return False


@lru_cache(maxsize=1)
def _lookups(access: Access) -> tuple[Follow | None, Follow | None]:
    """Return what follows renames and copies of base models; each is asked for once in a process."""
    return followers(access.connect())


def local_entry(adapter: Adapter, base: str) -> Entry:
    """Return the entry of an adapter on this machine; it is known by its name and digest."""
    files = digests(adapter)
    weights = [file for file in files if not file.name.endswith(".json")]
    content = _combined(f"{file.name} {file.sha256}" for file in files)
    return Entry(
        key=f"./{adapter.origin.file or adapter.name}#{content[:12]}",
        repo_id=None,
        commit=None,
        base=base,
        fingerprint=fingerprint(adapter, base),
        license=adapter.origin.license,
        task_type=adapter.task_type,
        bytes=sum(file.size for file in weights),
        weights_hash=_combined(file.sha256 for file in weights),
        content=content,
    )


def base_of(
    adapter: Adapter, canonical: Follow | None, original: Follow | None, *, asked: str | None = None
) -> str | None:
    """Return the canonical id of the model whose modules an adapter adapts; ``None`` if only a path names it.

    A quantised copy stands for its original. A base that is no Hub id is taken to be the one that was ``asked`` for.
    """
    stated = read_base(adapter.base_model).model_id
    if stated is None:
        return asked
    if original and (source := original(stated)):
        return source
    return (canonical and canonical(stated)) or stated


def stated_base(adapter: Adapter, hub: Hub, asked: str | None = None) -> str:
    """Return the base model of an adapter that is named by its user; ``asked`` is what the user says it is.

    Raises:
        RecipeError: Neither says.
    """
    base = base_of(adapter, *followers(hub), asked=asked)
    if base is None:
        raise RecipeError(
            f"{adapter.name} names {read_base(adapter.base_model).label} as its base model, which is no Hub id.",
            remedy="Name the base model.",
        )
    return base


def key_of(reference: Reference) -> str:
    """Return what an adapter of the Hub is indexed under."""
    return reference.repo_id + (f":{reference.place}" if reference.place else "")


def _described(pinned: PinnedRepo, task: Task) -> Entry:
    return Entry(
        key=key_of(pinned.reference),
        repo_id=pinned.repo_id,
        commit=pinned.commit,
        base=task.base or "",
        place=pinned.reference.place,
        license=pinned.license,
        tags=tuple(one_line(tag) for tag in pinned.tags),
        downloads=pinned.downloads or 0,
        likes=pinned.likes or 0,
        gated=pinned.gated,
    )


def _hashes(pinned: PinnedRepo, names: Iterable[str]) -> tuple[str, str]:
    """Return the hash of all the files, and that of the weights alone, from what the Hub says of them."""
    found = {name: pinned.files[pinned.path(name)] for name in names}
    oids = {name: file.sha256 or f"git:{file.git_oid}" for name, file in found.items()}
    weights = (oid for name, oid in oids.items() if not name.endswith(".json"))
    return _combined(f"{name} {oid}" for name, oid in oids.items()), _combined(weights)


def _combined(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()[:32]


def _size(pinned: PinnedRepo, hub: Hub) -> int:
    return sum(pinned.files[pinned.path(name)].size for name in hub.contents(pinned).weights)
