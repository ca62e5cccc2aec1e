"""``sum``, ``mean`` and ``svd`` by hand and against dense float64."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub_merge.adapter import LoraFactors
from hub_merge.methods.mean import mean_coefficients, weighted_mean
from hub_merge.methods.sum import combination, weighted_sum
from hub_merge.methods.svd import truncated_sum
from tests.helpers import dense_sum, random_factors, relative_error

RNG = np.random.default_rng(0)
SHAPE = (18, 15)
WEIGHTS = st.floats(-4, 4, allow_nan=False).filter(lambda weight: weight == 0 or abs(weight) > 1e-3)


@st.composite
def weighted_parts(draw: st.DrawFn) -> tuple[list[LoraFactors], list[float]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ranks = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    parts = [random_factors(rng, SHAPE, rank, scaling=draw(st.sampled_from([1.0, 0.25, -2.0, 16.0]))) for rank in ranks]
    return parts, draw(st.lists(WEIGHTS, min_size=len(ranks), max_size=len(ranks)))


def close(got: LoraFactors, wanted: np.ndarray, tolerance: float = 1e-12) -> bool:
    return bool(np.linalg.norm(got.delta() - wanted) <= tolerance * max(1.0, np.linalg.norm(wanted)))


def test_a_sum_of_two_adapters_by_hand_has_no_cross_terms() -> None:
    first = LoraFactors(np.array([[1.0, 2.0]]), np.array([[3.0], [0.0]]), 2.0)  # delta [[6, 12], [0, 0]]
    second = LoraFactors(np.array([[0.0, 1.0]]), np.array([[1.0], [5.0]]), 1.0)  # delta [[0, 1], [0, 5]]
    merged = weighted_sum([first, second], [0.5, -1.0], rng=RNG)
    assert np.array_equal(merged.delta(), [[3.0, 5.0], [0.0, -5.0]])
    assert np.array_equal(weighted_mean([first, second], [0.5, -1.0], rng=RNG).delta(), [[1.5, 2.5], [0.0, -2.5]])


@settings(max_examples=100, deadline=None)
@given(weighted_parts())
def test_the_sum_is_exact_for_any_ranks_scalings_and_weights(case: tuple[list[LoraFactors], list[float]]) -> None:
    parts, weights = case
    merged = weighted_sum(parts, weights, rng=RNG)
    assert close(merged, dense_sum(parts, weights))
    assert merged.rank == sum(part.rank for part, weight in zip(parts, weights, strict=True) if weight)


@settings(max_examples=100, deadline=None)
@given(weighted_parts(), st.integers(1, 12))
def test_a_truncated_sum_loses_exactly_the_tail_of_the_singular_values(
    case: tuple[list[LoraFactors], list[float]], rank: int
) -> None:
    parts, weights = case
    dense = dense_sum(parts, weights)
    sigma = np.linalg.svd(dense, compute_uv=False)
    for method in (weighted_sum, truncated_sum):
        merged = method(parts, weights, rank=rank, rng=RNG)
        assert merged.rank <= min(rank, sum(part.rank for part in parts))
        lost = np.linalg.norm(dense - merged.delta())
        assert abs(lost - np.sqrt((sigma[rank:] ** 2).sum())) <= 1e-12 * max(1.0, sigma[0])


def test_without_a_rank_svd_keeps_the_largest_rank_of_its_parts(rng: np.random.Generator) -> None:
    parts = [random_factors(rng, SHAPE, rank) for rank in (2, 4, 3)]
    dense = dense_sum(parts)
    U, S, Vt = np.linalg.svd(dense)
    assert close(truncated_sum(parts, [1.0] * 3, rng=RNG), (U[:, :4] * S[:4]) @ Vt[:4])


def test_the_factors_of_svd_are_balanced(rng: np.random.Generator) -> None:
    merged = truncated_sum([random_factors(rng, SHAPE, 4, scaling=9.0) for _ in range(2)], [1.0, 1.0], rng=RNG)
    assert np.allclose(merged.B.T @ merged.B, merged.A @ merged.A.T, atol=1e-9)


def test_an_adapter_minus_its_copy_is_nothing(rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 4, scaling=3.0)
    size = np.linalg.norm(part.delta())
    for merged in (
        weighted_sum([part, part], [1.0, -1.0], rng=RNG),
        weighted_sum([part, part], [1.0, -1.0], rank=2, rng=RNG),
        weighted_mean([part, part], [1.0, -1.0], rng=RNG),
    ):
        assert np.linalg.norm(merged.delta()) <= 1e-12 * size


def test_weight_zero_drops_an_adapter_and_its_rank(rng: np.random.Generator) -> None:
    first, second = random_factors(rng, SHAPE, 3), random_factors(rng, SHAPE, 4)
    merged = weighted_sum([first, second], [2.0, 0.0], rng=RNG)
    assert (merged.rank, relative_error(merged.delta(), 2 * first.delta()) < 1e-15) == (3, True)
    assert weighted_sum([first, second], [0.0, 0.0], rng=RNG).rank == 0


def test_a_sum_of_adapters_that_share_their_a_is_of_the_rank_of_one(rng: np.random.Generator) -> None:
    A = rng.standard_normal((3, SHAPE[1]))
    parts = [LoraFactors(A, rng.standard_normal((SHAPE[0], 3)), scaling) for scaling in (1.0, 2.0, 0.5)]
    merged = weighted_sum(parts, [1.0, -1.0, 3.0], rank=3, rng=RNG)
    together = (parts[0].B - 2 * parts[1].B + 1.5 * parts[2].B) @ A
    assert close(merged, together)


@pytest.mark.parametrize("factor", [0.7, 2.0, -0.75, 1e-3])
@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("written", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_keeps_its_bits_and_b_is_rounded_from_the_product_in_double(
    factor: float, stored: Any, written: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_merge.methods.sum.BLOCK", 30)  # several blocks, the last one smaller
    parts = [random_factors(rng, SHAPE, rank, scaling=scale, dtype=stored) for rank, scale in ((3, 1 / 3), (2, 1.0))]
    merged = combination(parts, [3 * factor, 1.0], written)
    assert merged.A.dtype == stored
    assert np.array_equal(merged.A, np.concatenate([part.A for part in parts]))
    exact = [3 * factor * (1 / 3) * parts[0].B.astype(np.float64), parts[1].B.astype(np.float64)]
    assert np.array_equal(merged.B, np.concatenate(exact, axis=1).astype(written))


def test_the_mean_of_an_adapter_and_itself_is_that_adapter(rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 4, scaling=0.5)
    for count in (2, 3, 7):
        assert close(weighted_mean([part] * count, [1.0] * count, rng=RNG), part.delta())
        assert close(weighted_mean([part] * count, [1.0] * count, rank=4, rng=RNG), part.delta())


@settings(max_examples=50, deadline=None)
@given(weighted_parts())
def test_the_mean_is_the_sum_divided_by_the_adapters_that_have_the_module(
    case: tuple[list[LoraFactors], list[float]],
) -> None:
    parts, weights = case
    having = max(1, sum(part.rank > 0 for part in parts))
    assert close(weighted_mean(parts, weights, rng=RNG), dense_sum(parts, weights) / having)


def test_coefficients_of_the_mean_by_hand() -> None:
    assert mean_coefficients([1.0, 3.0, -2.0], [True, False, True]) == [0.5, 1.5, -1.0]
    assert mean_coefficients([1.0], [False]) == [1.0]


@pytest.mark.parametrize("method", [weighted_sum, weighted_mean, truncated_sum])
def test_as_many_weights_as_parts_are_asked_for(method: object, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="zip"):
        method([random_factors(rng, SHAPE, 2)] * 2, [1.0], rng=RNG)  # type: ignore[operator]
