"""Which method, weights and rank fit the geometry of some adapters, and why.

A few plain rules over measured numbers. They say what a merge does to the deltas, such as adding a shared part twice;
none of them says how well the composite will work. That is measured, not computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hub_merge.compat import DOMINANT, SERVED_RANKS
from hub_merge.methods import Method, get_method
from hub_merge.ranks import ENERGY, energy_by_rank, smallest_rank
from hub_merge.scores import modules_of, parents_of
from hub_merge.spectra import squares_of_sum

if TYPE_CHECKING:
    from hub_merge.adapter import Adapter, LoraFactors
    from hub_merge.compat import Compatibility
    from hub_merge.scores import PairScore, Scores

__all__ = ["MAX_RANK", "Advice", "advise"]

APART = 0.05
"""Up to this RMS cosine two adapters count as apart: of equal norm, a sum moves each along itself by about 5 % at most.

Unrelated adapters of GPT-2 on the Hub were measured at 0.001 to 0.03, so strangers pass.
"""

NEAR_CHANCE = 2.0
"""Up to this multiple of chance they count as apart too: 1 is what random deltas give, and few modules scatter."""

CLOSE = 0.5
"""From this RMS cosine on two adapters count as close: of equal norm, a sum overshoots each along itself by half.

Tasks trained from one seed were measured at 0.16 to 0.20, adapters of one author and one script at 0.70.
"""

OPPOSED = -0.3
"""Below this global cosine the deltas work against each other: a sum takes a third of each away. A convention."""

MAX_RANK = SERVED_RANKS[-1]
"""The largest rank that many servers allow."""

CONTESTED = (
    "Whether orthogonality predicts a good merge is contested: arXiv 2508.11985 finds that it tracks the loss, "
    "2510.03262 and 2606.11262 find that it says little, and on our own example adapters the order of the pairs was "
    "the opposite."
)
MEASURE = "This is geometry, no promise of quality: measure the composite, beside its parents and the alternatives."


@dataclass(frozen=True, slots=True)
class Advice:
    """A recommendation. It rests on geometry alone.

    Attributes:
        method: Name of the merge method.
        rank: Rank to ask for; ``None`` for the method's own.
        weights: One number an adapter.
        reasons: What was measured and what follows, one sentence or two each.
        caveats: What the recommendation does not know.
        energy_at_rank: Pairs of a rank and the share of the squared norm of the weighted sum or mean that its best
            approximation of that rank keeps, [0, 1]: powers of two, ``rank``, and the rank that keeps all.
        alternatives: Names of methods worth measuring beside it.
    """

    method: str
    rank: int | None
    weights: tuple[float, ...]
    reasons: tuple[str, ...]
    caveats: tuple[str, ...]
    energy_at_rank: tuple[tuple[int, float], ...]
    alternatives: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the advice as plain data."""
        return {
            "method": self.method,
            "rank": self.rank,
            "weights": list(self.weights),
            "alternatives": list(self.alternatives),
            "reasons": list(self.reasons),
            "caveats": list(self.caveats),
            "energy_at_rank": [{"rank": rank, "share": share} for rank, share in self.energy_at_rank],
        }


def advise(
    adapters: Sequence[Adapter], scores: Scores, compatibility: Compatibility, *, max_rank: int = MAX_RANK
) -> Advice:
    """Return the method, weights and rank that the geometry suggests.

    One adapter is compressed by ``svd``. Adapters that are apart are added, for a sum then keeps each nearly as it is.
    Adapters that overlap are averaged, for a sum applies their common part once for each of them. Norms far apart are
    balanced. A merge whose exact rank is above ``max_rank`` is cut to the smallest rank that keeps 99 % of its energy.

    Args:
        adapters: One or more adapters, read once more for the energy of what is suggested.
        scores: Their scores.
        compatibility: What checking them showed.
        max_rank: Largest rank that the composite may have, from 1.
    """
    trained = [name for name, norm in zip(scores.adapters, scores.norms, strict=True) if norm > 0]
    weights, weight_reasons, caveats = _balance(scores)
    linear, reasons, alternatives = _method(scores, trained)
    energy = _energy(adapters, get_method(linear), weights)
    single = len(trained) < 2
    rank, rank_reasons, rank_caveats = _rank(energy, compatibility.total_rank, max_rank, single)
    if len(trained) > 1:
        caveats += [*_pair_caveats(scores.pairs), CONTESTED]
    if not compatibility.compatible:
        problems = compatibility.report.problems
        codes = ", ".join(sorted({found.code for found in problems}))
        ways = "; ".join(sorted({found.overrule for found in problems if found.overrule}))
        settled = f"settled with {ways}" if ways else "settled"
        caveats.insert(0, f"They do not fit together as they are ({codes}): no merge before that is {settled}.")
    return Advice(
        method="svd" if rank is not None and linear == "sum" else linear,
        rank=rank,
        weights=weights,
        reasons=(*reasons, *weight_reasons, *rank_reasons),
        caveats=(*caveats, *rank_caveats, MEASURE),
        energy_at_rank=_some_ranks(energy, rank),
        alternatives=alternatives,
    )


def _energy(adapters: Sequence[Adapter], method: Method, weights: Sequence[float]) -> tuple[float, ...]:
    """Return the share of the energy of the linear combination that ``method`` makes, at every rank."""

    def taking_part(module: str) -> tuple[Sequence[LoraFactors], Sequence[float]]:
        parts = parents_of(adapters, module)
        return parts, method.combination(weights, parts)

    return energy_by_rank(squares_of_sum(modules_of(adapters), taking_part).values())


# --- method -----------------------------------------------------------------------------------------------------------


def _method(scores: Scores, trained: Sequence[str]) -> tuple[str, list[str], tuple[str, ...]]:
    """Return the linear combination to take, the reasons, and the alternatives."""
    if not trained:
        return "sum", ["Every delta is zero: there is nothing to merge."], ()
    if len(trained) == 1:
        others = len(scores.adapters) > 1
        told = f"Only {trained[0]} has a delta that is not zero: leave the others out." if others else ""
        return "sum", [told or "It is one adapter: there is nothing to merge, only to compress."], ()
    known = [pair for pair in scores.pairs if pair.rms_cosine is not None]
    if not known:
        return "sum", ["No module is changed by two of them: a sum puts them side by side, each untouched."], ()
    near = [pair for pair in known if not _apart(pair)]
    if not near:
        text = "so a sum keeps each nearly as it is along its own direction."
        return "sum", [f"All pairs are apart (largest RMS cosine {_told(max(known, key=_cosine))}), {text}"], ()
    widest = max(near, key=_cosine)
    twice = "A sum applies what they share once for each of them, the mean once."
    if all(_cosine(pair) >= CLOSE for pair in scores.pairs if {pair.first, pair.second} <= set(trained)):
        text = f"All pairs overlap strongly (largest RMS cosine {_told(widest)}), as checkpoints of one family do."
        return "mean", [f"{text} {twice}"], ()
    shared = [pair for pair in near if pair.one_start]
    if shared:
        start = "Their lora_A started alike where it is strongest; that alone raises a cosine."
        start = start if widest in shared else "Some of them started from one lora_A, which alone raises a cosine."
    else:
        start = "Rows of lora_A are not alike beyond chance, so a common start does not explain it."
    text = f"{len(near)} of {len(scores.pairs)} pairs overlap (largest RMS cosine {_told(widest)}). {start}"
    return "mean", [f"{text} {twice}"], ("core", "sum")


def _cosine(pair: PairScore) -> float:
    return pair.rms_cosine or 0.0


def _told(pair: PairScore) -> str:
    return f"{_cosine(pair):.3g} for {pair.first} + {pair.second}, chance {pair.chance or 0.0:.2g}"


def _apart(pair: PairScore) -> bool:
    return _cosine(pair) <= APART or (pair.times_chance is not None and pair.times_chance <= NEAR_CHANCE)


def _pair_caveats(pairs: Sequence[PairScore]) -> list[str]:
    return [
        f"{pair.first} and {pair.second} work against each other (global cosine {pair.global_cosine:.2f}): a sum "
        "or a mean takes away from both."
        for pair in pairs
        if pair.global_cosine is not None and pair.global_cosine < OPPOSED
    ]


# --- weights and rank -------------------------------------------------------------------------------------------------


def _balance(scores: Scores) -> tuple[tuple[float, ...], list[str], list[str]]:
    """Return weights that bring norms far apart to their geometric mean, 1.0 each otherwise."""
    known = {norm: name for norm, name in zip(scores.norms, scores.adapters, strict=True) if norm > 0}
    if not known or max(known) <= DOMINANT * min(known):
        return (1.0,) * len(scores.norms), [], []
    norms = [norm for norm in scores.norms if norm > 0]
    target = math.exp(sum(map(math.log, norms)) / len(norms))
    weights = tuple(float(f"{target / norm:.3g}") if norm > 0 else 1.0 for norm in scores.norms)
    largest, smallest = known[max(known)], known[min(known)]
    return (
        weights,
        [
            f"The norm of {largest} is {max(known) / min(known):.3g} times that of {smallest}, which it would drown: "
            "the weights bring each norm to their geometric mean."
        ],
        [f"These weights make {largest} weaker and {smallest} stronger than it was trained: try others too."],
    )


def _rank(energy: Sequence[float], exact: int, max_rank: int, single: bool) -> tuple[int | None, list[str], list[str]]:
    enough = smallest_rank(energy, ENERGY)
    if enough is None:
        return None, [], []
    if not single and exact <= max_rank:
        return None, [f"The exact rank is {exact}, not above {max_rank}: nothing has to be cut."], []
    rank = min(enough, max_rank)
    reasons = [f"Of an exact rank of {exact}, rank {rank} keeps {_percent(energy[rank - 1])} of the energy."]
    if rank < enough:
        return (
            rank,
            reasons,
            [f"It takes rank {enough} to keep 99 % of the energy; the largest asked for is {max_rank}."],
        )
    return rank, reasons, []


def _percent(share: float) -> str:
    """Return a share in per cent, rounded down so that less than all never reads as all."""
    return f"{math.floor(share * 1000) / 10:g} %"


def _some_ranks(energy: Sequence[float], rank: int | None) -> tuple[tuple[int, float], ...]:
    ranks = {2**n for n in range(len(energy).bit_length())} | {len(energy), rank or 0} - {0}
    return tuple((k, energy[k - 1]) for k in sorted(ranks) if k <= len(energy))
