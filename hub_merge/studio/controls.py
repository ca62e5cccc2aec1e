"""What the page asks for each option of a method, read from the registry, and the recipe that the answers make."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hub_merge.errors import RecipeError
from hub_merge.findings import REFUSE
from hub_merge.methods import Method, get_method, list_methods
from hub_merge.methods.registry import Option
from hub_merge.recipe import Recipe
from hub_merge.studio.samples import normal

__all__ = ["Control", "Settings", "controls_of", "recipe_of", "settings_of"]

Kind = Literal["slider", "number", "choice", "switch"]

NO_CHOICE = "none"


@dataclass(frozen=True, slots=True)
class Control:
    """One question that the page asks.

    Attributes:
        name: Of the option.
        label: Its name for people.
        help: What it does, from the method's own documentation.
        kind: How it is asked.
        default: Answer that is there already.
        choices: What there is to choose from.
        low: Smallest number.
        high: Largest number, of a slider.
        step: Between numbers.
    """

    name: str
    label: str
    help: str
    kind: Kind
    default: Any
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None


def controls_of(method: Method) -> tuple[Control, ...]:
    """Return the questions that the options of ``method`` ask."""
    helps = _documented(method)
    return tuple(_control(option, helps.get(option.name, "")) for option in method.options)


def _control(option: Option, help: str) -> Control:
    label = option.name.replace("_", " ").capitalize()
    shared = {"name": option.name, "label": label, "help": help, "default": option.default}
    if option.kind is bool:
        return Control(kind="switch", **shared)
    if option.is_method or option.choices:
        choices = tuple(method.name for method in list_methods()) if option.is_method else option.choices
        return Control(kind="choice", choices=(*choices, NO_CHOICE) if option.optional else choices, **shared)
    low = option.bounds.low if option.bounds else None
    high = option.bounds.high if option.bounds else math.inf
    step = 1.0 if option.kind is int else 0.01
    if low is not None and math.isfinite(high):
        return Control(kind="slider", low=low, high=high, step=step if option.kind is int else 0.001, **shared)
    return Control(kind="number", low=low, step=step, **shared)


def _documented(method: Method) -> dict[str, str]:
    """Return what the docstring of the method says of each option, in plain text."""
    _, _, arguments = (inspect.getdoc(method.kernel) or "").partition("\nArgs:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", arguments.partition("\n\n")[0], re.MULTILINE)
    return {name: " ".join(text.replace("``", "").split()) for name, text in found}


@dataclass(frozen=True, slots=True)
class Settings:
    """The answers of one visitor, as widgets give them.

    Attributes:
        method: Name of the method.
        weights: One number an adapter.
        rank: ``own`` for the method's, ``auto``, or ``fixed`` for ``rank_number``.
        rank_number: Rank that was asked for.
        energy: Share that ``auto`` keeps.
        seed: Of random choices.
        dtype: ``widest`` or the name of one.
        base_model: Base that the visitor asserts, empty for none.
        allow: Codes of the findings that were accepted.
        extras: What becomes of tensors beside the factors.
        options: Answers by name of the option.
    """

    method: str = "sum"
    weights: tuple[float, ...] = ()
    rank: str = "own"
    rank_number: float | None = None
    energy: float = 0.99
    seed: float = 0
    dtype: str = "widest"
    base_model: str = ""
    allow: tuple[str, ...] = ()
    extras: str = REFUSE
    options: Mapping[str, Any] | None = None


def recipe_of(references: Sequence[str], settings: Settings) -> Recipe:
    """Return the recipe that merges ``references`` as ``settings`` say; only what differs from a default is in it.

    Raises:
        RecipeError: There is nothing to merge, or an answer is no number.
        MergeError: The method is unknown, or an option has a wrong value.
    """
    if not references:
        raise RecipeError("No adapter is chosen yet.", remedy="Add one or more adapters first.")
    method = get_method(settings.method)
    answers = method.parse_options(settings.options or {})
    defaults = {option.name: option.default for option in method.options}
    weights = [*settings.weights, *([1.0] * len(references))][: len(references)]
    content: dict[str, Any] = {
        "merge_method": method.name,
        "models": [
            {"model": normal(name), "parameters": {"weight": w}} for name, w in zip(references, weights, strict=True)
        ],
        "parameters": {
            **{name: value for name, value in answers.items() if value != defaults[name]},
            **_rank(settings),
        },
        "seed": _whole(settings.seed, "seed"),
        "allow": list(settings.allow),
        "extras": settings.extras,
        "dtype": None if settings.dtype == "widest" else settings.dtype,
        "base_model": settings.base_model.strip() or None,
    }
    return Recipe.from_dict(content)


def settings_of(recipe: Recipe) -> Settings:
    """Return the answers that give ``recipe``."""
    return Settings(
        method=recipe.merge_method,
        weights=tuple(float(source.weight) for source in recipe.models if not isinstance(source.weight, Mapping)),
        rank="own" if recipe.rank is None else "auto" if recipe.rank == "auto" else "fixed",
        rank_number=recipe.rank if isinstance(recipe.rank, int) else None,
        energy=recipe.energy or 0.99,
        seed=recipe.seed,
        dtype=recipe.dtype or "widest",
        base_model=recipe.base_model or "",
        allow=recipe.allow,
        extras=recipe.extras,
        options=recipe.options,
    )


def _rank(settings: Settings) -> dict[str, Any]:
    if settings.rank == "auto":
        return {"rank": "auto", **({"energy": settings.energy} if settings.energy != 0.99 else {})}
    if settings.rank == "fixed":
        return {"rank": _whole(settings.rank_number, "rank")}
    return {}


def _whole(value: float | None, name: str) -> int:
    if value is None or not math.isfinite(value) or value != int(value):
        raise RecipeError(f"The {name} is {value}.", remedy="Give a whole number.")
    return int(value)
