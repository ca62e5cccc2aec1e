"""The picture: change of perplexity over RMS cosine."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

from results import DOMAINS, METHODS, composites, cosine, damage, named

from hub_merge.plots import FAINT, INK, LINES, MARKERS, PALE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]


def draw(results: Mapping[str, Any], figure: Figure) -> None:
    """Draw the change against merged-data training over RMS cosine, a colour a pair; mixed seeds are hollow."""
    figure.set_size_inches(7.2, 4.2)
    axes = figure.add_axes((0.11, 0.13, 0.86, 0.78))
    pairs = list(combinations(sorted(DOMAINS), 2))
    for domains, color in zip([*pairs, tuple(sorted(DOMAINS))], LINES, strict=False):
        for kind, marker in zip(METHODS, MARKERS, strict=False):
            found = composites(results, kind, domains)
            for number, subject in enumerate(found):
                alike = len(set(subject["seeds"])) == 1
                label = f"{named(domains)}, {kind}" if number == 0 else None
                x, y = cosine(results, subject), 100 * damage(results, subject)
                face = color if alike else "none"
                axes.scatter([x], [y], marker=marker, s=36, edgecolors=color, facecolors=face, label=label)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlim(left=0)
    axes.set_xlabel("RMS cosine of the deltas; filled: one seed, hollow: other seeds", fontsize=8.5, color=FAINT)
    axes.set_ylabel("change of mean answer perplexity, %", fontsize=8.5, color=FAINT)
    axes.set_title("against training on merged data", fontsize=10.5, color=INK, loc="left")
    axes.grid(color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", fontsize=7.5, frameon=False, ncols=2)
