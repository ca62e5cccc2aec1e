"""Modules whose deltas stand out, by norm or by spectrum, from those of the same kind and of the other adapters.

A module that stands out may be damage, a training trick, a backdoor, or nothing at all: the numbers do not tell which,
they tell where to look. This is no safety audit. Whether an adapter, or a composition of harmless ones, undoes what the
base model refuses cannot be seen in norms (arXiv 2603.12681): only asking the composite shows it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from hub_merge.adapter import LoraFactors
from hub_merge.findings import Finding, caution
from hub_merge.gram import norm_and_peak
from hub_merge.weights import Weight, weight_for

__all__ = ["ModuleStatistic", "dominance_findings", "measure", "outlier_findings"]

Statistics = Mapping[str, "ModuleStatistic"]
"""Statistics of one adapter by module."""

MOST_Z = 3.5
"""Modified z-score from which a value is called an outlier (Iglewicz and Hoaglin 1993)."""
LEAST_RATIO = 3.0
"""How many times as large as expected an outlier must be besides; a narrow spread alone makes none."""
LEAST_ODDS = 30.0
"""The same for the odds of the largest direction. Of 58 adapters of the community these limits tell of 8."""
FEWEST = 8
"""Modules that it takes to tell what is usual."""
DOMINANT = 5.0
"""Ratio of one delta's norm to the sum of all others' from which the others hardly count in a module."""


@dataclass(frozen=True, slots=True)
class ModuleStatistic:
    """Norm and spectrum of one module's delta.

    Attributes:
        square: Squared Frobenius norm ``‖delta‖²``; NaN if a factor holds NaN or infinity.
        concentration: Share of the energy in the largest direction, ``sigma_1² / ‖delta‖²``, [1/rank, 1]; 0 for a zero
            delta.
        chance: The most that random factors of this shape and rank, padding aside, give,
            ``(1 + sqrt(r/out))² (1 + sqrt(r/in))² / r``, the edges of the Marchenko-Pastur law, at most 1.
    """

    square: float
    concentration: float
    chance: float


def measure(factors: LoraFactors) -> ModuleStatistic:
    """Return norm and spectrum of a delta, from its factors alone."""
    square, largest, pieces = norm_and_peak(factors)
    (out_features, in_features), rank = factors.shape, max(1, pieces)
    chance = (1 + math.sqrt(rank / out_features)) ** 2 * (1 + math.sqrt(rank / in_features)) ** 2 / rank
    concentration = min(1.0, largest / square) if square > 0 else 0.0
    return ModuleStatistic(square, concentration, min(1.0, chance))


def outlier_findings(names: Sequence[str], statistics: Sequence[Statistics]) -> Iterator[Finding]:
    """Yield a caution for each adapter that has outliers.

    The value of a module is ``log ‖delta‖`` less its median over the modules of the same kind in that adapter, so that
    neither the size of an adapter nor that of a kind of layer counts; less the median of the same value in the other
    adapters that have the module, so that what all trainings do does not count. An outlier has a modified z-score
    ``0.6745 (x - median) / MAD`` above 3.5 over the adapter's modules and is at least three times as large as expected.
    The spectrum is judged in the same way by the log odds of ``sigma_1² / ‖delta‖²``, thirty times as large as expected
    and above what chance gives.
    """
    norms = [_centred({name: math.log(s.square) / 2 for name, s in _counted(entry)}) for entry in statistics]
    peaks = [_centred({name: _log_odds(s) for name, s in _counted(entry) if s.chance < 1}) for entry in statistics]
    for number, (name, entry) in enumerate(zip(names, statistics, strict=True)):
        total = sum(s.square for _, s in _counted(entry))
        if found := _outliers(number, norms, LEAST_RATIO):
            worst = found[0]
            share = entry[worst].square / total
            yield caution(
                "norm_outlier",
                _some(found),
                f"{len(found)} of {len(entry)} modules are far larger than expected; {worst} has {share:.1%} of the "
                "adapter's squared norm",
                "norms like those of its other layers and of the other adapters",
                "Look at these modules; this shows where to look, and is no safety audit.",
                adapter=name,
            )
        sharp = [m for m in _outliers(number, peaks, LEAST_ODDS) if entry[m].concentration > entry[m].chance]
        if sharp:
            worst = sharp[0]
            yield caution(
                "spectrum_outlier",
                _some(sharp),
                f"{len(sharp)} of {len(entry)} modules are nearly of rank one; one direction of {worst} has "
                f"{entry[worst].concentration:.0%} of its energy, where chance gives at most {entry[worst].chance:.0%}",
                "spectra like those of its other layers and of the other adapters",
                "Look at these modules; this shows where to look, and is no safety audit.",
                adapter=name,
            )


def dominance_findings(
    names: Sequence[str], statistics: Sequence[Statistics], weights: Sequence[Weight]
) -> Iterator[Finding]:
    """Yield a caution for each adapter that drowns all others, weights counted, in modules that they share."""
    norms = [
        {module: abs(weight_for(weight, module)) * math.sqrt(s.square) for module, s in _counted(entry)}
        for entry, weight in zip(statistics, weights, strict=True)
    ]
    modules = {module for entry in norms for module in entry}
    shared = [module for module in modules if sum(module in entry for entry in norms) > 1]
    for number, name in enumerate(names):
        mine = [module for module in shared if module in norms[number]]
        others = {m: sum(entry.get(m, 0.0) for entry in norms) - norms[number][m] for m in mine}
        drowned = sorted(module for module in mine if norms[number][module] > DOMINANT * others[module])
        if drowned:
            yield caution(
                "dominated",
                _some(drowned),
                f"with these weights its delta is more than {DOMINANT:g} times all others together in {len(drowned)} "
                f"of {len(mine)} shared modules",
                "parts of comparable size",
                "There the composite is nearly this adapter alone; change the weights if that is not wanted.",
                adapter=name,
            )


def _counted(entry: Statistics) -> list[tuple[str, ModuleStatistic]]:
    return [(name, statistic) for name, statistic in entry.items() if statistic.concentration > 0]


def _log_odds(statistic: ModuleStatistic) -> float:
    """Return how the largest direction's share compares with the rest, ``log(c / (1 - c))``, bounded where c is 1."""
    rest = max(1.0 - statistic.concentration, 1e-9)
    return math.log(statistic.concentration / rest)


def _centred(values: Mapping[str, float]) -> dict[str, float]:
    """Return each value less the median over modules of the same kind, which differ in numbers only."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for name, value in values.items():
        kinds[_kind(name)].append(value)
    middles = {kind: median(found) for kind, found in kinds.items()}
    return {name: value - middles[_kind(name)] for name, value in values.items()}


def _kind(module: str) -> str:
    return ".".join(part for part in module.split(".") if not part.isdigit())


def _outliers(number: int, values: Sequence[Mapping[str, float]], least_ratio: float) -> list[str]:
    """Return the modules of one adapter that stand out upwards, the farthest first."""
    mine = values[number]
    if len(mine) < FEWEST:
        return []
    excess = {}
    for name, value in mine.items():
        others = [other[name] for place, other in enumerate(values) if place != number and name in other]
        excess[name] = value - (median(others) if others else 0.0)
    middle = median(excess.values())
    spread = median(abs(value - middle) for value in excess.values())
    least = max(MOST_Z * spread / 0.6745, math.log(least_ratio))
    found = [name for name, value in excess.items() if value - middle >= least]
    return sorted(found, key=lambda name: (-excess[name], name))


def _some(modules: Sequence[str]) -> str:
    return ", ".join(modules[:3]) + (f" and {len(modules) - 3} more" if len(modules) > 3 else "")
