"""One commit, or one pull request: judged before, made once, found again when its answer is lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from hub_merge.errors import AdapterNotFound, HubUnavailable, PublishError
from hub_merge.hub import PinnedRepo, Reference
from hub_merge.hub.failures import server_words
from hub_merge.layout import CARD_FILE
from hub_merge.publish.failures import told
from hub_merge.publish.job import Job, Target, is_same

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete

__all__ = ["write"]

NOTHING = "So nothing was published."
PAUSES = (0.0, 0.5, 1.5)
"""Seconds between looks for a commit whose answer was lost."""


def write(
    job: Job, target: Target, changed: Sequence[str], private: bool | None, removed: Sequence[str] = ()
) -> tuple[str, str | None]:
    """Create repository and branch where needed and commit; return the commit and the address of the pull request."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    with told(job, NOTHING):
        if CARD_FILE in changed:
            _check_card(job)
        if target.head is None:
            job.hub.send(lambda: job.hub.api.create_repo(job.repo_id, private=private, repo_type=job.repo_type))
    created = f"{NOTHING} The repository {job.url} was created and is empty; it was not deleted."
    with told(job, NOTHING if target.head else created):
        head = target.head.commit if target.head else job.describe(Reference(job.repo_id)).commit
        if job.branch and target.is_new_branch:
            branch = job.branch
            job.hub.send(
                lambda: job.hub.api.create_branch(job.repo_id, branch=branch, revision=head, repo_type=job.repo_type)
            )
        if not (changed or removed):
            return head, None
        additions = [CommitOperationAdd(name, job.paths[name]) for name in changed]
        job.hub.send(
            lambda: job.hub.api.preupload_lfs_files(
                job.repo_id,
                additions,
                revision=job.branch,
                create_pr=job.create_pr,
                repo_type=job.repo_type,
            )
        )
        return _commit(job, additions, [CommitOperationDelete(name) for name in removed], head)


def _check_card(job: Job) -> None:
    """Let the Hub judge the card before anything is created.

    Raises:
        PublishError: The Hub does not accept it.
    """
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.errors import BadRequestError

    asked = {"content": job.paths[CARD_FILE].read_text(encoding="utf-8"), "repoType": job.repo_type}
    address, headers = f"{job.hub.endpoint}/api/validate-yaml", job.hub.headers()
    try:
        hf_raise_for_status(job.hub.send(lambda: get_session().post(address, json=asked, headers=headers)))
    except BadRequestError as error:
        raise PublishError(
            f"The Hub does not accept the card of {job.repo_id}: {server_words(error)}",
            remedy="Mend the front matter of README.md, then publish again.",
        ) from error


def _commit(
    job: Job, additions: list[CommitOperationAdd], deletions: list[CommitOperationDelete], head: str
) -> tuple[str, str | None]:
    changed = [addition.path_in_repo for addition in additions]
    try:
        made: CommitInfo = job.hub.send(
            lambda: job.hub.api.create_commit(
                job.repo_id,
                [*additions, *deletions],
                repo_type=job.repo_type,
                commit_message=job.message,
                revision=job.branch,
                create_pr=job.create_pr,
                parent_commit=head,
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


def _find_commit(job: Job, changed: Sequence[str], head: str) -> tuple[str, str | None] | None:
    """Return the commit whose answer was lost, ``None`` if it was not made."""
    try:
        for pause in PAUSES:
            time.sleep(pause)
            for reference, pr_url in _places(job):
                seen = job.describe(reference)
                if seen.commit != head and not _missing(job, changed, seen):
                    return seen.commit, pr_url
    except HubUnavailable as error:
        raise PublishError(
            f"The connection broke while {job.repo_id} was written, and the Hub does not tell whether it was.",
            remedy=f"See {job.url}/commits/{job.branch or 'main'} , or publish again: what has arrived is not "
            "committed twice.",
        ) from error
    return None


def _places(job: Job) -> list[tuple[Reference, str | None]]:
    """Return where the commit may be: on the branch, or in one of the user's latest pull requests."""
    if not job.create_pr:
        return [(job.place, None)]
    discussions = job.hub.ask(
        lambda: list(
            islice(
                job.hub.api.get_repo_discussions(
                    job.repo_id,
                    repo_type=job.repo_type,
                    author=job.user,
                    discussion_type="pull_request",
                    discussion_status="open",
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


def _missing(job: Job, changed: Sequence[str], seen: PinnedRepo) -> list[str]:
    return [name for name in changed if name not in seen.files or not is_same(job.paths[name], seen.files[name])]


def _check_arrival(job: Job, changed: Sequence[str], revision: str) -> None:
    """Compare what the Hub now holds with what was sent; the commit stands even if the Hub cannot be asked."""
    missing: list[str] = []
    with suppress(AdapterNotFound, HubUnavailable):
        missing = _missing(job, changed, job.describe(Reference(job.repo_id, revision)))
    if missing:
        raise PublishError(
            f"{job.repo_id} was written, but without {', '.join(missing)}.",
            remedy="See whether its .gitignore names them.",
        )
