"""Elements of HTML and SVG that escape all they are given."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TypeAlias
from unicodedata import category

from hub_merge.privacy import UNSEEN, scrub

__all__ = ["Child", "Markup", "el", "folded_table", "icon", "joined", "number", "percent"]


class Markup(str):
    """Text that is markup already, made by ``el`` alone."""

    __slots__ = ()


Child: TypeAlias = "Markup | str | int | float | None"

EMPTY = frozenset({"circle", "line", "path", "polyline", "rect", "br", "input"})
BLANK = "–"


def el(name: str, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """Return an element; texts and values of attributes are escaped.

    Args:
        name: Of the element.
        children: Markup, or text to escape; ``None`` is left out.
        attributes: With ``_`` for ``-`` and a ``_`` behind words of Python; ``None`` and ``False`` are left out.
    """
    told = "".join(
        f" {key.strip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value), quote=True)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in EMPTY and not children:
        return Markup(f"<{name}{told}/>")
    return Markup(f"<{name}{told}>{joined(*children)}</{name}>")


def joined(*children: Child) -> Markup:
    """Return the children one after the other; texts are escaped, without what hides and without local paths."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escape(_visible(str(child)), quote=False)
            for child in children
            if child is not None
        )
    )


def folded_table(summary: str, label: str, head: Markup, rows: Sequence[Markup]) -> Markup:
    """Return a table that is shown when its ``summary`` is clicked; ``label`` names it to those who do not see it."""
    return el(
        "details",
        el("summary", summary),
        el(
            "div",
            el("table", el("thead", head), el("tbody", *rows), class_="hm-table"),
            class_="hm-scroll",
            tabindex="0",
            role="region",
            aria_label=label,
        ),
        class_="hm-details",
    )


def _visible(text: str) -> str:
    return scrub("".join(character for character in text if category(character) not in UNSEEN))


def icon(kind: str) -> Markup:
    """Return a mark of colour and shape; what it says stands in words beside it."""
    return el(
        "span",
        {"good": "✓", "warn": "!", "bad": "✕", "info": "i"}[kind],
        class_=f"hm-icon hm-{kind}",
        aria_hidden="true",
    )


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with so many decimals, a dash for none."""
    return BLANK if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share in per cent, a dash for none."""
    return BLANK if value is None else f"{100 * value:.0f} %"
