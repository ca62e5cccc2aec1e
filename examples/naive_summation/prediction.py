"""How well geometry predicts what each adapter loses in a sum.

The loss of a domain is the log ratio of two answer perplexities on its questions: that of the sum over that of the
domain's own adapter. Sums of the same two tasks with other seeds are near copies of each other. So there are three
questions: over all sums; between tasks, with seeds averaged; and within tasks, with the tasks' means taken out, where
only seeds differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PREDICTORS", "Correlation", "Point", "between", "overall", "points", "seed_effect", "within"]

PREDICTORS = {
    "rms_cosine": "RMS cosine",
    "rms_cosine_without_start": "RMS cosine, initialisation taken out",
    "output_overlap": "overlap of the output (B) spaces",
    "retention": "retention",
    "norm_ratio": "norm of the others over its own",
}
RESAMPLES = 5000

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One domain of one sum.

    Attributes:
        sum: Name of the sum.
        task: The domain, and the domains it was merged with.
        one_start: Whether all its parents started from one lora_A.
        loss: Log ratio of its perplexities.
        geometry: The predictors.
    """

    sum: str
    task: tuple[str, ...]
    one_start: bool
    loss: float
    geometry: Mapping[str, float]


@dataclass(frozen=True)
class Correlation:
    """Coefficients; an interval or a p-value where there is an honest one."""

    count: int
    pearson: float
    spearman: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


def points(results: Mapping[str, Any], kind: str = "sum", size: int = 2) -> list[Point]:
    """Return what each domain lost in every composite of ``size`` adapters."""
    geometry = {(tuple(entry["domains"]), tuple(entry["seeds"])): entry for entry in results["geometry"]}
    found = []
    for subject in results["subjects"]:
        if subject["kind"] != kind or len(subject["domains"]) != size:
            continue
        entry = geometry[tuple(subject["domains"]), tuple(subject["seeds"])]
        for domain, seed in zip(subject["domains"], subject["seeds"], strict=True):
            ratio = subject["against"][f"{domain}_s{seed}"][domain]["answer"]["ratio"]
            task = (domain, *(other for other in subject["domains"] if other != domain))
            values = {name: entry["of"][domain][name] for name in PREDICTORS}
            found.append(Point(subject["name"], task, all(entry["one_start"]), math.log(ratio), values))
    return found


def overall(found: Sequence[Point], predictor: str) -> Correlation:
    """Return the correlation over all points; the interval resamples sums, whose domains belong together."""
    x, y = columns(found, predictor)
    names = sorted({point.sum for point in found})
    places = [np.array([k for k, point in enumerate(found) if point.sum == name]) for name in names]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([places[k] for k in rng.integers(0, len(names), len(names))])
        drawn.append(pearson(x[chosen], y[chosen]))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Correlation(len(found), pearson(x, y), spearman(x, y), float(low), float(high))


def between(found: Sequence[Point], predictor: str) -> Correlation:
    """Return the correlation of the tasks' means, with the exact two-sided permutation p-value."""
    x, y = columns(found, predictor)
    groups = grouped(found)
    x, y = (np.array([values[places].mean() for places in groups]) for values in (x, y))
    seen = abs(pearson(x, y))
    if len(x) > 8:
        raise ValueError("too many tasks for all permutations")
    others = [abs(pearson(x, y[list(order)])) for order in permutations(range(len(y)))]
    p = float(np.mean(np.array(others) >= seen - 1e-12))
    return Correlation(len(x), pearson(x, y), spearman(x, y), p=p)


def within(found: Sequence[Point], predictor: str) -> Correlation:
    """Return the correlation with the tasks' means taken out; p permutes the sums of one task."""
    x, y = columns(found, predictor)
    groups = grouped(found)
    for values in (x, y):
        for places in groups:
            values[places] -= values[places].mean()
    rng = np.random.default_rng(0)
    seen, larger = abs(pearson(x, y)), 0
    for _ in range(RESAMPLES):
        shuffled = y.copy()
        for places in groups:
            shuffled[places] = y[rng.permutation(places)]
        larger += abs(pearson(x, shuffled)) >= seen - 1e-12
    return Correlation(len(x), pearson(x, y), spearman(x, y), p=(1 + larger) / (1 + RESAMPLES))


def seed_effect(found: Sequence[Point]) -> list[dict[str, Any]]:
    """Return, by task, what the domain loses in sums of one start and in the others."""
    rows = []
    for places in grouped(found):
        chosen = [found[place] for place in places]
        alike = [point.loss for point in chosen if point.one_start]
        other = [point.loss for point in chosen if not point.one_start]
        cosines = [
            [point.geometry["rms_cosine"] for point in chosen if point.one_start is start] for start in (True, False)
        ]
        if alike and other:
            rows.append(
                {
                    "task": chosen[0].task,
                    "one_start": math.expm1(np.mean(alike)),
                    "other": math.expm1(np.mean(other)),
                    "cosine_one_start": float(np.mean(cosines[0])),
                    "cosine_other": float(np.mean(cosines[1])),
                    "counts": (len(alike), len(other)),
                }
            )
    return rows


def columns(found: Sequence[Point], predictor: str) -> tuple[Values, Values]:
    """Return predictor and loss."""
    return np.array([point.geometry[predictor] for point in found]), np.array([point.loss for point in found])


def grouped(found: Sequence[Point]) -> list[NDArray[np.int64]]:
    """Return the places of the points of each task."""
    tasks = sorted({point.task for point in found})
    return [np.array([k for k, point in enumerate(found) if point.task == task]) for task in tasks]


def pearson(x: Values, y: Values) -> float:
    """Return Pearson's coefficient, NaN without variation."""
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / size if size > 0 else math.nan


def spearman(x: Values, y: Values) -> float:
    """Return Spearman's coefficient; equal values share their mean rank."""
    return pearson(*(np.array([((values < v).sum() + (values <= v).sum()) / 2 for v in values]) for values in (x, y)))
