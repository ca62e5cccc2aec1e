"""Methods that work on singular vectors, subspaces and angles, each against its dense definition in float64."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hub_merge import merge
from hub_merge.adapter import LoraFactors
from hub_merge.composite import Composite
from hub_merge.coordinates import core_space
from hub_merge.errors import MergeError
from hub_merge.methods import get_method
from hub_merge.methods.ctm import shared_subspaces
from tests.helpers import Dense, adapter_of, dense_sum, in_basis, random_basis, random_factors, relative_error

SHAPE = (40, 30)
WEIGHTS = [1.0, 0.6, -0.5]
SPECTRAL = ["ctm", "iso_c", "iso_cts", "karcher", "pico", "slerp", "tsv_m", "wudi"]
EXACT = 1e-10


def run(name: str, parts: Sequence[LoraFactors], weights: Sequence[float] | None = None, **options: Any) -> LoraFactors:
    method, rank = get_method(name), options.pop("rank", None)
    weights = [1.0] * len(parts) if weights is None else weights
    return method.kernel(parts, weights, rank=rank, rng=np.random.default_rng(0), **method.parse_options(options))


def delta(name: str, parts: Sequence[LoraFactors], weights: Sequence[float] | None = None, **options: Any) -> Dense:
    return run(name, parts, weights, **options).delta()


def composed(name: str, parts: Sequence[LoraFactors]) -> Composite:
    """Return the merge of adapters of one module, ``m``."""
    adapters = [adapter_of(f"adapter-{i}", {"m": part}, base_model="org/base") for i, part in enumerate(parts)]
    return merge(adapters, name)


def cautions(name: str, parts: Sequence[LoraFactors]) -> list[str]:
    return [finding.describe() for finding in composed(name, parts).compatibility.report.cautions]


def three(rng: np.random.Generator) -> list[LoraFactors]:
    return [random_factors(rng, SHAPE, rank, scaling=scaling) for rank, scaling in [(3, 2.0), (5, 0.5), (4, 1.0)]]


def orthogonal(rng: np.random.Generator) -> list[LoraFactors]:
    """Return three adapters whose input and output spaces are orthogonal to each other's."""
    left, _ = np.linalg.qr(rng.standard_normal((SHAPE[0], 12)))
    right, _ = np.linalg.qr(rng.standard_normal((SHAPE[1], 12)))
    mixed = [(rng.standard_normal((4, 4)), slice(start, start + 4)) for start in (0, 4, 8)]
    return [LoraFactors(right[:, own].T, left[:, own] @ mix) for mix, own in mixed]


def weighted(parts: Sequence[LoraFactors], weights: Sequence[float]) -> list[Dense]:
    return [weight * dense_sum([part]) for part, weight in zip(parts, weights, strict=True)]


def outside(merged: Dense, parts: Sequence[LoraFactors]) -> float:
    """Return the share of ``merged`` outside the columns of all B and the rows of all A."""
    left, _ = np.linalg.qr(np.concatenate([part.B for part in parts], axis=1))
    right, _ = np.linalg.qr(np.concatenate([part.A for part in parts], axis=0).T)
    return relative_error(left @ (left.T @ merged @ right) @ right.T, merged)


def singular(merged: Dense) -> Dense:
    """Return the singular values that are not rounding."""
    values = np.linalg.svd(merged, compute_uv=False)
    return values[values > 1e-9 * values[0]]


def truncated(merged: Dense, rank: int) -> Dense:
    u, s, vt = np.linalg.svd(merged, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def dense_polar(columns: Dense) -> Dense:
    """Return ``X (Xᵀ X)^(-1/2)``, from the eigenvectors of the Gram matrix."""
    values, vectors = np.linalg.eigh(columns.T @ columns)
    return columns @ (vectors / np.sqrt(values)) @ vectors.T


def norm(merged: Dense) -> float:
    return float(np.linalg.norm(merged))


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("rank", [None, 3])
def test_only_the_deltas_matter_and_not_their_factors(name: str, rank: int | None, rng: np.random.Generator) -> None:
    parts = three(rng)[: get_method(name).most_adapters]
    other = [in_basis(part, random_basis(rng, part.rank)) for part in parts]
    weights = WEIGHTS[: len(parts)]
    assert relative_error(delta(name, other, weights, rank=rank), delta(name, parts, weights, rank=rank)) < EXACT


@pytest.mark.parametrize("name", [name for name in SPECTRAL if name != "karcher"])
@pytest.mark.parametrize("rank", [None, 3])
def test_a_weight_is_a_factor_of_its_delta(name: str, rank: int | None, rng: np.random.Generator) -> None:
    parts = three(rng)[: get_method(name).most_adapters]
    weights = WEIGHTS[: len(parts)]
    scaled = [LoraFactors(p.A, p.B, w * p.scaling) for p, w in zip(parts, weights, strict=True)]
    assert relative_error(delta(name, parts, weights, rank=rank), delta(name, scaled, rank=rank)) < EXACT


@pytest.mark.parametrize("name", SPECTRAL)
def test_the_result_stays_in_the_adapters_own_input_and_output_spaces(name: str, rng: np.random.Generator) -> None:
    parts = three(rng)[: get_method(name).most_adapters]
    assert outside(delta(name, parts, WEIGHTS[: len(parts)]), parts) < EXACT


@pytest.mark.parametrize("name", ["karcher", "pico", "robustmerge", "slerp", "tsv_m", "wudi"])
def test_a_rank_is_the_optimal_truncation_of_the_result(name: str, rng: np.random.Generator) -> None:
    parts = three(rng)[: get_method(name).most_adapters]
    weights = WEIGHTS[: len(parts)]
    whole, short = delta(name, parts, weights), delta(name, parts, weights, rank=3)
    wanted = truncated(whole, 3)
    if name == "pico":  # which keeps the norm in the end
        wanted *= norm(whole) / norm(wanted)
    assert relative_error(short, wanted) < EXACT


@pytest.mark.parametrize("name", ["ctm", "karcher", "slerp", "tsv_m"])
def test_two_equal_adapters_give_that_adapter(name: str, rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 4, scaling=0.5)
    again = in_basis(part, random_basis(rng, 4))
    assert relative_error(delta(name, [part, again]), dense_sum([part])) < EXACT


@pytest.mark.parametrize("name", ["ctm", "iso_c", "iso_cts", "karcher", "pico", "tsv_m", "wudi"])
def test_an_adapter_that_is_zero_is_like_an_adapter_that_lacks_the_module(name: str, rng: np.random.Generator) -> None:
    parts = three(rng)
    untrained = LoraFactors(rng.standard_normal((3, SHAPE[1])), np.zeros((SHAPE[0], 3)))
    twice = random_factors(rng, SHAPE, 2)
    untouched = LoraFactors(np.concatenate([twice.A] * 2), np.concatenate([twice.B, -twice.B], axis=1))  # but rounding
    for nothing in (untrained, untouched):
        assert relative_error(delta(name, [*parts, nothing], [*WEIGHTS, 2.0]), delta(name, parts, WEIGHTS)) < EXACT


@pytest.mark.parametrize("name", ["ctm", "iso_c", "iso_cts", "karcher", "pico", "tsv_m", "wudi"])
def test_an_adapter_within_the_main_directions_of_another_brings_in_no_rounding(
    name: str, rng: np.random.Generator
) -> None:
    part = random_factors(rng, SHAPE, 8)
    u, s, vt = np.linalg.svd(dense_sum([part]), full_matrices=False)
    within = LoraFactors(vt[:2], u[:, :2] * s[:2])
    merged = [delta(name, [in_basis(part, random_basis(rng, 8)), within]) for _ in range(3)]
    assert all(relative_error(other, merged[0]) < 1e-8 for other in merged[1:])


# --- tsv_m ------------------------------------------------------------------------------------------------------------


def dense_tsv(deltas: Sequence[Dense], kept: Sequence[int]) -> Dense:
    triplets = [np.linalg.svd(each, full_matrices=False) for each in deltas]
    U = np.concatenate([u[:, :k] for (u, _, _), k in zip(triplets, kept, strict=True)], axis=1)
    S = np.concatenate([s[:k] for (_, s, _), k in zip(triplets, kept, strict=True)])
    V = np.concatenate([vt[:k].T for (_, _, vt), k in zip(triplets, kept, strict=True)], axis=1)
    return (dense_polar(U) * S) @ dense_polar(V).T


@pytest.mark.parametrize(("keep", "kept"), [("all", [3, 5, 4]), ("share", [1, 1, 1])])
def test_tsv_m_is_its_dense_definition(keep: str, kept: list[int], rng: np.random.Generator) -> None:
    parts = three(rng)
    wanted = dense_tsv(weighted(parts, WEIGHTS), kept)
    assert relative_error(delta("tsv_m", parts, WEIGHTS, keep=keep), wanted) < EXACT


def test_tsv_m_keeps_the_singular_values_of_every_adapter(rng: np.random.Generator) -> None:
    parts = three(rng)
    wanted = np.concatenate([singular(each) for each in weighted(parts, WEIGHTS)])
    got = singular(delta("tsv_m", parts, WEIGHTS))
    assert got == pytest.approx(np.sort(wanted)[::-1], rel=1e-12)
    assert got.sum() == pytest.approx(wanted.sum(), rel=1e-12)


def test_tsv_m_of_orthogonal_adapters_is_their_sum(rng: np.random.Generator) -> None:
    parts = orthogonal(rng)
    assert relative_error(delta("tsv_m", parts, WEIGHTS), dense_sum(parts, WEIGHTS)) < EXACT


# --- iso_c, iso_cts ---------------------------------------------------------------------------------------------------


def dense_iso_c(deltas: Sequence[Dense], directions: int) -> Dense:
    u, s, vt = np.linalg.svd(sum(deltas), full_matrices=False)
    return s[:directions].mean() * u[:, :directions] @ vt[:directions]


def dense_iso_cts(deltas: Sequence[Dense], shared: int, specific: Sequence[int]) -> Dense:
    u, s, vt = np.linalg.svd(sum(deltas), full_matrices=False)
    U, S, V = [u[:, :shared]], [s[:shared]], [vt[:shared].T]
    for own, count in zip(deltas, specific, strict=True):
        u_own, s_own, vt_own = np.linalg.svd(own - U[0] @ U[0].T @ own, full_matrices=False)
        U, S, V = [*U, u_own[:, :count]], [*S, s_own[:count]], [*V, vt_own[:count].T]
    left, right = (dense_polar(np.concatenate(pieces, axis=1)) for pieces in (U, V))
    return np.concatenate(S).mean() * left @ right.T


def test_iso_c_is_its_dense_definition(rng: np.random.Generator) -> None:
    parts = three(rng)
    assert relative_error(delta("iso_c", parts, WEIGHTS), dense_iso_c(weighted(parts, WEIGHTS), 12)) < EXACT


@pytest.mark.parametrize(
    ("common", "shared", "specific"),
    # of 12 directions int(12 * common) are common; the rest is rounded so that each of three adapters gets as many
    [(0.8, 9, [1, 1, 1]), (0.63, 6, [2, 2, 2]), (1.0, 12, [0, 0, 0]), (0.0, 0, [3, 4, 4])],  # the first has only three
)
def test_iso_cts_is_its_dense_definition(common: float, shared: int, specific: list[int]) -> None:
    # a polar factor amplifies rounding where directions are nearly dependent; of these parts they are well apart
    parts = three(np.random.default_rng(9))
    wanted = dense_iso_cts(weighted(parts, WEIGHTS), shared, specific)
    assert relative_error(delta("iso_cts", parts, WEIGHTS, common=common), wanted) < EXACT


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
@pytest.mark.parametrize("rank", [None, 5])
def test_isotropic_merges_have_equal_singular_values(name: str, rank: int | None, rng: np.random.Generator) -> None:
    values = singular(delta(name, three(rng), WEIGHTS, rank=rank))
    assert len(values) == (rank or 12)
    assert values.std() < 1e-10


def test_iso_c_keeps_the_nuclear_norm_of_the_sum(rng: np.random.Generator) -> None:
    parts = three(rng)
    wanted = singular(dense_sum(parts, WEIGHTS)).sum()
    assert singular(delta("iso_c", parts, WEIGHTS)).sum() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
def test_an_isotropic_merge_of_its_own_result_changes_nothing(name: str, rng: np.random.Generator) -> None:
    once = run(name, three(rng), WEIGHTS)
    assert relative_error(delta(name, [once]), once.delta()) < EXACT


def test_the_definition_for_full_matrices_would_leave_the_adapters_column_space(rng: np.random.Generator) -> None:
    parts = three(rng)
    u, s, vt = np.linalg.svd(dense_sum(parts, WEIGHTS), full_matrices=False)
    trapped = s.mean() * u @ vt
    assert np.linalg.matrix_rank(trapped) == 30
    assert outside(trapped, parts) > 0.5
    assert outside(delta("iso_c", parts, WEIGHTS), parts) < EXACT


@pytest.mark.parametrize("name", ["iso_c", "iso_cts", "tsv_m"])
def test_a_direction_that_is_only_rounding_is_not_blown_up(name: str, rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 4)
    noise = LoraFactors(part.A, part.B + 1e-13 * rng.standard_normal(part.B.shape))
    merged = delta(name, [part, noise])
    assert len(singular(merged)) == 4
    assert outside(merged, [part]) < 1e-9


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
def test_directions_that_cancel_in_the_sum_do_not_come_back(name: str, rng: np.random.Generator) -> None:
    basis, _ = np.linalg.qr(rng.standard_normal((SHAPE[0], 6)))
    right, _ = np.linalg.qr(rng.standard_normal((SHAPE[1], 6)))
    one = LoraFactors(right[:, :4].T, basis[:, :4] * [5.0, 4.0, 3.0, 2.0])
    two = LoraFactors(right[:, 2:].T, basis[:, 2:] * [-3.0, -2.0, 1.0, 1.0])  # takes back the last two of the first
    merged = delta(name, [one, two], common=1.0) if name == "iso_cts" else delta(name, [one, two])
    left = [0, 1, 4, 5]
    assert relative_error(merged, (5 + 4 + 1 + 1) / 4 * basis[:, left] @ right[:, left].T) < EXACT


def test_a_rank_keeps_the_directions_of_the_sum_that_are_largest(rng: np.random.Generator) -> None:
    parts = three(rng)
    u, s, vt = np.linalg.svd(dense_sum(parts, WEIGHTS), full_matrices=False)
    assert relative_error(delta("iso_c", parts, WEIGHTS, rank=4), s[:12].mean() * u[:, :4] @ vt[:4]) < EXACT


# --- ctm --------------------------------------------------------------------------------------------------------------


def dense_ctm(deltas: Sequence[Dense], rank: int, beta: float, iterations: int, rule: str) -> Dense:
    """Compress-then-Merge on whole deltas, its subspaces from eigenvectors of covariances."""
    mean = np.mean([norm(each) for each in deltas])
    Z = [each / norm(each) * (beta * norm(each) + (1 - beta) * mean) for each in deltas]

    def leading(covariance: Dense) -> Dense:
        return np.linalg.eigh(covariance)[1][:, ::-1][:, :rank]

    U, V = leading(sum(z @ z.T for z in Z)), leading(sum(z.T @ z for z in Z))
    for _ in range(iterations):
        U = leading(sum(z @ V @ V.T @ z.T for z in Z))
        V = leading(sum(z.T @ U @ U.T @ z for z in Z))
    cores = np.stack([U.T @ each @ V for each in deltas])
    if rule == "sum":
        return U @ cores.sum(axis=0) @ V.T
    agree = np.sign(cores) == np.sign(cores.sum(axis=0))
    return U @ ((cores * agree).sum(axis=0) / agree.sum(axis=0)) @ V.T


@pytest.mark.parametrize("rule", ["sum", "ties"])
@pytest.mark.parametrize(("rank", "beta", "iterations"), [(4, 0.25, 20), (2, 1.0, 0), (6, 0.0, 5)])
def test_ctm_is_its_dense_definition(
    rule: str, rank: int, beta: float, iterations: int, rng: np.random.Generator
) -> None:
    parts = three(rng)
    wanted = dense_ctm(weighted(parts, WEIGHTS), rank, beta, iterations, rule)
    got = delta("ctm", parts, WEIGHTS, rank=rank, beta=beta, iterations=iterations, rule=rule)
    assert relative_error(got, wanted) < EXACT


def test_ctm_with_the_sum_rule_at_the_total_rank_is_the_sum(rng: np.random.Generator) -> None:
    parts = three(rng)
    assert relative_error(delta("ctm", parts, WEIGHTS, rank=12, rule="sum"), dense_sum(parts, WEIGHTS)) < EXACT


@pytest.mark.parametrize("rule", ["sum", "ties", "dare_ties"])
@pytest.mark.parametrize("rank", [None, 4, 9])
def test_ctm_of_one_adapter_is_that_adapter(rule: str, rank: int | None, rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 4, scaling=3.0)
    assert relative_error(delta("ctm", [part], rank=rank, rule=rule), dense_sum([part])) < EXACT


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_result_of_ctm_has_the_rank_asked_for(rank: int, rng: np.random.Generator) -> None:
    merged = run("ctm", three(rng), WEIGHTS, rank=rank, density=0.5)
    assert merged.rank == len(singular(merged.delta())) == rank


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_every_iteration_of_ctm_keeps_at_least_as_much_energy(rank: int, rng: np.random.Generator) -> None:
    deltas = core_space(three(rng)).M
    U, V, kept = shared_subspaces(deltas, rank, 30)
    assert len(kept) == 31
    assert all(after >= before * (1 - 1e-14) for before, after in pairwise(kept))
    assert kept[-1] > kept[0]
    assert kept[-1] == pytest.approx(sum(norm(U.T @ each @ V) ** 2 for each in deltas), rel=1e-12)
    assert np.allclose(U.T @ U, np.eye(rank)) and np.allclose(V.T @ V, np.eye(rank))


def test_with_beta_zero_a_large_adapter_does_not_choose_the_subspaces(rng: np.random.Generator) -> None:
    parts = three(rng)
    louder = [LoraFactors(parts[0].A, parts[0].B, 1e6 * parts[0].scaling), *parts[1:]]

    def kept(of: Sequence[LoraFactors], beta: float) -> float:
        """Return the share of the small adapters' norm inside the subspaces that ``of`` chooses."""
        U, _, Vt = np.linalg.svd(delta("ctm", of, rank=4, beta=beta, rule="sum"), full_matrices=False)
        quiet = dense_sum(parts[1:])
        return norm(U[:, :4].T @ quiet @ Vt[:4].T) / norm(quiet)

    assert kept(louder, 0.0) == pytest.approx(kept(parts, 0.0), rel=1e-6)
    assert kept(louder, 1.0) < kept(parts, 1.0)


def test_dare_ties_in_ctm_follows_the_seed(rng: np.random.Generator) -> None:
    parts, method = three(rng), get_method("ctm")
    options = method.parse_options({"rule": "dare_ties", "density": 0.5})
    merged = [
        method.kernel(parts, WEIGHTS, rank=4, rng=np.random.default_rng(seed), **options).delta() for seed in (1, 1, 2)
    ]
    assert np.array_equal(merged[0], merged[1])
    assert relative_error(merged[2], merged[0]) > 0.1


# --- karcher, slerp ---------------------------------------------------------------------------------------------------


def logarithm(at: Dense, to: Dense) -> Dense:
    """Return the tangent at the unit delta ``at`` that leads to the unit delta ``to``."""
    cosine = float((at * to).sum())
    across = to - cosine * at
    return np.arctan2(norm(across), cosine) * across / norm(across)


def test_at_the_karcher_mean_the_pulls_of_all_directions_cancel(rng: np.random.Generator) -> None:
    parts = three(rng)
    deltas = weighted(parts, WEIGHTS)
    merged = delta("karcher", parts, WEIGHTS)
    at = merged / norm(merged)
    pulls = [abs(w) * logarithm(at, each / norm(each)) for w, each in zip(WEIGHTS, deltas, strict=True)]
    assert norm(sum(pulls)) < 1e-12 * max(norm(pull) for pull in pulls)


def test_the_karcher_mean_has_the_mean_norm(rng: np.random.Generator) -> None:
    parts = three(rng)
    for weights in ([1.0, 1.0, 1.0], WEIGHTS):
        norms = [norm(each) for each in weighted(parts, weights)]
        wanted = np.average(norms, weights=np.abs(weights))
        assert norm(delta("karcher", parts, weights)) == pytest.approx(wanted, rel=1e-12)


def test_the_karcher_mean_of_orthogonal_adapters_of_one_norm_lies_in_the_middle(rng: np.random.Generator) -> None:
    parts = [LoraFactors(p.A, p.B, 1 / norm(dense_sum([p]))) for p in orthogonal(rng)]
    assert relative_error(delta("karcher", parts), dense_sum(parts) / np.sqrt(3)) < EXACT


def test_the_karcher_mean_settles_for_deltas_at_wide_angles(rng: np.random.Generator) -> None:
    part, other = three(rng)[:2]
    turned = LoraFactors(  # mostly -part, and some of the other
        np.concatenate([part.A, other.A]), np.concatenate([-part.scaling * part.B, other.scaling * other.B], axis=1)
    )
    merged = delta("karcher", [part, turned])
    cosines = [(merged * dense_sum([p])).sum() / norm(merged) / norm(dense_sum([p])) for p in (part, turned)]
    assert cosines[0] == pytest.approx(cosines[1], rel=1e-12)
    assert cosines[0] > 0


def test_the_karcher_mean_of_dependent_deltas_all_round_is_a_number(rng: np.random.Generator) -> None:
    one, other = (part.scaling * part.B @ part.A for part in three(rng)[:2])
    other = other - (one * other).sum() / (one * one).sum() * one
    for _ in range(100):
        angles = rng.uniform(0, 2 * np.pi, rng.integers(3, 5))
        around = [np.cos(angle) * one / norm(one) + np.sin(angle) * other / norm(other) for angle in angles]
        merged = delta("karcher", [LoraFactors(each, np.eye(SHAPE[0])) for each in around])
        assert norm(merged) == pytest.approx(1.0) or not merged.any()


def test_directions_that_cancel_have_no_mean(rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 3)
    with np.errstate(all="raise", under="ignore"):
        assert not delta("karcher", [part, part], [1.0, -1.0]).any()
        merged = delta("karcher", [part, part, part], [1.0, 1.0, -1.0])
    assert relative_error(merged, dense_sum([part])) < EXACT


@pytest.mark.parametrize(("t", "place"), [(0.0, 0), (1.0, 1)])
def test_slerp_ends_at_its_adapters(t: float, place: int, rng: np.random.Generator) -> None:
    parts = three(rng)[:2]
    assert relative_error(delta("slerp", parts, [1.0, 0.6], t=t), weighted(parts, [1.0, 0.6])[place]) < EXACT


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, -0.6]])
def test_slerp_divides_the_angle_and_keeps_the_norm(t: float, weights: list[float], rng: np.random.Generator) -> None:
    shared = random_factors(rng, SHAPE, 2)
    pair = [
        LoraFactors(np.concatenate([own.A, shared.A]), np.concatenate([own.B, shared.B], axis=1))
        for own in (random_factors(rng, SHAPE, 2), random_factors(rng, SHAPE, 3))
    ]
    parts = [LoraFactors(p.A, p.B, 1 / norm(dense_sum([p])) / abs(w)) for p, w in zip(pair, weights, strict=True)]
    first, second = weighted(parts, weights)
    merged = delta("slerp", parts, weights, t=t)
    angle = np.arccos((first * second).sum())
    assert norm(merged) == pytest.approx(1.0, rel=1e-12)
    assert np.arccos((first * merged).sum()) == pytest.approx(t * angle, rel=1e-12)
    assert np.arccos((second * merged).sum()) == pytest.approx((1 - t) * angle, rel=1e-12)


def test_slerp_half_way_between_equal_norms_is_the_karcher_mean(rng: np.random.Generator) -> None:
    parts = [LoraFactors(p.A, p.B, p.scaling / norm(dense_sum([p]))) for p in three(rng)[:2]]
    assert relative_error(delta("slerp", parts), delta("karcher", parts)) < EXACT


def test_slerp_of_deltas_on_one_line_is_linear(rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 3)
    with np.errstate(all="raise", under="ignore"):
        assert relative_error(delta("slerp", [part, part], [1.0, 3.0], t=0.25), 1.5 * dense_sum([part])) < EXACT
        assert relative_error(delta("slerp", [part, part], [1.0, -1.0], t=0.25), 0.5 * dense_sum([part])) < EXACT


def test_slerp_refuses_three_adapters_and_takes_three_of_which_one_has_no_weight(rng: np.random.Generator) -> None:
    parts = three(rng)
    with pytest.raises(MergeError, match="slerp goes from one adapter to another, and 3 have a weight here") as refusal:
        run("slerp", parts)
    assert "karcher" in str(refusal.value.remedy)
    assert relative_error(delta("slerp", parts, [1.0, 0.0, 1.0]), delta("slerp", [parts[0], parts[2]])) < EXACT
    with pytest.raises(MergeError, match="slerp"):
        composed("slerp", parts).factors("m")


def test_nothing_is_lost_without_a_rank(rng: np.random.Generator) -> None:
    for name, parts in (("karcher", three(rng)), ("slerp", three(rng)[:2])):
        merged = run(name, parts)
        assert np.array_equal(merged.A, np.concatenate([part.A for part in parts]))


# --- robustmerge ------------------------------------------------------------------------------------------------------


def dense_robustmerge(parts: Sequence[LoraFactors], weights: Sequence[float], density: float, scale: float) -> Dense:
    """RobustMerge entry by entry, for parts of one rank."""
    A_sum, B_sum, total = 0.0, 0.0, 0.0
    for part, weight in zip(parts, weights, strict=True):
        root = np.sqrt(abs(weight * part.scaling))
        a, b = root * part.A, np.sign(weight * part.scaling) * root * part.B
        small_a, small_b = (sorted(np.abs(x).ravel())[x.size - int(np.ceil(density * x.size))] for x in (a, b))
        a_trim, b_trim = np.where(np.abs(a) < small_a, 0, a), np.where(np.abs(b) < small_b, 0, b)
        share = np.array([np.abs(row).sum() / np.abs(cut).sum() for row, cut in zip(a, a_trim, strict=True)])
        share = np.maximum(share, sorted(share)[int(0.8 * len(share))])
        A_sum, B_sum, total = A_sum + a_trim, B_sum + share * b_trim, total + share
    return scale * (B_sum / total) @ A_sum


@pytest.mark.parametrize(("rank", "density"), [(3, 0.2), (8, 0.5), (8, 1.0)])
def test_robustmerge_is_its_definition(rank: int, density: float, rng: np.random.Generator) -> None:
    parts = [random_factors(rng, SHAPE, rank, scaling=scaling) for scaling in (2.0, 0.5, -1.0)]
    wanted = dense_robustmerge(parts, WEIGHTS, density, 4.0)
    assert relative_error(delta("robustmerge", parts, WEIGHTS, density=density), wanted) < EXACT


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("weight", [1.0, -0.5])
def test_robustmerge_of_one_whole_adapter_is_that_adapter_times_its_scale(
    scale: float, weight: float, rng: np.random.Generator
) -> None:
    part = random_factors(rng, SHAPE, 4, scaling=0.5)
    merged = delta("robustmerge", [part], [weight], density=1.0, scale=scale)
    assert relative_error(merged, scale * weight * dense_sum([part])) < EXACT


def test_robustmerge_has_cross_terms_and_says_so(rng: np.random.Generator) -> None:
    one, two = (random_factors(rng, SHAPE, 4) for _ in range(2))
    merged = delta("robustmerge", [one, two], density=1.0, scale=2.0)
    cross = one.B @ two.A + two.B @ one.A
    assert relative_error(merged - dense_sum([one, two]), cross) < EXACT
    assert any("cross terms" in told for told in cautions("robustmerge", [one, two]))


def test_in_robustmerge_a_shorter_adapter_has_no_share_in_the_rows_it_lacks(rng: np.random.Generator) -> None:
    tall, short = random_factors(rng, SHAPE, 4), random_factors(rng, SHAPE, 2)
    merged = run("robustmerge", [tall, short], density=1.0, scale=1.0)
    assert np.allclose(merged.A[2:], tall.A[2:], rtol=1e-12)
    assert np.allclose(merged.B[:, 2:], tall.B[:, 2:], rtol=1e-12)
    assert np.allclose(merged.B[:, :2], (tall.B[:, :2] + short.B) / 2, rtol=1e-12)


def test_robustmerge_survives_rows_that_trimming_takes_away_whole(rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 4)
    graded = LoraFactors(part.A * np.array([[1.0], [1e-6], [0.0], [1.0]]), part.B)
    for density in (0.0, 0.2, 1.0):
        with np.errstate(all="raise", under="ignore"):
            assert np.isfinite(delta("robustmerge", [graded, part], density=density)).all()


# --- wudi -------------------------------------------------------------------------------------------------------------


def wudi_gradient(at: Dense, deltas: Sequence[Dense], ridge: float) -> Dense:
    return sum((at - d) @ d.T @ d / norm(d) ** 2 for d in deltas) + ridge * (at - sum(deltas))


@pytest.mark.parametrize("ridge", [0.0, 0.01, 10.0])
def test_at_the_result_of_wudi_the_gradient_of_the_objective_is_zero(ridge: float, rng: np.random.Generator) -> None:
    parts = three(rng)
    deltas = weighted(parts, WEIGHTS)
    merged = delta("wudi", parts, WEIGHTS, ridge=ridge)
    scale = norm(wudi_gradient(np.zeros(SHAPE), deltas, ridge))
    assert norm(wudi_gradient(merged, deltas, ridge)) < 1e-11 * scale


def test_wudi_without_ridge_acts_like_each_adapter_on_its_inputs(rng: np.random.Generator) -> None:
    parts = three(rng)
    merged = delta("wudi", parts, WEIGHTS, ridge=0.0)
    for part, own in zip(parts, weighted(parts, WEIGHTS), strict=True):
        assert relative_error(merged @ part.A.T, own @ part.A.T) < EXACT


@pytest.mark.parametrize("ridge", [0.0, 0.01, 10.0])
def test_wudi_of_orthogonal_input_spaces_is_the_sum(ridge: float, rng: np.random.Generator) -> None:
    right, _ = np.linalg.qr(rng.standard_normal((SHAPE[1], 12)))
    rows = np.split(right.T, [3, 8])
    parts = [LoraFactors(own, part.B) for own, part in zip(rows, three(rng), strict=True)]
    assert relative_error(delta("wudi", parts, WEIGHTS, ridge=ridge), dense_sum(parts, WEIGHTS)) < EXACT


def test_wudi_with_a_large_ridge_is_the_sum(rng: np.random.Generator) -> None:
    parts = three(rng)
    assert relative_error(delta("wudi", parts, WEIGHTS, ridge=1e9), dense_sum(parts, WEIGHTS)) < 1e-8


def test_nearly_parallel_inputs_blow_wudi_up_and_a_ridge_holds_it(rng: np.random.Generator) -> None:
    one = random_factors(rng, SHAPE, 4)
    two = LoraFactors(one.A + 1e-3 * rng.standard_normal(one.A.shape), rng.standard_normal(one.B.shape))
    size = norm(dense_sum([one, two]))
    grown = [norm(delta("wudi", [one, two], ridge=ridge)) / size for ridge in (0.0, 0.01)]
    assert grown[0] > 100
    assert grown[1] < 1.5
    assert any("wudi is experimental" in told for told in cautions("wudi", [one, two]))


# --- pico -------------------------------------------------------------------------------------------------------------


def dense_pico(deltas: Sequence[Dense], columns: Sequence[Dense]) -> list[Dense]:
    """Return the deltas with the output directions of ``columns`` shrunk by their share of the energy."""
    U, D, _ = np.linalg.svd(np.concatenate(columns, axis=1), full_matrices=False)
    factor = 1 / (1 + (len(deltas) - 1) * D**2 / (D**2).sum())
    return [each + U @ np.diag(factor - 1) @ U.T @ each for each in deltas]


@pytest.mark.parametrize("directions", ["deltas", "factors"])
def test_pico_before_a_sum_is_its_dense_definition(directions: str, rng: np.random.Generator) -> None:
    parts = three(rng)
    deltas = weighted(parts, WEIGHTS)
    columns = deltas if directions == "deltas" else [w * p.scaling * p.B for p, w in zip(parts, WEIGHTS, strict=True)]
    wanted = sum(dense_pico(deltas, columns))
    wanted *= np.mean([norm(each) for each in deltas]) / norm(wanted)
    assert relative_error(delta("pico", parts, WEIGHTS, directions=directions), wanted) < EXACT


def test_pico_before_tsv_m_is_its_dense_definition(rng: np.random.Generator) -> None:
    parts = three(rng)
    deltas = weighted(parts, WEIGHTS)
    wanted = dense_tsv(dense_pico(deltas, deltas), [3, 5, 4])
    wanted *= np.mean([norm(each) for each in deltas]) / norm(wanted)
    assert relative_error(delta("pico", parts, WEIGHTS, then="tsv_m"), wanted) < EXACT


@pytest.mark.parametrize("then", ["sum", "mean", "svd", "lego", "ties", "tsv_m", "iso_c", "ctm", "wudi"])
@pytest.mark.parametrize("rank", [None, 3])
def test_pico_gives_the_mean_norm_of_the_adapters_whatever_follows(
    then: str, rank: int | None, rng: np.random.Generator
) -> None:
    parts = three(rng)
    merged = run("pico", parts, WEIGHTS, then=then, rank=rank)
    assert norm(merged.delta()) == pytest.approx(np.mean([norm(d) for d in weighted(parts, WEIGHTS)]), rel=1e-12)
    assert merged.rank == run(then, parts, WEIGHTS, rank=rank).rank
    low = run("pico", [part.astype(np.float32) for part in parts], WEIGHTS, then=then, rank=rank)
    assert low.A.dtype == low.B.dtype == np.float32
    assert norm(low.delta()) == pytest.approx(norm(merged.delta()), rel=1e-6)


@pytest.mark.parametrize("then", ["sum", "mean", "svd", "ties", "tsv_m", "karcher", "slerp", "ctm", "wudi"])
def test_pico_of_one_adapter_is_that_adapter(then: str, rng: np.random.Generator) -> None:
    part = random_factors(rng, SHAPE, 4, scaling=3.0)
    assert relative_error(delta("pico", [part], then=then), dense_sum([part])) < EXACT


def test_pico_turns_the_directions_that_adapters_share_down_most(rng: np.random.Generator) -> None:
    basis, _ = np.linalg.qr(rng.standard_normal((SHAPE[0], 6)))
    right, _ = np.linalg.qr(rng.standard_normal((SHAPE[1], 8)))
    pairs = [(slice(0, 4), [0, 1, 2, 3]), (slice(4, 8), [0, 1, 4, 5])]  # columns 0 and 1 are in both, the rest in one
    parts = [LoraFactors(right[:, own].T, basis[:, columns]) for own, columns in pairs]
    kept = np.linalg.norm(basis.T @ delta("pico", parts), axis=1) / np.linalg.norm(basis.T @ dense_sum(parts), axis=1)
    # energies 2/8 in a shared direction, 1/8 in the others
    assert kept[:2] / kept[2:4] == pytest.approx([(1 + 1 / 8) / (1 + 2 / 8)] * 2, rel=1e-12)
    assert kept[2:] == pytest.approx([kept[2]] * 4, rel=1e-12)


def test_pico_names_any_method_and_refuses_what_is_none(rng: np.random.Generator) -> None:
    method = get_method("pico")
    assert method.parse_options({"then": "cat"})["then"] == "sum"
    with pytest.raises(MergeError, match="Option then is 'nonsense'") as refusal:
        method.parse_options({"then": "nonsense"})
    assert "the name of a merge method" in str(refusal.value.remedy)
    assert method.cautions is not None
    assert "cross terms" in " ".join(method.cautions([1.0, 1.0], method.parse_options({"then": "robustmerge"})))
    assert not method.cautions([1.0, 1.0], method.parse_options({}))


# --- declarations -----------------------------------------------------------------------------------------------------


def test_methods_declare_what_they_cannot_promise() -> None:
    declared = {name: sorted(get_method(name).breaks) for name in [*SPECTRAL, "robustmerge"] if get_method(name).breaks}
    assert declared == {"iso_c": ["identity"], "iso_cts": ["identity"], "robustmerge": ["identity"]}
    assert [get_method(name).most_adapters for name in ("slerp", "karcher")] == [2, None]
