"""What programs may ask of the page: search, check, score, plan and merge, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hub_merge.errors import RecipeError
from hub_merge.studio import catalog, looking, making
from hub_merge.studio.commands import merge_command, merge_snippet
from hub_merge.studio.controls import Settings, recipe_of
from hub_merge.studio.limits import limits
from hub_merge.studio.links import to_query
from hub_merge.studio.samples import all_samples, normal
from hub_merge.studio.visits import visiting

__all__ = ["check", "merge", "plan", "score", "search"]

MOST_LISTED = 50


def search(text: str, license: str | None, limit: int, token: str | None) -> list[dict[str, Any]]:
    """Return adapters for a base model, for words, or beside an adapter; the samples for nothing."""
    if not 1 <= limit <= MOST_LISTED:
        raise RecipeError(f"The limit is {limit}.", remedy=f"Give a whole number from 1 to {MOST_LISTED}.")
    with visiting(token, offline=not text.strip()) as hub:
        rows = catalog.find(text, hub=hub, license=license, limit=limit)
        return [asdict(row) for row in catalog.detailed(rows[: catalog.MOST_ROWS], hub=hub)] + [
            asdict(row) for row in rows[catalog.MOST_ROWS :]
        ]


def check(adapters: Sequence[str], base_model: str | None, allow: Sequence[str], token: str | None) -> dict[str, Any]:
    """Return whether adapters fit together, by their headers, and what their licences allow."""
    names = _named(adapters)
    with visiting(token, offline=all_samples(names)) as hub:
        seen = looking.look(names, hub=hub, limits=limits(), base=base_model, allow=allow)
    return {**seen.compatibility.to_dict(), "bytes": sum(seen.sizes), "license": _license(seen)}


def _license(seen: looking.Look) -> dict[str, Any]:
    verdict = seen.licenses
    return {
        "identifier": verdict.identifier,
        "verdict": verdict.line(),
        "blockers": [asdict(found) for found in verdict.blockers],
        "obligations": [asdict(duty) for duty in verdict.obligations],
    }


def score(adapters: Sequence[str], weights: Sequence[float] | None, token: str | None) -> dict[str, Any]:
    """Return how much the deltas of adapters overlap, and what their weighted sum keeps of each."""
    measured = _measured(_named(adapters), None, (), token)
    numbers = _weights(weights, adapters)
    kept, _ = looking.predicted(measured, "sum", numbers)
    return {**measured.scores.to_dict(modules=False), "retention": list(kept), "weights": numbers}


def plan(
    adapters: Sequence[str],
    method: str | None,
    weights: Sequence[float] | None,
    base_model: str | None,
    allow: Sequence[str],
    token: str | None,
) -> dict[str, Any]:
    """Return what a merge would be, without merging: findings, licence, advice, retention, and the ways to run it."""
    names = _named(adapters)
    findings = check(names, base_model, allow, token)
    measured = _measured(names, base_model, allow, token)
    advice = measured.advice
    chosen = method or (advice.method if advice else "sum")
    numbers = _weights(weights, names) if weights or advice is None else list(advice.weights)
    rank = advice.rank if advice and method is None else None
    recipe = recipe_of(
        names,
        Settings(
            method=chosen,
            weights=tuple(numbers),
            rank="own" if rank is None else "fixed",
            rank_number=rank,
            base_model=base_model or "",
            allow=tuple(allow),
        ),
    )
    kept, exact = looking.predicted(measured, recipe.merge_method, numbers)
    return {
        "check": findings,
        "advice": advice.to_dict() if advice else None,
        "recipe": recipe.to_dict(),
        "retention": list(kept),
        "retention_is_exact": exact and rank is None,
        "command": merge_command(recipe),
        "python": merge_snippet(recipe),
        "link": f"?{to_query(recipe)}",
    }


def merge(
    adapters: Sequence[str],
    method: str,
    weights: Sequence[float] | None,
    rank: int | None,
    options: Mapping[str, Any],
    base_model: str | None,
    allow: Sequence[str],
    token: str | None,
) -> making.Made:
    """Return the proved composite of adapters, in a folder of its own that the caller discards."""
    names = _named(adapters)
    settings = Settings(
        method=method,
        weights=tuple(_weights(weights, names)),
        rank="own" if rank is None else "fixed",
        rank_number=rank,
        base_model=base_model or "",
        allow=tuple(allow),
        options=options,
    )
    with visiting(token, offline=all_samples(names)) as hub:
        return making.make(recipe_of(names, settings), hub=hub, limits=limits())


def _measured(
    names: Sequence[str], base_model: str | None, allow: Sequence[str], token: str | None
) -> looking.Measured:
    with visiting(token, offline=all_samples(names)) as hub:
        return looking.measure(names, hub=hub, limits=limits(), base=base_model, allow=allow)


def _named(adapters: Sequence[str]) -> list[str]:
    if not adapters:
        raise RecipeError("No adapter is named.", remedy="Name one or more, as owner/name.")
    return list(dict.fromkeys(map(normal, adapters)))


def _weights(weights: Sequence[float] | None, names: Sequence[str]) -> list[float]:
    if not weights:
        return [1.0] * len(names)
    if len(weights) != len(names):
        raise RecipeError(
            f"There are {len(names)} adapters and {len(weights)} weights.", remedy="Give one weight an adapter."
        )
    return [float(weight) for weight in weights]
