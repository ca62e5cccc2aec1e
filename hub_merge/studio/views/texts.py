"""The words of the page, and the shades of its widgets."""

from __future__ import annotations

from hub_merge.budgets import human_size
from hub_merge.recipe import Recipe
from hub_merge.studio.commands import merge_command, merge_snippet
from hub_merge.studio.looking import Look
from hub_merge.studio.views.markup import Markup, el, joined

__all__ = [
    "ACCEPT_UNKNOWN",
    "HERO",
    "LOOK",
    "MERGE",
    "NOTHING_YET",
    "NO_LOGIN",
    "ORDERS",
    "PUBLISH",
    "REPEAT",
    "STEPS",
    "THEME",
    "TITLE",
    "found",
    "heading",
    "measure_label",
    "repeated",
]

TITLE = "hub_merge: merge LoRA adapters"

HERO = el(
    "div",
    el("h1", "Merge LoRA adapters"),
    el(
        "p",
        "Pick two adapters of one model, see what fits and what would interfere, and get one adapter that does both: "
        "proved, with its model card, published under your name. No base model, no GPU.",
    ),
    class_="hm-hero",
)

LOOK = "Checked from a few kilobytes of each, at once. Weights are read only when you say so."
MERGE = "What the geometry suggests is set already. Change it and watch what is kept of each."
PUBLISH = "Under your own name, as one commit. Sign in before you merge: signing in loads the page anew."
NO_LOGIN = "Log in on this machine with `hf auth login` and start the page again to publish from here."
NOTHING_YET = "Add two adapters above, or start with the samples."
ACCEPT_UNKNOWN = "Publish although a licence is not known, at my own risk"

REPEAT = el(
    "div",
    el(
        "div",
        el("h2", "The same without this page"),
        el(
            "p", "Both give the same file, byte for byte. The address of this page brings everything back as it is now."
        ),
    ),
    class_="hm-heading",
)

ORDERS = ("downloads", "likes", "last_modified", "created_at", "trending_score")

STEPS = {
    "pull": "Getting the adapters",
    "score": "Comparing module by module",
    "write": "Writing",
    "prove": "Proving",
}

THEME = {
    "body_background_fill": "#f5f7f9",
    "body_background_fill_dark": "#10141b",
    "body_text_color": "#1c2430",
    "body_text_color_dark": "#e8ecf1",
    "block_background_fill": "#ffffff",
    "block_background_fill_dark": "#171c25",
    "block_border_color": "#dde2e8",
    "block_border_color_dark": "#303947",
    "block_label_text_color": "#3f4957",
    "block_label_text_color_dark": "#c3cbd6",
    "block_title_text_color": "#1c2430",
    "block_title_text_color_dark": "#e8ecf1",
    "block_info_text_color": "#55606f",
    "block_info_text_color_dark": "#a7b1bf",
    "input_background_fill": "#ffffff",
    "input_background_fill_dark": "#1e2530",
    "input_border_color": "#c3cbd6",
    "input_border_color_dark": "#3b4656",
    "input_placeholder_color": "#667180",
    "input_placeholder_color_dark": "#97a2b1",
    "button_primary_background_fill": "#0b6b63",
    "button_primary_background_fill_dark": "#0b6b63",
    "button_primary_background_fill_hover": "#095a53",
    "button_primary_background_fill_hover_dark": "#0d7d73",
    "button_primary_text_color": "#ffffff",
    "button_primary_text_color_dark": "#ffffff",
    "button_secondary_background_fill": "#eef1f4",
    "button_secondary_background_fill_dark": "#263040",
    "button_secondary_text_color": "#1c2430",
    "button_secondary_text_color_dark": "#e8ecf1",
    "slider_color": "#0b6b63",
    "slider_color_dark": "#2f9d90",
    "color_accent": "#0b6b63",
    "color_accent_soft": "#e3f1ef",
    "color_accent_soft_dark": "#15332f",
    "input_border_width": "1px",
    "link_text_color": "#0b6b63",
    "link_text_color_dark": "#5fcabd",
}


def heading(number: int, title: str, about: str) -> Markup:
    """Return the head of a step."""
    return el(
        "div",
        el("span", number, class_="hm-no", aria_hidden="true"),
        el("div", el("h2", title), el("p", about)),
        class_="hm-heading",
    )


def found(text: str) -> str:
    """Return the headline of a list that answers to ``text``."""
    return f"Found for {text.strip()[:80]}" if text.strip() else "Samples to try, no Hub needed"


def measure_label(look: Look | None) -> str:
    """Return what the button says that measures, with what it reads."""
    return f"Measure how they overlap · reads {human_size(sum(look.sizes))}" if look else "Measure how they overlap"


def repeated(recipe: Recipe | None) -> Markup:
    """Return the command and the Python that do the same as this page, each to copy."""
    if recipe is None:
        return el("p", "Choose adapters, and the command and the Python that merge them stand here.", class_="hm-empty")
    return joined(_to_copy("Command", merge_command(recipe)), _to_copy("Python", merge_snippet(recipe)))


def _to_copy(title: str, text: str) -> Markup:
    return el(
        "figure",
        el(
            "figcaption",
            title,
            el("button", "Copy", type="button", class_="hm-copy", aria_label=f"Copy the {title} to the clipboard"),
        ),
        el("pre", el("code", text), tabindex="0", role="region", aria_label=title),
        class_="hm-code",
    )
