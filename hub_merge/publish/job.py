"""What is published where, and what became of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from hub_merge.errors import PublishError
from hub_merge.hub import Hub, PinnedRepo, Reference, RemoteFile, RepoType

__all__ = ["Action", "Job", "Published", "PublishedFile", "Target", "is_same", "no_right"]

Action: TypeAlias = Literal["add", "update", "unchanged", "remove"]


class PublishedFile(NamedTuple):
    """One file and what publishing does, or did, with it."""

    name: str
    size: int
    action: Action


@dataclass(frozen=True, slots=True)
class Published:
    """What was published, or would be.

    Attributes:
        repo_id: Repository on the Hub.
        url: Its page.
        commit: Commit that holds the files; with a dry run the head that was seen, if any.
        pr_url: Page of the pull request, if one was asked for.
        created: Whether the repository is new.
        changed: Whether there was anything to commit.
        files: Each file and what was done with it.
        branch: Branch that was asked for.
        tag: Tag of the commit, if one was asked for.
        collection: Slug of the collection that lists the repository, or its title while it is to be created.
    """

    repo_id: str
    url: str
    commit: str | None
    pr_url: str | None
    created: bool
    changed: bool
    files: tuple[PublishedFile, ...]
    branch: str | None = None
    tag: str | None = None
    collection: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One publication: what goes where, and who does it."""

    hub: Hub
    repo_id: str
    user: str
    paths: Mapping[str, Path]
    create_pr: bool
    message: str
    branch: str | None = None
    repo_type: RepoType = "model"

    @property
    def url(self) -> str:
        """Address of the repository for a browser."""
        kind = "" if self.repo_type == "model" else f"{self.repo_type}s/"
        return f"{self.hub.endpoint}/{kind}{self.repo_id}"

    def describe(self, reference: Reference) -> PinnedRepo:
        """Return what the Hub says now of the repository of ``reference``, which is of the job's type."""
        return self.hub.describe(reference, repo_type=self.repo_type)

    @property
    def place(self) -> Reference:
        """Where the commit goes, if not into a pull request."""
        return Reference(self.repo_id, self.branch)


@dataclass(frozen=True, slots=True)
class Target:
    """What is there before.

    Attributes:
        head: What the commit goes on top of, ``None`` if there is no repository.
        is_new_branch: Whether the branch has to be created from ``head``.
    """

    head: PinnedRepo | None
    is_new_branch: bool


def no_right(job: Job) -> PublishError:
    """Return the error for who may not write."""
    owner, _, name = job.repo_id.partition("/")
    return PublishError(
        f"{job.user} has no right to write to {job.repo_id}.",
        remedy=f"Publish to {job.user}/{name}, add --create-pr if it exists, or ask {owner} for the right to write.",
    )


def is_same(path: Path, remote: RemoteFile) -> bool:
    """Tell whether the file at ``path`` is what the repository holds."""
    size = path.stat().st_size
    if size != remote.size:
        return False
    with path.open("rb") as file:
        if remote.sha256:
            return hashlib.file_digest(file, "sha256").hexdigest() == remote.sha256
        blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        blob.update(file.read())
        return blob.hexdigest() == remote.git_oid
