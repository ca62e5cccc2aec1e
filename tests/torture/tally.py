"""How torture ended: what was injected, what survived it, what was lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Outcome:
    """One fault and how it ended; ``lost`` says what was lost, and is empty for a fault that was survived."""

    part: str
    subject: str
    fault: str
    lost: str = ""


def table(outcomes: Iterable[Outcome]) -> str:
    """Return a table of faults by part and subject, with a line for all of them."""
    ordered = sorted(outcomes, key=lambda outcome: (outcome.part, outcome.subject))
    rows = [("PART", "SUBJECT", "INJECTED", "SURVIVED", "LOST")]
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
    lost = sum(bool(outcome.lost) for outcome in outcomes)
    return str(len(outcomes)), str(len(outcomes) - lost), str(lost)
