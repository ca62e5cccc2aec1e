"""What merging does to a real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hub_merge.cli.framework import command
from hub_merge.cli.options import allow_option, client, output_options, pickle_option, token_option
from hub_merge.cli.output import Output
from hub_merge.errors import OutputExists

if TYPE_CHECKING:
    from hub_merge.evaluate import LanguageModel, QuestionSet
    from hub_merge.evaluate.wearing import Wearable

__all__ = ["eval"]

FILE = click.Path(dir_okay=False, path_type=Path)
PROMPT, ANSWER = "Question: {question}\\nAnswer: ", "{answer}"


@command(
    examples=[
        "eval ./math ./medicine --merge sum --merge mean --data math=math.jsonl --data medicine=medicine.jsonl",
        "eval ./composite --base HuggingFaceTB/SmolLM2-135M-Instruct --data test.jsonl --limit 100 -o figures.json",
        "eval ./composite --data openai/gsm8k:main --split test --tasks arc_easy,piqa --limit 200",
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
@click.option("--resume", metavar="FILE", type=FILE, help="Keep measured rows in this JSONL file and go on from there.")
@click.option("-o", "--output", metavar="FILE", type=FILE, help="Write everything, row by row, to this JSON file.")
@click.option("--plot", metavar="FILE", type=FILE, help="Draw perplexities (.png, .svg or .pdf; needs matplotlib).")
@click.option("--force", is_flag=True, help="Replace the JSON file if it is there.")
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
    sets = _sets(limit=limit, **{name: asked.pop(name) for name in ("data", "split", "prompt", "answer")})
    hub = client(out, token, allow_pickle=allow_pickle)
    lineup = line_up(adapters, hub=hub, base=base, methods=methods, rank=rank, allow=allow, progress=out.progress())
    if asked["against"] not in lineup.composites:
        raise click.BadParameter(f"There is only {', '.join(lineup.composites)}.", param_hint="--against")
    model = LanguageModel.load(lineup.base, dtype=dtype, device=device, token=token, most_tokens=max_tokens)
    documents = _perplexities(out, model, lineup.composites, sets, **asked) if sets else {}
    if tasks:
        documents["tasks"] = _tasks(out, model, lineup.composites, tasks, limit, task_folder)
    _finish(out, documents, asked["output"])


def _sets(data: tuple[str, ...], split: str, prompt: str, answer: str, limit: int | None) -> list[QuestionSet]:
    """Return what ``--data`` names; ``\\n`` in a format is a new line."""
    from hub_merge.evaluate import QuestionFormat, read_questions

    form = QuestionFormat(*(text.replace("\\n", "\n") for text in (prompt, answer)))
    found = []
    for entry in data:
        name, equals, source = entry.partition("=")
        whole = not equals or Path(entry).is_file()
        found.append(
            read_questions(
                entry if whole else source, name=None if whole else name, split=split, limit=limit, format=form
            )
        )
    return found


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
) -> dict[str, Any]:
    """Measure and print perplexities; return all that was found."""
    from hub_merge.cli.show.measurements import print_perplexities
    from hub_merge.evaluate import document, evaluate

    found = evaluate(model, composites, sets, journal=resume, progress=out.progress())
    if plot is not None:
        from hub_merge.evaluate.plots import perplexity_chart

        perplexity_chart(found, plot)
    print_perplexities(out, found, against)
    return document(found, against) if output is not None or out.mode == "json" else {}


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
        output.write_text(json.dumps(documents, indent=1) + "\n", encoding="utf-8")
    if out.mode == "json":
        out.document(documents)
