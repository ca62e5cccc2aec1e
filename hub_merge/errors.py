"""Every error this package raises on purpose.

HubMergeError                  problem + remedy; the base of all others
├── AdapterError               one adapter could not be used
│   ├── AdapterNotFound        no such repository, revision, folder or file; or no right to read it
│   ├── AdapterFormatError     the files are damaged or contradict themselves
│   │   └── DamagedDownload    what arrived is not what the repository describes
│   └── UnsupportedAdapter     the files are sound, but not a LoRA this version can merge
├── CheckpointError            a full model could not be used
├── HubUnavailable             the Hub did not answer, or refused for now (time-outs, rate limits, offline)
├── IncompatibleAdapters       the adapters do not fit together; carries the whole report
├── BudgetExceeded             more rank, bytes, adapters or disk than a limit allows; the remedy says how to raise it
│   └── DiskFull               the disk of this machine has no room for it
├── RecipeError                a recipe, weight, option or reference that cannot be understood
├── MergeError                 a merge that cannot be carried out as asked
│   └── UnknownMethod          no method of that name is registered
├── OutputExists               the output is there already and nobody asked to replace it
├── EvaluationError            a model, adapter or data set that cannot be evaluated as asked
├── ProofFailed                the written composite is not what was asked for
└── PublishError               the composite could not be published

A message names the subject, what was seen and what was expected; the remedy is something the reader can paste or do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub_merge.findings import Report

__all__ = [
    "AdapterError",
    "AdapterFormatError",
    "AdapterNotFound",
    "BudgetExceeded",
    "CheckpointError",
    "DamagedDownload",
    "DiskFull",
    "EvaluationError",
    "HubMergeError",
    "HubUnavailable",
    "IncompatibleAdapters",
    "MergeError",
    "OutputExists",
    "ProofFailed",
    "PublishError",
    "RecipeError",
    "UnknownMethod",
    "UnsupportedAdapter",
]


class HubMergeError(Exception):
    """A problem the user can act on."""

    def __init__(self, problem: str, *, remedy: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}" if self.remedy else self.problem


class AdapterError(HubMergeError):
    """One adapter could not be used."""


class AdapterNotFound(AdapterError):
    """No such repository, revision, folder or file, or no right to read it."""


class AdapterFormatError(AdapterError):
    """The files are damaged or contradict themselves."""


class DamagedDownload(AdapterFormatError):
    """What arrived is not what the repository describes."""


class UnsupportedAdapter(AdapterError):
    """The files are sound, but not a LoRA this version can merge."""


class CheckpointError(HubMergeError):
    """A full model could not be used."""


class HubUnavailable(HubMergeError):
    """The Hub did not answer, or refused for now."""


class IncompatibleAdapters(HubMergeError):
    """The adapters do not fit together; ``report`` holds every finding."""

    def __init__(self, report: Report) -> None:
        count = len(report.problems)
        super().__init__(
            f"These adapters cannot be merged as asked: {count} problem{'s' * (count != 1)}.\n{report.describe()}",
            remedy="Leave out or repair the adapters named, or overrule where a finding says how.",
        )
        self.report = report


class BudgetExceeded(HubMergeError):
    """More rank, bytes, adapters or disk than a limit allows."""


class DiskFull(BudgetExceeded):
    """The disk of this machine has no room for it."""


class RecipeError(HubMergeError):
    """A recipe, weight, option or reference that cannot be understood."""


class MergeError(HubMergeError):
    """A merge that cannot be carried out as asked."""


class UnknownMethod(MergeError):
    """No method of that name is registered."""


class OutputExists(HubMergeError):
    """The output is there already and nobody asked to replace it."""


class EvaluationError(HubMergeError):
    """A model, adapter or data set that cannot be evaluated as asked."""


class ProofFailed(HubMergeError):
    """The written composite is not what was asked for."""


class PublishError(HubMergeError):
    """The composite could not be published."""
