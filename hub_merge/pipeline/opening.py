"""Opening adapters within the limits, and judging them together with their bases as the Hub has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hub_merge.adapter import Adapter
from hub_merge.budgets import budget
from hub_merge.compat import Compatibility, check
from hub_merge.errors import HubUnavailable
from hub_merge.extras import decide
from hub_merge.findings import REFUSE
from hub_merge.hub import Hub
from hub_merge.lineage import Follow
from hub_merge.pipeline.progress import Progress
from hub_merge.sources import open_adapter

__all__ = ["checked", "followers", "open_all"]


def open_all(references: Sequence[str | Path], hub: Hub, progress: Progress) -> list[Adapter]:
    budget().require_adapters(len(references))
    adapters = []
    for number, reference in enumerate(references):
        progress("pull", number, len(references))
        adapters.append(open_adapter(reference, hub=hub))
    progress("pull", len(adapters), len(adapters))
    return adapters


def checked(
    adapters: Sequence[Adapter],
    hub: Hub,
    base: str | None = None,
    allow: Sequence[str] = (),
    extras: str = REFUSE,
) -> Compatibility:
    """Return whether the adapters fit together, their bases followed on the Hub and their extras decided."""
    canonical, original = followers(hub)
    compatibility = check(adapters, base=base, allow=allow, canonical=canonical, original=original)
    _, report = decide(extras, adapters, [1.0] * len(adapters), compatibility.report)
    return replace(compatibility, report=report)


def followers(hub: Hub) -> tuple[Follow | None, Follow | None]:
    """Return what follows renames and what follows copies of base models on the Hub; nothing does while offline.

    A Hub that does not answer leaves a name as it is, and is not asked again.
    """
    if hub.offline:
        return None, None

    answers = True

    def patient(follow: Follow) -> Follow:
        def followed(model_id: str) -> str | None:
            nonlocal answers
            try:
                return follow(model_id) if answers else None
            except HubUnavailable:
                answers = False
                return None

        return followed

    return patient(hub.canonical), patient(hub.original)
