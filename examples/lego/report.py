"""Tables of the comparison, from ``results.json`` alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["report"]

RANK = 4
"""That of the adapters."""

GROUPS = {
    "equal rank": (
        "Methods at rank 4",
        "All three adapters, weights 1, every composite of rank 4. TIES and DARE work on the entries of the deltas, as "
        "in their papers, and keep a fifth and half of them; the rest has its defaults. `linear`, as PEFT has it, adds "
        "the factors: where all trainings started from one lora_A, that makes three times the sum.",
    ),
    "own rank": (
        "At the methods' own rank",
        "The same at rank 12, where a sum needs no truncation; methods that keep less have less.",
    ),
    "reweighting": (
        "LEGO without one or both reweightings",
        "Faithful LEGO of all three adapters. At their rank 4, the factor sqrt(r/k) of the output is 1.",
    ),
    "by rank": ("Other ranks", "Faithful and canonical LEGO beside the truncated sum of the same rank."),
    "gauge": (
        "The same adapters, written differently",
        "Medicine's factors are replaced by others with the same product. Faithful LEGO sees other units; in singular "
        "form it sees the same.",
    ),
    "mixed ranks": (
        "Adapters of different ranks",
        "Math of rank 8 with rsLoRA, medicine of rank 4, finance of rank 2 on two of the four projections; composites "
        "of rank 4 unless stated.",
    ),
    "compression": ("One adapter, compressed", "Medicine alone; compared with itself as it was trained, rank 4."),
}


def report(results: Mapping[str, Any]) -> str:
    """Return RESULTS.md."""
    parts = [head(results), section(results, "reference")]
    for group, (title, text) in GROUPS.items():
        if any(subject["group"] == group for subject in results["subjects"]):
            parts += [f"## {title}", text, section(results, group)]
    parts += ["## What was seen", "\n".join(f"- {line}" for line in seen(results))]
    return "\n\n".join(parts) + "\n"


def seen(results: Mapping[str, Any]) -> Iterable[str]:
    """Yield what the tables say about the claims of the paper."""
    means = {(subject["group"], subject["name"]): subject["mean"] for subject in results["subjects"]}
    equal = sorted((mean, name) for (group, name), mean in means.items() if group == "equal rank")
    best = next((place, name, mean) for place, (mean, name) in enumerate(equal, 1) if name.startswith("lego"))
    plain = means["equal rank", "sum (svd)"]
    yield (
        f"At rank 4 the best is {equal[0][1]} ({equal[0][0]:.2f}); the best form of LEGO, {best[1]} ({best[2]:.2f}), "
        f"is number {best[0]} of {len(equal)}, {percent(best[2], plain)} against the truncated sum."
    )
    faithful = means["equal rank", "lego, faithful"]
    usual = {RANK: faithful, 8: means["by rank", "lego, faithful, rank 8"]}
    for subject in results["subjects"]:
        if subject["group"] == "reweighting":
            other = usual[subject["settings"]["rank"]]
            yield f"LEGO, {subject['name']}: {subject['mean']:.2f}; with both reweightings: {other:.2f}."
    gauges = [mean for (group, name), mean in means.items() if group == "gauge" and "faithful" in name]
    yield (
        f"One and the same delta of medicine, written in other factors, takes faithful LEGO from {faithful:.2f} "
        f"to between {min(gauges):.2f} and {max(gauges):.2f}; in singular form it stays at "
        f"{means['gauge', 'lego, svd form, another basis']:.2f} (before: {means['equal rank', 'lego, svd form']:.2f})."
    )
    for rank in (2, 1):
        cut, clustered = (means["compression", f"{name}, rank {rank}"] for name in ("svd", "lego, faithful"))
        yield f"Medicine alone at rank {rank}: {clustered:.2f} by faithful LEGO, {cut:.2f} by truncation."


def percent(value: float, other: float) -> str:
    """Return by how much a value differs from another."""
    return f"{100 * (value / other - 1):+.1f} %"


def head(results: Mapping[str, Any]) -> str:
    """Return what was done."""
    rows = ", ".join(f"{count} of {name}" for name, count in results["rows"].items())
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return f"""# LEGO, measured

Made by `compare.py`; the [README](README.md) says how to make it again.

What [arXiv 2409.16167](https://arxiv.org/abs/2409.16167) proposes, on adapters of {results["base"]} that were trained
with rank 4 on math, medicine and finance. First held-out rows: {rows}. A figure is the perplexity of the answer's
tokens, every token weighing the same; brackets hold 95 % bootstrap intervals over rows. The last column is the change
of the mean of the perplexities against one adapter of rank 4 that was trained on the data of all three together
(merged data), with rows drawn for both at once. Computed in {results["dtype"]} ({versions})."""


def section(results: Mapping[str, Any], group: str) -> str:
    """Return the table of one group."""
    subjects = [subject for subject in results["subjects"] if subject["group"] == group]
    domains = list(subjects[0]["perplexity"])
    rows = [
        [subject["name"], *(estimate(subject["perplexity"][domain]) for domain in domains), *summary(subject)]
        for subject in sorted(subjects, key=lambda subject: subject["mean"])
    ]
    return table(["", *domains, "mean", "change"], rows)


def estimate(value: Mapping[str, float]) -> str:
    """Return a perplexity with its interval."""
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def summary(subject: Mapping[str, Any]) -> list[str]:
    """Return the mean and how it compares."""
    against = subject["against"]
    if against is None or against["ratio"] == 1.0:
        return [f"{subject['mean']:.2f}", ""]
    ratio, low, high = (100 * (against[key] - 1) for key in ("ratio", "low", "high"))
    return [f"{subject['mean']:.2f}", f"{ratio:+.1f} % [{low:+.1f}, {high:+.1f}]"]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    place = Path(__file__).parent
    place.joinpath("RESULTS.md").write_text(
        report(json.loads(place.joinpath("results.json").read_text(encoding="utf-8"))), encoding="utf-8"
    )
