"""What goes wrong while publishing, in our words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hub_merge.errors import HubMergeError, PublishError
from hub_merge.hub.failures import redact, server_words
from hub_merge.publish.job import Job, no_right

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

__all__ = ["told"]


@contextmanager
def told(job: Job, left: str) -> Iterator[None]:
    """Turn what goes wrong inside into a ``PublishError`` that also says what was ``left`` behind."""
    from httpx2 import HTTPError

    try:
        yield
    except PublishError:
        raise
    except (HubMergeError, HTTPError, OSError, RuntimeError, ValueError, KeyError) as error:
        reason = error if isinstance(error, HubMergeError) else _reason(error, job)
        raise PublishError(f"{reason.problem} {left}".rstrip(), remedy=reason.remedy) from error


def _reason(error: Exception, job: Job) -> PublishError:
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


def _refusal(error: HfHubHTTPError, job: Job) -> PublishError:
    status, words = error.response.status_code, server_words(error)
    reasons = {
        401: (
            f"The Hub does not accept the token for writing to {job.repo_id}: {words}",
            "Log in again with `hf auth login`, or correct HF_TOKEN.",
        ),
        402: (f"The Hub asks to be paid for {job.repo_id}: {words}", f"See {job.hub.endpoint}/settings/billing ."),
        403: (f"{job.user} may not write to {job.repo_id}: {words}", no_right(job).remedy),
        409: (f"{job.repo_id} came into being meanwhile: {words}", "Publish again, after a look at it."),
        412: (f"{job.repo_id} changed meanwhile.", "Publish again on top of what is there now."),
    }
    problem, remedy = reasons.get(
        status, (f"The Hub refused to write to {job.repo_id} (status {status}): {words}", "Try again later.")
    )
    return PublishError(problem, remedy=remedy)
