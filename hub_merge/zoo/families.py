"""Families of an index: adapters whose deltas point the same way, and a map on which they lie together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hub_merge.pipeline.progress import Progress, silent
from hub_merge.zoo.entries import Entry
from hub_merge.zoo.loaded import Loaded

__all__ = ["Families", "Family", "families"]

BLOCK = 1024
"""Adapters that are compared with all others at once."""
SAME = 0.999


@dataclass(frozen=True, slots=True)
class Family:
    """Adapters of one base model that hang together: each is alike to another one of them.

    Attributes:
        members: The adapters, most downloaded first.
        files: How many different files they are.
        deltas: How many different deltas, as far as sketches tell.
        cohesion: Mean estimated cosine of the pairs, [-1, 1].
        places: Their rows in the index.
    """

    members: tuple[Entry, ...]
    files: int
    deltas: int
    cohesion: float
    places: tuple[int, ...] = field(repr=False, default=())

    def to_dict(self) -> dict[str, Any]:
        """Return the family as plain data."""
        return {
            "name": self.members[0].key,
            "base": self.members[0].base,
            "size": len(self.members),
            "files": self.files,
            "deltas": self.deltas,
            "cohesion": self.cohesion,
            "members": [member.key for member in self.members],
        }


@dataclass(frozen=True, slots=True, eq=False)
class Families:
    """The families of an index, the largest first, and where each adapter lies on the map, ``(n, 2)``.

    ``places`` are the rows that were looked at, in the order of ``map``.
    """

    families: tuple[Family, ...]
    places: NDArray[np.intp]
    map: NDArray[np.float64]


def families(
    zoo: Loaded,
    *,
    base: str | None = None,
    threshold: float = 0.5,
    progress: Progress = silent,
) -> Families:
    """Return the families of an index.

    Args:
        zoo: The index.
        base: Base model to look at; all by default, which never share a family.
        threshold: Estimated cosine from which two adapters are alike, (0, 1].
        progress: Told how far the work is.
    """
    wanted = zoo.norms > 0
    if base is not None:
        wanted &= zoo.of_base(base)
    places = np.flatnonzero(wanted)
    alike = _Sets(len(places))
    same = _Sets(len(places))
    for first in range(0, len(places), BLOCK):
        some = places[first : first + BLOCK]
        later = places[first:]
        close = np.argwhere(zoo.coarse[some] @ zoo.coarse[later].T > 0.8 * threshold)
        for row, column, cosine in _checked(zoo, some, later, close, threshold):
            alike.unite(first + row, first + column)
            if cosine > SAME:
                same.unite(first + row, first + column)
        progress("compare", min(first + BLOCK, len(places)), len(places))
    groups = [group for group in alike.groups() if len(group) > 1]
    found = [_family(zoo, places, group, same) for group in groups]
    found.sort(key=lambda family: (-len(family.members), family.members[0].key))
    return Families(tuple(found), places, _map(zoo, places, found))


def _checked(
    zoo: Loaded, some: NDArray[np.intp], later: NDArray[np.intp], close: NDArray[Any], threshold: float
) -> list[tuple[int, int, float]]:
    """Return the pairs that are alike by their whole sketches and of one base model, with their cosines."""
    close = close[close[:, 0] < close[:, 1]]
    pairs = []
    for row in np.unique(close[:, 0]):
        columns = close[close[:, 0] == row, 1]
        base = zoo.column("base")
        columns = columns[base[later[columns]] == base[some[row]]]
        entry = zoo.entry(int(some[row])).fingerprint
        assert entry is not None
        cosines = zoo.look(entry, later[columns])
        pairs += [(int(row), int(c), float(x)) for c, x in zip(columns, cosines, strict=True) if x >= threshold]
    return pairs


class _Sets:
    """Disjoint sets of the numbers below ``count``."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, number: int) -> int:
        """Return what stands for the set of a number."""
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def unite(self, one: int, other: int) -> None:
        """Make the sets of two numbers one."""
        first, second = sorted((self.find(one), self.find(other)))
        self._parent[second] = first

    def groups(self) -> list[list[int]]:
        """Return the sets."""
        found: dict[int, list[int]] = {}
        for number in range(len(self._parent)):
            found.setdefault(self.find(number), []).append(number)
        return list(found.values())


def _family(zoo: Loaded, places: NDArray[np.intp], group: list[int], same: _Sets) -> Family:
    rows = sorted(map(int, places[group]), key=lambda row: (-int(zoo.column("downloads")[row]), row))
    members = tuple(zoo.entry(row) for row in rows)
    vectors = zoo.coarse[rows].astype(np.float64)
    count = len(rows)
    cohesion = (float(np.square(vectors.sum(axis=0)).sum()) - count) / (count * (count - 1))
    files = {member.weights_hash or member.key for member in members}
    return Family(members, len(files), len({same.find(number) for number in group}), cohesion, tuple(rows))


def _map(zoo: Loaded, places: NDArray[np.intp], found: list[Family]) -> NDArray[np.float64]:
    """Return the projection of the sketches on the two directions in which families, or else adapters, differ most."""
    if not len(places):
        return np.zeros((0, 2))
    centres = [zoo.coarse[list(family.places)].mean(axis=0) for family in found] if len(found) > 1 else []
    spread = np.stack(centres) if len(centres) > 1 else zoo.coarse[places]
    spread = spread.astype(np.float64) - spread.mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(spread.T @ spread)
    directions = vectors[:, :-3:-1]
    directions = directions * np.where(directions[np.abs(directions).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    projected: NDArray[np.float64] = zoo.coarse[places] @ directions
    return projected
