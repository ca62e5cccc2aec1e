"""A folder becomes one commit of a Hub repository: looked at first, written last, never half, never twice."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from hub_merge.errors import AdapterNotFound, HubMergeError, HubUnavailable, PublishError
from hub_merge.hub import Hub, PinnedRepo, Reference, RemoteFile
from hub_merge.hub.failures import redact, server_words
from hub_merge.hub.references import is_model_id
from hub_merge.layout import CARD_FILE, RECORD_FILE

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError

__all__ = ["Published", "PublishedFile", "publish_folder"]

Action: TypeAlias = Literal["add", "update", "unchanged"]

PAUSES = (0.0, 0.5, 1.5)
"""Seconds between looks for a commit whose answer was lost."""


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
    """

    repo_id: str
    url: str
    commit: str | None
    pr_url: str | None
    created: bool
    changed: bool
    files: tuple[PublishedFile, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    """One publication: what goes where, and who does it."""

    hub: Hub
    repo_id: str
    user: str
    paths: Mapping[str, Path]
    create_pr: bool
    message: str

    @property
    def url(self) -> str:
        return f"{self.hub.endpoint}/{self.repo_id}"


def publish_folder(
    folder: Path,
    repo_id: str,
    *,
    hub: Hub,
    private: bool | None,
    create_pr: bool = False,
    commit_message: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    files: Sequence[str],
    texts: Callable[[str, str | None], Mapping[str, str]] | None = None,
) -> Published:
    """Publish files of a folder as one commit, or as one pull request.

    What the repository holds already is left alone: unchanged files are not sent, other files are kept, and without
    any change there is no commit. A repository is created only after everything else is known to be in order.

    Args:
        folder: Folder that holds the files.
        repo_id: ``owner/name``, or ``name`` in the user's own namespace.
        hub: Connection with a token that may write.
        private: Visibility of a new repository; ``None`` leaves it to the Hub. ``True`` refuses a public repository.
        create_pr: Open a pull request instead of committing to the default branch.
        commit_message: Title of the commit.
        dry_run: Look and compare only.
        force: Add to a repository that was not made by this package.
        files: Names of the files, relative to ``folder``; nothing else is published.
        texts: Returns texts to publish in place of the folder's files or beside them, by name, given the repository's
            full id and the README.md that it has.

    Raises:
        PublishError: There is no right to write, the repository is not fit or changed meanwhile, or the Hub refused.
        HubUnavailable: The Hub did not answer.
    """
    if not is_model_id(repo_id):
        raise PublishError(f"{redact(repo_id)!r} cannot be the name of a repository.", remedy="Give owner/name.")
    paths = _local_files(folder, files)
    user, owners = _writer(hub, repo_id)
    full_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    job = _Job(hub, full_id, user, paths, create_pr, commit_message or "Publish with hub-merge")
    target = _look(job)
    if target is None:
        _check_new(job, owners)
    else:
        job = replace(job, repo_id=target.repo_id)
        _check_existing(job, target, private=private, force=force)
    with tempfile.TemporaryDirectory() as place:
        if texts is not None:
            written = texts(job.repo_id, hub.readme(target) if target else None)
            job = replace(
                job, paths={**paths, **{name: _written(Path(place) / name, text) for name, text in written.items()}}
            )
        return _publish(job, target, private=private, dry_run=dry_run)


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _publish(job: _Job, target: PinnedRepo | None, *, private: bool | None, dry_run: bool) -> Published:
    """Commit what differs, if anything does and it is not only to be shown."""
    compared = _compare(job.paths, target.files if target else {})
    changed = tuple(file.name for file in compared if file.action != "unchanged")
    created = target is None
    if dry_run or not changed:
        commit = target.commit if target else None
        return Published(job.repo_id, job.url, commit, None, created, bool(changed), compared)
    commit, pr_url = _write(job, target, changed, private)
    return Published(job.repo_id, job.url, commit, pr_url, created, True, compared)


def _local_files(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return the files by name.

    Raises:
        PublishError: A name leads out of the folder, or to no regular file.
    """
    for name in names:
        pure = PurePosixPath(name)
        if pure.is_absolute() or not {"..", ".git"}.isdisjoint(pure.parts) or pure.as_posix() != name:
            raise PublishError(f"{name!r} is no name of a file to publish.", remedy="Give names inside the folder.")
        if (folder / name).is_symlink() or not (folder / name).is_file():
            raise PublishError(
                f"{folder / name} is not there, or is no regular file.", remedy="Merge again to write the folder anew."
            )
    if not names:
        raise PublishError("There are no files to publish.", remedy="Merge first, then publish the folder it wrote.")
    return {name: folder / name for name in names}


def _writer(hub: Hub, repo_id: str) -> tuple[str, frozenset[str]]:
    """Return the user's name and the namespaces that the user belongs to.

    Raises:
        PublishError: Nobody is logged in, or the token may only read.
    """
    log_in = "Log in with `hf auth login` and a token that may write, or set HF_TOKEN."
    if hub.api.token is False:
        raise PublishError(f"Publishing to {repo_id} needs a login.", remedy=log_in)
    try:
        me = hub.ask(hub.api.whoami, "", f"publishing to {repo_id}")
    except AdapterNotFound as error:
        raise PublishError(error.problem, remedy=log_in) from error
    user = str(me["name"])
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise PublishError(
            f"The token of {user} may only read, and {repo_id} is to be written.",
            remedy=f"Create a token with the role 'write' at {hub.endpoint}/settings/tokens , then `hf auth login`.",
        )
    return user, frozenset([user, *(str(organisation["name"]) for organisation in me.get("orgs", []))])


def _look(job: _Job) -> PinnedRepo | None:
    """Return the repository as it is now, ``None`` if there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return job.hub.describe(Reference(job.repo_id))
    except AdapterNotFound as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            return None
        raise PublishError(error.problem, remedy=error.remedy) from error


def _check_new(job: _Job, owners: frozenset[str]) -> None:
    if job.repo_id.partition("/")[0] not in owners:
        raise _no_right(job)
    if job.create_pr:
        raise PublishError(
            f"There is no repository {job.repo_id} to open a pull request in.",
            remedy="Publish without a pull request, which creates it.",
        )


def _check_existing(job: _Job, target: PinnedRepo, *, private: bool | None, force: bool) -> None:
    if target.disabled:
        raise PublishError(f"{job.repo_id} was disabled by the Hub.", remedy="Publish under another name.")
    if private and not target.private:
        raise PublishError(
            f"{job.repo_id} is public already, and the composite is to be private.",
            remedy=f"Choose a new name, make it private at {job.url}/settings , or publish with --no-private.",
        )
    if job.create_pr:
        return
    try:
        job.hub.ask(lambda: job.hub.api.auth_check(job.repo_id, write=True), job.repo_id)
    except AdapterNotFound as error:
        raise _no_right(job) from error
    if not force and RECORD_FILE not in target.files and set(target.files) - {".gitattributes"}:
        raise PublishError(
            f"{job.repo_id} holds {len(target.files)} files and was not made by hub-merge.",
            remedy="Choose a new name, open a pull request with --create-pr, or pass --force, which replaces its files "
            "of the same names.",
        )


def _no_right(job: _Job) -> PublishError:
    owner, _, name = job.repo_id.partition("/")
    return PublishError(
        f"{job.user} has no right to write to {job.repo_id}.",
        remedy=f"Publish to {job.user}/{name}, add --create-pr if it exists, or ask {owner} for the right to write.",
    )


def _compare(paths: Mapping[str, Path], remote: Mapping[str, RemoteFile]) -> tuple[PublishedFile, ...]:
    return tuple(
        PublishedFile(name, path.stat().st_size, _action(path, remote.get(name))) for name, path in paths.items()
    )


def _action(path: Path, remote: RemoteFile | None) -> Action:
    if remote is None:
        return "add"
    return "unchanged" if _same(path, remote) else "update"


def _same(path: Path, remote: RemoteFile) -> bool:
    size = path.stat().st_size
    if size != remote.size:
        return False
    with path.open("rb") as file:
        if remote.sha256:
            return hashlib.file_digest(file, "sha256").hexdigest() == remote.sha256
        blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        blob.update(file.read())
        return blob.hexdigest() == remote.git_oid


def _write(
    job: _Job, target: PinnedRepo | None, changed: Sequence[str], private: bool | None
) -> tuple[str, str | None]:
    """Create the repository where needed and commit; return the commit and the address of the pull request."""
    from huggingface_hub import CommitOperationAdd

    with _told(job, created=False):
        if CARD_FILE in changed:
            _check_card(job)
        if target is None:
            job.hub.send(lambda: job.hub.api.create_repo(job.repo_id, private=private))
    with _told(job, created=target is None):
        head = target.commit if target else job.hub.describe(Reference(job.repo_id)).commit
        additions = [CommitOperationAdd(name, job.paths[name]) for name in changed]
        job.hub.send(lambda: job.hub.api.preupload_lfs_files(job.repo_id, additions, create_pr=job.create_pr))
        return _commit(job, additions, head)


def _check_card(job: _Job) -> None:
    """Let the Hub judge the card before anything is created.

    Raises:
        PublishError: The Hub does not accept it.
    """
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.errors import BadRequestError

    asked = {"content": job.paths[CARD_FILE].read_text(encoding="utf-8"), "repoType": "model"}
    address, headers = f"{job.hub.endpoint}/api/validate-yaml", job.hub.headers()
    try:
        hf_raise_for_status(job.hub.send(lambda: get_session().post(address, json=asked, headers=headers)))
    except BadRequestError as error:
        raise PublishError(
            f"The Hub does not accept the card of {job.repo_id}: {server_words(error)}",
            remedy="Mend the front matter of README.md, then publish again.",
        ) from error


def _commit(job: _Job, additions: list[CommitOperationAdd], head: str) -> tuple[str, str | None]:
    changed = [addition.path_in_repo for addition in additions]
    try:
        made: CommitInfo = job.hub.send(
            lambda: job.hub.api.create_commit(
                job.repo_id, additions, commit_message=job.message, create_pr=job.create_pr, parent_commit=head
            )
        )
    except Exception as error:
        found = None if _is_refused(error) else _find_commit(job, changed, head)
        if found is None:
            raise
        return found
    _check_arrival(job, changed, made.pr_revision or made.oid)
    return made.oid, made.pr_url


def _is_refused(error: Exception) -> bool:
    """Tell whether the Hub said no; anything else may have happened after the commit was made."""
    from huggingface_hub.errors import HfHubHTTPError

    return isinstance(error, HfHubHTTPError) and error.response.status_code < 500 and error.response.status_code != 408


def _find_commit(job: _Job, changed: Sequence[str], head: str) -> tuple[str, str | None] | None:
    """Return the commit whose answer was lost, ``None`` if it was not made."""
    try:
        for pause in PAUSES:
            time.sleep(pause)
            for reference, pr_url in _places(job):
                seen = job.hub.describe(reference)
                if seen.commit != head and not _missing(job, changed, seen):
                    return seen.commit, pr_url
    except HubUnavailable as error:
        raise PublishError(
            f"The connection broke while {job.repo_id} was written, and the Hub does not tell whether it was.",
            remedy=f"See {job.url}/commits/main , or publish again: what has arrived is not committed twice.",
        ) from error
    return None


def _places(job: _Job) -> list[tuple[Reference, str | None]]:
    """Return where the commit may be: on the default branch, or in one of the user's latest pull requests."""
    if not job.create_pr:
        return [(Reference(job.repo_id), None)]
    discussions = job.hub.ask(
        lambda: list(
            islice(
                job.hub.api.get_repo_discussions(
                    job.repo_id, author=job.user, discussion_type="pull_request", discussion_status="open"
                ),
                5,
            )
        ),
        job.repo_id,
    )
    return [
        (Reference(job.repo_id, discussion.git_reference), discussion.url)
        for discussion in discussions
        if discussion.title == job.message
    ]


def _missing(job: _Job, changed: Sequence[str], seen: PinnedRepo) -> list[str]:
    return [name for name in changed if name not in seen.files or not _same(job.paths[name], seen.files[name])]


def _check_arrival(job: _Job, changed: Sequence[str], revision: str) -> None:
    """Compare what the Hub now holds with what was sent; the commit stands even if the Hub cannot be asked."""
    missing: list[str] = []
    with suppress(AdapterNotFound, HubUnavailable):
        missing = _missing(job, changed, job.hub.describe(Reference(job.repo_id, revision)))
    if missing:
        raise PublishError(
            f"{job.repo_id} was written, but without {', '.join(missing)}.",
            remedy="See whether its .gitignore names them.",
        )


@contextmanager
def _told(job: _Job, *, created: bool) -> Iterator[None]:
    """Turn what goes wrong while writing into a ``PublishError`` that says what was left behind."""
    from httpx2 import HTTPError

    try:
        yield
    except PublishError:
        raise
    except (HubMergeError, HTTPError, OSError, RuntimeError, ValueError, KeyError) as error:
        told = error if isinstance(error, HubMergeError) else _reason(error, job)
        left = f" The repository {job.url} was created and is empty; it was not deleted." if created else ""
        raise PublishError(told.problem + left, remedy=told.remedy) from error


def _reason(error: Exception, job: _Job) -> PublishError:
    from huggingface_hub.errors import HfHubHTTPError

    cause = error.__cause__
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, job)
    if isinstance(error, RuntimeError) and isinstance(cause, Exception):
        return _reason(cause, job)
    return PublishError(
        f"{job.repo_id} could not be published: {redact(str(error)) or type(error).__name__}.",
        remedy="Check the connection, then publish again: what has arrived is not committed twice.",
    )


def _refusal(error: HfHubHTTPError, job: _Job) -> PublishError:
    status, words = error.response.status_code, server_words(error)
    told = {
        401: (
            f"The Hub does not accept the token for writing to {job.repo_id}: {words}",
            "Log in again with `hf auth login`, or correct HF_TOKEN.",
        ),
        402: (f"The Hub asks to be paid for {job.repo_id}: {words}", f"See {job.hub.endpoint}/settings/billing ."),
        403: (f"{job.user} may not write to {job.repo_id}: {words}", _no_right(job).remedy),
        409: (f"{job.repo_id} came into being meanwhile: {words}", "Publish again, after a look at it."),
        412: (f"{job.repo_id} changed meanwhile; nothing was published.", "Publish again on top of what is there now."),
    }
    problem, remedy = told.get(
        status, (f"The Hub refused to write to {job.repo_id} (status {status}): {words}", "Try again later.")
    )
    return PublishError(problem, remedy=remedy)
