"""A repository at one commit: what it says about itself, and which files it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from hub_merge.bases import same_name
from hub_merge.frontmatter import LicenseDetails, license_in_card, read_front_matter
from hub_merge.hub.references import Reference
from hub_merge.layout import CARD_FILE

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo
    from huggingface_hub.hf_api import RepoSibling

__all__ = [
    "PinnedRepo",
    "RemoteFile",
    "RepoType",
    "cached_repo",
    "pinned_repo",
    "stated_base_models",
    "stated_license",
]

RepoType: TypeAlias = Literal["model", "dataset"]

BASE_TAG = re.compile(r"base_model:(?:(?:adapter|finetune|quantized|merge):)?(?P<id>[^:]+)")
LICENSE_KEYS = ("license", "license_name", "license_link")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        size: Bytes.
        sha256: Of the content, for a file in large-file storage.
        git_oid: Git's hash of the blob, which is of the content for all other files.
    """

    size: int
    sha256: str | None = None
    git_oid: str | None = None


@dataclass(frozen=True, slots=True)
class PinnedRepo:
    """A repository at one commit. What is not known, as when it comes from the cache, is ``None`` or empty.

    Attributes:
        repo_id: Canonical id, after renames.
        revision: What was asked for.
        commit: The commit it resolved to, 40 hex digits.
        subfolder: Folder of the adapter inside the repository.
        file: Name of the one file in it that was asked for, empty if the folder is to say.
        gated: Whether access has to be requested.
        private: Whether it is private.
        disabled: Whether the Hub has disabled it.
        license: Licence identifier it states.
        license_details: Where it states it, and what it says beside.
        downloads: Downloads of the last month.
        likes: Number of likes.
        last_modified: ISO 8601 time of the last change.
        author: Owner.
        tags: Tags, also those the Hub derives.
        base_models: Base models it states.
        files: Files of the whole repository by path.
        from_cache: Whether it was read from the cache, which may hold a part of the repository only.
    """

    repo_id: str
    revision: str | None
    commit: str
    subfolder: str = ""
    gated: bool = False
    private: bool = False
    disabled: bool = False
    license: str | None = None
    downloads: int | None = None
    likes: int | None = None
    last_modified: str | None = None
    author: str | None = None
    tags: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    files: Mapping[str, RemoteFile] = field(default_factory=lambda: MappingProxyType({}))
    from_cache: bool = False
    file: str = ""
    license_details: LicenseDetails = field(default_factory=LicenseDetails)

    @property
    def reference(self) -> Reference:
        """Reference that finds exactly this again."""
        return Reference(self.repo_id, self.commit, self.subfolder, self.file)

    @property
    def asked(self) -> Reference:
        """Reference as it was asked for."""
        return Reference(self.repo_id, self.revision, self.subfolder, self.file)

    @property
    def label(self) -> str:
        """The same for messages."""
        return str(self.asked)

    def path(self, name: str) -> str:
        """Return the path in the repository of the adapter's file ``name``."""
        return f"{self.subfolder}/{name}" if self.subfolder else name

    def names(self) -> frozenset[str]:
        """Return the names of the files that lie directly in the adapter's folder."""
        start = len(self.path(""))
        inside = (path[start:] for path in self.files if path.startswith(self.path("")))
        return frozenset(name for name in inside if "/" not in name)


def pinned_repo(info: ModelInfo | DatasetInfo, reference: Reference) -> PinnedRepo:
    """Return the repository that the Hub describes, pinned to the commit it describes."""
    if info.sha is None or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
        raise ValueError(f"no commit, but {info.sha!r}")
    license, details = stated_license(info)
    return PinnedRepo(
        repo_id=info.id,
        revision=reference.revision,
        commit=info.sha,
        subfolder=reference.subfolder,
        gated=bool(info.gated),
        private=bool(info.private),
        disabled=bool(info.disabled),
        license=license,
        license_details=details,
        downloads=info.downloads,
        likes=info.likes,
        last_modified=info.last_modified.isoformat() if info.last_modified else None,
        author=info.author or info.id.split("/", maxsplit=1)[0],
        tags=tuple(info.tags or ()),
        base_models=stated_base_models(info),
        files=MappingProxyType({sibling.rfilename: _remote_file(sibling) for sibling in info.siblings or ()}),
        file=reference.file,
    )


def _remote_file(sibling: RepoSibling) -> RemoteFile:
    if sibling.lfs:
        return RemoteFile(sibling.lfs.size, sibling.lfs.sha256, sibling.blob_id)
    if sibling.size is None:
        raise ValueError(f"no size of {sibling.rfilename}")
    return RemoteFile(sibling.size, None, sibling.blob_id)


def cached_repo(reference: Reference, commit: str, snapshot: Path) -> PinnedRepo:
    """Return the part of a repository that the cache holds at ``commit``."""
    files = {}
    for path in sorted(snapshot.rglob("*")):
        if path.is_file():
            blob = path.readlink().name if path.is_symlink() else ""
            files[path.relative_to(snapshot).as_posix()] = RemoteFile(
                path.stat().st_size, blob if SHA256.fullmatch(blob) else None
            )
    card = read_front_matter(snapshot / CARD_FILE)
    license, details = license_in_card(card)
    return PinnedRepo(
        reference.repo_id,
        reference.revision,
        commit,
        reference.subfolder,
        license=license,
        license_details=details,
        author=reference.repo_id.split("/", maxsplit=1)[0],
        base_models=tuple(_texts(card.get("base_model"))),
        files=MappingProxyType(files),
        from_cache=True,
        file=reference.file,
    )


def stated_license(info: ModelInfo | DatasetInfo) -> tuple[str | None, LicenseDetails]:
    """Return the licence that a repository states in its card, else in its tags, and the details."""
    card = {key: info.card_data.get(key) for key in LICENSE_KEYS} if info.card_data else {}
    tagged = (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
    return license_in_card(card, tagged)


def stated_base_models(info: ModelInfo | DatasetInfo) -> tuple[str, ...]:
    """Return the ids of the base models, from the Hub's own field, the card or the tags, whichever has some."""
    field_ids = _base_ids(getattr(info, "base_models", None))
    card_ids = _texts(info.card_data.get("base_model") if info.card_data else None)
    tag_ids = [match["id"] for match in map(BASE_TAG.fullmatch, info.tags or ()) if match]
    return tuple(dict.fromkeys(field_ids or card_ids or tag_ids))


def copied_from(info: ModelInfo) -> str | None:
    """Return the model that a repository says it is a copy of, quantised or not; ``None`` for anything else."""
    stated = stated_base_models(info)
    if len(stated) != 1:
        return None
    listed: Any = info.base_models if isinstance(info.base_models, Mapping) else {}
    card = info.card_data.get("base_model_relation") if info.card_data else None
    relations = {listed.get("relation"), card, *(tag.split(":")[1] for tag in info.tags or () if tag.count(":") > 1)}
    return stated[0] if "quantized" in relations or same_name(info.id, stated[0]) else None


def _base_ids(stated: Any) -> list[str]:
    """Flatten ``["id"]``, ``[{"id": …}]`` and ``{"relation": …, "models": [{"id": …}]}``."""
    if isinstance(stated, Mapping):
        stated = stated.get("models", stated.get("id"))
    if isinstance(stated, Iterable) and not isinstance(stated, str):
        return [text for item in stated for text in _texts(item.get("id") if isinstance(item, Mapping) else item)]
    return _texts(stated)


def _texts(stated: Any) -> list[str]:
    entries = stated if isinstance(stated, list) else [stated]
    return [entry for entry in entries if isinstance(entry, str) and entry]
