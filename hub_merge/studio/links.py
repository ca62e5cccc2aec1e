"""The state of the page as a link: ``?a=someone/math&b=other/medicine&method=ties&option.density=0.5``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from string import ascii_lowercase
from typing import Any
from urllib.parse import urlencode

from hub_merge.errors import RecipeError
from hub_merge.findings import REFUSE
from hub_merge.methods import get_method
from hub_merge.recipe import Recipe
from hub_merge.studio.samples import normal

__all__ = ["from_query", "to_query"]

OPTION = "option."


def to_query(recipe: Recipe | None) -> str:
    """Return ``recipe`` as the query of a link, without what it leaves at its default; empty for none."""
    return urlencode(list(_entries(recipe)), safe="/:@,") if recipe else ""


def _entries(recipe: Recipe) -> Iterator[tuple[str, str]]:
    yield from zip(ascii_lowercase, (source.model for source in recipe.models), strict=False)
    if recipe.merge_method != "sum":
        yield "method", recipe.merge_method
    if any(source.weight != 1.0 for source in recipe.models):
        yield "weights", ",".join(f"{source.weight:g}" for source in recipe.models)
    for name in ("rank", "energy", "dtype", "base_model"):
        if (value := getattr(recipe, name)) is not None:
            yield name, f"{value}"
    if recipe.seed:
        yield "seed", f"{recipe.seed}"
    if recipe.allow:
        yield "allow", ",".join(recipe.allow)
    if recipe.extras != REFUSE:
        yield "extras", recipe.extras
    yield from ((f"{OPTION}{name}", f"{value}") for name, value in recipe.options.items())


def from_query(query: Mapping[str, str]) -> Recipe | None:
    """Return the recipe that a link describes, ``None`` if it names no adapter.

    Raises:
        RecipeError: A value of it cannot be understood.
        MergeError: There is no such method, or no such option of it.
    """
    models = tuple(dict.fromkeys(normal(query[letter]) for letter in ascii_lowercase if query.get(letter)))
    if not models:
        return None
    weights = _weights(query.get("weights"), len(models))
    method = get_method(query.get("method", "sum"))
    options = {key.removeprefix(OPTION): value for key, value in query.items() if key.startswith(OPTION)}
    settings = method.parse_options(options)
    content: dict[str, Any] = {
        "merge_method": method.name,
        "models": [
            {"model": model, "parameters": {"weight": weight}} for model, weight in zip(models, weights, strict=True)
        ],
        "parameters": {
            **{name: settings[name] for name in options if name in settings},
            **({"rank": _whole(query["rank"], "rank")} if query.get("rank") else {}),
            **({"energy": _number(query["energy"], "energy")} if query.get("energy") else {}),
        },
        "seed": _whole(query.get("seed") or "0", "seed"),
        "allow": [code for code in query.get("allow", "").split(",") if code],
        **{name: query[name] for name in ("dtype", "base_model", "extras") if query.get(name)},
    }
    return Recipe.from_dict(content)


def _weights(text: str | None, count: int) -> list[float]:
    if not text:
        return [1.0] * count
    numbers = [_number(part, "weights") for part in text.split(",")]
    if len(numbers) != count:
        raise RecipeError(
            f"The link names {count} adapters and {len(numbers)} weights.", remedy="Give one weight an adapter."
        )
    return numbers


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise RecipeError(f"'{name}' of the link is {text[:40]!r}.", remedy="It must be a number.") from error


def _whole(text: str, name: str) -> int | str:
    if text == "auto" and name == "rank":
        return text
    if not (text.isascii() and text.isdecimal()):
        raise RecipeError(f"'{name}' of the link is {text[:40]!r}.", remedy="It must be a whole number.")
    return int(text)
