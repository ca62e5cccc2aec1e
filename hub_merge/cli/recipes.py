"""What was asked for on the command line, as a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hub_merge.cli.options import numbers_of

if TYPE_CHECKING:
    from hub_merge.ranks import Profile, Rank
    from hub_merge.recipe import Conversion, Recipe

__all__ = ["conversion_options", "read_recipe", "recipe_of", "recipe_path"]

RECIPE_SUFFIXES = (".yaml", ".yml")

Function = TypeVar("Function", bound=Callable[..., Any])


def conversion_options(function: Function) -> Function:
    """Add the options that make adapters plain which are no product against the published base; see ``recipe_of``."""
    for option in (
        click.option(
            "--initial",
            multiple=True,
            metavar="ADAPTER=REFERENCE",
            help="A PiSSA, OLoRA, CorDA or LoRA-GA adapter as it was before training; may be repeated.",
        ),
        click.option(
            "--materialize-rank",
            metavar="N",
            type=click.IntRange(1),
            help="Rank of a DoRA adapter's new factors.  [default: four times its rank]",
        ),
        click.option(
            "--base-weights",
            metavar="FOLDER_OR_REPO",
            help="Where those weights are.  [default: the base that is stated]",
        ),
        click.option(
            "--materialize",
            is_flag=True,
            default=None,
            help="Form DoRA deltas from the base's weights, with a stated error.",
        ),
    ):
        function = option(function)
    return function


def recipe_path(adapters: tuple[str, ...], asked: dict[str, Any]) -> Path | None:
    """Return the recipe that was named in place of adapters, ``None`` if none was."""
    paths = [Path(name) for name in adapters if name.endswith(RECIPE_SUFFIXES) and not Path(name).is_dir()]
    if not paths:
        return None
    if adapters[0] != str(paths[0]) or len(paths) > 1:
        raise click.UsageError("Name one recipe, first; only folders of its local adapters may follow.")
    options = {param.name: param.opts[-1] for param in click.get_current_context().command.params}
    if given := [options[name] for name, value in asked.items() if value not in (None, ())]:
        raise click.UsageError(f"{paths[0]} says it all: leave out {', '.join(given)}, or edit the recipe.")
    if not paths[0].is_file():
        raise click.UsageError(f"There is no recipe {paths[0]}.")
    return paths[0]


def read_recipe(path: Path) -> Recipe:
    """Return the recipe in the file, or raise ``RecipeError`` that names it."""
    from hub_merge.errors import RecipeError
    from hub_merge.recipe import Recipe

    try:
        return Recipe.from_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: it is not text in UTF-8.", remedy="Save it as UTF-8.") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error.problem}", remedy=error.remedy) from error


def recipe_of(
    adapters: tuple[str, ...],
    *,
    method: str | None,
    weights: str | None,
    rank: Rank | None,
    energy: float | None,
    profile: Profile | None,
    options: tuple[str, ...],
    seed: int | None,
    dtype: str | None,
    base: str | None,
    allow: tuple[str, ...],
    extras: str | None = None,
    **conversion: Any,
) -> Recipe:
    """Return what the options of a merge ask for."""
    from hub_merge.recipe import Recipe, Source

    if twice := [name for name in adapters if adapters.count(name) > 1]:
        raise click.UsageError(f"{twice[0]} is named twice: name it once, with a larger number in --weights.")
    if wrong := [option for option in options if "=" not in option]:
        raise click.BadParameter(f"{wrong[0]!r} is not NAME=VALUE.", param_hint="--option")
    _require_auto(rank, energy)
    numbers = numbers_of(weights, adapters) or [1.0] * len(adapters)
    conversions = _conversions(adapters, **conversion)
    return Recipe(
        merge_method=method or "sum",
        models=tuple(map(Source, adapters, numbers, conversions)),
        base_model=base,
        rank=rank,
        energy=energy,
        profile=profile or "portable",
        options=dict(option.split("=", 1) for option in options),
        dtype=dtype,
        seed=seed or 0,
        allow=allow,
        extras=extras or "refuse",
    )


def _conversions(
    adapters: tuple[str, ...],
    *,
    materialize: bool | None = None,
    base_weights: str | None = None,
    materialize_rank: int | None = None,
    initial: tuple[str, ...] = (),
) -> list[Conversion | None]:
    """Return how each adapter is made plain if it has to be."""
    from hub_merge.recipe import STATED, Conversion

    if not materialize and (base_weights or materialize_rank):
        raise click.UsageError("--base-weights and --materialize-rank say how to --materialize: add that too.")
    plain = Conversion(base_weights=base_weights or STATED, rank=materialize_rank) if materialize else None
    conversions = [plain] * len(adapters)
    for entry in initial:
        name, _, reference = entry.partition("=")
        places = [place for place, adapter in enumerate(adapters) if name in (adapter, Path(adapter).name)]
        if len(places) != 1 or not reference:
            raise click.BadParameter(
                f"{entry!r} is not ADAPTER=REFERENCE with one of the adapters to merge.", param_hint="--initial"
            )
        conversions[places[0]] = Conversion(initial=reference)
    return conversions


def _require_auto(rank: Rank | None, energy: float | None) -> None:
    if energy is not None and rank != "auto":
        raise click.UsageError("--energy says what --rank auto keeps: add --rank auto, or leave out --energy.")
