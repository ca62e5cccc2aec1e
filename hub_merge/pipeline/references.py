"""Adapters of the Hub and of folders, by reference: searched for, inspected, checked, scored, advised on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hub_merge.advise import MAX_RANK, Advice, advise
from hub_merge.budgets import budget
from hub_merge.compat import Compatibility
from hub_merge.extras import checked_policy
from hub_merge.findings import REFUSE, Finding, Report
from hub_merge.formats.peft import EXTRAS_FLAG
from hub_merge.hub import Hub, Listing
from hub_merge.lineage import Standing, standings
from hub_merge.pipeline.merging import affordable, checked_weights, require_compatible
from hub_merge.pipeline.opening import checked, followers, open_all
from hub_merge.pipeline.progress import Progress, silent
from hub_merge.scores import Scores, score
from hub_merge.sources import Opened, open_headers
from hub_merge.weights import Weight

__all__ = [
    "advise_on_references",
    "check_references",
    "inspect_reference",
    "require_comparable",
    "score_references",
    "search",
]

COMPARABLE = (
    *("base_differs", "base_unknown", "base_copy", "task_differs"),
    *("trained_weights", "trainable_tokens", "unknown_fields"),
)
"""Problems of a merge that do not keep deltas from being compared."""

ABOUT_NUMBERS = ("untrained", "partly_zero", "norms_differ", "same_adapter", "norm_outlier", "spectrum_outlier")
"""Findings that say something of scores."""

ABOUT_BASES = ("base_differs", "base_unknown")
"""Problems of a merge that take the sense out of scores if the bases are not one model."""


def search(base_model: str | None = None, *, hub: Hub | None = None, **filters: Any) -> list[Listing]:
    """Return public adapters of the Hub, of one base model or of any; see ``Hub.search`` for the filters."""
    return (hub or Hub()).search(base_model, **filters)


def check_references(
    references: Sequence[str],
    *,
    hub: Hub,
    base: str | None = None,
    allow: Sequence[str] = (),
    extras: str = REFUSE,
    full: bool = False,
    progress: Progress = silent,
) -> Compatibility:
    """Return whether the adapters of ``references`` fit together; ``full`` reads their numbers too.

    See ``merge`` for ``base``, ``allow`` and ``extras``.
    """
    checked_policy(extras)
    if full:
        adapters = open_all(references, hub, progress)
    else:
        budget().require_adapters(len(references))
        adapters = [open_headers(reference, hub=hub).adapter for reference in references]
    return checked(affordable(adapters), hub, base, allow, extras)


def inspect_reference(reference: str, *, hub: Hub, revision: str | None = None) -> tuple[Opened, Standing]:
    """Return one adapter by its headers, and what its base model stands for."""
    opened = open_headers(reference, revision=revision, hub=hub)
    canonical, original = followers(hub)
    return opened, standings([opened.adapter], canonical=canonical, original=original)[0]


def require_comparable(compatibility: Compatibility) -> None:
    """Raise ``IncompatibleAdapters`` if a problem keeps the deltas from being compared."""
    require_compatible(Report.of(found for found in compatibility.report.problems if found.code not in COMPARABLE))


def score_references(
    references: Sequence[str],
    *,
    hub: Hub,
    weights: Sequence[Weight] | None = None,
    exact_signs: bool = False,
    progress: Progress = silent,
    tell: Callable[[Finding], None] = lambda found: None,
) -> Scores:
    """Return the scores of the adapters of ``references``; ``tell`` gets what stands out in their numbers.

    See ``score`` for ``weights`` and ``exact_signs``.

    Raises:
        IncompatibleAdapters: Their deltas cannot be compared.
    """
    adapters = affordable(open_all(references, hub, progress))
    compatibility = checked(adapters, hub)
    require_comparable(compatibility)
    for found in compatibility.report.findings:
        if found.code in ABOUT_NUMBERS:
            tell(found)
        elif found.code in ABOUT_BASES:
            only = "Only deltas of one model can be compared."
            tell(replace(found, severity="caution", remedy=only, overrule=None))
    numbers = None if weights is None else checked_weights(adapters, weights)
    return score(adapters, numbers, spectra=True, exact_signs=exact_signs)


def advise_on_references(
    references: Sequence[str],
    *,
    hub: Hub,
    base: str | None = None,
    allow: Sequence[str] = (),
    extras: str = REFUSE,
    max_rank: int = MAX_RANK,
    progress: Progress = silent,
) -> Advice:
    """Return which method, weights and rank the geometry of the adapters of ``references`` suggests, and why.

    See ``merge`` for ``base``, ``allow`` and ``extras``; extras are no part of the geometry and may stay undecided.

    Raises:
        IncompatibleAdapters: They cannot be merged at all.
    """
    checked_policy(extras)
    adapters = affordable(open_all(references, hub, progress))
    compatibility = checked(adapters, hub, base, allow, extras)
    if any(found.overrule != EXTRAS_FLAG for found in compatibility.report.problems):
        require_compatible(compatibility.report)
    return advise(adapters, score(adapters), compatibility, max_rank=max_rank)
