"""What went wrong at the Hub, in our words: the one place where errors of huggingface_hub become ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub_merge.errors import AdapterError, AdapterNotFound, HubMergeError, HubUnavailable
from hub_merge.hub.transport import TRANSIENT, GivenUp, wait_asked_for

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

__all__ = ["Asked", "offline", "redact", "server_words", "translated"]

TOKEN = re.compile(r"hf_\w{20,}")
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
TRY_AGAIN = "Try again later; with HF_HUB_OFFLINE=1 only what was downloaded before is used."
CHECK_CONNECTION = "Check the connection, the proxy settings and HF_ENDPOINT."


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of the Hub, for the messages.

    Attributes:
        subject: What it was about, as the user wrote it.
        repo_id: Its repository, empty if there is none.
        endpoint: Address of the Hub.
        token_sent: Whether a token was sent along.
    """

    subject: str
    repo_id: str
    endpoint: str
    token_sent: bool

    @property
    def page(self) -> str:
        """Address of the repository for a browser."""
        return f"{self.endpoint}/{self.repo_id}"


@contextmanager
def translated(asked: Asked) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into errors of this package."""
    try:
        yield
    except HubMergeError:
        raise
    except Exception as error:
        problem = _translate(error, asked)
        if problem is None:
            raise
        raise problem from error


def redact(text: str) -> str:
    """Return ``text`` without anything that looks like a token of the Hub."""
    return TOKEN.sub("hf_***", text)


def server_words(error: HfHubHTTPError) -> str:
    """Return what the Hub itself said, on one line."""
    said = error.server_message or f"HTTP status {error.response.status_code}"
    return redact(" ".join(said.split()))


def offline(subject: str) -> HubUnavailable:
    """Return the error for what is not in the cache while the network must not be used."""
    return HubUnavailable(
        f"{subject} is not in the cache, or not all of it, and the network is switched off.",
        remedy="Unset HF_HUB_OFFLINE (local_files_only=False in Python) once, to download it.",
    )


def _translate(error: BaseException, asked: Asked) -> HubMergeError | None:
    from huggingface_hub import errors as hf

    match error:
        case hf.LocalEntryNotFoundError() if error.__cause__ is not None:
            return _translate(error.__cause__, asked)
        case hf.LocalEntryNotFoundError() | hf.OfflineModeIsEnabled():
            return offline(asked.subject)
        case hf.LocalTokenNotFoundError():
            return AdapterNotFound(f"A token is needed for {asked.subject}, and none is stored.", remedy=LOG_IN)
        case hf.HfHubHTTPError():
            return _refusal(error, asked)
        case OSError() if not isinstance(error, hf.FileMetadataError):
            return _broken_download(error, asked)
    return _unreachable(error, asked)


def _broken_download(error: OSError, asked: Asked) -> HubMergeError:
    if error.errno is None:
        return HubUnavailable(
            f"The download of {asked.subject} is not whole: {_first_line(error)}", remedy="Try again."
        )
    place = f": {error.filename}" if error.filename else ""
    return AdapterError(
        f"{asked.subject} could not be stored: {error.strerror}{place}.",
        remedy="Free space, mend the rights, or set HF_HOME to another folder.",
    )


def _unreachable(error: BaseException, asked: Asked) -> HubUnavailable | None:
    from httpx2 import HTTPError, InvalidURL, TimeoutException

    match error:
        case TimeoutException() | GivenUp():
            return HubUnavailable(f"{asked.endpoint} did not answer in time about {asked.subject}.", remedy=TRY_AGAIN)
        case HTTPError() | InvalidURL():
            return HubUnavailable(
                f"{asked.endpoint} could not be reached about {asked.subject}: {_first_line(error)}.",
                remedy=CHECK_CONNECTION,
            )
        case OSError() | RuntimeError() | ValueError() | KeyError() | TypeError():
            return HubUnavailable(
                f"{asked.endpoint} answered with something unexpected about {asked.subject}: {_first_line(error)}",
                remedy=f"Try again. {CHECK_CONNECTION}",
            )
    return None


def _first_line(error: BaseException) -> str:
    return redact(next(iter(str(error).splitlines()), type(error).__name__))


def _refusal(error: HfHubHTTPError, asked: Asked) -> HubMergeError:
    from huggingface_hub import errors as hf

    match error:
        case hf.GatedRepoError():
            return AdapterNotFound(
                f"{asked.subject} is gated, and {_who(asked)} has no access to its files.",
                remedy=f"Request access at {asked.page} . {LOG_IN}",
            )
        case hf.RepositoryNotFoundError():
            return AdapterNotFound(
                f"{asked.endpoint} has no model {asked.subject}, or it is private and {_who(asked)} may not see it.",
                remedy=f"Check the spelling. {LOG_IN}",
            )
        case hf.RevisionNotFoundError():
            return AdapterNotFound(
                f"{asked.subject}: the repository has no such revision.",
                remedy=f"Choose a branch, tag or commit of {asked.page}/commits/main .",
            )
        case hf.RemoteEntryNotFoundError():
            return AdapterNotFound(
                f"{asked.subject}: the repository has no such file.", remedy=f"See {asked.page}/tree/main ."
            )
        case hf.DisabledRepoError():
            return AdapterNotFound(
                f"{asked.subject} was disabled by the Hub.", remedy=f"See {asked.page} , or take another adapter."
            )
    return _refusal_by_status(error, asked)


def _refusal_by_status(error: HfHubHTTPError, asked: Asked) -> HubMergeError:
    status = error.response.status_code
    if status == 401:
        return AdapterNotFound(
            f"{asked.endpoint} does not accept the token that was sent for {asked.subject}.",
            remedy="Log in again with `hf auth login`, or correct HF_TOKEN, which comes first.",
        )
    if status == 429:
        seconds = wait_asked_for(error.response)
        wait = "" if seconds is None else f" and asks to wait {seconds:.0f} s"
        return HubUnavailable(
            f"{asked.endpoint} limits the rate of requests{wait} ({asked.subject}).",
            remedy="Wait, then try again; logged-in users may ask more often (`hf auth login`).",
        )
    if status in TRANSIENT:
        return HubUnavailable(f"{asked.endpoint} fails with status {status} on {asked.subject}.", remedy=TRY_AGAIN)
    return AdapterNotFound(f"{asked.endpoint} refuses {asked.subject}: {server_words(error)}.", remedy=LOG_IN)


def _who(asked: Asked) -> str:
    return "the owner of the token sent" if asked.token_sent else "an anonymous user (no token was sent)"
