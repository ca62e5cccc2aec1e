"""What went wrong at the Hub, in our words: the one place where errors of huggingface_hub become ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub_merge.errors import AdapterError, AdapterNotFound, HubMergeError, HubUnavailable
from hub_merge.hub.transport import wait_asked_for

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

__all__ = ["Asked", "offline", "redact", "server_words", "translated"]

TOKEN = re.compile(r"hf_\w{20,}")
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN."
TRY_AGAIN = "Try again later; what was downloaded before is used with HF_HUB_OFFLINE=1."


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


def redact(text: str) -> str:
    """Return ``text`` without anything that looks like a token of the Hub."""
    return TOKEN.sub("hf_***", text)


def offline(subject: str) -> HubUnavailable:
    """Return the error for what is not in the cache while the network must not be used."""
    return HubUnavailable(
        f"{subject} is not in the cache, or not all of it, and the network is switched off.",
        remedy="Leave out the offline option and unset HF_HUB_OFFLINE once, to download it.",
    )


@contextmanager
def translated(asked: Asked) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into errors of this package."""
    try:
        yield
    except HubMergeError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        problem = _translate(error, asked)
        if problem is None:
            raise
        raise problem from error
    except Exception as error:
        problem = _translate_transport(error, asked)
        if problem is None:
            raise
        raise problem from error
