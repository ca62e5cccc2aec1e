"""From a reference to an adapter: a Hub id and a local folder are the same thing to the rest of the code."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hub_merge.adapter import Adapter, FileDigest, Origin
from hub_merge.bases import read_base
from hub_merge.budgets import budget
from hub_merge.choice import choose
from hub_merge.errors import (
    AdapterFormatError,
    AdapterNotFound,
    HubMergeError,
    HubUnavailable,
    RecipeError,
    UnsupportedAdapter,
)
from hub_merge.formats import checkpoints
from hub_merge.formats.opening import adapter_from_headers, open_adapter_files
from hub_merge.formats.peft import contained
from hub_merge.frontmatter import LicenseDetails, license_in_card, read_front_matter
from hub_merge.layout import CARD_FILE, CONFIG_FILE, TERMS_FILES
from hub_merge.licenses import recognise, terms_files
from hub_merge.mistyped import not_here_either

if TYPE_CHECKING:
    from hub_merge.hub import Hub, PinnedRepo

__all__ = [
    "Opened",
    "base_origin",
    "digests",
    "file_digest",
    "needed_files",
    "open_adapter",
    "open_factors",
    "open_headers",
    "open_model",
    "pinned_reference",
    "resolved",
]


Result = TypeVar("Result")

GGUF_FIELDS = 65_536
"""Bytes in which a GGUF adapter, which has no vocabulary, states its fields."""
ADAPTER_MARKS = (b"adapter.type", b"adapter.lora.alpha")


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
        reference: Folder or file, ``owner/name[@revision][:subfolder or file]``, or an address.
        revision: Branch, tag or commit.
        subfolder: Folder inside the repository or folder.
        hub: Client to pull with.
        progress: Whether to draw progress bars.

    Raises:
        AdapterError: It is not there, damaged, or no LoRA.
        BudgetExceeded: It is larger, or of a larger rank, than a limit allows.
        HubUnavailable: The Hub did not answer.
        RecipeError: ``reference`` names nothing.
    """
    if (place := _local_place(reference, subfolder)) is not None:
        return _affordable(_named_errors(str(reference), lambda: _open_local(place, hub.allow_pickle)))
    pinned = resolved(str(reference), revision, subfolder, hub=hub)
    _named_errors(str(reference), lambda: _require_adapter(pinned, hub))
    return _open_pulled(reference, pinned, hub, progress)


def open_factors(pinned: PinnedRepo, hub: Hub) -> Adapter:
    """Open an adapter of the Hub for its numbers alone: no card, licence or tokenizer is pulled.

    Raises:
        HubMergeError: As ``open_adapter``.
    """
    _named_errors(pinned.label, lambda: _require_adapter(pinned, hub))
    return _open_pulled(pinned.label, pinned, hub, progress=False, patterns=needed_files(pinned, hub))


def needed_files(pinned: PinnedRepo, hub: Hub) -> list[str]:
    """Return the names of the files that an adapter's numbers depend on."""
    found = hub.contents(pinned)
    return [*found.config, *found.index, *found.weights]


def _open_pulled(
    reference: str | Path, pinned: PinnedRepo, hub: Hub, progress: bool, patterns: Sequence[str] | None = None
) -> Adapter:
    pulled = hub.pull(pinned, patterns and [glob.escape(name) for name in patterns], progress=progress)
    chosen = choose(pinned.names(), pinned.file)
    adapter = _named_errors(
        str(reference),
        lambda: open_adapter_files(
            pulled,
            chosen,
            name=chosen.name(_short_name(pinned)),
            origin=_origin(pinned, pulled),
            allow_pickle=hub.allow_pickle,
        ),
    )
    return _affordable(adapter)


def _require_adapter(pinned: PinnedRepo, hub: Hub) -> None:
    """Raise a typed error for a file that is no adapter before all of it is downloaded: it may be a large model."""
    found = hub.contents(pinned)
    if found.is_peft:
        return
    if found.has_headers:
        _from_headers(pinned, hub, tokens=False)
    elif not any(mark in hub.read_start(pinned, found.weights[0], GGUF_FIELDS) for mark in ADAPTER_MARKS):
        raise UnsupportedAdapter(
            f"{found.weights[0]} is no LoRA adapter of llama.cpp.", remedy="Full models cannot be merged."
        )


def open_headers(
    reference: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    hub: Hub,
    tokens: bool = True,
    download: bool = True,
) -> Opened:
    """Open an adapter from its config and tensor headers alone; on the Hub that costs kilobytes.

    Args and errors are those of ``open_adapter``; ``tokens=False`` leaves out the tokenizer of a Hub adapter. Weights
    without such headers (GGUF, pickles) are pulled, or refused with ``download=False``. The numbers of a local adapter
    stay readable.
    """
    if (place := _local_place(reference, subfolder)) is not None:
        adapter = _named_errors(str(reference), lambda: _open_local(place, hub.allow_pickle))
        return Opened(_affordable(adapter), 0, _size(adapter))
    pinned = resolved(str(reference), revision, subfolder, hub=hub)
    found = hub.contents(pinned)
    if not found.has_headers:
        if not download:
            raise UnsupportedAdapter(
                f"{reference}: {found.weights[0]} has no header that can be read alone.",
                remedy="Check this adapter by its name, which downloads it.",
            )
        adapter = open_adapter(reference, revision=revision, subfolder=subfolder, hub=hub)
        return Opened(adapter, _size(adapter), _size(adapter))
    opened = _named_errors(str(reference), lambda: _from_headers(pinned, hub, tokens=tokens))
    budget().require_bytes(opened.bytes_total, str(reference))
    return replace(opened, adapter=_affordable(opened.adapter))


def _from_headers(pinned: PinnedRepo, hub: Hub, *, tokens: bool) -> Opened:
    remote = hub.read_headers(pinned, tokens=tokens)
    adapter = adapter_from_headers(
        remote.config,
        remote.headers,
        remote.sizes,
        name=choose(pinned.names(), pinned.file).name(_short_name(pinned)),
        origin=_origin(pinned, None),
        tokens=remote.tokens,
    )
    return Opened(adapter, remote.bytes_read, len(remote.config or b"") + sum(remote.sizes.values()))


def _affordable(adapter: Adapter) -> Adapter:
    """Return ``adapter``, or raise ``BudgetExceeded`` for its rank; none of its numbers is read."""
    budget().require_rank(adapter.rank, adapter.name)
    return adapter


def _size(adapter: Adapter) -> int:
    return sum(path.stat().st_size for path in _read_files(adapter))


def open_model(reference: str | Path, *, revision: str | None = None, hub: Hub) -> checkpoints.Checkpoint:
    """Open the full model that ``reference`` names, pulling its safetensors to the cache if it is on the Hub.

    Args:
        reference: Folder, ``owner/name[@revision][:subfolder]``, an address, or a name from before owners, as gpt2.
        revision: Branch, tag or commit.
        hub: Client to pull with.

    Raises:
        CheckpointError: It is no full model in safetensors, or a quantised one.
        AdapterError: It is not there, or damaged.
        HubUnavailable: The Hub did not answer.
        RecipeError: ``reference`` names nothing.
    """
    if (folder := _local_place(reference, None)) is not None:
        if not folder.is_dir():
            raise AdapterNotFound(f"{folder}: There is no such folder.", remedy="Check the path.")
        return checkpoints.open_checkpoint(folder, _local_origin(folder))
    named = read_base(str(reference)).model_id or str(reference)
    pinned = resolved(named, revision, hub=hub)
    return checkpoints.open_checkpoint(_pull_model(pinned, hub), _origin(pinned, None))


def _pull_model(pinned: PinnedRepo, hub: Hub) -> Path:
    """Download config and index first: they tell whether the weights are of use, and which they are."""
    names = pinned.names()
    first = {checkpoints.MODEL_CONFIG, checkpoints.MODEL_INDEX} & names
    texts = {name: (hub.pull(pinned, [name]) / name).read_bytes() for name in first}
    checkpoints.read_config(texts.get(checkpoints.MODEL_CONFIG), pinned.label)
    weights = checkpoints.weight_files(names, pinned.label, texts.get(checkpoints.MODEL_INDEX))
    return hub.pull(pinned, [*checkpoints.COMPANIONS, checkpoints.CODE, *map(glob.escape, weights)])


def _local_place(reference: str | Path, subfolder: str | None) -> Path | None:
    """Return the folder or file that ``reference`` names on this machine, ``None`` if it names none."""
    path = Path(reference).expanduser()
    looks_local = isinstance(reference, Path) or reference.startswith((".", "/", "~", "\\")) or reference[1:3] == ":\\"
    if not looks_local and not path.is_dir() and not path.is_file():
        return None
    return path / subfolder if subfolder else path


def _open_local(place: Path, allow_pickle: bool) -> Adapter:
    folder, file = (place.parent, place.name) if place.is_file() else (place, "")
    if not folder.is_dir():
        raise AdapterNotFound("There is no such folder or file.", remedy="Check the path; a Hub adapter is owner/name.")
    names = [path.name for path in folder.iterdir() if path.is_file()]
    chosen = choose(names, file, lambda name: str(folder / name))
    if chosen.is_peft and CONFIG_FILE not in names:
        raise _no_adapter(folder)
    name = "".join(char if char.isprintable() else "_" for char in chosen.name(folder.resolve().name))
    origin = replace(_local_origin(folder), file=file)
    return open_adapter_files(folder, chosen, name=name, origin=origin, allow_pickle=allow_pickle)


def _no_adapter(folder: Path) -> AdapterNotFound:
    """Return what to say of a folder without an adapter, with the folders inside that may hold one."""
    marks = (CONFIG_FILE, "*.safetensors", "*.gguf")
    inside = sorted({str(path.parent) for mark in marks for path in folder.glob(f"*/{mark}")})
    return AdapterNotFound(
        f"The folder holds no {CONFIG_FILE}, nor weights of another format.",
        remedy=f"Name a folder inside: {', '.join(inside[:8])}."
        if inside
        else "Name the adapter's own folder or file.",
    )


def _named_errors(reference: str, opening: Callable[[], Result]) -> Result:
    """Return what ``opening`` returns; its errors are told with the reference in front."""
    try:
        return opening()
    except HubMergeError as error:
        raise type(error)(f"{reference}: {error.problem}", remedy=error.remedy) from error


def resolved(text: str, revision: str | None = None, subfolder: str | None = None, *, hub: Hub) -> PinnedRepo:
    """Return the repository that ``text`` names, at a commit; errors tell of folders that may have been meant.

    Raises:
        HubMergeError: As ``open_adapter``.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    from hub_merge.hub import parse_reference

    try:
        parsed = parse_reference(text)
        return hub.resolve(
            replace(parsed, revision=revision or parsed.revision, subfolder=subfolder or parsed.subfolder)
        )
    except (AdapterNotFound, HubUnavailable, RecipeError) as error:
        if isinstance(error, AdapterNotFound) and not isinstance(error.__cause__, RepositoryNotFoundError):
            raise  # the repository is there, and what was asked for in it is not
        raise not_here_either(text, error) from error


def _short_name(pinned: PinnedRepo) -> str:
    return pinned.subfolder.rpartition("/")[2] or pinned.repo_id.rpartition("/")[2]


def _origin(pinned: PinnedRepo, folder: Path | None) -> Origin:
    return Origin(
        repo_id=pinned.repo_id,
        revision=pinned.revision,
        commit=pinned.commit,
        subfolder=pinned.subfolder,
        license=pinned.license,
        license_details=_with_texts(pinned.license_details, folder),
        gated=pinned.gated,
        private=pinned.private,
        folder=folder,
        file=pinned.file,
    )


def _local_origin(folder: Path) -> Origin:
    """Return the origin of a local folder; its card may state a licence."""
    try:
        card = read_front_matter(contained(folder, CARD_FILE))
    except AdapterFormatError:
        card = {}
    license, details = license_in_card(card)
    return Origin(folder=folder, license=license, license_details=_with_texts(details, folder))


def _with_texts(details: LicenseDetails, folder: Path | None) -> LicenseDetails:
    """Add the licence files of ``folder`` and which licences they are the texts of."""
    texts = terms_files(folder) if folder else {}
    return replace(details, texts=tuple((name, recognise(text)) for name, text in texts.items()))


def base_origin(model_id: str, hub: Hub) -> Origin | None:
    """Return where a base model is and which licence it states, with its licence files as far as they may be read.

    Returns:
        ``None`` if the Hub does not tell; ``folder`` is that of the licence files, if there are any.
    """
    try:
        pinned = hub.model(model_id)
    except HubMergeError:
        return None
    if pinned is None:
        return None
    try:
        return _origin(pinned, hub.pull(pinned, TERMS_FILES))
    except HubMergeError:  # it has none, or asks for access first
        return _origin(pinned, None)


def pinned_reference(origin: Origin, name: str) -> str:
    """Return the reference that finds something again: a Hub id with its commit, or ``./name`` for a local folder."""
    if origin.repo_id is None:
        return f"./{origin.file or name}"
    place = f"{origin.subfolder}/{origin.file}".strip("/")
    return f"{origin.repo_id}@{origin.commit}" + (f":{place}" if place else "")


def file_digest(path: Path) -> FileDigest:
    """Return name, sha256 and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileDigest(path.name, digest, path.stat().st_size)


def digests(adapter: Adapter) -> tuple[FileDigest, ...]:
    """Return the identity of each file that the adapter was read from; none for one that is only in memory."""
    return tuple(file_digest(path) for path in _read_files(adapter))


def _read_files(adapter: Adapter) -> list[Path]:
    folder = adapter.origin.folder
    return [] if folder is None else [folder / name for name in adapter.origin.files]
