"""Perplexities with their intervals, and whether two composites differ on the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hub_merge.errors import EvaluationError
from hub_merge.evaluate.losses import Loss

__all__ = ["Difference", "Estimate", "Part", "compare", "compare_means", "mean_perplexity", "perplexity"]

Part: TypeAlias = Literal["answer", "text"]
Float64: TypeAlias = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with the interval that the bootstrap gives.

    Attributes:
        value: The value on the rows that were seen.
        low, high: Ends of the interval.
        rows: How many rows it rests on.
        tokens: How many tokens.
    """

    value: float
    low: float
    high: float
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How one composite compares with another on the same rows.

    Attributes:
        ratio: Its perplexity over that of the other; below 1 is better.
        low, high: Ends of the bootstrap interval of the ratio.
        p: Two-sided p-value of the sign-flip test over the rows: how often differences as large arise if the two could
            be exchanged row by row. NaN where the perplexities are no numbers, or their ratio is none.
        rows: How many rows were compared.
    """

    ratio: float
    low: float
    high: float
    p: float
    rows: int


def perplexity(losses: Sequence[Loss], part: Part = "answer", *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Return ``exp(sum of losses / number of tokens)`` over all rows together, with a 95 % interval.

    Every token weighs the same, so long answers weigh more. The interval resamples whole rows, whose tokens belong
    together, and takes percentiles.

    Raises:
        EvaluationError: There is no token to score.
    """
    nats, tokens = _sums(losses, part)
    drawn = _draws(len(losses), seed, resamples)
    value = _perplexities(nats.sum(), tokens.sum())
    low, high = _interval(_perplexities(drawn @ nats, drawn @ tokens))
    return Estimate(float(value), low, high, len(losses), int(tokens.sum()))


def mean_perplexity(
    losses: Mapping[str, Sequence[Loss]], part: Part = "answer", *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """Return the arithmetic mean of the perplexities of several domains, each resampled for itself."""
    values, draws, tokens = [], [], 0
    for place, rows in enumerate(losses.values()):
        nats, counts = _sums(rows, part)
        drawn = _draws(len(rows), seed + place, resamples)
        values.append(_perplexities(nats.sum(), counts.sum()))
        draws.append(_perplexities(drawn @ nats, drawn @ counts))
        tokens += int(counts.sum())
    low, high = _interval(np.mean(draws, axis=0))
    return Estimate(float(np.mean(values)), low, high, sum(map(len, losses.values())), tokens)


def compare(
    losses: Sequence[Loss],
    other: Sequence[Loss],
    part: Part = "answer",
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """Compare two composites row by row: the ratio of their perplexities, its interval and a test.

    Args:
        losses: Of the one.
        other: Of the other, on the same rows in the same order.
        part: ``answer`` or ``text``.
        seed: Seed of the resampling.
        resamples: How many resamples, and how many flips.

    Raises:
        EvaluationError: The rows are not the same.
    """
    (nats, tokens), (others, counts) = _sums(losses, part), _sums(other, part)
    _require_same(tokens, counts)
    gaps = nats - others
    drawn = _draws(len(gaps), seed, resamples)
    low, high = _interval(_perplexities(drawn @ gaps, drawn @ tokens))
    ratio = float(_perplexities(gaps.sum(), tokens.sum()))
    return Difference(ratio, low, high, _flipped(gaps, seed, resamples), len(gaps))


def compare_means(
    losses: Mapping[str, Sequence[Loss]],
    others: Mapping[str, Sequence[Loss]],
    part: Part = "answer",
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference:
    """Compare the mean perplexities of two composites over the same domains, as ``compare`` does for one."""
    seen, drawn, flipped, rows = [], [], [], 0
    for place, domain in enumerate(losses):
        (nats, tokens), (against, counts) = _sums(losses[domain], part), _sums(others[domain], part)
        _require_same(tokens, counts)
        draws = _draws(len(nats), seed + place, resamples)
        kept = np.random.default_rng([seed + place, 1]).integers(0, 2, draws.shape)
        pairs = np.stack([nats, against]), np.stack([draws @ nats, draws @ against])
        seen.append(_perplexities(pairs[0].sum(1), tokens.sum()))
        drawn.append(_perplexities(pairs[1], draws @ tokens))
        exchanged = kept @ (nats - against)
        flipped.append(_perplexities(np.stack([against.sum() + exchanged, nats.sum() - exchanged]), tokens.sum()))
        rows += len(nats)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio, ratios, chances = (each[0] / each[1] for each in (np.mean(one, 0) for one in (seen, drawn, flipped)))
        p = _share(np.abs(np.log(chances)), float(np.abs(np.log(ratio))))
    low, high = _interval(ratios)
    return Difference(float(ratio), low, high, p, rows)


def _share(values: Float64, seen: float) -> float:
    """Return the share of ``values``, and of the one that was seen, that are not smaller than it; NaN if it is none."""
    if not math.isfinite(seen):
        return math.nan
    return float((1 + (~(values < seen * (1 - 1e-12))).sum()) / (1 + len(values)))


def _require_same(tokens: Float64, counts: Float64) -> None:
    if not np.array_equal(tokens, counts):
        raise EvaluationError(
            "The two were not measured on the same rows.", remedy="Evaluate both on the same data in the same format."
        )


def _sums(losses: Sequence[Loss], part: Part) -> tuple[Float64, Float64]:
    """Return the loss, NaN for one that is not finite, and the number of tokens of each row."""
    nats = np.array([getattr(loss, part) for loss in losses], np.float64)
    nats[np.isinf(nats)] = np.nan
    tokens = np.array([getattr(loss, f"{part}_tokens") for loss in losses], np.float64)
    if not tokens.sum():
        raise EvaluationError(
            f"There is no token of the {part} to score.", remedy="Allow longer texts (--max-tokens), or give rows."
        )
    return nats, tokens


def _draws(rows: int, seed: int, resamples: int) -> Float64:
    """Return how often each row is drawn in each resample, ``(resamples, rows)``."""
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), resamples).astype(np.float64)


def _perplexities(nats: Any, tokens: Any) -> Any:
    """Return ``exp(nats / tokens)``; NaN where a resample has drawn no token, infinite beyond what a number holds."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.exp(nats / tokens)


def _interval(values: Float64) -> tuple[float, float]:
    if np.isnan(values).all():
        return math.nan, math.nan
    with np.errstate(invalid="ignore"):  # where infinite ones are among them
        low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _flipped(gaps: Float64, seed: int, resamples: int) -> float:
    """Return the share of sign flips of the rows' differences whose sum is as large as the one seen."""
    signs = np.random.default_rng([seed, 1]).choice([-1.0, 1.0], (resamples, len(gaps)))
    return _share(np.abs(signs @ gaps), abs(gaps.sum()))
