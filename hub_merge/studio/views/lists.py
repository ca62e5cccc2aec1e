"""The list to choose from, and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence

from hub_merge.budgets import human_size
from hub_merge.studio.catalog import Row
from hub_merge.studio.samples import is_sample, normal
from hub_merge.studio.views.markup import Markup, el, joined

__all__ = ["acted", "adapter_list", "empty_list", "tray"]


def adapter_list(rows: Sequence[Row], chosen: Sequence[str], heading: str) -> Markup:
    """Return the adapters as a list with a button each; those that are chosen already say so."""
    if not rows:
        return empty_list(heading)
    items = [_item(row, row.reference in chosen) for row in rows]
    return joined(el("h3", heading, class_="hm-sub"), el("ul", *items, class_="hm-rows", aria_label=heading))


def empty_list(heading: str) -> Markup:
    """Return what stands where a list would, if nothing was found."""
    return joined(
        el("h3", heading, class_="hm-sub"),
        el(
            "p",
            "Nothing found. Try the id of a base model, such as HuggingFaceTB/SmolLM2-135M-Instruct, or fewer words.",
            class_="hm-empty",
        ),
    )


def _item(row: Row, is_chosen: bool) -> Markup:
    owner, _, name = row.reference.rpartition("/")
    headline = el(
        "span",
        el("span", "" if is_sample(row.reference) else f"{owner}/", class_="hm-owner"),
        el("span", name, class_="hm-name"),
        class_="hm-title",
    )
    return el(
        "li",
        el(
            "div",
            headline,
            el("p", row.title or _trained_on(row), class_="hm-about"),
            el("p", row.trouble, class_="hm-trouble") if row.trouble else None,
            class_="hm-what",
        ),
        _facts(row),
        _button(row, is_chosen),
        class_="hm-row",
    )


def _trained_on(row: Row) -> str:
    return f"for {row.base_model}" if row.base_model else "base model not stated"


def _facts(row: Row) -> Markup:
    facts = [
        ("Licence", row.license or "none stated"),
        ("Rank", None if row.rank is None else str(row.rank)),
        ("Size", None if row.size is None else human_size(row.size)),
        ("Downloads", None if row.downloads is None else f"{row.downloads:,}"),
        ("Likes", f"{row.likes:,}" if row.likes else None),
        ("Access", "on request" if row.gated else None),
    ]
    return el(
        "dl",
        *(el("div", el("dt", name), el("dd", value)) for name, value in facts if value is not None),
        class_="hm-facts",
    )


def _button(row: Row, is_chosen: bool) -> Markup:
    action = "remove" if is_chosen else "add"
    return el(
        "button",
        "Added" if is_chosen else "Add",
        type="button",
        class_=f"hm-button{' hm-on' if is_chosen else ''}",
        data_action=action,
        data_reference=row.reference,
        aria_pressed="true" if is_chosen else "false",
        aria_label=f"{'Remove' if is_chosen else 'Add'} {row.reference}",
    )


def tray(chosen: Sequence[str]) -> Markup:
    """Return what is chosen, each with a button that takes it out again."""
    if not chosen:
        return el("p", "Nothing chosen yet. Add two adapters or more.", class_="hm-tray hm-empty")
    chips = [
        el(
            "li",
            el("span", reference, class_="hm-chip-name"),
            el(
                "button",
                "✕",
                type="button",
                data_action="remove",
                data_reference=reference,
                aria_label=f"Remove {reference} from the merge",
            ),
            class_="hm-chip",
        )
        for reference in chosen
    ]
    more = el("span", "Add one more to merge.", class_="hm-note") if len(chosen) == 1 else None
    return el(
        "div",
        el("span", "Your merge", class_="hm-tray-label", id="hm-tray-label"),
        el("ul", *chips, aria_labelledby="hm-tray-label"),
        more,
        class_="hm-tray",
    )


def acted(chosen: Sequence[str], action: object, reference: object) -> list[str]:
    """Return what is chosen after a button was pressed; what a page could not have sent changes nothing."""
    if not isinstance(reference, str):
        return list(chosen)
    if action == "add" and reference not in chosen:
        return [*chosen, normal(reference)]
    return [name for name in chosen if name != reference] if action == "remove" else list(chosen)
