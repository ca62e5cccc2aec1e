"""Tune every pair and the triple on rows of the training files, and measure all on the held-out questions.

    python measure.py --adapters ADAPTERS --data DATA

``DATA/<domain>/train.jsonl`` and ``test.jsonl`` hold a ``question`` and an ``answer`` a line. Tuned composites stay in
the folder of the work, and rows that were measured in its journal, so the command can be stopped and repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

from report import report

from hub_merge import Adapter, merge
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
from hub_merge.provenance import read_record
from hub_merge.tune import Steps, tune

RANK = 4
DOMAINS = ("math", "medicine", "finance")
UNTUNED = ("svd", "lego", "ties", "dare_ties", "knots", "ctm")
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "ties": {"space": "delta", "density": 0.2},
    "dare_ties": {"space": "delta", "density": 0.5},
}
"""As in their papers: on the entries of the deltas, of which TIES keeps a fifth and DARE half."""

PACKAGES = ("hub-merge", "numpy", "torch", "transformers")
MOST_TOKENS = 320


def main() -> None:
    """Tune, measure, and write ``results.json`` and ``RESULTS.md``."""
    options = arguments()
    options.work.mkdir(exist_ok=True)
    model = LanguageModel.load(options.weights or options.base, dtype=options.dtype)
    tests = {
        name: read_questions(options.data / name / "test.jsonl", name=name, limit=options.rows) for name in DOMAINS
    }
    groups = [names for size in (2, 3) for names in combinations(DOMAINS, size)]
    chosen = [names for names in groups if options.only in (None, "+".join(names))]
    for names in chosen:
        tuned(model, names, options)
    results = {
        "base": options.base,
        "dtype": model.dtype,
        "rows": {name: len(entry.questions) for name, entry in tests.items()},
        "versions": {name: version(name) for name in PACKAGES},
        "groups": [group(model, names, tests, options) for names in chosen],
    }
    if options.only is None:
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
    parser.add_argument("--rows", type=int, help="Test rows a domain; all by default.")
    parser.add_argument("--untuned-rows", type=int, help="Fewer of them for the untuned methods.")
    parser.add_argument("--closed-rows", type=int, default=128, help="Rows a domain that the closed form reads.")
    parser.add_argument("--learn-rows", type=int, default=192, help="Rows a domain to learn on by gradient.")
    parser.add_argument("--medicine-rows", type=int, default=384, help="The same for medicine, most of the mean.")
    parser.add_argument("--epochs", type=int, default=1, help="How often learning sees each of them.")
    parser.add_argument("--only", metavar="A+B", help="Tune and measure this combination alone, and write no results.")
    parser.add_argument("--methods", nargs="*", default=UNTUNED, help="Untuned methods.")
    parser.add_argument("--work", type=Path, default=Path("work"), help="Folder of tuned composites and the journal.")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="Folder of the results.")
    return parser.parse_args()


def parents_of(names: Sequence[str], options: argparse.Namespace) -> list[Adapter]:
    """Return the adapters of a combination."""
    return [Adapter.from_pretrained(options.adapters / name) for name in names]


def tuned(model: LanguageModel, names: Sequence[str], options: argparse.Namespace) -> None:
    """Tune a combination both ways, unless it was done before."""
    learn = {name: options.medicine_rows if name == "medicine" else options.learn_rows for name in DOMAINS}
    for how, rows in (("closed", dict.fromkeys(DOMAINS, options.closed_rows)), ("gradient", learn)):
        place = options.work / f"{'_'.join(names)}_{how}"
        if not place.exists():
            sets = [calibration(model, name, rows[name], options) for name in names]
            plain = merge(parents_of(names, options), "sum", rank=RANK)
            steps = Steps(epochs=options.epochs)
            tune(model, plain, sets, how=how, steps=steps, progress=tell(place.name)).save_pretrained(place)


def tell(name: str) -> Any:
    """Return what reports progress now and then."""

    def progress(step: str, done: int, total: int) -> None:
        if done == total:
            print(f"{name}: {step}, {done} rows", file=sys.stderr, flush=True)

    return progress


def calibration(model: LanguageModel, name: str, rows: int, options: argparse.Namespace) -> QuestionSet:
    """Return the last rows of a training file that are not too long: the adapters were trained on the first 800."""
    every = read_questions(options.data / name / "train.jsonl", name=name, split="train")
    short = [question for question in every.questions if len(model.encode([question])[0].tokens) <= MOST_TOKENS]
    return QuestionSet(name, short[-rows:], "train", every.format)


def composites(names: Sequence[str], options: argparse.Namespace) -> Iterator[tuple[str, Adapter]]:
    """Yield what is measured; what the rest is compared with comes first."""
    parents = parents_of(names, options)
    merged = next(
        folder for folder in options.adapters.iterdir() if set(folder.name.split("_")) == set(names) and folder.is_dir()
    )
    yield "merged data", Adapter.from_pretrained(merged)
    for how in ("gradient", "closed"):
        yield f"tuned, {how}", Adapter.from_pretrained(options.work / f"{'_'.join(names)}_{how}")
    for method in options.methods:
        yield method, merge(parents, method, rank=RANK, **OPTIONS.get(method, {}))


def group(
    model: LanguageModel, names: Sequence[str], tests: dict[str, QuestionSet], options: argparse.Namespace
) -> dict[str, Any]:
    """Return the figures of one combination."""
    sets = [tests[name] for name in names]
    losses: dict[str, dict[str, Sequence[Loss]]] = {}
    for name, adapter in composites(names, options):
        few = name in options.methods and options.untuned_rows
        shown = [replace(entry, questions=entry.questions[: options.untuned_rows]) for entry in sets] if few else sets
        found = evaluate(model, {name: adapter}, shown, journal=options.work / "rows.jsonl")
        losses[name] = dict(found.losses[name])
        print(f"{' + '.join(names)}: {name}: {found.mean(name).value:.3f}", file=sys.stderr, flush=True)
    records = {how: read_record(options.work / f"{'_'.join(names)}_{how}").tuning for how in ("closed", "gradient")}
    return {"domains": list(names), "tuning": records, "composites": [figures(n, losses) for n in losses]}


def figures(name: str, losses: dict[str, dict[str, Sequence[Loss]]]) -> dict[str, Any]:
    """Return the figures of one composite, compared with two others on the same rows."""

    def against(other: str) -> dict[str, Any]:
        rows = {domain: rows[: len(losses[name][domain])] for domain, rows in losses[other].items()}
        return asdict(compare_means(losses[name], rows))

    return {
        "name": name,
        "rows": {domain: len(rows) for domain, rows in losses[name].items()},
        "perplexity": {domain: asdict(perplexity(rows)) for domain, rows in losses[name].items()},
        "mean": asdict(mean_perplexity(losses[name])),
        "against": {other: against(other) for other in ("merged data", "tuned, gradient") if other != name},
    }


if __name__ == "__main__":
    main()
