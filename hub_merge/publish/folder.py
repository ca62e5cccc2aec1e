"""A folder becomes one commit of a Hub repository: looked at first, written last, never half, never twice."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from hub_merge.errors import AdapterNotFound, PublishError
from hub_merge.hub import Hub, PinnedRepo, Reference, RemoteFile, RepoType
from hub_merge.hub.failures import redact
from hub_merge.hub.references import is_model_id, is_ref_name
from hub_merge.layout import CARD_FILE, RECORD_FILE
from hub_merge.publish.commit import write
from hub_merge.publish.job import Action, Job, Published, PublishedFile, Target, is_same, no_right
from hub_merge.publish.shelf import Shelf, check_collection, check_tag, put_on_shelf
from hub_merge.workspace import workspace

__all__ = ["publish_folder"]

MAIN = "main"


def publish_folder(
    folder: Path,
    repo_id: str,
    *,
    hub: Hub,
    private: bool | None,
    create_pr: bool = False,
    branch: str | None = None,
    tag: str | None = None,
    collection: str | None = None,
    commit_message: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    files: Sequence[str],
    texts: Callable[[str, str | None], Mapping[str, str]] | None = None,
    repo_type: RepoType = "model",
    mark: str = RECORD_FILE,
    replaced: str | None = None,
    sources: Collection[str] = (),
) -> Published:
    """Publish files of a folder as one commit, on a branch or as a pull request, and list it where that is asked for.

    What the repository holds already is left alone: unchanged files are not sent, other files are kept, and without
    any change there is no commit. A repository is created only after everything else is known to be in order; tag and
    collection come last.

    Args:
        folder: Folder that holds the files.
        repo_id: ``owner/name``, or ``name`` in the user's own namespace.
        hub: Connection with a token that may write.
        private: Visibility of a new repository; ``None`` leaves it to the Hub. ``True`` refuses a public repository.
        create_pr: Open a pull request instead of committing.
        branch: Branch to commit to, created from the default branch if there is none of that name.
        tag: Tag to give the commit.
        collection: Slug of a collection that shall list the repository, or title of one of the owner's, which is
            created if there is none.
        commit_message: Title of the commit.
        dry_run: Look and compare only.
        force: Add to a repository that was not made by this package.
        files: Names of the files, relative to ``folder``; nothing else is published.
        texts: Returns texts to publish in place of the folder's files or beside them, by name, given the repository's
            full id and the README.md that it has.
        repo_type: Kind of the repository.
        mark: File by which a repository is known to be made by this package.
        replaced: Start of the paths that ``files`` are all of: others in the repository are removed.
        sources: Repositories that the files were made from, which only a pull request may change.

    Raises:
        PublishError: There is no right to write, the repository is not fit or changed meanwhile, or the Hub refused.
        HubUnavailable: The Hub did not answer.
    """
    if not is_model_id(repo_id):
        raise PublishError(f"{redact(repo_id)!r} cannot be the name of a repository.", remedy="Give owner/name.")
    paths = _local_files(folder, files)
    user, owners = _writer(hub, repo_id)
    full_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
    shelf = Shelf(tag, collection)
    _check_asked(create_pr, branch, shelf)
    job = Job(hub, full_id, user, paths, create_pr, commit_message or "Publish with hub-merge", branch, repo_type)
    target = _look(job)
    if target.head is not None:
        job = replace(job, repo_id=target.head.repo_id)
    _check_no_source(job, {full_id.lower(), job.repo_id.lower()}, sources)
    if target.head is None:
        _check_new(job, owners)
    else:
        _check_existing(job, target.head, private=private, force=force, mark=mark)
    check_collection(job, shelf, owners)
    with workspace() as place:
        if texts is not None:
            written = texts(job.repo_id, _readme(job, target.head))
            job = replace(
                job, paths={**paths, **{name: _written(place / name, text) for name, text in written.items()}}
            )
        published = _publish(job, target, shelf, replaced, private=private, dry_run=dry_run)
    published = replace(published, branch=branch, tag=tag, collection=collection)
    return published if dry_run else put_on_shelf(job, shelf, published)


def _check_asked(create_pr: bool, branch: str | None, shelf: Shelf) -> None:
    """Raise ``PublishError`` for what cannot go together, or is no name of a branch or tag."""
    if create_pr and (branch or shelf.tag or shelf.collection):
        raise PublishError(
            "A pull request goes to the default branch, and nothing is in the repository before it is merged.",
            remedy="Leave out --create-pr, or leave out --branch, --tag and --collection.",
        )
    for kind, name in (("branch", branch), ("tag", shelf.tag)):
        if name is not None and not is_ref_name(name):
            raise PublishError(f"{name!r} cannot be the name of a {kind}.", remedy="Give a name such as v1.0.")


def _written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _readme(job: Job, head: PinnedRepo | None) -> str | None:
    """Return the card of a repository, ``None`` if it has none; of a dataset only that it has one, as empty text."""
    if head is None or job.repo_type == "model":
        return job.hub.readme(head) if head else None
    return "" if CARD_FILE in head.files else None


def _publish(
    job: Job, target: Target, shelf: Shelf, replaced: str | None, *, private: bool | None, dry_run: bool
) -> Published:
    """Commit what differs, if anything does and it is not only to be shown."""
    head = target.head
    compared = _compare(job.paths, head.files if head else {})
    changed = tuple(file.name for file in compared if file.action != "unchanged")
    removed = _removed(job.paths, head.files if head else {}, replaced)
    compared += tuple(PublishedFile(name, 0, "remove") for name in removed)
    if head:
        check_tag(job, shelf, None if changed else head.commit)
    if dry_run or not (changed or removed or target.is_new_branch):
        commit = head.commit if head else None
        return Published(job.repo_id, job.url, commit, None, head is None, bool(changed or removed), compared)
    commit, pr_url = write(job, target, changed, private, removed)
    return Published(job.repo_id, job.url, commit, pr_url, head is None, bool(changed or removed), compared)


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


def _look(job: Job) -> Target:
    """Return what the commit goes on top of: the branch asked for, else the default branch."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Target(job.describe(job.place), is_new_branch=False)
    except AdapterNotFound as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            return Target(None, is_new_branch=job.branch not in (None, MAIN))
        if job.branch and isinstance(error.__cause__, RevisionNotFoundError):
            return Target(job.describe(Reference(job.repo_id)), is_new_branch=True)
        raise PublishError(error.problem, remedy=error.remedy) from error


def _check_new(job: Job, owners: frozenset[str]) -> None:
    if job.repo_id.partition("/")[0] not in owners:
        raise no_right(job)
    if job.create_pr:
        raise PublishError(
            f"There is no repository {job.repo_id} to open a pull request in.",
            remedy="Publish without a pull request, which creates it.",
        )


def _check_no_source(job: Job, names: Collection[str], sources: Collection[str]) -> None:
    if not job.create_pr and not {source.lower() for source in sources}.isdisjoint(names):
        raise PublishError(
            f"{job.repo_id} is one of the repositories that this was made from; publishing there would replace it.",
            remedy="Choose another repository, or open a pull request with --create-pr.",
        )


def _check_existing(job: Job, target: PinnedRepo, *, private: bool | None, force: bool, mark: str) -> None:
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
        job.hub.ask(lambda: job.hub.api.auth_check(job.repo_id, repo_type=job.repo_type, write=True), job.repo_id)
    except AdapterNotFound as error:
        raise no_right(job) from error
    if not force and mark not in target.files and set(target.files) - {".gitattributes"}:
        raise PublishError(
            f"{job.repo_id} holds {len(target.files)} files and was not made by hub-merge.",
            remedy="Choose a new name, open a pull request with --create-pr, or pass --force, which replaces its files "
            "of the same names.",
        )


def _compare(paths: Mapping[str, Path], remote: Mapping[str, RemoteFile]) -> tuple[PublishedFile, ...]:
    return tuple(
        PublishedFile(name, path.stat().st_size, _action(path, remote.get(name))) for name, path in paths.items()
    )


def _removed(paths: Mapping[str, Path], remote: Mapping[str, RemoteFile], replaced: str | None) -> tuple[str, ...]:
    if replaced is None:
        return ()
    return tuple(name for name in remote if name.startswith(replaced) and name not in paths)


def _action(path: Path, remote: RemoteFile | None) -> Action:
    if remote is None:
        return "add"
    return "unchanged" if is_same(path, remote) else "update"
