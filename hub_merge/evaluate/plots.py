"""A picture of perplexities with their intervals. It needs matplotlib, which the extra ``plot`` brings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hub_merge.evaluate.evaluation import Evaluation
from hub_merge.plots import FAINT, INK, LINES, PALE, draw_to

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["perplexity_chart"]

PANEL, NAMES, ROW = 2.6, 2.4, 0.26
"""Width of a domain's panel, room for the names, height of a composite; inches."""
LONGEST_NAME = 34


def perplexity_chart(evaluation: Evaluation, path: Path) -> None:
    """Draw the answer perplexity of every composite with its interval, a panel a domain.

    Args:
        evaluation: The measurements.
        path: File to write; its suffix ``.png``, ``.svg`` or ``.pdf`` decides the format.

    Raises:
        HubMergeError: matplotlib is not installed, or the suffix is another one.
    """
    draw_to(path, lambda figure: _draw(evaluation, figure))


def _draw(evaluation: Evaluation, figure: Figure) -> None:
    names, domains = list(evaluation.losses), list(evaluation.sets)
    width, height = NAMES + PANEL * len(domains), 1.1 + ROW * len(names)
    figure.set_size_inches(width, height)
    for number, domain in enumerate(domains):
        left, bottom = NAMES + PANEL * number, 0.6
        place = (left / width, bottom / height, (PANEL - 0.3) / width, (height - bottom - 0.4) / height)
        _draw_domain(evaluation, domain, names, figure.add_axes(place), named=number == 0)


def _draw_domain(evaluation: Evaluation, domain: str, names: list[str], axes: Axes, *, named: bool) -> None:
    for row, name in enumerate(names):
        if domain in evaluation.losses[name]:
            found = evaluation.perplexity(name, domain)
            axes.plot([found.low, found.high], [row, row], color=LINES[0], linewidth=1.6, alpha=0.5)
            axes.plot([found.value], [row], marker="o", markersize=4, color=LINES[0])
    axes.set_title(domain, fontsize=10.5, color=INK, loc="left", parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    labels = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
    axes.set_yticks(range(len(names)), labels if named else [""] * len(names))
    for label in axes.get_yticklabels():
        label.set(fontsize=8.5, color=INK, parse_math=False)
    axes.set_xlabel("answer perplexity, 95 % interval", fontsize=8, color=FAINT)
    axes.grid(axis="x", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=FAINT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
