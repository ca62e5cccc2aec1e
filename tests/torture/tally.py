"""How torture ended: what was injected, what survived it, what was lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Outcome:
    """One fault and how it ended.

    Attributes:
        part: Which torture it belongs to.
        subject: What met it.
        fault: What happened.
        lost: What was lost; empty for a fault that was survived.
        skipped: Why nothing was injected here; empty if it was.
    """

    part: str
    subject: str
    fault: str
    lost: str = ""
    skipped: str = ""


def table(outcomes: Iterable[Outcome]) -> str:
    """Return a table of faults by part and subject, with a line for all of them."""
    ordered = sorted(outcomes, key=lambda outcome: (outcome.part, outcome.subject))
    rows: list[tuple[str, ...]] = [("PART", "SUBJECT", "INJECTED", "SURVIVED", "LOST")]
    for (part, subject), group in groupby(ordered, key=lambda outcome: (outcome.part, outcome.subject)):
        rows.append((part, subject, *counts(list(group))))
    rows.append(("all", "", *counts(ordered)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def counts(outcomes: Sequence[Outcome]) -> tuple[str, str, str]:
    injected = [outcome for outcome in outcomes if not outcome.skipped]
    if not injected and outcomes:
        return f"skipped: {outcomes[0].skipped}", "", ""
    lost = sum(bool(outcome.lost) for outcome in injected)
    return str(len(injected)), str(len(injected) - lost), str(lost)
