"""A set to merge, one adapter a skill: those that disturb each other least by what their fingerprints tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, cycle, islice
from typing import Any

import numpy as np

from hub_merge.errors import MergeError
from hub_merge.zoo.entries import Entry
from hub_merge.zoo.loaded import Loaded
from hub_merge.zoo.queries import APART, fit_together
from hub_merge.zoo.sketch import deviation

__all__ = ["Pair", "Proposal", "compose"]

CANDIDATES = 64
"""Adapters of each skill that are considered, the most downloaded first."""
BEAM = 32
"""Partial sets that are carried on."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What is expected between two adapters of a set.

    Attributes:
        first: Key of the one.
        second: Key of the other.
        estimate: Estimated cosine, [-1, 1].
        deviation: Standard deviation that the estimate is expected to have.
        norm_ratio: Larger norm over smaller.
    """

    first: str
    second: str
    estimate: float
    deviation: float
    norm_ratio: float


@dataclass(frozen=True, slots=True)
class Proposal:
    """A set to merge.

    Attributes:
        skills: The skill that each adapter is for.
        entries: The adapters.
        pairs: What is expected between them.
        interference: Largest share of an adapter's delta that the plain sum is expected to add or take along it:
            ``max_i |sum_(j≠i) <delta_j, delta_i>| / ‖delta_i‖²``, cosines that may be chance counted as 0.
    """

    skills: tuple[str, ...]
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]
    interference: float

    @property
    def has_local(self) -> bool:
        """Whether an adapter is on somebody's machine, the index does not know where."""
        return any(entry.repo_id is None for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        """Return the proposal as plain data."""
        chosen = zip(self.skills, self.entries, strict=True)
        return {
            "adapters": [{"skill": skill, "reference": entry.reference, **entry.to_dict()} for skill, entry in chosen],
            "pairs": [{name: getattr(pair, name) for name in Pair.__dataclass_fields__} for pair in self.pairs],
            "interference": self.interference,
        }


def compose(
    zoo: Loaded, skills: Sequence[str], count: int | None = None, *, base: str | None = None, any_license: bool = False
) -> Proposal:
    """Return a set of adapters of one base model that disturb each other little.

    An adapter is for a skill if the word is in its id or its tags. Sets are grown skill by skill; of those that
    disturb each other as little, the one with more even norms, then the more downloaded one wins.

    Args:
        zoo: The index.
        skills: Words.
        count: Adapters in all, at least one a skill; by default one each. More are shared out in the order of skills.
        base: Base model; the one with adapters for most skills by default.
        any_license: Also propose what may not be shared together.

    Raises:
        MergeError: A skill has no adapter, or no set may be shared.
    """
    count = count or len(skills)
    if not skills or count < len(skills):
        raise MergeError(
            f"{count} adapters cannot have {len(skills)} skills.", remedy="Raise -k, or name fewer --skills."
        )
    wanted = tuple(sorted(islice(cycle(skills), count), key=skills.index))
    found = {skill: _candidates(zoo, skill) for skill in skills}
    base = base or _best_base(zoo, found)
    of_base = zoo.of_base(base) if base else np.zeros(len(zoo), bool)
    places = {skill: [place for place in rows if of_base[place]][:CANDIDATES] for skill, rows in found.items()}
    if empty := [skill for skill in skills if not places[skill]]:
        raise MergeError(
            f"No adapter of {base or 'any base model'} has {', '.join(empty)} in its name or tags.",
            remedy="Use other words, name another --base, or index more adapters.",
        )
    sets = _grown(zoo, [places[skill] for skill in wanted], any_license)
    if not sets:
        raise MergeError(
            "No set of these skills may be shared together by the licences its adapters state.",
            remedy="Pass --any-license to see a set that you must not publish, or use other words.",
        )
    return _proposal(zoo, wanted, sets[0])


def _candidates(zoo: Loaded, skill: str) -> list[int]:
    """Return the rows whose id or tags hold the word, the most downloaded first."""
    word = skill.casefold()
    ids, tags = zoo.rows["key"].to_pylist(), zoo.rows["tags"].to_pylist()
    rows = [
        row
        for row, (key, tagged) in enumerate(zip(ids, tags, strict=True))
        if zoo.norms[row] > 0 and (word in key.casefold() or any(word in tag.casefold() for tag in tagged or ()))
    ]
    downloads = zoo.column("downloads")
    return sorted(rows, key=lambda row: (-int(downloads[row]), row))


def _best_base(zoo: Loaded, found: dict[str, list[int]]) -> str | None:
    bases = zoo.rows["base"].to_pylist()
    counts: dict[str, list[int]] = {}
    for number, rows in enumerate(found.values()):
        for row in rows:
            counts.setdefault(bases[row], [0] * len(found))[number] += 1
    return max(counts, key=lambda base: (sum(map(bool, counts[base])), sum(counts[base])), default=None)


def _grown(zoo: Loaded, choices: Sequence[Sequence[int]], any_license: bool) -> list[tuple[int, ...]]:
    """Return sets with one row of each choice, the best first."""
    licenses, downloads = zoo.rows["license"].to_pylist(), zoo.column("downloads")
    sets: list[tuple[int, ...]] = [()]
    for choice in choices:
        larger = [
            (*known, row)
            for known in sets
            for row in choice
            if row not in known
            and (any_license or all(fit_together(licenses[row], licenses[other]) for other in known or (row,)))
        ]
        worth = {rows: (*_disturbance(zoo, rows), -int(downloads[list(rows)].sum()), rows) for rows in set(larger)}
        sets = sorted(worth, key=worth.__getitem__)[:BEAM]
    return sets


def _disturbance(zoo: Loaded, rows: Sequence[int]) -> tuple[float, float]:
    """Return the interference of a set, and how uneven its norms are in whole powers of two."""
    norms = zoo.norms[list(rows)]
    uneven = float(round(math.log2(norms.max() / norms.min())))
    vectors = zoo.coarse[list(rows)].astype(np.float64)
    return round(_interference(vectors @ vectors.T, norms, zoo.coarse.shape[1]), 3), uneven


def _interference(cosines: np.ndarray[Any, Any], norms: np.ndarray[Any, Any], size: int) -> float:
    told = np.where(np.abs(cosines) < APART * deviation(0.0, size), 0.0, cosines)
    np.fill_diagonal(told, 0.0)
    return float(np.abs((told * norms).sum(axis=1) / norms).max(initial=0.0))


def _proposal(zoo: Loaded, skills: tuple[str, ...], rows: tuple[int, ...]) -> Proposal:
    entries = tuple(zoo.entry(row) for row in rows)
    known = [entry.fingerprint for entry in entries if entry.fingerprint is not None]
    cosines = np.array([[one.cosine(other) or 0.0 for other in known] for one in known])
    norms = zoo.norms[list(rows)]
    pairs = tuple(
        Pair(
            entries[i].key,
            entries[j].key,
            float(cosines[i, j]),
            deviation(float(cosines[i, j])),
            float(max(norms[i], norms[j]) / min(norms[i], norms[j])),
        )
        for i, j in combinations(range(len(rows)), 2)
    )
    return Proposal(skills, entries, pairs, _interference(cosines, norms, zoo.sketches.shape[1]))
