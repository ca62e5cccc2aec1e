"""What a visitor is told when something fails: the words of the command line, and nothing of this machine."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass

from hub_merge.errors import HubMergeError
from hub_merge.privacy import scrub

__all__ = ["Failure", "failure_of"]

log = logging.getLogger("hub_merge.studio")


@dataclass(frozen=True, slots=True)
class Failure:
    """One failure in words.

    Attributes:
        problem: What is wrong.
        remedy: What to do about it, maybe empty.
    """

    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()


def failure_of(error: BaseException) -> Failure:
    """Return what to tell of ``error``.

    An error that nobody expected is told by a number only, under which the log of this process has its details.
    """
    if isinstance(error, HubMergeError):
        return Failure(scrub(error.problem), scrub(error.remedy or ""))
    number = uuid.uuid4().hex[:8]
    log.error("error %s", number, exc_info=error)
    return Failure(
        f"Something went wrong here that should not have (error {number}).",
        "Try again; if it happens again, please report it with this number.",
    )
