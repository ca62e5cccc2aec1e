"""Linear algebra in factor space, against dense float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub_merge.adapter import LoraFactors
from hub_merge.gram import Parts, best_rank_k, inner_products, orthonormal, result_dtype, stack
from tests.helpers import Dense, dense_sum, in_basis, random_basis, random_factors, relative_error

SHAPE = (40, 30)


def orthonormal_rows(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((columns, rows)))[0].T


def graded(rng: np.random.Generator, rank: int, span: float) -> LoraFactors:
    """Return factors whose pieces have singular values from 1 down to ``1 / span``."""
    values = np.geomspace(1, 1 / span, rank)
    return LoraFactors(orthonormal_rows(rng, rank, SHAPE[1]), orthonormal_rows(rng, rank, SHAPE[0]).T * values)


def ill_conditioned(rng: np.random.Generator, rank: int, condition: float) -> LoraFactors:
    """Return factors that are both of that condition number, with nothing aligned to rows or columns."""
    part = graded(rng, rank, condition)
    mixed = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
    A = mixed @ (np.geomspace(1, 1 / condition, rank)[:, None] * part.A)
    return LoraFactors(A, part.B @ mixed.T)


def stress(rng: np.random.Generator) -> dict[str, list[LoraFactors]]:
    first, second = random_factors(rng, SHAPE, 5, scaling=2.0), random_factors(rng, SHAPE, 7, scaling=-0.5)
    rows = 10.0 ** -rng.uniform(0, 7, 6)
    uneven = random_factors(rng, SHAPE, 6)
    return {
        "unrelated": [first, second],
        "shared A": [first, LoraFactors(first.A, rng.standard_normal(first.B.shape), 3.0)],
        "nearly shared A": [first, LoraFactors(first.A + 1e-6 * rng.standard_normal(first.A.shape), first.B)],
        "identical": [first, first, first],
        "one B is zero": [first, LoraFactors(second.A, np.zeros_like(second.B))],
        "every B is zero": [LoraFactors(first.A, np.zeros_like(first.B))],
        "rank 0 beside another": [LoraFactors.empty(SHAPE), first],
        "rank 0 alone": [LoraFactors.empty(SHAPE)],
        "condition 1e5": [ill_conditioned(rng, 6, 1e5), random_factors(rng, SHAPE, 3)],
        "graded over 1e7": [LoraFactors(uneven.A * rows[:, None], uneven.B), first],
        "A tiny, B huge": [LoraFactors(first.A * 1e-12, first.B * 1e12), second],
        "repeated rows": [LoraFactors(np.tile(first.A[:2], (3, 1)), rng.standard_normal((SHAPE[0], 6)))],
        "more pieces than dimensions": [random_factors(rng, SHAPE, 25), random_factors(rng, SHAPE, 25)],
    }


CASES = list(stress(np.random.default_rng(0)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rank", [1, 4, 60])
def test_the_best_approximation_reaches_the_optimum_of_eckart_and_young(
    case: str, rank: int, rng: np.random.Generator
) -> None:
    parts = stress(rng)[case]
    weights = [1.0, -0.7, 0.3][: len(parts)]
    dense = dense_sum(parts, weights)
    sigma = np.linalg.svd(dense, compute_uv=False)
    optimum = np.sqrt((sigma[rank:] ** 2).sum())
    got = best_rank_k(stack(parts, weights), rank)
    assert got.rank <= rank
    assert got.scaling == 1.0
    assert abs(np.linalg.norm(dense - got.delta()) - optimum) <= 1e-12 * max(np.linalg.norm(dense), 1e-300)


def values_of(parts: list[LoraFactors]) -> Dense:
    """Return the singular values of a sum as the columns of its best approximation show them: their lengths squared."""
    best = best_rank_k(stack(parts), sum(part.rank for part in parts))
    return np.square(best.B).sum(axis=0)


@pytest.mark.parametrize("case", CASES)
def test_singular_values_are_those_of_the_dense_sum(case: str, rng: np.random.Generator) -> None:
    parts = stress(rng)[case]
    wanted = np.linalg.svd(dense_sum(parts), compute_uv=False)
    got = values_of(parts)
    assert np.all(np.diff(got) <= 0)
    padded = np.zeros(len(wanted))
    padded[: min(len(got), len(wanted))] = got[: len(wanted)]
    assert np.abs(padded - wanted).max() <= 1e-12 * max(wanted[0], 1e-300)
    assert np.all(got[len(wanted) :] <= 1e-12 * wanted[0])


def test_small_singular_values_keep_their_digits_beside_large_ones(rng: np.random.Generator) -> None:
    values = np.geomspace(1, 1e-7, 8)
    assert np.allclose(values_of([graded(rng, 8, 1e7)]), values, rtol=1e-10, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_inner_products_are_those_of_the_dense_deltas(case: str, rng: np.random.Generator) -> None:
    parts = stress(rng)[case]
    weights = [2.0, -0.5, 1.5][: len(parts)]
    deltas = np.array([dense_sum([part], [weight]).ravel() for part, weight in zip(parts, weights, strict=True)])
    wanted = deltas @ deltas.T
    norms = np.sqrt(np.diag(wanted))
    got = inner_products(stack(parts, weights), len(parts))
    assert np.abs(got - wanted).max() <= 1e-12 * np.outer(norms, norms).max()
    assert np.allclose(got, got.T, rtol=1e-13, atol=0)


def test_an_update_whose_pieces_cancel_has_norm_zero_and_never_a_negative_square(rng: np.random.Generator) -> None:
    other = random_factors(rng, SHAPE, 3)
    for _ in range(50):
        part = random_factors(rng, SHAPE, 5)
        A, B = np.concatenate([part.A, 3 * part.A]), np.concatenate([part.B, -part.B / 3], axis=1)
        products = inner_products(stack([LoraFactors(A, B), other]), 2)
        assert products[0, 0] == products[0, 1] == products[1, 0] == 0.0
        assert products[1, 1] > 0


def test_tiny_updates_are_not_mistaken_for_cancelled_ones(rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 4, scaling=1e-30)
    products = inner_products(stack([part, random_factors(rng, SHAPE, 4)]), 2)
    assert products[0, 0] == pytest.approx(np.linalg.norm(dense_sum([part])) ** 2, rel=1e-12)


def test_both_factors_of_the_best_approximation_share_the_singular_values_evenly(rng: np.random.Generator) -> None:
    got = best_rank_k(stack([random_factors(rng, SHAPE, 6)]), 4)
    assert np.allclose(got.B.T @ got.B, got.A @ got.A.T, rtol=0, atol=1e-10)
    sigma = np.linalg.svd(got.delta(), compute_uv=False)[:4]
    assert np.allclose(got.A @ got.A.T, np.diag(sigma), rtol=0, atol=1e-10)


def test_pieces_beyond_the_numerical_rank_are_left_out(rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 3)
    assert best_rank_k(stack([part, part]), 6).rank == 3
    assert best_rank_k(stack([LoraFactors(part.A, 0 * part.B)]), 3).rank == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 6))
def test_only_the_deltas_matter_not_how_they_are_factored(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    part, other = random_factors(rng, SHAPE, rank, scaling=1.7), random_factors(rng, SHAPE, 3)
    rewritten = in_basis(part, random_basis(rng, rank))
    first, second = (inner_products(stack([x, other]), 2) for x in (part, rewritten))
    assert np.allclose(first, second, rtol=1e-9, atol=1e-9)
    one, two = (best_rank_k(stack([x, other]), rank + 3).delta() for x in (part, rewritten))
    assert relative_error(one, two) < 1e-10


def test_an_orthonormal_basis_and_its_triangle_come_from_the_gram_matrix_alone(rng: np.random.Generator) -> None:
    X = rng.standard_normal((20, 5))
    X[:, 4] = X[:, 0] + X[:, 1]
    X /= np.linalg.norm(X, axis=0)
    W, R = orthonormal(X.T @ X)
    assert (W.shape, R.shape) == ((5, 4), (4, 5))
    assert np.allclose((X @ W).T @ (X @ W), np.eye(4), atol=1e-12)
    assert np.allclose(X @ W @ R, X, atol=1e-12)


def test_stacking_keeps_unit_pieces_with_their_signed_lengths_and_owners(rng: np.random.Generator) -> None:
    first, second = random_factors(rng, SHAPE, 2, scaling=3.0), random_factors(rng, SHAPE, 1)
    stacked = stack([first, LoraFactors.empty(SHAPE), second], [1.0, 5.0, -2.0])
    assert stacked.owner.tolist() == [0, 0, 2]
    A, B = stacked.right(np.eye(3)), stacked.left(np.eye(3))
    assert np.allclose(np.linalg.norm(A, axis=1), 1)
    assert np.allclose(np.linalg.norm(B, axis=0), 1)
    assert np.allclose(stacked.gram_a, A @ A.T)
    assert np.allclose(stacked.gram_b, B.T @ B)
    wanted = [3 * np.linalg.norm(first.A[j]) * np.linalg.norm(first.B[:, j]) for j in range(2)]
    assert np.allclose(stacked.lengths[:2], wanted)
    assert stacked.lengths[2] == pytest.approx(-2 * np.linalg.norm(second.A) * np.linalg.norm(second.B))
    assert np.allclose((B * stacked.lengths) @ A, dense_sum([first, second], [1.0, -2.0]))


def test_inner_products_of_half_precision_pieces_are_formed_in_double(rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 3, dtype=np.float16)
    stacked = stack([part])
    assert stacked.gram_a.dtype == stacked.gram_b.dtype == np.float64
    exact = part.A.astype(np.float64) @ part.A.T.astype(np.float64)
    lengths = np.sqrt(np.diag(exact))
    assert np.allclose(stacked.gram_a, exact / np.outer(lengths, lengths), rtol=0, atol=1e-15)


def test_parts_keep_their_gram_matrices_for_every_later_stack(rng: np.random.Generator) -> None:
    parts = Parts([random_factors(rng, SHAPE, 2), random_factors(rng, SHAPE, 1)])
    first, second = stack(parts), stack(parts, [2.0, -1.0])
    assert first.gram_a is second.gram_a
    assert first.gram_b is second.gram_b
    assert np.allclose(second.lengths, first.lengths * [2.0, 2.0, -1.0])


@pytest.mark.parametrize(
    ("dtypes", "wanted"),
    [(["float16", "float32"], np.float32), (["float16"], np.float32), (["float32", "float64"], np.float64)],
)
def test_a_result_is_float32_unless_a_part_is_float64(
    dtypes: list[str], wanted: type, rng: np.random.Generator
) -> None:
    assert result_dtype([random_factors(rng, SHAPE, 1, dtype=dtype) for dtype in dtypes]) is wanted
