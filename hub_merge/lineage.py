"""Which base each adapter was trained on, which model that stands for, and whether all stand for one.

A quantised copy stands for the model it was made from: its card says so, or only its name. A local path or nothing at
all stands for the base of the others if modules and shapes are the same. What is concluded and not stated is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hub_merge.adapter import Adapter
from hub_merge.bases import Base, read_base, same_name, without_quantisation
from hub_merge.findings import Finding, caution, problem

__all__ = ["Standing", "base_findings", "common_base", "standings"]

FEWEST_ALIKE = 2
"""Modules that two adapters must share before their shapes say anything of their bases."""

Follow = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Standing:
    """The base of one adapter.

    Attributes:
        adapter: Name of the adapter.
        trained_on: What it states, as far as it may be shown: a Hub id or the last part of a path.
        stands_for: Hub id of the model that this amounts to, ``None`` if that is not known.
        how: Whether that is ``stated``, known by a ``rename``, the ``card`` of a quantised copy, its ``name`` or the
            ``shape`` of the adapter's modules, ``asserted`` by the user, or ``unknown``.
        revision: Revision of the base that the adapter states.
    """

    adapter: str
    trained_on: str
    stands_for: str | None
    how: Literal["stated", "rename", "card", "name", "shape", "asserted", "unknown"]
    revision: str | None


def standings(
    adapters: Sequence[Adapter], asserted: Base | None = None, *, canonical: Follow | None, original: Follow | None
) -> list[Standing]:
    """Return what each adapter was trained on and what that stands for.

    Equal names that are no quantised copies need no question to the Hub.

    Args:
        adapters: Adapters; only their specs are looked at.
        asserted: The base that the user asserts.
        canonical: Follows renames of a Hub id.
        original: Tells which model a quantised copy was made from.
    """
    read = [read_base(adapter.base_model) for adapter in adapters]
    found = [_stated(adapter, base) for adapter, base in zip(adapters, read, strict=True)]
    if asserted is not None:
        return [_asserted(standing, asserted) for standing in found]
    if len({base.label for base in read}) > 1 or any(without_quantisation(base.label) for base in read):
        found = [_followed(standing, canonical, original) for standing in found]
    found = [_by_name(standing, found) for standing in found]
    return [_by_shape(number, adapters, found) for number in range(len(found))]


def _stated(adapter: Adapter, base: Base) -> Standing:
    revision = adapter.base_revision or base.revision
    return Standing(adapter.name, base.label, base.model_id, "stated" if base.model_id else "unknown", revision)


def _asserted(standing: Standing, asserted: Base) -> Standing:
    same = standing.stands_for == asserted.model_id is not None
    return standing if same else replace(standing, stands_for=asserted.model_id, how="asserted")


def _followed(standing: Standing, canonical: Follow | None, original: Follow | None) -> Standing:
    if standing.stands_for is None:
        return standing
    if canonical and (now := canonical(standing.stands_for)) and now != standing.stands_for:
        standing = replace(standing, stands_for=now, how="rename")
    if original and standing.stands_for and (whole := original(standing.stands_for)):
        return replace(standing, stands_for=whole, how="card")
    return standing


def _by_name(standing: Standing, others: Sequence[Standing]) -> Standing:
    """Take a quantised copy whose card says nothing for a copy of the one model of its name among ``others``."""
    if standing.how == "card" or standing.stands_for is None or without_quantisation(standing.stands_for) is None:
        return standing
    whole = {
        other.stands_for
        for other in others
        if other.stands_for
        and not without_quantisation(other.stands_for)
        and same_name(standing.stands_for, other.stands_for)
    }
    return replace(standing, stands_for=whole.pop(), how="name") if len(whole) == 1 else standing


def _by_shape(number: int, adapters: Sequence[Adapter], found: Sequence[Standing]) -> Standing:
    """Take an unknown base for that of the others, if they have one and modules and shapes are those of it."""
    known = {standing.stands_for for standing in found if standing.stands_for}
    if found[number].stands_for is not None or len(known) != 1:
        return found[number]
    like = (other for other, standing in zip(adapters, found, strict=True) if standing.stands_for)
    if not any(_alike(adapters[number], other) for other in like):
        return found[number]
    return replace(found[number], stands_for=known.pop(), how="shape")


def _alike(first: Adapter, second: Adapter) -> bool:
    """Whether two adapters have the same modules and shapes wherever both adapt one kind of module, in every layer."""
    ours, theirs = _places(first), _places(second)
    shared = ours.keys() & theirs.keys()
    return all(ours[place] == theirs[place] for place in shared) and (
        sum(len(ours[place]) for place in shared) >= FEWEST_ALIKE
    )


def _places(adapter: Adapter) -> dict[str, set[tuple[str, str, tuple[int, int]]]]:
    """Return names, kinds and shapes of modules by their name without numbers."""
    places: dict[str, set[tuple[str, str, tuple[int, int]]]] = defaultdict(set)
    for name, spec in adapter.modules.items():
        places[".".join(part for part in name.split(".") if not part.isdigit())].add((name, spec.kind, spec.shape))
    return places


def common_base(found: Sequence[Standing]) -> str | None:
    """Return the model that all stand for, ``None`` if there is none."""
    models = {standing.stands_for for standing in found}
    return models.pop() if len(models) == 1 else None


# --- findings ---------------------------------------------------------------------------------------------------------


def base_findings(adapters: Sequence[Adapter], found: Sequence[Standing], asserted: Base | None) -> Iterator[Finding]:
    """Yield what is to be told of the bases: problems where they are not proven to be one, and every conclusion."""
    if asserted is not None:
        yield from _asserted_findings(found, asserted)
    else:
        yield from _unity_findings(adapters, found)
        yield from (finding for standing in found for finding in _conclusions(standing))
    revisions = {standing.adapter: standing.revision for standing in found if standing.revision}
    if len(set(revisions.values())) > 1:
        seen = "; ".join(f"{name}: {revision}" for name, revision in revisions.items())
        yield caution(
            "base_revision_differs", "revision", f"trained on different revisions of the base ({seen})", "one"
        )


def _seen(found: Sequence[Standing]) -> str:
    return "; ".join(f"{standing.adapter}: {standing.trained_on}" for standing in found)


def _asserted_findings(found: Sequence[Standing], asserted: Base) -> Iterator[Finding]:
    if asserted.model_id is None:
        yield problem(
            "base_not_on_hub",
            "base_model",
            f"the base you assert is {asserted.label}, which is no Hub id",
            "OWNER/NAME",
            "A composite never names a folder of your machine.",
        )
    elif any(standing.how == "asserted" for standing in found):
        yield caution(
            "base_asserted",
            "base_model",
            f"the user asserts {asserted.label}, where the adapters' own files have {_seen(found)}",
        )


def _unity_findings(adapters: Sequence[Adapter], found: Sequence[Standing]) -> Iterator[Finding]:
    models = {standing.stands_for for standing in found}
    stated = {adapter.base_model or None for adapter in adapters}
    if None in models and (len(models) > 1 or len(stated) > 1):
        yield _not_one("base_unknown", f"the adapters state different bases ({_seen(found)})")
    elif None not in models and len(models) > 1:
        yield _not_one("base_differs", f"the adapters state different bases ({_seen(found)})")
    elif models == {None} and stated == {None} and len(adapters) > 1:
        yield _not_one("base_unknown", "no adapter states its base model")
    elif models == {None}:
        yield caution(
            "base_not_on_hub",
            "base_model_name_or_path",
            f"the base is {found[0].trained_on}" + (", which is no Hub id" if stated != {None} else ""),
            "a Hub id",
            "Name it with --base OWNER/NAME; the composite states no base otherwise.",
        )


def _not_one(code: str, seen: str) -> Finding:
    return problem(
        code,
        "base_model_name_or_path",
        seen,
        "one base model",
        "If they stand for the same weights, name it.",
        overrule="--base OWNER/NAME",
    )


def _conclusions(standing: Standing) -> Iterator[Finding]:
    where, model = "base_model_name_or_path", standing.stands_for
    trained = f"it was trained on {standing.trained_on}"
    if standing.how == "card":
        yield caution(
            "base_copy",
            where,
            f"{trained}, which its card calls a copy of {model}",
            remedy="The deltas are applied to the original; small differences of the copy are not part of them.",
            adapter=standing.adapter,
        )
    elif standing.how == "name":
        yield caution(
            "base_by_name",
            where,
            f"{trained}, which by its name alone is a quantised copy of {model}",
            "a card that says so",
            f"Confirm it with --base {model}.",
            adapter=standing.adapter,
        )
    elif standing.how == "shape":
        yield caution(
            "base_by_shape",
            where,
            f"{trained}; its modules and shapes are those of adapters of {model}, which other models have too",
            "a base that is stated",
            f"If you know it, confirm it with --base {model}.",
            adapter=standing.adapter,
        )
    elif model and without_quantisation(model):
        yield caution(
            "base_quantised",
            where,
            f"{trained}, a quantised copy by its name; which model it was made from is not known",
            "the model itself",
            "Name it with --base OWNER/NAME.",
            adapter=standing.adapter,
        )
