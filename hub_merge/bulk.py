"""Checking every adapter that the Hub lists for a base model, by config and headers alone.

Each adapter gets a verdict with its reason as soon as it is known. A report of verdicts, one JSON object a line, lets a
run that was stopped go on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from hub_merge.bases import read_base, same_name, without_quantisation
from hub_merge.compat import check
from hub_merge.errors import HubMergeError, HubUnavailable
from hub_merge.findings import Finding, Report, caution, problem
from hub_merge.hub import Hub, Listing
from hub_merge.lineage import Standing
from hub_merge.parallel import map_modules
from hub_merge.pipeline import followers
from hub_merge.privacy import one_line
from hub_merge.sources import Opened, open_headers

__all__ = ["Verdict", "check_listed"]

WORKERS = 4
"""Adapters that are looked at at once: enough to hide the way to the Hub, few enough to be a polite guest."""

MOST_UNAVAILABLE = 3
"""Adapters in a row that the Hub may fail to deliver before the run is given up."""

ABOUT_UNKNOWN_BASES = ("base_not_on_hub", "base_quantised")
"""Findings that say less than the base that was asked for."""

Kind = Literal["fits", "caution", "blocked", "unreadable", "unavailable"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the check of one adapter says.

    Attributes:
        repo_id: Hub id of the adapter.
        commit: Commit that was judged.
        base: The base model it was checked for.
        verdict: ``fits``; ``caution`` if it fits and something is to be known; ``blocked`` if something forbids a
            merge; ``unreadable`` if it is no LoRA that can be read; ``unavailable`` if the Hub did not deliver it.
        reason: Why, never empty.
        codes: Codes of the findings behind it, problems first; the name of the error if it could not be read.
        trained_on: Base that the adapter states.
        rank: Largest rank.
        modules: Number of adapted modules.
        task_type: PEFT task type.
        license: Licence it states.
        bytes_total: Bytes of config and weights.
        bytes_read: Bytes that were read of them.
    """

    repo_id: str
    commit: str | None
    base: str
    verdict: Kind
    reason: str
    codes: tuple[str, ...] = ()
    trained_on: str | None = None
    rank: int | None = None
    modules: int | None = None
    task_type: str | None = None
    license: str | None = None
    bytes_total: int | None = None
    bytes_read: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain data."""
        return asdict(self)


def check_listed(
    listings: Sequence[Listing], base: str, *, hub: Hub, allow: Sequence[str] = (), report: Path | None = None
) -> Iterator[Verdict]:
    """Yield a verdict for each listed adapter, in the order of the list.

    Args:
        listings: Adapters, as a search for ``base`` gives them.
        base: Hub id of the base model.
        hub: Client to read headers with.
        allow: Codes of findings that the user accepts.
        report: File to which verdicts are appended; what it holds of a commit already is not looked at again.

    Raises:
        HubUnavailable: The Hub failed to deliver several adapters in a row.
    """
    known = _judged(report) if report else set()
    judge = _Judge(base, hub, allow)
    due = [listing for listing in listings if (listing.repo_id, listing.commit, base) not in known]
    missed = 0
    with _appended(report) as write:
        for verdict in map_modules(judge, due, WORKERS):
            missed = missed + 1 if verdict.verdict == "unavailable" else 0
            if missed == MOST_UNAVAILABLE:
                raise HubUnavailable(verdict.reason, remedy="Go on later; --resume FILE keeps what is known.")
            if write and not missed:
                write.write(json.dumps(verdict.to_dict()).encode() + b"\n")
                write.flush()
            yield verdict


def _judged(report: Path) -> set[tuple[Any, Any, Any]]:
    """Return repository, commit and base of the verdicts in a report; a line that was cut off counts for nothing."""
    found = set()
    if report.is_file():
        with report.open("rb") as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                    found.add((entry["repo_id"], entry["commit"], entry["base"]))
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue
    return found


@contextmanager
def _appended(report: Path | None) -> Iterator[IO[bytes] | None]:
    if report is None:
        yield None
        return
    with report.open("ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            file.write(b"\n")
        yield file


class _Judge:
    """Gives one adapter its verdict."""

    def __init__(self, base: str, hub: Hub, allow: Sequence[str]) -> None:
        self._base, self._hub, self._allow = base, hub, allow
        self._canonical, self._original = followers(hub)
        self._wanted = (self._canonical and self._canonical(base)) or base

    def __call__(self, listing: Listing) -> Verdict:
        reference = f"{listing.repo_id}@{listing.commit}" if listing.commit else listing.repo_id
        try:
            opened = open_headers(reference, hub=self._hub, tokens=False, download=False)
        except HubMergeError as error:
            kind: Kind = "unavailable" if isinstance(error, HubUnavailable) else "unreadable"
            code = type(error).__name__
            return Verdict(listing.repo_id, listing.commit, self._base, kind, one_line(str(error)), (code,))
        result = check([opened.adapter], allow=self._allow, canonical=self._canonical, original=self._original)
        findings = [found for found in result.report.findings if found.code not in ABOUT_UNKNOWN_BASES]
        findings += _of_another_base(result.bases[0], listing, self._wanted)
        return _verdict(listing, self._base, opened, Report.of(findings, self._allow))


def _of_another_base(standing: Standing, listing: Listing, base: str) -> Iterator[Finding]:
    """Yield what is to be told of an adapter whose config does not name the base that was asked for."""
    where, model = "base_model_name_or_path", standing.stands_for
    trained = f"it was trained on {standing.trained_on}"
    if model is None and listing.found_by == "tag":
        seen = f"{trained}, which is no Hub id; its card names {base}"
        yield caution("base_by_card", where, seen, "a Hub id", adapter=standing.adapter)
    elif model and without_quantisation(model) and same_name(model, base):
        seen = f"{trained}, which by its name alone is a quantised copy of {base}"
        yield caution("base_by_name", where, seen, "a card that says so", adapter=standing.adapter)
    elif model is None or model.casefold() != base.casefold():
        yield problem("base_differs", where, trained, base, "Leave it out.", adapter=standing.adapter)


def _verdict(listing: Listing, base: str, opened: Opened, report: Report) -> Verdict:
    adapter, origin = opened.adapter, opened.adapter.origin
    shown = report.problems or report.cautions
    plain = f"a LoRA of rank {adapter.rank} on {len(adapter.modules)} modules"
    return Verdict(
        repo_id=origin.repo_id or listing.repo_id,
        commit=listing.commit or origin.commit,
        base=base,
        verdict="blocked" if report.problems else "caution" if report.cautions else "fits",
        reason=" ".join(found.describe() for found in shown) or plain,
        codes=tuple(found.code for found in report.findings),
        trained_on=read_base(adapter.base_model).label,
        rank=adapter.rank,
        modules=len(adapter.modules),
        task_type=adapter.task_type,
        license=origin.license,
        bytes_total=opened.bytes_total,
        bytes_read=opened.bytes_read,
    )
