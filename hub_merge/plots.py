"""Pictures of the scores. They need matplotlib, which the extra ``plot`` brings."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING
from warnings import catch_warnings

from hub_merge.errors import HubMergeError
from hub_merge.scores import PairScore, Scores
from hub_merge.workspace import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FAINT", "INK", "LINES", "MARKERS", "PALE", "draw_to", "heat_map", "require_drawing"]

METADATA: Mapping[str, Mapping[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Creator": None, "Date": None},
    ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
"""What a file of each kind must not say, so that the same scores give the same bytes."""

INK, FAINT, OTHERS, PALE = "#1f2328", "#6e7781", "#d0d7de", "#eaeef2"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's colours, told apart by colour-blind readers too."""
MARKERS = ("o", "s", "^", "D", "v", "P")

ONE_AT_A_TIME = Lock()
"""matplotlib's settings and the filter of warnings are set back afterwards, but belong to the whole process."""

BLANK = "–"
NO_VALUE = f"\n{BLANK} no shared module, or a delta of zero"

WIDTH, HALF, TOP = 9.2, 4.25, 0.5
"""Width of the picture, where its left half ends, and room for the titles; inches."""

NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def heat_map(scores: Scores, path: Path) -> None:
    """Draw the RMS cosine of every pair, and the cosines of the most similar pairs through the depth of the model.

    Args:
        scores: Scores of one or more adapters.
        path: File to write; its suffix ``.png``, ``.svg`` or ``.pdf`` decides the format.

    Raises:
        HubMergeError: matplotlib is not installed, or the suffix is another one.
    """
    draw_to(path, lambda figure: _draw(scores, figure))


def draw_to(path: Path, draw: Callable[[Figure], None]) -> None:
    """Write what ``draw`` puts on a figure, whole or not at all; the same drawing gives the same bytes.

    Args:
        path: File to write; its suffix ``.png``, ``.svg`` or ``.pdf`` decides the format.
        draw: Sets the size of the figure and fills it.

    Raises:
        HubMergeError: matplotlib is not installed, or the suffix is another one.
    """
    require_drawing(path)
    from matplotlib import style
    from matplotlib.figure import Figure

    suffix = path.suffix.lower()
    picture = BytesIO()
    with ONE_AT_A_TIME, style.context(["default", {"svg.hashsalt": "hub-merge"}]), catch_warnings(action="ignore"):
        figure = Figure(facecolor="white")
        draw(figure)
        figure.savefig(picture, format=suffix[1:], dpi=200, metadata=dict(METADATA[suffix]))
    write_whole(path, picture.getvalue())


def require_drawing(path: Path) -> None:
    """Find out before long work whether its picture can be drawn.

    Raises:
        HubMergeError: matplotlib is not installed, or the suffix is another one than those of ``draw_to``.
    """
    if path.suffix.lower() not in METADATA:
        raise HubMergeError(f"Pictures cannot be written as {path.name}.", remedy="End the name in .png, .svg or .pdf.")
    try:
        import matplotlib.figure
        import matplotlib.style  # noqa: F401
    except ImportError as error:
        raise HubMergeError("Pictures need matplotlib.", remedy="pip install 'hub-merge[plot]'") from error


def _draw(scores: Scores, figure: Figure) -> None:
    names = [_shortened(name, 18) for name in scores.adapters]
    letters = max(map(len, names))
    size = min(_text_size(len(names)), 10 if letters <= 12 else 8.5)
    margin = max(0.75, 0.25 + letters * size / 120)
    side = min(HALF - margin, 2.6 if len(names) <= 2 else 3.1)
    slanted = letters * size / 100 > side / len(names)
    bar = TOP + side + (0.3 + 0.55 * margin if slanted else 0.4)
    height = max(bar + 0.8, TOP + side + 0.65 + 0.18 * _legend_rows(scores.pairs))
    figure.set_size_inches(WIDTH, height)

    def place(left: float, top: float, width: float, tall: float) -> Axes:
        return figure.add_axes((left / WIDTH, 1 - (top + tall) / height, width / WIDTH, tall / height))

    matrix = place(margin, TOP, side, side)
    _draw_matrix(scores.matrix(), matrix, size)
    _write_names(names, matrix, size, slanted=slanted)
    incomplete = any(pair.rms_cosine is None for pair in scores.pairs)
    _draw_bar(matrix, place(margin, bar, side, 0.12), figure, NO_VALUE if incomplete else "")
    _draw_depth(scores.pairs, place(HALF + 0.8, TOP, WIDTH - HALF - 0.95, side))


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10.5, color=INK, loc="left", pad=10)


def _shortened(name: str, longest: int) -> str:
    """Return ``name`` in printable characters, a long one without its middle."""
    shown = "".join(character if character.isprintable() else "�" for character in name)
    half = (longest - 1) // 2
    return shown if len(shown) <= longest else f"{shown[:half]}…{shown[-half:]}"


# --- the matrix -------------------------------------------------------------------------------------------------------


def _draw_matrix(matrix: Sequence[Sequence[float | None]], axes: Axes, size: float) -> None:
    shades = [
        [math.nan if value is None or i == j else value for j, value in enumerate(row)] for i, row in enumerate(matrix)
    ]
    axes.imshow(shades, cmap="magma_r", vmin=0, vmax=1)
    axes.set_facecolor(PALE)
    _title(axes, "orthogonality score: RMS cosine of deltas")
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            color = FAINT if i == j or value is None else "white" if value > 0.4 else INK
            text = "1" if i == j else BLANK if value is None else _short(value, len(matrix))
            axes.text(j, i, text, ha="center", va="center", fontsize=size, color=color)


def _write_names(names: Sequence[str], axes: Axes, size: float, *, slanted: bool) -> None:
    places = range(len(names))
    axes.set_xticks(places, names, rotation=40 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(places, names)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set(fontsize=size, color=INK, parse_math=False, rotation_mode="anchor")
    axes.set_xticks([place + 0.5 for place in places], minor=True)
    axes.set_yticks([place + 0.5 for place in places], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def _draw_bar(matrix: Axes, axes: Axes, figure: Figure, note: str) -> None:
    bar = figure.colorbar(matrix.images[0], cax=axes, orientation="horizontal", ticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_xticklabels(["0 orthogonal", "0.25", "0.5", "0.75", "1 parallel"], fontsize=8, color=FAINT)
    axes.tick_params(color=FAINT)
    bar.set_label(f"describes geometry, does not predict quality{note}", fontsize=8, color=FAINT)
    bar.outline.set_visible(False)


def _text_size(count: int) -> float:
    return 10 if count <= 4 else 8.5 if count <= 6 else 7.5 if count <= 8 else 60 / count


def _short(value: float, count: int) -> str:
    """Return a cell's text; in a large matrix without the leading zero."""
    if value < 5e-4:
        return f"{value:.0e}".replace("e-0", "e-") if value else "0"
    text = f"{value:#.2g}"
    return text.removeprefix("0") if count > 6 else text


# --- the depth --------------------------------------------------------------------------------------------------------


def _draw_depth(pairs: Sequence[PairScore], axes: Axes) -> None:
    measured = sorted((pair for pair in pairs if pair.rms_cosine is not None), key=lambda pair: -(pair.rms_cosine or 0))
    if not measured:
        reason = "no pair has a module in common" if pairs else "one adapter: there is no pair to compare"
        axes.text(0.5, 0.5, reason, ha="center", va="center", fontsize=9, color=FAINT, transform=axes.transAxes)
        axes.set_axis_off()
        return
    place, by_layer = _places({module for pair in measured for module in pair.modules})
    for pair in measured[len(LINES) :]:
        axes.plot(*_by_place(pair, place), color=OTHERS, linewidth=0.8, zorder=1)
    for pair, color, marker in zip(measured, LINES, MARKERS, strict=False):
        _draw_pair(pair, place, color, marker, axes)
    _draw_chance(measured, place, axes)
    _scale(measured, axes)
    _write_scale(axes, by_layer=by_layer)
    _write_legend(len(measured) - len(LINES), axes)


def _draw_pair(pair: PairScore, place: Mapping[str, int], color: str, marker: str, axes: Axes) -> None:
    cosines = {module: abs(entry.cosine) for module, entry in pair.modules.items() if entry.cosine}
    where = [place[module] for module in cosines]
    axes.scatter(where, list(cosines.values()), s=6, color=color, alpha=0.3, linewidths=0, zorder=2)
    label = f"{_shortened(pair.first, 11)} {BLANK} {_shortened(pair.second, 11)}"
    line = axes.plot(*_by_place(pair, place), color=color, linewidth=1.4, marker=marker, markersize=3, zorder=3)
    line[0].set_label(label)


def _draw_chance(pairs: Sequence[PairScore], place: Mapping[str, int], axes: Axes) -> None:
    chances = [(place[module], entry.chance) for pair in pairs for module, entry in pair.modules.items()]
    where, levels = _rms_by_place(chances)
    ends = [where[0] - 0.5, *where, where[-1] + 0.5], [levels[0], *levels, levels[-1]]
    axes.plot(*ends, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="level of chance", zorder=4)
    axes.set_xlim(where[0] - 0.8, where[-1] + 0.8)


def _scale(pairs: Sequence[PairScore], axes: Axes) -> None:
    """Show every cosine down to a tenth of what chance gives."""
    entries = [entry for pair in pairs for entry in pair.modules.values()]
    chance = min(entry.chance for entry in entries)
    lowest = min((abs(entry.cosine) for entry in entries if entry.cosine), default=chance)
    axes.set_yscale("log")
    axes.set_ylim(min(max(lowest, chance / 10), chance / 1.2, 0.1) / 1.3, 1.3)


def _write_scale(axes: Axes, *, by_layer: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    _title(axes, "|cosine| by layer" if by_layer else "|cosine| by module")
    if by_layer:
        axes.set_xlabel("layer (dots: its modules, line: their RMS)", fontsize=8.5, color=FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(which="both", labelsize=8, color=FAINT, labelcolor=FAINT)


def _write_legend(others: int, axes: Axes) -> None:
    if others > 0:
        axes.plot([], [], color=OTHERS, linewidth=0.8, label=f"{others} other pair{'s' * (others > 1)}")
    below = -0.5 * axes.figure.dpi / axes.bbox.height
    legend = axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.45, below),
        ncols=2,
        fontsize=8,
        frameon=False,
        labelcolor=INK,
        columnspacing=1.2,
        handlelength=1.8,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _legend_rows(pairs: Sequence[PairScore]) -> int:
    """Return how many rows the legend has, in two columns."""
    return (min(len(pairs), len(LINES) + 1) + 2) // 2


def _places(modules: Iterable[str]) -> tuple[dict[str, int], bool]:
    """Return where each module stands on the axis: at the number in its name, or in order if one has none."""
    numbers = {module: NUMBER.search(module) for module in modules}
    by_layer = all(numbers.values())
    if by_layer:
        return {module: int(found[1]) for module, found in numbers.items() if found}, by_layer
    return {module: place for place, module in enumerate(sorted(numbers))}, by_layer


def _by_place(pair: PairScore, place: Mapping[str, int]) -> tuple[list[int], list[float]]:
    return _rms_by_place((place[module], entry.cosine) for module, entry in pair.modules.items() if entry.cosine)


def _rms_by_place(values: Iterable[tuple[int, float]]) -> tuple[list[int], list[float]]:
    squares: dict[int, list[float]] = {}
    for place, value in values:
        squares.setdefault(place, []).append(value * value)
    return sorted(squares), [math.sqrt(sum(squares[place]) / len(squares[place])) for place in sorted(squares)]
