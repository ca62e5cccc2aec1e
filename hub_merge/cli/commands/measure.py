"""What merging does to a real model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub_merge.cli.framework import command
from hub_merge.cli.options import (
    NewFile,
    allow_option,
    client,
    output_options,
    pickle_option,
    plot_option,
    token_option,
)
from hub_merge.cli.output import Output
from hub_merge.cli.questions import ANSWER, PROMPT, question_sets
from hub_merge.errors import OutputExists
from hub_merge.workspace import write_whole

if TYPE_CHECKING:
    from hub_merge.evaluate import LanguageModel, QuestionSet
    from hub_merge.evaluate.wearing import Wearable
    from hub_merge.measurements import Measurement

__all__ = ["eval"]


@command(
    examples=[
        "eval ./math ./medicine --merge sum --merge mean --data math=math.jsonl --data medicine=medicine.jsonl",
        "eval ./composite --base HuggingFaceTB/SmolLM2-135M-Instruct --data test.jsonl --limit 100 -o figures.json",
        "eval ./composite --data openai/gsm8k:main --split test --tasks arc_easy,piqa --limit 200 --record",
    ]
)
@click.argument("adapters", nargs=-1, metavar="[ADAPTER]...")
@click.option("--base", metavar="MODEL", help="Hub id, folder or GGUF file.  [default: the base that they state]")
@click.option(
    "--data", multiple=True, metavar="[NAME=]SOURCE", help="JSONL file or data set of the Hub; once a domain."
)
@click.option("--split", default="test", show_default=True, help="Which part of the data sets.")
@click.option("--limit", metavar="N", type=click.IntRange(1), help="Rows a domain or task.  [default: all]")
@click.option("--prompt", default=PROMPT, show_default=True, help="Text before the answer, with a row's fields.")
@click.option("--answer", default=ANSWER, show_default=True, help="The text whose tokens count.")
@click.option("--merge", "methods", multiple=True, metavar="METHOD", help="Measure every pair and all, merged so.")
@click.option("--rank", metavar="N", type=click.IntRange(1), help="Rank of what --merge makes.")
@click.option("--against", metavar="NAME", default="base", show_default=True, help="What the others are compared with.")
@click.option("--tasks", metavar="NAMES", help="Tasks of lm-eval too, with commas between (extra: tasks).")
@click.option("--task-folder", type=click.Path(file_okay=False, path_type=Path), help="Tasks of your own, in its YAML.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    help="Dtype of the base.  [default: bfloat16 where the processor computes in it, else float32]",
)
@click.option(
    "--device", metavar="NAME", default="auto", help="cpu, cuda, cuda:1, mps.  [default: a GPU if there is one]"
)
@click.option("--max-tokens", metavar="N", type=click.IntRange(2), help="Cut longer texts.  [default: the model's own]")
@click.option(
    "--resume", metavar="FILE", type=NewFile(), help="Keep measured rows in this JSONL file and go on from there."
)
@click.option("-o", "--output", metavar="FILE", type=NewFile(), help="Write everything, row by row, to this JSON file.")
@plot_option("perplexities")
@click.option("--force", is_flag=True, help="Replace the JSON file if it is there.")
@click.option("--record", is_flag=True, help="Add the figures to record and card of each composite that is a folder.")
@allow_option
@pickle_option
@token_option
@output_options
def eval(
    out: Output,
    adapters: tuple[str, ...],
    base: str | None,
    tasks: str | None,
    task_folder: Path | None,
    limit: int | None,
    methods: tuple[str, ...],
    rank: int | None,
    allow: tuple[str, ...],
    allow_pickle: bool,
    token: str | None,
    device: str,
    dtype: str,
    max_tokens: int | None,
    force: bool,
    record: bool,
    **asked: Any,
) -> None:
    """Measure adapters and their composites on a real model.

    The figure is the perplexity of the answers to questions: every token weighs the same, padding is not counted. The
    base is loaded once, and measured too. Intervals are 95 % bootstraps over rows; p is the sign-flip test of the rows
    against what --against names.
    """
    from hub_merge.evaluate import LanguageModel
    from hub_merge.evaluate.session import line_up

    if asked["output"] is not None and asked["output"].exists() and not force:
        raise OutputExists(f"{asked['output']} exists already.", remedy="Name another file, or pass --force.")
    if not asked["data"] and not tasks:
        raise click.UsageError("There is nothing to measure on. Give --data FILE, or --tasks NAMES.")
    sets = question_sets(limit=limit, **{name: asked.pop(name) for name in ("data", "split", "prompt", "answer")})
    hub = client(out, token, allow_pickle=allow_pickle)
    lineup = line_up(adapters, hub=hub, base=base, methods=methods, rank=rank, allow=allow, progress=out.progress())
    if asked["against"] not in lineup.composites:
        raise click.BadParameter(f"There is only {', '.join(lineup.composites)}.", param_hint="--against")
    kept = _folders(lineup.composites) if record else {}
    model = LanguageModel.load(lineup.base, dtype=dtype, device=device, token=token, most_tokens=max_tokens)
    documents, results = _perplexities(out, model, lineup.composites, sets, **asked) if sets else ({}, {})
    if tasks:
        documents["tasks"] = _tasks(out, model, lineup.composites, tasks, limit, task_folder)
    for name, folder in kept.items():
        _keep(folder, name, results, documents.get("tasks", {}))
    _finish(out, documents, asked["output"])


def _folders(composites: dict[str, Wearable]) -> dict[str, Path]:
    """Return the folders of composites, which have a record to add figures to."""
    from hub_merge.adapter import Adapter
    from hub_merge.layout import RECORD_FILE

    places = {name: found.origin.folder for name, found in composites.items() if isinstance(found, Adapter)}
    kept = {name: place for name, place in places.items() if place is not None and (place / RECORD_FILE).is_file()}
    if not kept:
        raise click.UsageError("--record writes to the folder of a composite; none is named.")
    return kept


def _keep(
    folder: Path,
    composite: str,
    results: dict[str, list[Measurement]],
    tasks: dict[str, list[dict[str, Any]]],
) -> None:
    """Add what was measured of a composite, and of the plain base beside it, to the composite's record and card."""
    from hub_merge.evaluate.results import BASE
    from hub_merge.measurements import Measurement
    from hub_merge.pipeline import add_measurements

    for name, subject in ((composite, ""), (BASE, BASE)):
        found = [*results.get(name, ()), *map(Measurement.from_dict, tasks.get(name, ()))]
        add_measurements(folder, [replace(entry, subject=subject) for entry in found])


def _perplexities(
    out: Output,
    model: LanguageModel,
    composites: dict[str, Wearable],
    sets: list[QuestionSet],
    *,
    against: str,
    resume: Path | None,
    plot: Path | None,
    output: Path | None,
) -> tuple[dict[str, Any], dict[str, list[Measurement]]]:
    """Measure and print perplexities; return all that was found, and what a record keeps of each composite."""
    from hub_merge.cli.show.measurements import print_perplexities
    from hub_merge.evaluate import document, evaluate, results_of

    found = evaluate(model, composites, sets, journal=resume, progress=out.progress())
    if plot is not None:
        from hub_merge.evaluate.plots import perplexity_chart

        perplexity_chart(found, plot)
    print_perplexities(out, found, against)
    documents = document(found, against) if output is not None or out.mode == "json" else {}
    return documents, {name: results_of(found, name) for name in composites}


def _tasks(
    out: Output,
    model: LanguageModel,
    composites: dict[str, Wearable],
    tasks: str,
    limit: int | None,
    folder: Path | None,
) -> dict[str, Any]:
    """Run tasks of lm-eval and print what it finds."""
    from hub_merge.cli.show.measurements import print_tasks
    from hub_merge.evaluate import run_tasks

    found = run_tasks(model, composites, [task.strip() for task in tasks.split(",")], limit=limit, folder=folder)
    print_tasks(out, found)
    return found


def _finish(out: Output, documents: dict[str, Any], output: Path | None) -> None:
    """Write the document, or print it."""
    if output is not None:
        write_whole(output, json.dumps(documents, indent=1) + "\n")
    if out.mode == "json":
        out.document(documents)
