"""Coordinate spaces and the rules that run in them, against dense float64 and by hand."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from hub_merge import coordinates, elementwise
from hub_merge.adapter import LoraFactors
from hub_merge.coordinates import Basis, Space, core_space, merge_elementwise
from hub_merge.elementwise import (
    Rule,
    Values,
    added,
    apply_rule,
    drop_at_random,
    drop_outliers,
    drop_small_at_random,
    elected,
    keep_all,
    keep_largest,
    kth_largest,
    seeds_of,
    select_and_erase,
    thin_and_combine,
)
from tests.helpers import Dense, dense_sum, in_basis, random_basis, random_factors, relative_error

SHAPE = (40, 30)
SPACES: tuple[Space, ...] = get_args(Space)
BASES: tuple[Basis, ...] = get_args(Basis)
SUM = thin_and_combine(keep_all, added)
TIES = thin_and_combine(keep_largest(0.5), elected("total"))


def some(rng: np.random.Generator, shape: tuple[int, int] = SHAPE) -> list[LoraFactors]:
    return [random_factors(rng, shape, rank, scaling=scaling) for rank, scaling in [(3, 2.0), (5, 0.5), (2, -1.5)]]


def merged(
    parts: Sequence[LoraFactors],
    rule: Rule,
    space: Space,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    seed: int = 0,
    block_rows: int | None = None,
) -> Dense:
    rng = np.random.default_rng(seed)
    numbers = weights or [1.0] * len(parts)
    return merge_elementwise(parts, numbers, rule, space=space, rank=rank, rng=rng, block_rows=block_rows).delta()


# --- core space -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", BASES)
def test_core_matrices_give_every_delta_back_in_orthonormal_bases(basis: Basis, rng: np.random.Generator) -> None:
    parts = [*some(rng), LoraFactors.empty(SHAPE)]
    core = core_space(parts, basis)
    U, V = core.stacked.left(core.left), core.stacked.right(core.right)
    assert core.M.shape == (4, 10, 10)
    assert np.allclose(U.T @ U, np.eye(10), atol=1e-13)
    assert np.allclose(V @ V.T, np.eye(10), atol=1e-13)
    for part, M in zip(parts[:3], core.M, strict=False):
        assert relative_error(U @ M @ V, part.delta()) < 1e-12
        lifted = core.lift(M)
        assert (lifted.rank, lifted.A.dtype) == (part.rank, np.float64)
        assert relative_error(lifted.delta(), part.delta()) < 1e-12
        assert np.allclose(lifted.B.T @ lifted.B, lifted.A @ lifted.A.T, atol=1e-9)
    assert not core.M[3].any()


def test_the_faithful_bases_are_the_singular_vectors_of_the_stacked_factors(rng: np.random.Generator) -> None:
    parts = some(rng)
    core = core_space(parts, "factors")
    columns = np.concatenate([np.sqrt(abs(part.scaling)) * part.B for part in parts], axis=1)
    rows = np.concatenate([np.sqrt(abs(part.scaling)) * part.A for part in parts], axis=0)
    U, V = np.linalg.svd(columns)[0][:, :10], np.linalg.svd(rows)[2][:10]
    assert np.allclose(np.abs(U.T @ core.stacked.left(core.left)), np.eye(10), atol=1e-12)
    assert np.allclose(np.abs(V @ (core.stacked.right(core.right)).T), np.eye(10), atol=1e-12)


def test_the_bases_of_the_deltas_are_the_eigenvectors_of_their_summed_moduli(rng: np.random.Generator) -> None:
    parts = some(rng)
    core = core_space(parts)
    for side, basis in ((0, core.stacked.left(core.left)), (1, (core.stacked.right(core.right)).T)):
        summed = np.zeros((SHAPE[side],) * 2)
        for part in parts:
            delta = part.delta() if side == 0 else part.delta().T
            U, S, _ = np.linalg.svd(delta, full_matrices=False)
            summed += (U * S) @ U.T  # sqrt(delta @ delta.T)
        wanted = np.linalg.eigh(summed)[1][:, ::-1][:, :10]
        assert np.allclose(np.abs(wanted.T @ basis), np.eye(10), atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_core_matrices_depend_on_the_deltas_only_and_not_on_the_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = some(rng)
    rewritten = [in_basis(part, random_basis(rng, part.rank)) for part in parts]
    core, size = core_space(parts), np.linalg.norm(dense_sum(parts))
    assert np.abs(core_space(rewritten).M - core.M).max() < 1e-9 * size
    turned = core_space([parts[i] for i in (2, 0, 1)])
    assert np.abs(turned.M - core.M[[2, 0, 1]]).max() < 1e-11 * size


def test_lifting_to_a_rank_truncates_optimally(rng: np.random.Generator) -> None:
    core = core_space(some(rng))
    M = rng.standard_normal((10, 10))
    whole, cut = core.lift(M).delta(), core.lift(M, 4)
    tail = np.linalg.svd(M, compute_uv=False)[4:]
    assert cut.rank == 4
    assert np.isclose(np.linalg.norm(whole - cut.delta()), np.linalg.norm(tail), rtol=1e-12)


def test_shared_factors_and_dead_pieces_make_the_core_smaller(rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 3)
    other = LoraFactors(part.A, rng.standard_normal((SHAPE[0], 3)))
    untrained = LoraFactors(rng.standard_normal((4, SHAPE[1])), np.zeros((SHAPE[0], 4)))
    assert core_space([part, other]).M.shape == (2, 6, 3)
    assert core_space([part, untrained]).M.shape == (2, 3, 3)
    assert core_space([untrained, LoraFactors.empty(SHAPE)]).M.shape == (2, 0, 0)
    assert core_space([untrained]).lift(np.zeros((0, 0))).rank == 0


def test_adapters_far_apart_in_size_are_both_kept(rng: np.random.Generator) -> None:
    parts = [random_factors(rng, SHAPE, 3), random_factors(rng, SHAPE, 3, scaling=1e-9)]
    core = core_space(parts)
    for part, M in zip(parts, core.M, strict=True):
        assert relative_error(core.lift(M, 3).delta(), part.delta()) < 1e-6


# --- merging in a space -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["core", "knots", "delta"])
def test_adding_in_a_space_is_the_exact_sum(space: Space, rng: np.random.Generator) -> None:
    parts, weights = some(rng), [1.0, -0.7, 2.5]
    assert relative_error(merged(parts, SUM, space, weights), dense_sum(parts, weights)) < 1e-12
    larger = some(rng, (700, 600))  # beyond what is decomposed exactly
    assert relative_error(merged(larger, SUM, space, weights), dense_sum(larger, weights)) < 1e-12


@pytest.mark.parametrize("space", ["core", "knots", "delta"])
def test_the_result_depends_on_the_deltas_and_not_on_their_factors(space: Space, rng: np.random.Generator) -> None:
    parts = some(rng)
    rewritten = [in_basis(part, random_basis(rng, part.rank)) for part in parts]
    assert relative_error(merged(rewritten, TIES, space), merged(parts, TIES, space)) < 1e-10


@pytest.mark.parametrize("space", ["core", "knots"])
def test_adapters_that_share_no_direction_are_added_in_full(space: Space) -> None:
    pairs = [((0, 1), 3.0), ((2,), 1.0), ((3, 4, 5), 7.0)]
    parts = []
    for columns, size in pairs:
        A, B = np.zeros((len(columns), 30)), np.zeros((40, len(columns)))
        for row, column in enumerate(columns):
            A[row, column], B[column + 7, row] = 1.0, size + row / 8
        parts.append(LoraFactors(A, B))
    ties = thin_and_combine(keep_all, elected("total"))
    turned = [in_basis(part, random_basis(np.random.default_rng(3), part.rank)) for part in parts]
    assert relative_error(merged(turned, ties, space), dense_sum(parts)) < 1e-12


@pytest.mark.parametrize("space", SPACES)
def test_blocks_of_any_size_give_the_same_result(space: Space, rng: np.random.Generator) -> None:
    parts = some(rng)
    for sparsify in (keep_largest(0.3), drop_at_random(0.5), drop_small_at_random(0.5, 0.2)):
        rule = thin_and_combine(sparsify, elected("total"))
        whole = merged(parts, rule, space)
        for block_rows in (1, 7):
            assert relative_error(merged(parts, rule, space, block_rows=block_rows), whole) < 1e-11


def test_a_large_merged_delta_is_fitted_almost_as_well_as_can_be(rng: np.random.Generator) -> None:
    parts = some(rng, (700, 600))
    rule = thin_and_combine(keep_all, elected("total"))
    U, S, Vt = np.linalg.svd(apply_rule(rule, np.stack([part.delta() for part in parts]), [1.0] * 3, list))
    fitted = merged(parts, rule, "delta", rank=6)
    assert np.linalg.matrix_rank(fitted) == 6
    best = (U[:, :6] * S[:6]) @ Vt[:6]
    dense = (U[:, :600] * S) @ Vt
    assert np.linalg.norm(dense - fitted) < (1 + 1e-4) * np.linalg.norm(dense - best)


def test_a_delta_that_is_streamed_is_never_held_whole() -> None:
    rng = np.random.default_rng(5)
    shape = (8_000, 2_000)  # 128 MB an adapter
    parts = [random_factors(rng, shape, 4, dtype=np.float32) for _ in range(2)]
    tracemalloc.start()
    try:
        with threadpool_limits(1, user_api="blas"):  # as a merge of many modules does
            result = merge_elementwise(parts, [1.0, 0.5], TIES, space="delta", rank=4, rng=rng)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (result.shape, result.rank) == (shape, 4)
    assert peak < 60e6


@pytest.mark.parametrize("space", ["core", "knots", "factors"])
def test_no_other_space_forms_a_dense_delta(space: Space) -> None:
    rng, side = np.random.default_rng(1), 200_000
    parts = [random_factors(rng, (side, side), 4, dtype=np.float32) for _ in range(2)]
    stacked = 2 * 2 * 4 * side * 8  # bytes of all factors in float64; the dense delta would take 320 GB
    tracemalloc.start()
    try:
        for rule in (TIES, select_and_erase(0.5), thin_and_combine(drop_at_random(0.5), added)):
            assert merge_elementwise(parts, [1.0, 0.5], rule, space=space, rank=3, rng=rng).rank == 3
        assert tracemalloc.get_traced_memory()[1] < 8 * stacked
    finally:
        tracemalloc.stop()


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_seeds_follow_the_adapters_when_their_order_changes(rng: np.random.Generator) -> None:
    first, second = random_factors(rng, SHAPE, 3), random_factors(rng, SHAPE, 2)
    parts, weights = [first, second, first, first], [1.0, 2.0, 0.5, 1.0]
    seeds = seeds_of(parts, weights, 9)
    assert len(set(seeds)) == 4
    order = (2, 3, 1, 0)
    turned = seeds_of([parts[i] for i in order], [weights[i] for i in order], 9)
    assert turned[0] == seeds[2]
    assert turned[2] == seeds[1]
    assert {turned[1], turned[3]} == {seeds[0], seeds[3]}


def test_seeds_are_those_of_the_values_whatever_dtype_and_scaling_they_come_in(rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 3, dtype=np.float32)
    same = LoraFactors(np.asfortranarray(part.A.astype(np.float64)), part.B, 4.0)
    assert seeds_of([part], [1.0], 9) == seeds_of([same], [2.0], 9)
    assert seeds_of([part], [1.0], 9) != seeds_of([part], [1.0], 8)


# --- rules by hand ----------------------------------------------------------------------------------------------------


def by_hand(rule: Rule, rows: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> list[float]:
    """Apply a rule to one row an adapter."""
    values = np.array(rows)[:, None, :]
    return list(apply_rule(rule, values, weights or [1.0] * len(rows), lambda: [(i,) for i in range(len(rows))])[0])


def test_trimming_keeps_the_largest_magnitudes_and_all_that_equal_the_last_of_them() -> None:
    trim = lambda density: thin_and_combine(keep_largest(density), added)
    assert by_hand(trim(0.5), [[1.0, -4.0, 3.0, 0.5, 2.0]]) == [0.0, -4.0, 3.0, 0.0, 0.0]  # int(2.5) are kept
    assert by_hand(trim(0.4), [[1.0, -2.0, 2.0, 0.5, 2.0]]) == [0.0, -2.0, 2.0, 0.0, 2.0]
    assert by_hand(trim(0.001), [[1.0, -4.0, 3.0]]) == [0.0, -4.0, 0.0]
    assert by_hand(trim(1.0), [[1.0, -4.0, 3.0]]) == [1.0, -4.0, 3.0]


def test_each_adapter_is_trimmed_by_its_own_threshold() -> None:
    rule = thin_and_combine(keep_largest(0.5), added)
    assert by_hand(rule, [[1.0, 2.0], [30.0, 4.0]], [10.0, 1.0]) == [30.0, 20.0]


def test_ties_averages_the_adapters_of_the_elected_sign() -> None:
    values = [[4.0, 1.0, 0.0, -1.0], [-1.0, 2.0, 5.0, 1.0], [-2.0, 6.0, -3.0, 0.0]]
    assert by_hand(thin_and_combine(keep_all, elected("total")), values) == [4.0, 3.0, 5.0, 1.0]
    assert by_hand(thin_and_combine(keep_all, elected("frequency")), values) == [-1.5, 3.0, 5.0, 1.0]
    weighted = by_hand(thin_and_combine(keep_all, elected("total")), values, [1.0, -2.0, 0.5])
    assert weighted == [4.0, (1 - 4 + 3) / 3, -10.0, -2.0]


def test_breadcrumbs_drops_both_ends() -> None:
    values = [[1.0, -9.0, 8.0, 3.0, -4.0, 2.0, 5.0, 0.5, 0.1, 7.0]]
    crumbs = lambda density, gamma: by_hand(thin_and_combine(drop_outliers(density, gamma), added), values)
    assert crumbs(0.3, 0.2) == [0.0, 0.0, 0.0, 0.0, -4.0, 0.0, 5.0, 0.0, 0.0, 7.0]
    assert crumbs(0.9, 0.5) == [1.0, 0.0, 8.0, 3.0, -4.0, 2.0, 5.0, 0.5, 0.1, 7.0]  # the number kept comes first
    assert crumbs(1.0, 0.5) == values[0]


def test_sce_selects_by_variance_weighs_by_energy_and_erases_the_minority() -> None:
    values = [[3.0, 1.0, -2.0], [1.0, 1.0, 4.0]]  # variances 1, 0, 9
    assert by_hand(select_and_erase(1.0), values) == pytest.approx([(3 * 14 + 18) / 32, 1.0, 4.0])  # energies 14, 18
    assert by_hand(select_and_erase(0.7), values) == pytest.approx([(3 * 13 + 17) / 30, 0.0, 4.0])  # energies 13, 17
    assert by_hand(select_and_erase(0.7), values, [2.0, -1.0]) == pytest.approx([(6 * 13 - 17) / 30, 0.0, -4.0])


def test_entries_on_which_adapters_agree_to_rounding_have_no_variance() -> None:
    values = [[3.0, 1.0, -2.0, 5.0], [3.0 + 4e-16, 1.0, -2.0, 5.0 - 8e-16]]
    assert by_hand(select_and_erase(0.25), values) == pytest.approx([3.0, 1.0, -2.0, 5.0])


def frequencies(rule: Rule, row: Sequence[float], draws: int = 4000) -> tuple[Dense, Dense]:
    """Return how often each entry was kept, and the mean of what came out."""
    values = np.array([row])[:, None, :]
    out = np.array([apply_rule(rule, values, [1.0], lambda i=i: [(i,)])[0] for i in range(draws)])  # type: ignore[misc]
    return (out != 0).mean(axis=0), out.mean(axis=0)


def test_dare_keeps_entries_at_random_and_is_right_on_average() -> None:
    kept, mean = frequencies(thin_and_combine(drop_at_random(0.3), added), [1.0, -2.0, 5.0, 0.1])
    assert np.allclose(kept, 0.3, atol=0.03)
    assert np.allclose(mean / [1.0, -2.0, 5.0, 0.1], 1.0, atol=0.1)


def test_della_keeps_large_entries_more_often_and_is_right_on_average() -> None:
    row = [1.0, -4.0, 3.0, 0.5, -2.0]
    kept, mean = frequencies(thin_and_combine(drop_small_at_random(0.5, 0.3), added), row)
    assert np.allclose(kept, [0.35, 0.8, 0.65, 0.2, 0.5], atol=0.03)
    assert np.allclose(mean / row, 1.0, atol=0.12)


def test_della_narrows_epsilon_where_chances_would_leave_the_range() -> None:
    row = [1.0, -4.0, 3.0]
    kept, _ = frequencies(thin_and_combine(drop_small_at_random(0.8, 0.5), added), row, 2000)
    assert np.allclose(kept, [0.6, 1.0, 0.8], atol=0.04)
    assert by_hand(thin_and_combine(drop_small_at_random(1.0, 0.5), added), [row]) == row
    assert by_hand(thin_and_combine(drop_small_at_random(0.999, 0.0), added), [[2.0]]) == [pytest.approx(2.0 / 0.999)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), limit=st.sampled_from([1, 5, 10**6]), k=st.integers(1, 60))
def test_a_threshold_is_exact_however_few_candidates_fit_in_memory(seed: int, limit: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((3, 12, 5)) * 10.0 ** rng.integers(-320, 300, (3, 12, 5))
    array[rng.random(array.shape) < 0.3] = 0.0
    array[1] = np.round(rng.standard_normal((12, 5)), 1)  # many equal ones
    values = Values(array.shape, lambda start, stop: array[:, start:stop], list, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elementwise, "COLLECT", limit)
        found = kth_largest(values, np.abs, k)
    assert list(found) == [np.sort(np.abs(layer), axis=None)[-k] for layer in array]


def test_a_module_of_small_values_is_told_from_rounding_by_its_own_scale(rng: np.random.Generator) -> None:
    parts = [random_factors(rng, SHAPE, 3, scaling=1e-12), random_factors(rng, SHAPE, 3, scaling=1e-12)]
    larger = [LoraFactors(part.A, part.B) for part in parts]
    for space in SPACES:
        assert relative_error(1e12 * merged(parts, TIES, space), merged(larger, TIES, space)) < 1e-10


def test_the_memory_bound_is_stated_in_values_of_all_adapters_together() -> None:
    seen: list[int] = []

    def watch(values: Values, weights: Dense) -> elementwise.Merge:
        seen.append(values.block_rows * values.shape[0] * values.shape[2])
        return lambda start, block: added(block, weights)

    parts = [random_factors(np.random.default_rng(i), (3000, 700), 2) for i in range(3)]
    merged(parts, watch, "delta")
    assert 0.9 * coordinates.BLOCK < seen[0] <= coordinates.BLOCK
