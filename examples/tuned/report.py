"""Tables of the tuned composites, from ``results.json`` alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["report"]


def report(results: Mapping[str, Any]) -> str:
    """Return RESULTS.md."""
    parts = [head(results), short(results["groups"]), reached(results["groups"])]
    for group in results["groups"]:
        parts += [f"## {' + '.join(group['domains'])}", measured(group), "\n".join(cost(group))]
    return "\n\n".join(parts) + "\n"


def head(results: Mapping[str, Any]) -> str:
    """Return what was done."""
    rows = ", ".join(f"{count} of {name}" for name, count in results["rows"].items())
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return f"""# Merges chosen by measurement

Made by `measure.py`; the [README](README.md) says how to make it again.

Adapters of {results["base"]}, everything of rank 4. Held-out test rows: {rows}; none of them was tuned on. A figure is
the perplexity of the answer's tokens, every token weighing the same; brackets hold 95 % bootstrap intervals over rows.
Changes are those of the mean of the perplexities on the same rows: against one adapter that was trained on the merged
data (800 rows a domain, two epochs), and against the composite tuned by gradient; p is that of a permutation test.
The untuned methods have their defaults, but TIES and DARE work on the entries of the deltas, as in their papers, and
keep a fifth and half of them. Computed in
{results["dtype"]} ({versions}).

`tuned, closed` needs forward passes alone; `tuned, gradient` goes on from there by gradient. It learns from the answers
alone, half from their words and half from what the adapter of the domain would say in their place, where the adapters
and the baseline were trained on questions and answers. The rows of math and finance that it sees are new to both, where
those of medicine are not. It is no training-free merge: read it as what a short training inside the span of the
adapters' units gives."""


def short(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return how the tuned composite of each combination stands against merged data and against the untuned ones."""
    rows = []
    for group in groups:
        entries = {entry["name"]: entry for entry in group["composites"]}
        tuned = entries["tuned, gradient"]
        untuned = [entry for name, entry in entries.items() if name != "merged data" and "tuned" not in name]
        best = min(untuned, key=ratio)
        rows.append(
            [
                " + ".join(group["domains"]),
                estimate(tuned["mean"]),
                estimate(entries["merged data"]["mean"]),
                change(tuned, "merged data"),
                f"{best['name']}: {change(best, 'merged data')}",
            ]
        )
    return table(["mean perplexity", "tuned, gradient", "merged data", "change", "best untuned, change"], rows)


def reached(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return which composites are as good as training on the merged data, and which beat all untuned ones."""
    good, near, best = [], [], []
    for group in groups:
        entries = {entry["name"]: entry for entry in group["composites"]}
        found, name = entries["tuned, gradient"]["against"]["merged data"], " + ".join(group["domains"])
        if found["ratio"] <= 1:
            good.append(name)
        elif found["low"] <= 1:
            near.append(name)
        untuned = [entry for key, entry in entries.items() if key != "merged data" and "tuned" not in key]
        if all(entry["against"]["tuned, gradient"]["low"] > 1 for entry in untuned):
            best.append(name)
    return (
        f"Tuned by gradient, at or below training on the merged data: {listed(good)}; above it, with an interval that "
        f"reaches it: {listed(near)}. Better than every untuned method, with the whole interval: {listed(best)}."
    )


def listed(names: Sequence[str]) -> str:
    """Return names in a line."""
    return ", ".join(names) or "none"


def ratio(entry: Mapping[str, Any]) -> float:
    """Return the mean perplexity of a composite over that of training on merged data, on the same rows."""
    return entry["against"]["merged data"]["ratio"] if entry["name"] != "merged data" else 1.0


def measured(group: Mapping[str, Any]) -> str:
    """Return the table of one combination."""
    rows = [
        [
            entry["name"],
            " + ".join(str(entry["rows"][domain]) for domain in group["domains"]),
            *(estimate(entry["perplexity"][domain]) for domain in group["domains"]),
            estimate(entry["mean"]),
            change(entry, "merged data"),
            change(entry, "tuned, gradient"),
        ]
        for entry in sorted(group["composites"], key=ratio)
    ]
    return table(["rank 4", "rows", *group["domains"], "mean", "against merged data", "against tuned"], rows)


def estimate(value: Mapping[str, float]) -> str:
    """Return a perplexity with its interval."""
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def change(entry: Mapping[str, Any], other: str) -> str:
    """Return how a composite compares with another one on the rows that both were measured on."""
    if entry["name"] == other:
        return ""
    found = entry["against"][other]
    middle, low, high = (100 * (found[key] - 1) for key in ("ratio", "low", "high"))
    chance = f"p {found['p']:.3f}" if found["p"] >= 0.001 else "p < 0.001"
    return f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}], {chance}"


def cost(group: Mapping[str, Any]) -> Iterable[str]:
    """Return what tuning cost and what it showed on its own rows."""
    for how, tuning in group["tuning"].items():
        rows = " + ".join(str(domain["rows"]) for domain in tuning["domains"])
        seen = ", ".join(f"{entry['name']} {entry['mean']:.2f}" for entry in tuning["candidates"])
        spent = tuning["cost"]
        yield (
            f"- {how}: tuned on {rows} rows; {spent['forward_rows']} rows forward, {spent['backward_rows']} backward, "
            f"{spent['seconds']:.0f} s. Mean on these rows: {seen}; chosen: {tuning['chosen']}."
        )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    place = Path(__file__).parent
    results = json.loads(place.joinpath("results.json").read_text(encoding="utf-8"))
    place.joinpath("RESULTS.md").write_text(report(results), encoding="utf-8")
