"""Options of a merge that is chosen by measurement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hub_merge.cli.questions import question_sets

if TYPE_CHECKING:
    from hub_merge.recipe import MergeRecord, Recipe

__all__ = ["take_tuning", "tuned", "tuning_options"]

Function = TypeVar("Function", bound=Callable[..., Any])

NAMES = ("tune", "tune_by", "tune_rows", "tune_epochs", "tune_model")
ROWS = 64


def tuning_options(function: Function) -> Function:
    """Add the options to a command."""
    for option in (
        click.option(
            "--tune-model",
            metavar="MODEL",
            help="Hub id, folder or GGUF file of the base to tune on.  [default: the base that they state]",
        ),
        click.option(
            "--tune-rows", metavar="N", type=click.IntRange(1), help=f"First rows of each domain.  [default: {ROWS}]"
        ),
        click.option(
            "--tune-epochs",
            metavar="N",
            type=click.IntRange(1),
            help="How often each of the two runs of learning by gradient sees each row.  [default: 1]",
        ),
        click.option(
            "--tune-by",
            type=click.Choice(["closed", "gradient"]),
            help="A closed form of what the units respond to the rows, which needs forward passes only; or learning "
            "from there by gradient, on the answers and on what each adapter itself says, which takes longer and gives "
            "more.  [default: closed]",
        ),
        click.option(
            "--tune",
            multiple=True,
            metavar="[NAME=]SOURCE",
            help="Choose the merge by measuring on this JSONL file or data set of the Hub; once a domain, named like "
            "the adapter that it is for.",
        ),
    ):
        function = option(function)
    return function


def take_tuning(asked: dict[str, Any]) -> dict[str, Any]:
    """Take the options out of ``asked`` and return them, none of them without ``--tune``."""
    given = {name: asked.pop(name) for name in NAMES}
    if given["tune"]:
        return given
    if stray := [name for name, value in given.items() if value not in (None, ())]:
        raise click.UsageError(f"--{stray[0].replace('_', '-')} says how to --tune: add that too.")
    return {}


def tuned(
    recipe: Recipe,
    output: Path,
    *,
    tune: tuple[str, ...],
    tune_by: str | None,
    tune_rows: int | None,
    tune_epochs: int | None,
    tune_model: str | None,
    **writing: Any,
) -> MergeRecord:
    """Carry out a tuned merge and return its record."""
    from hub_merge.tune import Steps, tune_to_folder

    sets = question_sets(tune, split="train", limit=tune_rows or ROWS)
    how: Any = tune_by or "closed"
    steps = Steps(epochs=tune_epochs) if tune_epochs else None
    return tune_to_folder(recipe, output, sets, model=tune_model, how=how, steps=steps, **writing)
