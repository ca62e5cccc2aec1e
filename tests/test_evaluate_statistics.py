"""Intervals and tests of perplexities against what is known of their distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from hub_merge.errors import EvaluationError
from hub_merge.evaluate.losses import Loss
from hub_merge.evaluate.statistics import compare, compare_means, mean_perplexity, perplexity


def losses(nats: NDArray[np.float64], tokens: int = 10) -> list[Loss]:
    return [Loss(value * tokens, tokens, value * tokens, tokens) for value in nats.tolist()]


def drawn(seed: int, rows: int, mean: float = 1.0, spread: float = 0.3) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(mean, spread, rows)


def test_every_token_weighs_the_same() -> None:
    found = perplexity([Loss(1.0, 1, 5.0, 5), Loss(9.0, 3, 15.0, 15)])
    assert found.value == pytest.approx(math.exp(10 / 4))
    assert (found.rows, found.tokens) == (2, 4)
    assert perplexity([Loss(1.0, 1, 5.0, 5), Loss(9.0, 3, 15.0, 15)], "text").value == pytest.approx(math.e)


def test_the_interval_is_that_of_the_normal_distribution_where_rows_are_many() -> None:
    nats = drawn(1, 2000)
    found = perplexity(losses(nats), resamples=4000)
    spread = 1.96 * nats.std() / math.sqrt(len(nats))
    assert math.log(found.low) == pytest.approx(nats.mean() - spread, abs=0.1 * spread)
    assert math.log(found.high) == pytest.approx(nats.mean() + spread, abs=0.1 * spread)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        found = perplexity(losses(drawn(seed, 60)), resamples=400)
        held += found.low <= math.e <= found.high
    assert 0.88 <= held / 200 <= 0.98


def test_a_row_without_tokens_counts_for_nothing() -> None:
    rows = [*losses(drawn(3, 3)), Loss(0.0, 0, 0.0, 0)]
    found = perplexity(rows)
    assert found.value == pytest.approx(perplexity(rows[:3]).value)
    assert math.isfinite(found.low) and math.isfinite(found.high)


def test_the_mean_is_that_of_the_perplexities_of_the_domains() -> None:
    domains = {"a": losses(drawn(4, 50)), "b": losses(drawn(5, 80, mean=2.0))}
    found = mean_perplexity(domains)
    first, second = (perplexity(rows) for rows in domains.values())
    assert found.value == pytest.approx((first.value + second.value) / 2)
    halves = [(part.high - part.low) / 2 for part in (first, second)]
    assert (found.high - found.low) / 2 == pytest.approx(math.hypot(*halves) / 2, rel=0.15)


def test_pairing_sees_a_difference_that_the_intervals_hide() -> None:
    hard = drawn(6, 100, spread=1.0)
    better, worse = losses(hard), losses(hard + 0.02 + drawn(7, 100, mean=0.0, spread=0.02))
    assert perplexity(better).high > perplexity(worse).value
    found = compare(worse, better)
    assert found.low > 1
    assert found.p == pytest.approx(1 / 2001)
    assert found.ratio == pytest.approx(perplexity(worse).value / perplexity(better).value)
    turned = compare(better, worse)
    assert turned.ratio == pytest.approx(1 / found.ratio)
    assert turned.p == found.p


def test_p_is_uniform_where_there_is_no_difference() -> None:
    values = []
    for seed in range(150):
        hard = drawn(seed, 40, spread=1.0)
        one, other = (losses(hard + drawn(1000 + 2 * seed + k, 40, mean=0.0, spread=0.1)) for k in range(2))
        values.append(compare(one, other, resamples=300).p)
    assert np.mean(np.array(values) <= 0.05) < 0.12
    assert 0.4 < np.mean(values) < 0.6


def test_means_are_compared_over_all_domains() -> None:
    ours = {"a": losses(drawn(4, 50)), "b": losses(drawn(5, 80, mean=2.0))}
    theirs = {name: [Loss(row.answer * 1.1, 10, row.text, 10) for row in rows] for name, rows in ours.items()}
    found = compare_means(theirs, ours)
    assert found.ratio == pytest.approx(mean_perplexity(theirs).value / mean_perplexity(ours).value)
    assert 1 < found.low < found.ratio < found.high
    assert found.p == pytest.approx(1 / 2001)
    assert found.rows == 130
    turned = compare_means(ours, theirs)
    assert (turned.low, turned.high) == pytest.approx((1 / found.high, 1 / found.low))
    alone = compare_means({"a": theirs["a"]}, {"a": ours["a"]})
    single = compare(theirs["a"], ours["a"])
    assert (alone.ratio, alone.low, alone.high) == pytest.approx((single.ratio, single.low, single.high))


def test_p_of_means_is_uniform_where_there_is_no_difference() -> None:
    values = []
    for seed in range(150):
        both = [
            {
                name: losses(drawn(seed, 30) + drawn(9000 + 4 * seed + 2 * k + n, 30, 0.0, 0.1))
                for n, name in enumerate("ab")
            }
            for k in range(2)
        ]
        values.append(compare_means(*both, resamples=300).p)
    assert np.mean(np.array(values) <= 0.05) < 0.12
    assert 0.4 < np.mean(values) < 0.6


def test_equal_losses_do_not_differ() -> None:
    rows = losses(drawn(8, 20))
    found = compare(rows, rows)
    assert (found.ratio, found.low, found.high, found.p) == (1, 1, 1, 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e6])
def test_a_composite_that_gives_no_numbers_is_not_called_different_by_chance_or_not(broken: float) -> None:
    sound, other = drawn(0, 50), drawn(1, 50)
    other[3] = broken
    for found in (
        compare(losses(other), losses(sound)),
        compare_means({"one": losses(other)}, {"one": losses(sound)}),
        compare_means({"one": losses(sound)}, {"one": losses(other)}),
    ):
        assert math.isnan(found.p) or (math.isfinite(broken) and found.p > 0.4)
    assert not perplexity(losses(other)).value < math.inf


def test_other_rows_are_not_compared() -> None:
    with pytest.raises(EvaluationError, match="same rows"):
        compare(losses(drawn(1, 5)), losses(drawn(1, 6)))


def test_one_seed_gives_one_interval() -> None:
    rows = losses(drawn(9, 30))
    assert perplexity(rows, seed=4) == perplexity(rows, seed=4)
    assert perplexity(rows, seed=4) != perplexity(rows, seed=5)
