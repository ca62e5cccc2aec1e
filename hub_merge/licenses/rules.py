"""When one licence takes another in, and when two contradict each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import combinations

from hub_merge.licenses.expressions import OTHER
from hub_merge.licenses.terms import CLASHES, TERMS, Clause, Duty, Terms

__all__ = ["ASK", "Clash", "clashes", "covering"]

ASK = "ask its author for another licence, or keep the composite to yourself: a local merge is not affected."
BINDING = (Duty.OWN_MODELS_ONLY, Duty.OWN_TERMS, Duty.SHARE_ALIKE, Duty.NON_COMMERCIAL, Duty.USE_RESTRICTIONS)
"""Duties that bind the whole, the ones that leave least room first."""


@dataclass(frozen=True, slots=True)
class Clash:
    """Two licences that no third satisfies together: why, and the way out."""

    first: Terms
    second: Terms
    why: str
    remedy: str


def covering(found: Set[str]) -> str:
    """Return the one licence into which all of ``found`` flow, ``other`` if there is none."""
    if not found <= TERMS.keys():
        return OTHER
    known = [TERMS[identifier] for identifier in found]
    beyond = dict.fromkeys(goal for terms in sorted(known, key=lambda terms: terms.id) for goal in terms.into)
    covers = [goal for goal in dict.fromkeys((*found, *beyond)) if all(_flows(terms, TERMS[goal]) for terms in known)]
    inside = [goal for goal in covers if goal in found]
    if inside:
        return inside[0] if len(inside) == 1 else OTHER
    return covers[0] if covers else OTHER


def _flows(terms: Terms, goal: Terms) -> bool:
    """Tell whether what is under ``terms`` may be part of something under ``goal``."""
    if terms.id == goal.id or goal.id in terms.into:
        return True
    return terms.strictness < 3 and terms.strictness < goal.strictness and frozenset({terms.id, goal.id}) not in CLASHES


def clashes(known: Iterable[Terms]) -> Iterator[Clash]:
    """Yield the pairs of ``known`` that contradict each other."""
    for first, second in combinations(known, 2):
        pair = frozenset({first.id, second.id})
        if pair in CLASHES and covering(pair) == OTHER:
            yield Clash(first, second, *CLASHES[pair])
        elif why := _contradiction(first, second):
            yield Clash(first, second, why, f"Merge adapters of one of the two only, {ASK}")


def _contradiction(first: Terms, second: Terms) -> str | None:
    """Return why no licence satisfies both, ``None`` if one does."""
    if min(first.strictness, second.strictness) < 3 or not (first.is_read and second.is_read):
        return None
    if {first.id, *first.into} & {second.id, *second.into}:
        return None
    for one, another in ((first, second), (second, first)):
        if clause := one.clause(Duty.SHARE_ALIKE):
            return f"{_cited(one, clause)}, and {another.id} asks for more or other: {_cited(another)}"
    if first.family and second.family and first.family != second.family:
        return f"{_cited(first)}, and {_cited(second)}"
    return None


def _cited(terms: Terms, clause: Clause | None = None) -> str:
    """Return ``clause``, or the one in which the terms bind the whole the most, with its place."""
    clause = clause or next(filter(None, map(terms.clause, BINDING)), terms.clauses[0])
    return f"{terms.id} {clause.where}: {clause.says}"
