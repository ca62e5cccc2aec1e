"""What the page does, as a command and as Python: both give the same file, byte for byte."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from hub_merge.findings import REFUSE
from hub_merge.methods import get_method
from hub_merge.recipe import Recipe

__all__ = ["merge_command", "merge_snippet", "told_options"]


def told_options(recipe: Recipe) -> dict[str, Any]:
    """Return the options of the method that are not at their default."""
    settings = get_method(recipe.merge_method).parse_options(recipe.options)
    defaults = {option.name: option.default for option in get_method(recipe.merge_method).options}
    return {name: value for name, value in settings.items() if value != defaults[name]}


def merge_command(recipe: Recipe, folder: str = "composite") -> str:
    """Return the command that carries out ``recipe``."""
    return shlex.join(["hub-merge", "merge", *_words(recipe), "-o", folder])


def _words(recipe: Recipe) -> Iterator[str]:
    yield from (source.model for source in recipe.models)
    yield from ("--method", recipe.merge_method)
    if _is_weighted(recipe):
        yield f"--weights={','.join(f'{source.weight:g}' for source in recipe.models)}"
    for name, value in told_options(recipe).items():
        yield from ("--option", f"{name}={_plain(value)}")
    for flag, value in (
        ("--rank", recipe.rank),
        ("--energy", recipe.energy),
        ("--seed", recipe.seed or None),
        ("--dtype", recipe.dtype),
        ("--base", recipe.base_model),
        ("--extras", None if recipe.extras == REFUSE else recipe.extras),
    ):
        if value is not None:
            yield from (flag, f"{value}")
    for code in recipe.allow:
        yield from ("--allow", code)


def _is_weighted(recipe: Recipe) -> bool:
    return any(source.weight != 1.0 for source in recipe.models)


def _plain(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def merge_snippet(recipe: Recipe, folder: str = "composite") -> str:
    """Return the Python lines that carry out ``recipe``."""
    given: dict[str, Any] = {
        "weights": [source.weight for source in recipe.models] if _is_weighted(recipe) else None,
        "rank": recipe.rank,
        "energy": recipe.energy,
        "seed": recipe.seed or None,
        "dtype": recipe.dtype,
        "base": recipe.base_model,
        "allow": recipe.allow or None,
        "extras": None if recipe.extras == REFUSE else recipe.extras,
    }
    arguments = {name: value for name, value in given.items() if value is not None}
    settings = "".join(f", {name}={value!r}" for name, value in {**arguments, **told_options(recipe)}.items())
    opened = "\n".join(f"    Adapter.from_pretrained({source.model!r})," for source in recipe.models)
    return (
        "from hub_merge import Adapter, merge\n\n"
        f"adapters = [\n{opened}\n]\n"
        f"composite = merge(adapters, {recipe.merge_method!r}{settings})\n"
        f"composite.save_pretrained({folder!r})\n"
    )
