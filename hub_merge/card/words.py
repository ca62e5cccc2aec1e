"""Numbers, lists and sources as words of a card."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from hub_merge.card.markdown import BLANK, Markdown, code_span, escape, hub_id, link
from hub_merge.recipe import Parent
from hub_merge.weights import Weight

__all__ = ["counted", "listed", "number", "percent", "source", "weight_words"]


def number(value: float | None) -> Markdown:
    """Return ``value`` with three significant digits."""
    if value is None or not math.isfinite(value):
        return Markdown(BLANK)
    if value == 0 or abs(value) >= 1000:
        return Markdown(f"{value:.0f}")
    return Markdown(re.sub(r"e([+-])0", r"e\1", f"{value:#.3g}").rstrip("."))


def percent(share: float | None) -> Markdown:
    """Return a share in per cent with three significant digits."""
    return number(None) if share is None else Markdown(f"{number(100 * share)} %")


def listed(items: Iterable[object]) -> Markdown:
    """Return ``a, b and c``, each escaped unless it is Markdown already."""
    *rest, last = [item if isinstance(item, Markdown) else escape(item) for item in items]
    return Markdown(f"{', '.join(rest)} and {last}" if rest else last)


def counted(count: int, noun: str) -> Markdown:
    return Markdown(f"{count} {noun}{'s' * (count != 1)}")


def weight_words(weight: Weight) -> Markdown:
    if not isinstance(weight, Mapping):
        return Markdown(f"{weight:.3g}")
    rules = [
        f"{value:.3g} elsewhere" if part in ("*", "") else f"{value:.3g} in {code_span(part)}"
        for part, value in weight.items()
    ]
    return Markdown(", ".join(rules))


def source(parent: Parent) -> Markdown:
    """Return where a parent is found: a pinned link, or the name of a local folder."""
    repo_id = hub_id(parent.repo_id)
    if repo_id is None:
        return Markdown(f"{code_span(parent.name)} (local folder)")
    commit = parent.commit if re.fullmatch("[0-9a-f]{40}", parent.commit or "") else None
    access = " (private)" if parent.private else " (gated)" if parent.gated else ""
    return Markdown(link(repo_id, commit, parent.subfolder) + access)
