"""Which adapters of an index are near to one, far from it, or good partners for it.

Sketches find what is near. Deltas of independent trainings have cosines of a thousandth, far below what a sketch can
tell, so that the order among what is far comes from other things, or from exact cosines where the adapters can be had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hub_merge.errors import MergeError
from hub_merge.licenses import Licensed, united
from hub_merge.parallel import map_modules
from hub_merge.zoo.entries import Entry
from hub_merge.zoo.loaded import Loaded
from hub_merge.zoo.sketch import SIZE, deviation

__all__ = ["Exact", "Match", "Relation", "complement", "far", "fit_together", "near", "reranked", "why_none"]

WORKERS = 4
"""Adapters that are pulled for an exact cosine at once."""
SHORTLIST = 256
"""Adapters that are looked at by their whole sketches, after all were looked at by folded ones."""
RERANKED = 20
"""Least number of candidates that exact cosines are computed for."""
APART = 3.0
"""Standard deviations of an estimate from 0 up to which two deltas may be orthogonal."""
ONE_START = 0.3
"""Estimated mean cosine of the rows of A, five standard deviations from 0, that only one initialisation gives."""
SAME = 0.999
ONE_RUN = 0.6
"""Cosines of checkpoints of one run or of runs of one task: those of public adapters are 0.64 to 0.9999."""

Relation = Literal["same file", "same delta", "scaled copy", "one run", "one start", "related", "opposed", "unrelated"]
Exact = Callable[[Entry], float | None]
"""The exact cosine to an adapter, ``None`` if it cannot be had."""


@dataclass(frozen=True, slots=True)
class Match:
    """One adapter of an answer.

    Attributes:
        entry: The adapter.
        estimate: Estimated cosine of the two whole deltas, [-1, 1].
        deviation: Standard deviation that the estimate is expected to have.
        cosine: Exact cosine, ``None`` where it was not computed.
        norm_ratio: Its norm over that of the adapter asked about.
        start: Estimated mean cosine of the rows of A.
        relation: What the numbers say of the two.
        value: What the order of partners is by, [0, 1]; ``None`` in other answers.
    """

    entry: Entry
    estimate: float
    deviation: float
    norm_ratio: float
    start: float
    relation: Relation
    cosine: float | None = None
    value: float | None = None

    @property
    def best(self) -> float:
        """The exact cosine, or else the estimate."""
        return self.estimate if self.cosine is None else self.cosine

    def to_dict(self) -> dict[str, Any]:
        """Return the match as plain data."""
        numbers = ("estimate", "deviation", "cosine", "norm_ratio", "start", "relation", "value")
        return {**self.entry.to_dict(), **{name: getattr(self, name) for name in numbers}}


def near(zoo: Loaded, asked: Entry, *, limit: int = 10, exact: Exact | None = None) -> list[Match]:
    """Return the adapters whose deltas are most alike or most opposed: duplicates, re-uploads, other steps of a run.

    Args:
        zoo: The index.
        asked: The adapter; it need not be in the index, and is left out of the answer.
        limit: Most adapters to return.
        exact: Computes exact cosines for the top of the list, which then decide its order.

    Raises:
        MergeError: The delta of ``asked`` is zero.
    """
    rows = _others(zoo, asked)
    order = _first(-np.abs(zoo.glance(_known(asked))[rows]), limit)
    matches = _best(zoo, asked, rows[order], limit, lambda cosines, ratios: np.argsort(-np.abs(cosines), kind="stable"))
    return reranked(matches, exact, lambda match: -abs(match.best))[:limit]


def far(zoo: Loaded, asked: Entry, *, limit: int = 10, exact: Exact | None = None) -> list[Match]:
    """Return the adapters that are closest to orthogonal, by estimate or by exact cosine.

    Among what an estimate cannot tell from orthogonal those of the largest norm come first, for the delta of an
    adapter that was hardly trained is orthogonal to nobody's use. Args and errors are those of ``near``.
    """
    rows = _others(zoo, asked)
    sizes = _told_apart(zoo.glance(_known(asked))[rows], zoo.coarse.shape[1])
    norms = zoo.norms[rows]
    order = _first(np.where(sizes > 0, sizes, -norms / norms.max(initial=1.0)), limit)
    matches = _best(zoo, asked, rows[order], limit, lambda cosines, ratios: np.lexsort((-ratios, _told_apart(cosines))))
    return reranked(matches, exact, lambda match: abs(match.best))[:limit]


def complement(
    zoo: Loaded, asked: Entry, *, limit: int = 10, exact: Exact | None = None, any_license: bool = False
) -> list[Match]:
    """Return useful partners: little overlap, a norm that neither drowns nor is drowned, and a licence that fits.

    Partners come by their ``value``: ``(1 - |cosine|) * min(ratio, 1 / ratio)`` for the ratio of the norms, where an
    estimate that may be chance counts as 0. Args and errors are those of ``near``; ``any_license`` leaves licences out.
    """
    rows = _others(zoo, asked)
    if not any_license:
        rows = rows[_lawful(zoo, asked, rows)]
    sizes = _told_apart(zoo.glance(_known(asked))[rows], zoo.coarse.shape[1])
    order = _first(-_worth(sizes, zoo.norms[rows] / _known(asked).norm), limit)
    matches = _best(
        zoo,
        asked,
        rows[order],
        limit,
        lambda cosines, ratios: np.argsort(-_worth(_told_apart(cosines), ratios), kind="stable"),
    )
    valued = map(_valued, reranked(matches, exact, lambda match: 0.0))
    return sorted(valued, key=lambda match: (-(match.value or 0), -match.entry.downloads, match.entry.key))[:limit]


def why_none(zoo: Loaded, asked: Entry) -> str:
    """Return why a question about an adapter has no answer."""
    if not len(zoo):
        return "The index holds no adapter that can be compared."
    if not zoo.of_base(asked.base).any():
        return f"The index holds no adapter of {asked.base}."
    if not len(_others(zoo, asked)):
        return f"The index holds no other trained adapter of {asked.base}."
    return f"No adapter of {asked.base} in the index has a licence that fits: --any-license shows them all the same."


def reranked(matches: Sequence[Match], exact: Exact | None, order: Callable[[Match], float]) -> list[Match]:
    """Return the matches with exact cosines and relations where they can be had, in a new order."""
    if exact is None:
        return list(matches)
    known = []
    cosines = map_modules(exact, [match.entry for match in matches], WORKERS)
    for match, cosine in zip(matches, cosines, strict=True):
        relation = match.relation if cosine is None else _relation(match, cosine, 0.0)
        known.append(replace(match, cosine=cosine, relation=relation))
    return sorted(known, key=order)


@lru_cache(maxsize=4096)
def fit_together(license: str | None, other: str | None) -> bool:
    """Whether what is under two licences may be shared together; a licence that is not known fits nothing.

    An adapter of one's own without a stated licence is no obstacle.
    """
    if other is None:
        return False
    sources = [Licensed("the one", license), Licensed("the other", other)]
    first, *rest = [source for source in sources if source.license]
    return not united(first, rest).blockers


def _known(asked: Entry) -> Any:
    if asked.fingerprint is None or not asked.fingerprint.norm:
        why = asked.reason or "its delta is zero: it was not trained, or only its B"
        raise MergeError(f"{asked.key} cannot be compared: {why}.", remedy="Ask about another adapter.")
    return asked.fingerprint


def _others(zoo: Loaded, asked: Entry) -> NDArray[np.intp]:
    """Return the rows of the same base model whose delta is not zero, but for the adapter itself."""
    wanted = zoo.of_base(asked.base) & (zoo.norms > 0)
    itself = zoo.place(asked.key)
    if itself is not None:
        wanted[itself] = False
    return np.flatnonzero(wanted)


def _first(keys: NDArray[Any], limit: int) -> NDArray[np.intp]:
    """Return the places of the smallest keys, enough to look at more closely, in no order but always the same."""
    most = max(SHORTLIST, 2 * limit)
    return np.argpartition(keys, most)[:most] if most < len(keys) else np.arange(len(keys))


def _best(
    zoo: Loaded,
    asked: Entry,
    rows: NDArray[np.intp],
    limit: int,
    order: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.intp]],
) -> list[Match]:
    """Return the best of ``rows`` by their whole sketches, a few more than the ``limit``.

    Args:
        zoo: The index.
        asked: The adapter that is asked about.
        rows: Rows of the index that are best by their folded sketches.
        limit: How many are wanted.
        order: Returns the order of some, given estimates and ratios of norms.
    """
    known = _known(asked)
    estimates, ratios = zoo.look(known, rows), zoo.norms[rows] / known.norm
    chosen = order(estimates, ratios)[: max(RERANKED, 2 * limit)]
    starts = zoo.start_alike(known, rows[chosen])
    return [
        _match(asked, zoo.entry(int(rows[place])), float(estimates[place]), float(ratios[place]), float(start))
        for place, start in zip(chosen, starts, strict=True)
    ]


def _match(asked: Entry, entry: Entry, estimate: float, ratio: float, start: float) -> Match:
    bare = Match(entry, estimate, deviation(estimate), ratio, start, "unrelated")
    same = entry.weights_hash is not None and entry.weights_hash == asked.weights_hash
    return replace(bare, relation="same file" if same else _relation(bare, estimate, APART * bare.deviation))


def _relation(match: Match, cosine: float, chance: float) -> Relation:
    if match.relation == "same file":
        return "same file"
    if cosine > SAME:
        return "same delta" if abs(match.norm_ratio - 1) < 1e-3 else "scaled copy"
    if cosine > ONE_RUN:
        return "one run"
    if abs(cosine) > max(chance, 0.05):
        return "related" if cosine > 0 else "opposed"
    return "one start" if match.start > ONE_START else "unrelated"


def _told_apart(cosines: NDArray[Any], size: int = SIZE) -> NDArray[Any]:
    """Return the sizes of estimates from sketches of ``size`` numbers, 0 for those that may be chance."""
    sizes = np.abs(cosines)
    return np.where(sizes < APART * deviation(0.0, size), 0.0, sizes)


def _worth(sizes: NDArray[Any], ratios: NDArray[Any]) -> NDArray[Any]:
    worth: NDArray[Any] = (1 - sizes) * np.minimum(ratios, 1 / ratios)
    return worth


def _valued(match: Match) -> Match:
    overlap = _told_apart(np.array(match.estimate)) if match.cosine is None else np.array(abs(match.cosine))
    return replace(match, value=float(_worth(overlap, np.array(match.norm_ratio))))


def _lawful(zoo: Loaded, asked: Entry, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    encoded = zoo.rows["license"].combine_chunks().dictionary_encode()
    allowed = [fit_together(asked.license, license) for license in encoded.dictionary.to_pylist()]
    codes = encoded.indices.fill_null(len(allowed)).to_numpy(zero_copy_only=False)
    lawful: NDArray[np.bool_] = np.array([*allowed, False])[codes][rows]
    return lawful
