"""Compare LEGO with the other methods on held-out questions, and write the tables.

    python compare.py --adapters ADAPTERS --data DATA --rows 60

``DATA/<domain>/test.jsonl`` holds a ``question`` and an ``answer`` a line. Rows that were measured are kept in the
journal, so the command can be stopped, repeated and asked for more rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from report import report
from study import ALL, Subject, subjects

from hub_merge.evaluate import (
    LanguageModel,
    Loss,
    QuestionSet,
    compare_means,
    evaluate,
    mean_perplexity,
    perplexity,
    read_questions,
)

PACKAGES = ("hub-merge", "numpy", "torch", "transformers")


def main() -> None:
    """Measure, and write ``results.json`` and ``RESULTS.md``."""
    options = arguments()
    sets = {name: read_questions(options.data / name / "test.jsonl", name=name, limit=options.rows) for name in ALL}
    model = LanguageModel.load(options.weights or options.base, dtype=options.dtype)
    results: dict[str, Any] = {
        "base": options.base,
        "dtype": model.dtype,
        "rows": {name: len(entry.questions) for name, entry in sets.items()},
        "versions": {name: version(name) for name in PACKAGES},
        "subjects": [],
    }
    losses: dict[tuple[str, str], dict[str, list[Loss]]] = {}
    for subject in subjects(options.adapters):
        found = measured(model, subject, sets, options.journal)
        losses[subject.group, subject.name] = found
        results["subjects"].append(described(subject, found, reference_of(subject, losses)))
        options.output.joinpath("results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    options.output.joinpath("RESULTS.md").write_text(report(results), encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=Path, required=True, help="Folder with a folder an adapter.")
    parser.add_argument("--data", type=Path, required=True, help="Folder with a folder a domain.")
    parser.add_argument("--base", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="Hub id.")
    parser.add_argument("--weights", type=Path, help="GGUF file to read the base from.")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, help="Rows a domain; all by default.")
    parser.add_argument("--journal", type=Path, default=Path("rows.jsonl"), help="File of rows that were measured.")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="Folder of the results.")
    return parser.parse_args()


def measured(
    model: LanguageModel, subject: Subject, sets: dict[str, QuestionSet], journal: Path
) -> dict[str, list[Loss]]:
    """Return the losses of one subject by domain, and say what they come to."""
    found = evaluate(model, {"it": subject.adapter}, [sets[name] for name in subject.domains], journal=journal)
    print(f"{subject.group}: {subject.name}: {found.mean('it').value:.3f}", file=sys.stderr, flush=True)
    return {domain: list(rows) for domain, rows in found.losses["it"].items()}


def reference_of(subject: Subject, losses: dict[tuple[str, str], Any]) -> dict[str, list[Loss]] | None:
    """Return the losses of what a subject is compared with: merged data, or the one adapter before compression."""
    if subject.group == "compression":
        return next((rows for (group, _), rows in losses.items() if group == "compression"), None)
    return losses.get(("reference", "merged data"))


def described(
    subject: Subject, losses: dict[str, list[Loss]], reference: dict[str, list[Loss]] | None
) -> dict[str, Any]:
    """Return the figures of one subject."""
    return {
        "group": subject.group,
        "name": subject.name,
        "settings": subject.settings,
        "perplexity": {domain: asdict(perplexity(rows)) for domain, rows in losses.items()},
        "mean": mean_perplexity(losses, resamples=1).value,
        "against": None if reference is None else asdict(compare_means(losses, reference)),
    }


if __name__ == "__main__":
    main()
