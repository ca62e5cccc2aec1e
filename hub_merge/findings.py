"""Findings: what is wrong, or worth knowing, about adapters, as data."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hub_merge.privacy import one_line

__all__ = ["REFUSE", "Finding", "Report", "caution", "problem"]

Severity = Literal["problem", "caution"]

REFUSE = "refuse"
"""What happens to tensors beside the factors as long as nobody decides: the finding that names them blocks."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One observation about one adapter, or about the set when ``adapter`` is empty.

    Whatever of it comes from the adapter's files is told without local paths, tokens and invisible characters.

    Attributes:
        severity: ``problem`` blocks a merge, ``caution`` informs.
        code: Stable identifier in snake_case, such as ``base_differs``.
        adapter: Name of the adapter, empty when the finding concerns the set.
        where: The config field, tensor or module that shows it.
        seen: What is there.
        expected: What would be fine.
        remedy: What the reader can do.
        overrule: The flag that accepts a problem knowingly, if one may.
    """

    severity: Severity
    code: str
    adapter: str
    where: str
    seen: str
    expected: str
    remedy: str
    overrule: str | None = None

    def __post_init__(self) -> None:
        for name in ("adapter", "where", "seen", "expected", "remedy"):
            object.__setattr__(self, name, one_line(getattr(self, name)))

    @property
    def allowable(self) -> bool:
        """Whether it is a problem that ``--allow`` and its code accept."""
        return self.severity == "problem" and (self.overrule or "").startswith("--allow")

    def describe(self) -> str:
        """Return the finding as one line."""
        subject = f"{self.adapter}: " if self.adapter else ""
        place = f" ({self.where})" if self.where else ""
        expected = f"; expected {self.expected}" if self.expected else ""
        way_out = f" {self.remedy}" if self.remedy else ""
        overrule = f" Overrule: {self.overrule}." if self.overrule and self.severity == "problem" else ""
        return f"[{self.code}] {subject}{self.seen}{place}{expected}.{way_out}{overrule}"

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain data for JSON."""
        return asdict(self)


def problem(
    code: str, where: str, seen: str, expected: str, remedy: str, *, adapter: str = "", overrule: str | None = None
) -> Finding:
    """Return a finding that blocks a merge."""
    return Finding("problem", code, adapter, where, seen, expected, remedy, overrule)


def caution(code: str, where: str, seen: str, expected: str = "", remedy: str = "", *, adapter: str = "") -> Finding:
    """Return a finding that informs."""
    return Finding("caution", code, adapter, where, seen, expected, remedy)


@dataclass(frozen=True, slots=True)
class Report:
    """Every finding at once, problems first."""

    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding], allow: Collection[str] = ()) -> Report:
        """Collect ``findings``; allowable ones whose code is in ``allow`` become cautions."""
        settled = (
            Finding(**{**asdict(found), "severity": "caution", "seen": f"{found.seen} (accepted by the user)"})
            if found.allowable and found.code in allow
            else found
            for found in findings
        )
        return cls(tuple(sorted(settled, key=lambda found: found.severity != "problem")))

    @property
    def problems(self) -> tuple[Finding, ...]:
        """Findings that block a merge."""
        return tuple(found for found in self.findings if found.severity == "problem")

    @property
    def cautions(self) -> tuple[Finding, ...]:
        """Findings that inform."""
        return tuple(found for found in self.findings if found.severity == "caution")

    @property
    def compatible(self) -> bool:
        """Whether nothing blocks a merge."""
        return not self.problems

    def describe(self) -> str:
        """Return the problems, a line each."""
        return "\n".join(f"  - {found.describe()}" for found in self.problems)
