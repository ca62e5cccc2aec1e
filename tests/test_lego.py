"""``lego``: its invariants, scikit-learn for the clustering, and a dense brute-force reading of the paper's method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hub_merge import clustering
from hub_merge.adapter import LoraFactors
from hub_merge.clustering import Labels, _distances, _lloyd, kmeans, ward
from hub_merge.gram import Float64
from hub_merge.methods import get_method
from hub_merge.methods.lego import pool_units, scaled_units
from tests.helpers import Dense, dense_sum, in_basis, random_basis, random_factors, relative_error

SHAPE = (26, 22)
LEGO = get_method("lego")
either_clustering = pytest.mark.parametrize("clustering", ["kmeans", "ward"])


def lego(
    parts: Sequence[LoraFactors], weights: Sequence[float] | None = None, *, rank: int, seed: int = 0, **given: Any
) -> Any:
    weights = [1.0] * len(parts) if weights is None else weights
    return LEGO.kernel(parts, weights, rank=rank, rng=np.random.default_rng(seed), **LEGO.parse_options(given))


def three(rng: np.random.Generator) -> list[LoraFactors]:
    return [random_factors(rng, SHAPE, rank, scaling=scaling) for rank, scaling in [(4, 2.0), (4, 0.5), (4, 1.0)]]


def same_bytes(one: LoraFactors, two: LoraFactors) -> bool:
    return (one.A.tobytes(), one.B.tobytes()) == (two.A.tobytes(), two.B.tobytes())


def rescaled(part: LoraFactors, factors: Sequence[float]) -> LoraFactors:
    """Return the same delta with row j of A multiplied and column j of B divided by ``factors[j]``."""
    return LoraFactors(part.A * np.array(factors)[:, None], part.B / np.array(factors), part.scaling)


def reordered(part: LoraFactors, order: Sequence[int]) -> LoraFactors:
    return LoraFactors(part.A[list(order)], part.B[:, list(order)], part.scaling)


# --- the method, written again from its description -------------------------------------------------------------------


def partitions(count: int, clusters: int) -> Iterator[list[int]]:
    """Yield every way to put ``count`` points into exactly ``clusters`` clusters, as labels."""

    def extend(labels: list[int]) -> Iterator[list[int]]:
        if len(labels) == count:
            if max(labels) + 1 == clusters:
                yield labels
            return
        for label in range(min(max(labels, default=-1) + 2, clusters)):
            yield from extend([*labels, label])

    yield from extend([])


def inertia(points: Dense, labels: Sequence[int]) -> float:
    total = 0.0
    for cluster in set(labels):
        members = points[[j for j, label in enumerate(labels) if label == cluster]]
        total += float(((members - members.mean(axis=0)) ** 2).sum())
    return total


def best_clustering(points: Dense, clusters: int) -> list[int]:
    """Return the labels of least inertia, found by trying every clustering."""
    return min(partitions(len(points), clusters), key=lambda labels: inertia(points, labels))


def scipy_ward(points: Dense, clusters: int) -> list[int]:
    """Return scipy's labels by Ward's linkage, numbered in the order of the clusters' first points."""
    hierarchy = pytest.importorskip("scipy.cluster.hierarchy")
    if clusters == len(points):
        return list(range(clusters))
    return in_order(hierarchy.cut_tree(hierarchy.ward(points), clusters)[:, 0])


def in_order(labels: Sequence[int]) -> list[int]:
    """Return ``labels`` renumbered in the order of the clusters' first points."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(int(label), len(numbers)) for label in labels]


def reference(
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    k: int,
    *,
    unit_halves: bool = False,
    norm: float | None = np.inf,
    output: str = "sqrt_rank_over_k",
    cluster: Callable[[Dense, int], Sequence[int]] | None = None,
) -> Dense:
    """Return faithful LEGO's dense delta, with the best of all clusterings if none is given."""
    units, ranks = [], []
    for part, weight in zip(parts, weights, strict=True):
        ranks.append(part.rank)
        c = weight * part.scaling
        for j in range(part.rank):
            a, b = math.sqrt(abs(c)) * part.A[j], math.sqrt(abs(c)) * part.B[:, j]
            units.append((a, b if c >= 0 else -b))
    points = np.array([np.concatenate([a, b]) for a, b in units])
    if unit_halves:
        compared = np.array([np.concatenate([a / np.linalg.norm(a), b / np.linalg.norm(b)]) for a, b in units])
    else:
        compared = points
    labels = (cluster or best_clustering)(compared, k)
    delta = np.zeros(parts[0].shape)
    for number in range(k):
        members = points[[j for j, label in enumerate(labels) if label == number]]
        centroid = members.mean(axis=0)
        if norm is not None:
            centroid *= np.mean([np.linalg.norm(m, norm) for m in members]) / np.linalg.norm(centroid, norm)
        a, b = centroid[: parts[0].shape[1]], centroid[parts[0].shape[1] :]
        delta += np.outer(b, a)
    tau = {
        "none": 1.0,
        "sqrt_rank_over_k": math.sqrt(np.mean(ranks) / k),
        "sqrt_total_over_k": math.sqrt(len(units) / k),
    }
    return tau[output] * delta


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"output_reweight": "none"}, {"output": "none"}),
        ({"output_reweight": "sqrt_total_over_k"}, {"output": "sqrt_total_over_k"}),
        ({"parameter_reweight": "l2"}, {"norm": 2}),
        ({"parameter_reweight": "none"}, {"norm": None}),
        ({"feature": "unit_halves"}, {"unit_halves": True}),
    ],
)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_faithful_preset_is_what_the_description_gives_by_brute_force(
    given: dict[str, Any], expected: dict[str, Any], k: int
) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        parts = [random_factors(rng, (5, 4), rank, scaling=scaling) for rank, scaling in [(2, 1.0), (3, 0.5), (2, 2.0)]]
        weights = [1.0, 0.8, 1.3]
        got = lego(parts, weights, rank=k, preset="faithful", starts=50, **given)
        assert relative_error(got.delta(), reference(parts, weights, k, **expected)) < 1e-12


@pytest.mark.parametrize("feature", ["raw", "unit_halves"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_with_ward_it_is_what_the_description_gives_with_the_clusters_of_scipy(feature: str, k: int) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        parts, weights = three(rng), [1.0, 0.8, 1.3]
        wanted = reference(parts, weights, k, unit_halves=feature == "unit_halves", cluster=scipy_ward)
        got = lego(parts, weights, rank=k, preset="faithful", clustering="ward", feature=feature)
        assert relative_error(got.delta(), wanted) < 1e-12


def test_a_negative_weight_puts_its_sign_on_the_output_half() -> None:
    rng = np.random.default_rng(3)
    parts, weights = [random_factors(rng, (5, 4), 2), random_factors(rng, (5, 4), 3)], [1.0, -0.5]
    got = lego(parts, weights, rank=3, preset="faithful", starts=200)
    assert relative_error(got.delta(), reference(parts, weights, 3)) < 1e-12


# --- as many clusters as units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("canonicalize", ["none", "balance", "svd"])
@pytest.mark.parametrize(
    ("output", "factor"), [("none", 1.0), ("sqrt_total_over_k", 1.0), ("sqrt_rank_over_k", 1 / math.sqrt(3))]
)
@pytest.mark.parametrize("rank", [12, 40])
@either_clustering
def test_with_a_cluster_for_each_unit_it_is_the_sum_up_to_the_output_factor(
    clustering: str, canonicalize: str, output: str, factor: float, rank: int, rng: np.random.Generator
) -> None:
    parts, weights = three(rng), [1.0, -0.5, 2.0]
    choices = {"clustering": clustering, "canonicalize": canonicalize, "output_reweight": output}
    merged = lego(parts, weights, rank=rank, **choices)
    assert merged.rank == 12
    assert relative_error(merged.delta(), factor * dense_sum(parts, weights)) < 1e-12


def test_the_output_factor_is_taken_from_the_mean_rank_and_the_number_of_clusters(rng: np.random.Generator) -> None:
    parts = [random_factors(rng, SHAPE, rank) for rank in (2, 6, 4)]
    plain = lego(parts, rank=5, output_reweight="none").delta()
    assert relative_error(lego(parts, rank=5).delta(), math.sqrt(4 / 5) * plain) < 1e-12
    total = lego(parts, rank=5, output_reweight="sqrt_total_over_k").delta()
    assert relative_error(total, math.sqrt(12 / 5) * plain) < 1e-12


# --- one adapter twice ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canonicalize", ["none", "balance", "svd"])
@pytest.mark.parametrize("feature", ["raw", "unit_halves"])
@either_clustering
def test_an_adapter_and_its_copy_give_that_adapter(
    clustering: str, canonicalize: str, feature: str, rng: np.random.Generator
) -> None:
    part = random_factors(rng, SHAPE, 5, scaling=3.0)
    merged = lego([part, part], rank=5, clustering=clustering, canonicalize=canonicalize, feature=feature)
    assert relative_error(merged.delta(), dense_sum([part])) < 1e-12


def test_an_adapter_and_the_same_update_written_otherwise_give_that_adapter_unless_units_stay_raw(
    rng: np.random.Generator,
) -> None:
    part = random_factors(rng, SHAPE, 5)
    flipped = rescaled(part, [-1, 1, -1, -1, 1])
    assert relative_error(lego([part, flipped], rank=5).delta(), part.delta()) < 1e-12
    assert relative_error(lego([part, flipped], rank=5, preset="faithful").delta(), part.delta()) > 0.3
    turned = in_basis(part, random_basis(rng, 5))
    assert relative_error(lego([part, turned], rank=5, canonicalize="svd").delta(), part.delta()) < 1e-10
    assert relative_error(lego([part, turned], rank=5, canonicalize="balance").delta(), part.delta()) > 0.3


# --- what must not matter ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 12), clustering=st.sampled_from(["kmeans", "ward"]))
def test_balanced_units_do_not_depend_on_signs_and_scales(seed: int, rank: int, clustering: str) -> None:
    rng = np.random.default_rng(seed)
    parts = three(rng)
    other = [rescaled(p, rng.choice([-1, 1], p.rank) * 2.0 ** rng.integers(-6, 7, p.rank)) for p in parts]
    one, two = (lego(held, rank=rank, clustering=clustering) for held in (parts, other))
    assert relative_error(one.delta(), two.delta()) < 1e-12


def test_signs_do_not_matter_where_the_largest_entry_of_a_unit_occurs_with_both(rng: np.random.Generator) -> None:
    """As it does in most units in bfloat16, which has few numbers."""
    parts = [random_factors(rng, SHAPE, 6) for _ in range(2)]
    parts = [LoraFactors(np.round(2 * part.A).clip(-3, 3), part.B) for part in parts]
    assert np.mean([part.A.max(axis=1) == -part.A.min(axis=1) for part in parts]) > 0.5
    signs = np.where(np.arange(6) % 2, -1, 1)
    other = [parts[0], rescaled(parts[1], signs)]
    for rank in (2, 4, 6):
        assert lego(parts, rank=rank).delta().tobytes() == lego(other, rank=rank).delta().tobytes()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 12), clustering=st.sampled_from(["kmeans", "ward"]))
@example(seed=252643715, rank=3, clustering="kmeans")  # two units whose largest entry is their first
@example(seed=751422443, rank=3, clustering="kmeans")
@example(seed=3242115546, rank=7, clustering="kmeans")  # clusterings of one inertia
def test_singular_units_depend_on_the_delta_alone(seed: int, rank: int, clustering: str) -> None:
    rng = np.random.default_rng(seed)
    parts = three(rng)
    other = [in_basis(part, random_basis(rng, part.rank)) for part in parts]
    one, two = (lego(held, rank=rank, canonicalize="svd", clustering=clustering) for held in (parts, other))
    assert relative_error(one.delta(), two.delta()) < 1e-9


def test_raw_units_depend_on_how_the_delta_is_written_which_is_why_they_are_not_the_default(
    rng: np.random.Generator,
) -> None:
    parts = three(rng)
    raw = lego(parts, rank=3, preset="faithful").delta()
    flipped, scaled = rescaled(parts[0], [-1, 1, -1, -1]), rescaled(parts[0], [0.1] * 4)
    for rewritten in (flipped, scaled, in_basis(parts[0], random_basis(rng, 4))):
        assert relative_error(rewritten.delta(), parts[0].delta()) < 1e-12
        assert relative_error(lego([rewritten, *parts[1:]], rank=3, preset="faithful").delta(), raw) > 0.1
    assert LEGO.parse_options({})["canonicalize"] != "none"


def test_units_that_are_well_apart_are_clustered_in_single_precision_and_others_in_double(
    rng: np.random.Generator,
) -> None:
    apart = [random_factors(rng, SHAPE, 3, dtype=np.float32) for _ in range(2)]
    beside = LoraFactors(apart[0].A * np.float32(1 + 1e-6), apart[0].B, 1.0)
    for parts, atol in ((apart, 1e-6), ([*apart, beside], 1e-14), ([apart[0], apart[0]], 1e-14)):
        pool = pool_units(parts, [1.0] * len(parts), "none")
        units = scaled_units(pool, "none")
        for gram, exact in (
            (units.gram_a, pool.A @ pool.A.T.astype(np.float64)),
            (units.gram_b, pool.B.T @ pool.B.astype(np.float64)),
        ):
            assert np.allclose(gram, exact, rtol=atol, atol=atol * exact.max())


@pytest.mark.parametrize("exponent", [-80, -30, 30, 80])
def test_units_of_any_size_are_clustered_alike(exponent: int, rng: np.random.Generator) -> None:
    parts = [random_factors(rng, SHAPE, 4, dtype=np.float32) for _ in range(3)]
    size = np.float32(2.0**exponent)
    sized = [LoraFactors(part.A * size, part.B * size, part.scaling) for part in parts]
    plain, scaled = lego(parts, rank=4), lego(sized, rank=4)
    assert np.allclose(scaled.A / size, plain.A, rtol=1e-5, atol=1e-5)
    assert np.allclose(scaled.B / size, plain.B, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("canonicalize", ["none", "balance"])
@pytest.mark.parametrize("rank", [1, 5, 12])
@either_clustering
def test_the_order_of_adapters_and_of_units_changes_no_bit(
    clustering: str, canonicalize: str, rank: int, rng: np.random.Generator
) -> None:
    parts, weights = three(rng), [1.0, 0.5, 2.0]
    choices: dict[str, Any] = {"rank": rank, "clustering": clustering, "canonicalize": canonicalize}
    merged = lego(parts, weights, **choices)
    turned = [reordered(parts[i], rng.permutation(4)) for i in (2, 0, 1)]
    assert same_bytes(merged, lego(turned, [2.0, 1.0, 0.5], **choices))


@either_clustering
def test_units_that_share_a_and_begin_alike_in_b_are_still_put_in_one_order(
    clustering: str, rng: np.random.Generator
) -> None:
    A = rng.standard_normal((4, 10))
    parts = []
    for _ in range(3):
        B = rng.standard_normal((60, 4))
        B[:40] = 0.0  # as sparse training leaves it
        parts.append(LoraFactors(A, B))
    one, two = (lego(held, rank=5, canonicalize="none", clustering=clustering) for held in (parts, parts[::-1]))
    assert same_bytes(one, two)


def test_units_in_the_order_given_are_the_ones_that_the_faithful_preset_clusters(rng: np.random.Generator) -> None:
    assert LEGO.parse_options({"preset": "faithful"})["order"] == "given"
    parts = [random_factors(rng, SHAPE, 8) for _ in range(3)]
    one, two = (lego(held, rank=6, preset="faithful", starts=1).delta() for held in (parts, parts[::-1]))
    assert relative_error(one, two) > 0.01  # the seeding decides


def test_another_seed_may_give_another_clustering_and_the_same_seed_does_not(rng: np.random.Generator) -> None:
    parts = [random_factors(rng, SHAPE, 8) for _ in range(3)]
    results = [lego(parts, rank=6, starts=1, seed=seed).delta() for seed in (0, 0, 1, 2, 3)]
    assert np.array_equal(results[0], results[1])
    assert any(relative_error(other, results[0]) > 1e-6 for other in results[2:])


def test_with_ward_neither_seed_nor_starts_nor_the_order_of_the_units_says_what_is_clustered(
    rng: np.random.Generator,
) -> None:
    parts = [random_factors(rng, SHAPE, 8) for _ in range(3)]
    merged = lego(parts, rank=6, preset="faithful", clustering="ward")
    assert same_bytes(merged, lego(parts, rank=6, preset="faithful", clustering="ward", seed=1, starts=1))
    turned = lego(parts[::-1], rank=6, preset="faithful", clustering="ward")
    assert relative_error(merged.delta(), turned.delta()) < 1e-12


# --- reweighting ------------------------------------------------------------------------------------------------------


@either_clustering
def test_a_centroid_takes_over_the_mean_infinity_norm_of_its_cluster(clustering: str, rng: np.random.Generator) -> None:
    centres = 100 * np.linalg.qr(rng.standard_normal((48, 48)))[0][:3]
    points = np.concatenate([centre + rng.standard_normal((4, 48)) for centre in centres])  # three clear clusters
    order = rng.permutation(12)
    parts = [LoraFactors(points[j][:, :22], points[j][:, 22:].T) for j in (order[:5], order[5:])]
    choices: dict[str, Any] = {"rank": 3, "clustering": clustering, "canonicalize": "none", "output_reweight": "none"}
    for name, norm in [("inf", np.inf), ("l2", 2)]:
        merged = lego(parts, parameter_reweight=name, **choices)
        got = sorted(float(np.linalg.norm(np.concatenate([merged.A[c], merged.B[:, c]]), norm)) for c in range(3))
        wanted = sorted(float(np.linalg.norm(points[4 * c : 4 * c + 4], norm, axis=1).mean()) for c in range(3))
        assert got == pytest.approx(wanted, rel=1e-12)
    merged = lego(parts, parameter_reweight="none", **choices)
    means = [points[4 * c : 4 * c + 4].mean(axis=0) for c in range(3)]
    assert relative_error(merged.delta(), sum(np.outer(mean[22:], mean[:22]) for mean in means)) < 1e-12


@either_clustering
def test_one_cluster_is_the_mean_of_all_units(clustering: str, rng: np.random.Generator) -> None:
    parts = three(rng)
    choices = {"clustering": clustering, "canonicalize": "none"}
    merged = lego(parts, rank=1, parameter_reweight="none", output_reweight="none", **choices)
    a = np.mean([math.sqrt(p.scaling) * row for p in parts for row in p.A], axis=0)
    b = np.mean([math.sqrt(p.scaling) * column for p in parts for column in p.B.T], axis=0)
    assert merged.rank == 1
    assert relative_error(merged.delta(), np.outer(b, a)) < 1e-12


def test_units_that_cancel_to_a_zero_centroid_give_zero_and_no_nan() -> None:
    part = LoraFactors(np.array([[1.0, 2.0], [-1.0, -2.0]]), np.array([[3.0, -3.0]]))
    merged = lego([part], rank=1, canonicalize="none")
    assert np.array_equal(merged.delta(), [[0.0, 0.0]])


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canonicalize", ["none", "balance", "svd"])
def test_an_adapter_of_weight_zero_is_not_clustered(canonicalize: str, rng: np.random.Generator) -> None:
    parts = three(rng)
    with_it = lego(parts, [1.0, 0.0, 2.0], rank=5, canonicalize=canonicalize)
    assert same_bytes(with_it, lego([parts[0], parts[2]], [1.0, 2.0], rank=5, canonicalize=canonicalize))


@pytest.mark.parametrize("canonicalize", ["none", "balance", "svd"])
def test_scaling_and_weight_may_be_exchanged(canonicalize: str, rng: np.random.Generator) -> None:
    parts = three(rng)
    weighted = lego(parts, [0.5, 2.0, -1.0], rank=5, canonicalize=canonicalize)
    scaled = [LoraFactors(p.A, p.B, w * p.scaling) for p, w in zip(parts, [0.5, 2.0, -1.0], strict=True)]
    assert relative_error(weighted.delta(), lego(scaled, rank=5, canonicalize=canonicalize).delta()) < 1e-10


def test_weights_of_both_signs_are_warned_of_and_others_are_not() -> None:
    assert LEGO.cautions is not None
    assert len(LEGO.cautions([1.0, -0.5], {})) == 1
    assert "both signs" in LEGO.cautions([1.0, -0.5], {})[0]
    assert list(LEGO.cautions([1.0, 0.5], {})) == list(LEGO.cautions([-1.0, -2.0], {})) == []
    assert list(LEGO.cautions([0.0, 2.0], {})) == []


# --- clustering -------------------------------------------------------------------------------------------------------


def test_labels_of_every_start_are_those_of_scikit_learn_from_the_same_seeds() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    moved = 0
    for trial in range(30):
        rng = np.random.default_rng(trial)
        count, clusters = int(rng.integers(8, 40)), int(rng.integers(2, 8))
        points = rng.standard_normal((count, 6)) + 2 * rng.standard_normal((4, 6))[rng.integers(0, 4, count)]
        gram = points @ points.T
        seeds = np.stack([rng.choice(count, clusters, replace=False) for _ in range(4)])
        labels, inertias = _lloyd(gram, _distances(gram)[:, seeds])
        for start in range(4):
            theirs = cluster.KMeans(clusters, init=points[seeds[start]], n_init=1, max_iter=300, tol=0).fit(points)
            assert np.array_equal(labels[:, start], theirs.labels_)
            assert inertias[start] == pytest.approx(theirs.inertia_)
            moved += theirs.n_iter_ > 3
    assert moved > 40  # points did change cluster, so that more than the seeding was compared


def test_copies_come_to_rest_though_rounding_prefers_one_of_two_equal_centroids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds: list[int] = []
    step = clustering._distances_to_centroids
    monkeypatch.setattr(clustering, "_distances_to_centroids", lambda *given: rounds.append(1) or step(*given))
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        points = 10.0 ** rng.integers(-3, 4) * rng.standard_normal((9, 7))[rng.integers(0, 9, 30)]
        gram, rounds[:] = points @ points.T, []
        labels, inertias = _lloyd(gram, _distances(gram)[:, rng.permutation(30)[None, :15]])
        assert len(rounds) < 10
        assert inertias[0] == pytest.approx(inertia(points, labels[:, 0].tolist()), abs=1e-10 * gram.max())


def test_one_start_is_seeded_as_well_as_that_of_scikit_learn() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(0)
    points = np.repeat(10 * rng.standard_normal((12, 5)), 6, axis=0) + rng.standard_normal((72, 5))
    ours = [inertia(points, kmeans(points @ points.T, 12, starts=1, rng=rng).tolist()) for _ in range(40)]
    theirs = [cluster.KMeans(12, n_init=1, random_state=seed).fit(points).inertia_ for seed in range(40)]
    assert np.mean(ours) < 1.25 * np.mean(theirs)


def test_with_many_starts_the_best_clustering_is_found() -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        points = rng.standard_normal((7, 3))
        for clusters in range(1, 8):
            labels = kmeans(points @ points.T, clusters, starts=40, rng=rng)
            best = min(inertia(points, partition) for partition in partitions(7, clusters))
            assert inertia(points, labels.tolist()) == pytest.approx(best, abs=1e-12)


def test_ward_joins_the_clusters_whose_union_adds_least_to_the_inertia() -> None:
    # joining 0 (four points) and 3 would add 4·1/5·3² = 7.2; joining 3 and 6.5, which are farther apart, 3.5²/2 = 6.125
    line = np.array([[3.0], [0.0], [0.0], [6.5], [0.0], [0.0]])
    assert ward(line @ line.T, 3).tolist() == [0, 1, 1, 2, 1, 1]
    assert ward(line @ line.T, 2).tolist() == [0, 1, 1, 0, 1, 1]


def test_ward_joins_the_earliest_of_equal_pairs() -> None:
    line = np.arange(4.0)[:, None]
    assert ward(line @ line.T, 3).tolist() == [0, 0, 1, 2]
    assert ward(line @ line.T, 2).tolist() == [0, 0, 1, 1]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40), kinds=st.integers(1, 40))
def test_ward_gives_the_clusters_of_scipy_and_scikit_learn_also_with_copies(seed: int, count: int, kinds: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(seed)
    points = (rng.standard_normal((kinds, 50)) * rng.uniform(0.1, 10, kinds)[:, None])[rng.integers(0, kinds, count)]
    for clusters in range(1, len(np.unique(points, axis=0)) + 1):  # with more, which copies stay apart is arbitrary
        labels = ward(points @ points.T, clusters).tolist()
        assert labels == scipy_ward(points, clusters)
        if count > 1:
            theirs = cluster.AgglomerativeClustering(clusters, linkage="ward").fit(points)
            assert labels == in_order(theirs.labels_)


def by_kmeans(gram: Float64, clusters: int) -> Labels:
    return kmeans(gram, clusters, starts=2, rng=np.random.default_rng(0))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 15),
    kinds=st.integers(1, 15),
    cluster=st.sampled_from([by_kmeans, ward]),
    data=st.data(),
)
def test_no_cluster_is_empty_even_among_equal_points(
    seed: int, count: int, kinds: int, cluster: Callable[[Float64, int], Labels], data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((kinds, 3))[rng.integers(0, kinds, count)]
    clusters = data.draw(st.integers(1, count))
    sizes = np.bincount(cluster(points @ points.T, clusters), minlength=clusters)
    assert len(sizes) == clusters
    assert sizes.sum() == count
    assert sizes.min() >= 1
