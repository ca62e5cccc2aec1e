"""The map of an index as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hub_merge.plots import draw_to
from hub_merge.zoo.families import Families

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_map"]

MOST_NAMED = 10
"""Families that have a colour and a name, as many as matplotlib's cycle has colours."""
SIZE = (9.2, 5.2)


def draw_map(found: Families, path: Path) -> None:
    """Draw a dot an adapter, in the colour of its family; those of other families or of none are pale.

    Args:
        found: The families and the map.
        path: File to write: ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        HubMergeError: matplotlib is not installed, or the suffix is another one.
    """
    draw_to(path, lambda figure: _draw(found, figure))


def _draw(found: Families, figure: Figure) -> None:
    figure.set_size_inches(*SIZE)
    axes = figure.add_axes((0.05, 0.08, 0.58, 0.84))
    row_of = {int(place): row for row, place in enumerate(found.places)}
    named = found.families[:MOST_NAMED]
    others = set(row_of.values()) - {row_of[place] for family in named for place in family.places}
    x, y = found.map[sorted(others)].T
    axes.scatter(x, y, s=8, color="#d0d7de", linewidths=0, label=f"{len(others)} others")
    for family in named:
        dots = found.map[[row_of[place] for place in family.places]]
        axes.scatter(
            dots[:, 0], dots[:, 1], s=16, alpha=0.8, linewidths=0, label=f"{family.members[0].key[:40]} ({len(dots)})"
        )
    axes.set_title("Families of adapters: two directions of their sketches", fontsize=10.5, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
