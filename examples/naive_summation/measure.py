"""Measure base, adapters, merged-data baselines, sums and means on the held-out questions of their domains.

    python measure.py --adapters ADAPTERS --data DATA --rows 100 -o results.json

``DATA/<domain>/test.jsonl`` holds a ``question`` and an ``answer`` a line. Rows that were measured are kept in the
journal, so the command can be stopped, repeated after more adapters were trained, and asked for more rows.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geometry
from study import METHODS, Subject, found_in, subjects

from hub_merge.bases import read_base
from hub_merge.evaluate import (
    Evaluation,
    LanguageModel,
    QuestionSet,
    compare,
    compare_means,
    evaluate,
    mean_perplexity,
    perplexity,
    read_questions,
)
from hub_merge.evaluate.losses import Loss

PARTS = ("answer", "text")
PACKAGES = ("hub-merge", "numpy", "torch", "transformers", "peft")


def main() -> None:
    """Measure, and write the results."""
    options = arguments()
    named = re.compile(options.only)
    asked = [subject for subject in subjects(found_in(options.adapters)) if named.fullmatch(subject.name)]
    sets = {
        name: read_questions(options.data / name / "test.jsonl", name=name, limit=options.rows)
        for name in sorted({name for subject in asked for name in subject.domains})
    }
    model = LanguageModel.load(options.weights or options.base, dtype=options.dtype, most_tokens=options.most_tokens)
    losses = {}
    for subject in asked:
        everywhere = subject.kind in ("base", "single")
        chosen = [entry for name, entry in sets.items() if everywhere or name in subject.domains]
        losses[subject.name] = measured(model, subject, chosen, options.journal)
    begun = geometry.starts(model.model, sorted({seed for subject in asked for seed in subject.seeds}))
    results = {
        "base": read_base(options.base).label,
        "dtype": model.dtype,
        "most_tokens": model.most_tokens,
        "rows": {name: len(entry.questions) for name, entry in sets.items()},
        "versions": {name: version(name) for name in PACKAGES},
        "subjects": [described(subject, losses) for subject in asked],
        "geometry": [geometry.described(subject, begun) for subject in asked if subject.kind == "sum"],
    }
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=Path, required=True, help="Folder with a folder an adapter.")
    parser.add_argument("--data", type=Path, required=True, help="Folder with a folder a domain.")
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="Hub id, also gpt2.")
    parser.add_argument("--weights", type=Path, help="GGUF file to read the base from.")
    parser.add_argument("--only", default=".*", help="Regular expression of the names to measure.")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, help="Rows a domain; all by default.")
    parser.add_argument("--most-tokens", type=int, help="Longer texts are cut; none by default.")
    parser.add_argument("--journal", type=Path, default=Path("rows.jsonl"), help="File of rows that were measured.")
    parser.add_argument("-o", "--output", type=Path, default=Path("results.json"))
    return parser.parse_args()


def measured(
    model: LanguageModel, subject: Subject, sets: Sequence[QuestionSet], journal: Path
) -> Mapping[str, Sequence[Loss]]:
    """Return the losses of one subject by domain, and say what they come to."""
    found: Evaluation = evaluate(model, {subject.name: subject.adapter}, sets, journal=journal)
    figures = ", ".join(f"{entry.name} {found.perplexity(subject.name, entry.name).value:.3f}" for entry in sets)
    print(f"{subject.name}: {figures}", file=sys.stderr, flush=True)
    return found.losses[subject.name]


def described(subject: Subject, losses: Mapping[str, Mapping[str, Sequence[Loss]]]) -> dict[str, Any]:
    """Return the figures of one subject, compared with the baseline and with the adapter of each domain."""
    return {
        "name": subject.name,
        "kind": subject.kind,
        "domains": subject.domains,
        "seeds": subject.seeds,
        "perplexity": {
            domain: {part: asdict(perplexity(rows, part)) for part in PARTS}
            for domain, rows in losses[subject.name].items()
        },
        "mean": {part: asdict(mean_perplexity(losses[subject.name], part)) for part in PARTS},
        "against": {other: against(losses[subject.name], losses[other]) for other in compared_with(subject, losses)},
    }


def against(losses: Mapping[str, Sequence[Loss]], other: Mapping[str, Sequence[Loss]]) -> dict[str, Any]:
    """Return how one compares with another on every domain that both were measured on, and in the mean over those."""
    shared = {domain: rows for domain, rows in losses.items() if domain in other}
    found = {
        domain: {part: asdict(compare(rows, other[domain], part)) for part in PARTS} for domain, rows in shared.items()
    }
    return {**found, "mean": {part: asdict(compare_means(shared, other, part)) for part in PARTS}}


def compared_with(subject: Subject, names: Mapping[str, Any]) -> list[str]:
    """Return what a subject is compared with: the base, and of a composite its parents and the merged-data baseline."""
    if subject.kind not in METHODS:
        return ["base"] if subject.kind != "base" else []
    baselines = [
        name for name in names if " " not in name and set(name.partition("_s")[0].split("_")) == set(subject.domains)
    ]
    return ["base", *(parent.name for parent in subject.parents), *baselines]


if __name__ == "__main__":
    main()
