"""Charts of the overlap, in markup alone: they follow the page's theme, and no number needs a mouse."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence

from hub_merge.scores import ModuleScore, PairScore, Scores
from hub_merge.studio.views.markup import Markup, el, folded_table, joined, number

__all__ = ["depth", "heat_map", "retention_bars"]

LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 250, 40, 10, 12, 42
MOST_LINES = 6
"""Pairs that are drawn; the most alike first."""


def heat_map(scores: Scores) -> Markup:
    """Return the RMS cosine of every pair as a table whose cells are shaded by it."""
    matrix = scores.matrix()
    head = el("tr", el("td"), *(el("th", el("span", name), scope="col") for name in scores.adapters))
    rows = [
        el(
            "tr",
            el("th", name, scope="row"),
            *(_cell(scores, i, j, value) for j, value in enumerate(row)),
        )
        for i, (name, row) in enumerate(zip(scores.adapters, matrix, strict=True))
    ]
    return joined(
        el("h3", "How much they overlap", class_="hm-sub"),
        el(
            "p",
            "RMS cosine of each pair: 0 is orthogonal, 1 the same direction. It describes geometry; how well the "
            "result works has to be measured.",
            class_="hm-note",
        ),
        el(
            "div",
            el("table", el("thead", head), el("tbody", *rows), class_="hm-heat"),
            class_="hm-scroll",
            tabindex="0",
            role="region",
            aria_label="Overlap of each pair",
        ),
        *(el("p", text, class_="hm-note") for text in _remarks(scores.pairs)),
    )


def _cell(scores: Scores, i: int, j: int, value: float | None) -> Markup:
    if i == j:
        return el("td", "1", class_="hm-self")
    if value is None:
        return el("td", "–", title="no module in common, or a delta of zero")
    pair = next(p for p in scores.pairs if {p.first, p.second} == {scores.adapters[i], scores.adapters[j]})
    chance = f"by chance {pair.chance or 0:.4f}, {pair.shared_modules} modules"
    tip = f"{pair.first} + {pair.second}: RMS cosine {value:.4f}, {chance}"
    return el(
        "td",
        number(value, 2 if value >= 0.1 else 3),
        style=f"--share:{min(1.0, value):.3f}",
        class_="hm-strong" if value > 0.5 else None,
        title=tip,
    )


def _remarks(pairs: Sequence[PairScore]) -> list[str]:
    times = [pair.times_chance for pair in pairs if pair.times_chance is not None]
    told = []
    if times:
        low, high = min(times), max(times)
        span = f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"
        told.append(f"That is {span} times what unrelated deltas of these shapes would give.")
    if any(pair.one_start for pair in pairs):
        told.append("Their lora_A started alike, as from one seed; that alone raises the overlap.")
    return told


# --- through the depth ------------------------------------------------------------------------------------------------


def _by_layer(modules: Mapping[str, ModuleScore]) -> dict[int, float]:
    """Return the RMS cosine of each layer's modules."""
    squares: dict[int, list[float]] = {}
    for name, score in modules.items():
        if (found := LAYER.search(name)) and score.cosine is not None:
            squares.setdefault(int(found[1]), []).append(score.cosine**2)
    return {layer: math.sqrt(sum(values) / len(values)) for layer, values in sorted(squares.items())}


def depth(scores: Scores) -> Markup:
    """Return the overlap of the most similar pairs layer by layer; the arrow keys read it out."""
    pairs = sorted(scores.pairs, key=lambda pair: -(pair.rms_cosine or 0.0))[:MOST_LINES]
    lines = [(f"{pair.first} + {pair.second}", _by_layer(pair.modules)) for pair in pairs]
    lines = [(name, values) for name, values in lines if len(values) > 1]
    if not lines:
        return Markup("")
    layers = sorted({layer for _, values in lines for layer in values})
    top = _ceiling(max(max(values.values()) for _, values in lines))
    return joined(
        el("h3", "Where they overlap, layer by layer", class_="hm-sub"),
        el(
            "div",
            _drawing(lines, layers, top),
            el("p", "Point at the chart, or use the arrow keys.", class_="hm-readout", aria_live="polite"),
            _legend([name for name, _ in lines]),
            class_="hm-depth",
            data_layers=json.dumps(layers),
            data_lines=json.dumps([[name, [values.get(layer) for layer in layers]] for name, values in lines]),
            data_frame=json.dumps([LEFT, WIDTH - RIGHT, WIDTH]),
        ),
        _numbers(lines, layers),
    )


def _ceiling(value: float) -> float:
    return next((step for step in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if value <= step), 1.0)


def _drawing(lines: Sequence[tuple[str, Mapping[int, float]]], layers: Sequence[int], top: float) -> Markup:
    span = max(1, layers[-1] - layers[0])

    def x(layer: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (layer - layers[0]) / span

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / top)

    grid = [
        joined(
            el("line", x1=LEFT, x2=WIDTH - RIGHT, y1=round(y(value), 1), y2=round(y(value), 1), class_="hm-grid"),
            el("text", f"{value:g}", x=LEFT - 8, y=round(y(value) + 4, 1), text_anchor="end"),
        )
        for value in (0.0, top / 2, top)
    ]
    every = max(1, math.ceil(len(layers) / 8))
    ticks = [el("text", layer, x=round(x(layer), 1), y=HEIGHT - 22, text_anchor="middle") for layer in layers[::every]]
    curves = [
        el(
            "polyline",
            points=" ".join(f"{x(layer):.1f},{y(value):.1f}" for layer, value in values.items()),
            class_=f"hm-line hm-c{place}",
        )
        for place, (_, values) in enumerate(lines)
    ]
    return el(
        "svg",
        *grid,
        *ticks,
        el("text", "layer", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle", class_="hm-axis"),
        *curves,
        el("line", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM, class_="hm-cursor"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex="0",
        aria_label=f"RMS cosine by layer of {', '.join(name for name, _ in lines)}; the table below has the numbers.",
    )


def _legend(names: Sequence[str]) -> Markup:
    keys = [el("li", el("span", class_=f"hm-key hm-k{place}"), name) for place, name in enumerate(names)]
    return el("ul", *keys, class_="hm-legend")


def _numbers(lines: Sequence[tuple[str, Mapping[int, float]]], layers: Sequence[int]) -> Markup:
    head = el("tr", el("th", "Layer", scope="col"), *(el("th", name, scope="col") for name, _ in lines))
    rows = [
        el("tr", el("th", layer, scope="row"), *(el("td", number(values.get(layer), 3)) for _, values in lines))
        for layer in layers
    ]
    return folded_table("The numbers by layer", "Overlap by layer", head, rows)


# --- retention --------------------------------------------------------------------------------------------------------


def retention_bars(names: Sequence[str], kept: Sequence[float | None], note: str) -> Markup:
    """Return how much of each adapter's delta lies in the merge along it, as bars on one scale; 1 is marked."""
    known = [abs(value) for value in kept if value is not None]
    top = max([1.25, *known]) * 1.05
    rows = [
        el(
            "li",
            el("span", name, class_="hm-bar-name"),
            el(
                "span",
                el(
                    "span",
                    class_=f"hm-bar-fill{' hm-negative' if (value or 0) < 0 else ''}",
                    style=f"width:{100 * abs(value or 0) / top:.1f}%",
                ),
                el("span", class_="hm-bar-one", style=f"left:{100 / top:.1f}%"),
                class_="hm-bar-track",
                aria_hidden="true",
            ),
            el("span", number(value), class_="hm-bar-value"),
        )
        for name, value in zip(names, kept, strict=True)
    ]
    return joined(
        el("h3", "How much of each is kept", class_="hm-sub"),
        el("ul", *rows, class_="hm-bars"),
        el("p", note, class_="hm-note"),
    )
