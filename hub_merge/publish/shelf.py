"""Where a published commit is found again: a tag, and a collection that lists its repository."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from hub_merge.errors import AdapterNotFound, PublishError
from hub_merge.publish.failures import told
from hub_merge.publish.job import Job, Published

__all__ = ["Shelf", "check_collection", "check_tag", "put_on_shelf"]

SLUG = re.compile(r"(?P<owner>[\w.-]+)/[\w.-]+-[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class Shelf:
    """What is asked for beyond the commit.

    Attributes:
        tag: Tag to give it.
        collection: Slug of a collection, or title of one of the owner's.
    """

    tag: str | None
    collection: str | None

    @property
    def slug(self) -> str | None:
        """The collection's slug, if it is named by that."""
        return self.collection if self.collection and SLUG.fullmatch(self.collection) else None


def check_collection(job: Job, shelf: Shelf, owners: frozenset[str]) -> None:
    """Raise ``PublishError`` if a collection is named by its slug and is not there, or not the user's."""
    slug = shelf.slug
    if slug is None:
        return
    if slug.partition("/")[0] not in owners:
        raise PublishError(
            f"{job.user} has no right to add to the collection {slug}.",
            remedy="Give the title of a collection of your own; it is created if there is none.",
        )
    try:
        job.hub.ask(lambda: job.hub.api.get_collection(slug), "", f"the collection {slug}")
    except AdapterNotFound as error:
        raise PublishError(f"There is no collection {slug}.", remedy="Check the slug, or give a title.") from error


def check_tag(job: Job, shelf: Shelf, stays: str | None) -> None:
    """Raise ``PublishError`` if there is such a tag, unless it is at the commit that ``stays`` what is published."""
    taken = _tagged(job, shelf.tag) if shelf.tag else None
    if taken and taken != stays:
        raise PublishError(
            f"{job.repo_id} has a tag {shelf.tag} already, at commit {taken[:12]}.",
            remedy="Choose another name: a tag that others may rely on is not moved.",
        )


def _tagged(job: Job, tag: str) -> str | None:
    """Return the commit that has the tag, ``None`` if there is no such tag."""
    refs = job.hub.ask(lambda: job.hub.api.list_repo_refs(job.repo_id), job.repo_id)
    return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)


def put_on_shelf(job: Job, shelf: Shelf, published: Published) -> Published:
    """Tag the published commit and list its repository; the commit stands if that fails, and the error says so."""
    done = f"{job.repo_id} itself is published, at commit {published.commit}."
    with told(job, done):
        if shelf.tag and _tagged(job, shelf.tag) != published.commit:
            tag = shelf.tag
            job.hub.send(lambda: job.hub.api.create_tag(job.repo_id, tag=tag, revision=published.commit))
        return replace(published, collection=_listed_in(job, shelf)) if shelf.collection else published


def _listed_in(job: Job, shelf: Shelf) -> str:
    """Add the repository to the collection, which may have it already; return the collection's slug."""
    api = job.hub.api
    slug = shelf.slug or _collection_titled(job, shelf.collection or "")
    job.hub.send(lambda: api.add_collection_item(slug, job.repo_id, "model", exists_ok=True))
    return slug


def _collection_titled(job: Job, title: str) -> str:
    """Return the slug of the owner's collection of that title, created as private as the repository if need be."""
    owner = job.repo_id.partition("/")[0]
    private = job.describe(job.place).private
    made = job.hub.send(lambda: job.hub.api.create_collection(title, namespace=owner, private=private, exists_ok=True))
    return made.slug
