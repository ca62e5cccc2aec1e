"""Draw ``thumbnail.png`` from the scores of the example adapters: ``python spaces/hub-merge/thumbnail.py``."""

from __future__ import annotations

import sys
from pathlib import Path

from hub_merge import Adapter, score
from hub_merge.studio.samples import samples

HERE = Path(__file__).parent
INK, SOFT, ACCENT = "#1c2430", "#55606f", "#0b6b63"


def draw(path: Path) -> None:
    """Draw the picture to ``path``, 1200 by 630 pixels."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    scores = score([Adapter.from_pretrained(folder) for folder in samples().values()])
    figure = Figure(figsize=(12, 6.3), dpi=100, facecolor="#f5f7f9")
    figure.text(0.06, 0.66, "Merge LoRA adapters", fontsize=32, weight="bold", color=INK)
    for line, height in (("See what fits and what would interfere.", 0.53), ("Merge, prove, publish.", 0.44)):
        figure.text(0.06, height, line, fontsize=18, color=SOFT)
    figure.text(0.06, 0.14, "hub_merge", fontsize=20, weight="bold", color=ACCENT)
    axes = figure.add_axes((0.68, 0.24, 0.27, 0.27 * 12 / 6.3))
    matrix = [[0.0 if i == j else value or 0.0 for j, value in enumerate(row)] for i, row in enumerate(scores.matrix())]
    axes.imshow(matrix, cmap=LinearSegmentedColormap.from_list("page", ["#ffffff", ACCENT]), vmin=0, vmax=0.4)
    for i, row in enumerate(scores.matrix()):
        for j, value in enumerate(row):
            text = "1" if i == j else f"{value:.2f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=20, color=SOFT if i == j else INK)
    axes.set_xticks(range(len(scores.adapters)), scores.adapters, fontsize=15, color=INK)
    axes.set_yticks(range(len(scores.adapters)), scores.adapters, fontsize=15, color=INK)
    axes.tick_params(length=0)
    for edge in axes.spines.values():
        edge.set_visible(False)
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "thumbnail.png")
