"""From a reference to an adapter: a Hub id and a local folder are the same thing to the rest of the code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from hub_merge.adapter import Adapter, FileDigest, Origin
from hub_merge.errors import AdapterNotFound, HubMergeError
from hub_merge.formats.peft import adapter_files, adapter_from_headers, open_folder
from hub_merge.frontmatter import read_front_matter
from hub_merge.layout import CARD_FILE, CONFIG_FILE

if TYPE_CHECKING:
    from hub_merge.hub import Hub, PinnedRepo, Reference

__all__ = ["Opened", "digests", "file_digest", "open_adapter", "open_headers", "pinned_reference", "unique_names"]


@dataclass(frozen=True, slots=True)
class Opened:
    """An adapter of which only headers were read, what that cost, and what its config and weights have in all."""

    adapter: Adapter
    bytes_read: int
    bytes_total: int


def open_adapter(
    reference: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    hub: Hub,
    progress: bool = False,
) -> Adapter:
    """Open the adapter that ``reference`` names, pulling it to the cache if it is on the Hub.

    A folder that exists wins over a Hub id of the same spelling, as everywhere in the ecosystem.

    Args:
        reference: Folder, ``owner/name[@revision][:subfolder]``, or an address.
        revision: Branch, tag or commit.
        subfolder: Folder inside the repository or folder.
        hub: Client to pull with.
        progress: Whether to draw progress bars.

    Raises:
        AdapterError: It is not there, damaged, or no LoRA.
        HubUnavailable: The Hub did not answer.
        RecipeError: ``reference`` names nothing.
    """
    if (folder := _local_folder(reference, subfolder)) is not None:
        return _named_errors(str(reference), lambda: _open_local(folder))
    pinned = hub.resolve(_hub_reference(str(reference), revision, subfolder))
    pulled = hub.pull(pinned, progress=progress)
    origin = _origin(pinned, pulled)
    return _named_errors(str(reference), lambda: open_folder(pulled, name=_short_name(pinned), origin=origin))


def open_headers(
    reference: str | Path, *, revision: str | None = None, subfolder: str | None = None, hub: Hub
) -> Opened:
    """Open an adapter from its config and tensor headers alone; on the Hub that costs kilobytes.

    Args and errors are those of ``open_adapter``. The numbers of a local adapter stay readable.
    """
    if (folder := _local_folder(reference, subfolder)) is not None:
        adapter = _named_errors(str(reference), lambda: _open_local(folder))
        return Opened(adapter, 0, sum(path.stat().st_size for path in _read_files(folder)))
    pinned = hub.resolve(_hub_reference(str(reference), revision, subfolder))
    remote = hub.read_headers(pinned)
    adapter = _named_errors(
        str(reference),
        lambda: adapter_from_headers(
            remote.config, remote.headers, remote.sizes, name=_short_name(pinned), origin=_origin(pinned, None)
        ),
    )
    return Opened(adapter, remote.bytes_read, len(remote.config) + sum(remote.sizes.values()))


def _local_folder(reference: str | Path, subfolder: str | None) -> Path | None:
    path = Path(reference).expanduser()
    looks_local = isinstance(reference, Path) or reference.startswith((".", "/", "~", "\\")) or reference[1:3] == ":\\"
    if not looks_local and not path.is_dir():
        return None
    return path / subfolder if subfolder else path


def _open_local(folder: Path) -> Adapter:
    if not folder.is_dir():
        raise AdapterNotFound("There is no such folder.", remedy="Check the path; a Hub adapter is owner/name.")
    if not (folder / CONFIG_FILE).is_file():
        inside = sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"Folders inside that have one: {', '.join(inside[:8])}." if inside else "Name the adapter's own folder."
        raise AdapterNotFound(f"The folder holds no {CONFIG_FILE}.", remedy=hint)
    return open_folder(folder, name=folder.resolve().name, origin=_local_origin(folder))


def _named_errors(reference: str, opening: Callable[[], Adapter]) -> Adapter:
    """Return what ``opening`` returns; its errors are told with the reference in front."""
    try:
        return opening()
    except HubMergeError as error:
        raise type(error)(f"{reference}: {error.problem}", remedy=error.remedy) from error


def _hub_reference(text: str, revision: str | None, subfolder: str | None) -> Reference:
    from hub_merge.hub import parse_reference

    parsed = parse_reference(text)
    return replace(parsed, revision=revision or parsed.revision, subfolder=subfolder or parsed.subfolder)


def _short_name(pinned: PinnedRepo) -> str:
    return pinned.subfolder.rpartition("/")[2] or pinned.repo_id.rpartition("/")[2]


def _origin(pinned: PinnedRepo, folder: Path | None) -> Origin:
    return Origin(
        repo_id=pinned.repo_id,
        revision=pinned.revision,
        commit=pinned.commit,
        subfolder=pinned.subfolder,
        license=pinned.license,
        gated=pinned.gated,
        private=pinned.private,
        folder=folder,
    )


def _local_origin(folder: Path) -> Origin:
    """Return the origin of a local folder; its card may state a licence."""
    stated = read_front_matter(folder / CARD_FILE).get("license")
    return Origin(folder=folder, license=stated if isinstance(stated, str) else None)


def pinned_reference(adapter: Adapter) -> str:
    """Return the reference that finds the adapter again, at its commit; ``./name`` for a local folder."""
    origin = adapter.origin
    if origin.repo_id is None:
        return f"./{adapter.name}"
    return f"{origin.repo_id}@{origin.commit}" + (f":{origin.subfolder}" if origin.subfolder else "")


def unique_names(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return the adapters with names that tell them apart: ``math``, ``math-2``."""
    names = [adapter.name for adapter in adapters]
    for place, name in enumerate(names):
        if name in names[:place]:
            numbered = (f"{name}-{number}" for number in count(2))
            names[place] = next(free for free in numbered if free not in names)
    return [a if a.name == name else a.renamed(name) for a, name in zip(adapters, names, strict=True)]


def file_digest(path: Path) -> FileDigest:
    """Return name, sha256 and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileDigest(path.name, digest, path.stat().st_size)


def digests(adapter: Adapter) -> tuple[FileDigest, ...]:
    """Return the identity of each file that the adapter was read from; none for one that is only in memory."""
    if adapter.origin.folder is None:
        return ()
    return tuple(file_digest(path) for path in _read_files(adapter.origin.folder))


def _read_files(folder: Path) -> list[Path]:
    return [folder / name for name in adapter_files(folder)]
