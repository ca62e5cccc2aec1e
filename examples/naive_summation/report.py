"""Write RESULTS.md and its picture from the measurements.

python report.py results.json -o .
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conclusions import verdicts
from picture import draw
from prediction import PREDICTORS, Correlation, Point, between, overall, points, seed_effect, within
from results import DOMAINS, METHODS, PAPER, Subject, against_baseline, composites, cosine, damage, named

from hub_merge.plots import draw_to


def main() -> None:
    """Read, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path())
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    (options.output / "RESULTS.md").write_text(report(results), encoding="utf-8")
    draw_to(options.output / "change.png", lambda figure: draw(results, figure))


def report(results: Mapping[str, Any]) -> str:
    """Return RESULTS.md."""
    parts = [
        head(results),
        "## Perplexity of answers",
        measured(results),
        "## Beside the paper",
        beside_the_paper(results),
        "## What predicts the loss",
        prediction(results),
        "## One start or two",
        starts(results),
        "## What agrees, and what does not",
        verdicts(results),
    ]
    return "\n\n".join(parts) + "\n"


def head(results: Mapping[str, Any]) -> str:
    """Return what was done."""
    rows = ", ".join(f"{count} of {name}" for name, count in results["rows"].items())
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return f"""# Naive summation, measured

Made by `report.py` from `results.json`; the [README](README.md) says how to make it again.

The protocol of [arXiv 2508.11985](https://arxiv.org/abs/2508.11985) on {results["base"]}: LoRA of rank 4 and alpha 64,
trained on math, medicine and finance, merged-data baselines of every combination, and plain sums and means of the
adapters. First held-out rows: {rows}. A figure is the perplexity of the answer's tokens, the end-of-text token among
them, given the question; every token weighs the same. Brackets hold 95 % bootstrap intervals over rows. Computed in
{results["dtype"]} ({versions}).

It differs from the paper in the model (there GPT-2 Small), in the data, and in the figure: the code that matches the
paper's setting scores answers position by position against questions, padding included. So levels cannot be compared;
order and sign can. The weights of the base are those of its 4-bit GGUF file, de-quantised."""


def estimate(value: Mapping[str, float] | None) -> str:
    """Return a perplexity with its interval."""
    return "" if value is None else f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def change(difference: Mapping[str, float] | None) -> str:
    """Return a ratio as a change with its interval."""
    if difference is None:
        return ""
    ratio, low, high = (100 * (difference[key] - 1) for key in ("ratio", "low", "high"))
    return f"{ratio:+.1f} % [{low:+.1f}, {high:+.1f}]"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def measured(results: Mapping[str, Any]) -> str:
    """Return the table of everything that was measured."""
    rows = []
    for subject in sorted(results["subjects"], key=place):
        compared = against_baseline(results, subject) if subject["kind"] in METHODS else None
        seeds = ", ".join(map(str, subject["seeds"]))
        what = named(subject["domains"]) if subject["kind"] != "base" else "the base"
        found = {domain: parts["answer"] for domain, parts in subject["perplexity"].items()}
        cells = [estimate(found.get(domain)) for domain in DOMAINS]
        mean = compared["mean"]["answer"] if compared else None
        rows.append([what, "" if subject["kind"] == "base" else subject["kind"], seeds, *cells, change(mean)])
    note = (
        "Seeds stand in the order finance, math, medicine. The last column is the change of the mean perplexity of the "
        "domains against merged-data training, paired by row."
    )
    header = ["trained on", "how", "seeds", *DOMAINS, "against merged data"]
    return f"{table(header, rows)}\n\n{note}"


def place(subject: Subject) -> tuple[Any, ...]:
    """Return where a subject stands in the table."""
    order = ("base", "single", "merged data", *METHODS)
    many = 0 if subject["kind"] == "base" else len(subject["domains"])
    return many, named(subject["domains"]) if many else "", order.index(subject["kind"]), subject["seeds"]


def beside_the_paper(results: Mapping[str, Any]) -> str:
    """Return the changes against merged-data training, ours over all seeds and the paper's."""
    rows = []
    for domains in [*PAPER, tuple(sorted(DOMAINS))]:
        sums = composites(results, "sum", domains)
        if not sums:
            continue
        stated = f"{100 * PAPER[domains]:+.2f} %" if domains in PAPER else "not read"
        cells = [change(against_baseline(results, sums[0])["mean"]["answer"])]
        for kind in METHODS:
            values = [100 * damage(results, subject) for subject in composites(results, kind, domains)]
            cells.append(spread(values))
        cosines = [cosine(results, subject) for subject in sums]
        rows.append([named(domains), stated, *cells, f"{cosines[0]:.3f}", f"{min(cosines):.3f}"])
    header = [
        "domains",
        "paper, sum",
        "sum, seed 0",
        "sum, all seeds",
        "mean, all seeds",
        "RMS cosine, seed 0",
        "smallest",
    ]
    note = "Numbers in brackets behind a range count the combinations of seeds; there is one merged-data baseline each."
    return f"{table(header, rows)}\n\n{note}\n\n![Change against RMS cosine](change.png)"


def spread(values: Sequence[float]) -> str:
    """Return the range of some percentages and their number."""
    if len(values) < 2:
        return "".join(f"{value:+.1f} % (1)" for value in values)
    return f"{min(values):+.1f} to {max(values):+.1f} % ({len(values)})"


def value_of(number: float | None) -> str:
    """Return a coefficient."""
    return "" if number is None or math.isnan(number) else f"{number:+.2f}"


def prediction(results: Mapping[str, Any]) -> str:
    """Return how well geometry predicts what each adapter loses in the sum of a pair."""
    found = points(results)
    rows = [[title, *coefficients(found, name)] for name, title in PREDICTORS.items()]
    tasks, sums = len({point.task for point in found}), len({point.sum for point in found})
    header = [
        "geometry",
        "all: Pearson",
        "Spearman",
        "between tasks: Pearson",
        "Spearman",
        "within: Pearson",
        "Spearman",
    ]
    losses = sorted(point.loss for point in found)
    return f"""The loss is the log of the answer perplexity on a domain's questions in the sum of a pair, over that
of the domain's own adapter; it runs from {losses[0]:.3f} to {losses[-1]:.3f}. There are {len(found)} of them ({sums}
sums, two domains each), but only {tasks} tasks (a domain and its partner): sums with other seeds repeat them. Over all
points the interval resamples sums. Between tasks, seeds are averaged, n = {tasks}, and p is that of all permutations.
Within tasks, their means are taken out and p permutes seeds.

{table(header, rows)}

With the initialisation taken out, the cosine is that of `B (A - A at the start)`; the start follows from the seed.
Retention is the share of an adapter's delta that lies in the sum along it."""


def coefficients(found: Sequence[Point], predictor: str) -> list[str]:
    """Return a row of coefficients with what is known of their chance."""
    every, tasks, seeds = overall(found, predictor), between(found, predictor), within(found, predictor)

    def with_p(correlation: Correlation) -> list[str]:
        if math.isnan(correlation.pearson):
            return ["", ""]
        return [f"{value_of(correlation.pearson)} (p {correlation.p:.2f})", value_of(correlation.spearman)]

    interval = f"[{value_of(every.low)}, {value_of(every.high)}]"
    return [
        f"{value_of(every.pearson)} {interval}",
        value_of(every.spearman),
        *with_p(tasks),
        *with_p(seeds),
    ]


def starts(results: Mapping[str, Any]) -> str:
    """Return what a shared initialisation does, by task."""
    rows = [
        [
            f"{entry['task'][0]}, merged with {entry['task'][1]}",
            f"{entry['cosine_one_start']:.3f}",
            f"{entry['cosine_other']:.3f}",
            f"{100 * entry['one_start']:+.1f} %",
            f"{100 * entry['other']:+.1f} %",
        ]
        for entry in seed_effect(points(results))
    ]
    header = ["what is measured", "RMS cosine, one start", "another start", "loss, one start", "another start"]
    if not rows:
        return "No pair was measured both with one start and with another."
    return (
        "Two trainings of one seed start from one lora_A. The loss is the change of answer perplexity in the sum of "
        f"the pair against the domain's own adapter, averaged over the sums of that kind.\n\n{table(header, rows)}"
    )


if __name__ == "__main__":
    main()
