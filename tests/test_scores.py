"""Scores of orthogonality, by hand and against dense float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from hub_merge import scores as scores_module
from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.ranks import smallest_rank
from hub_merge.scores import PairScore, Scores, score, started_alike
from hub_merge.spectra import Spectra
from tests.helpers import adapter_of, dense_sum, in_basis, padded, random_basis, random_factors

SHAPES = {"h.0": (12, 10), "h.1": (9, 14), "h.2": (8, 8)}


def three(rng: np.random.Generator) -> list[Adapter]:
    """Return adapters of different ranks, scalings and modules: h.2 is the first one's and the second one's."""
    return [
        adapter_of(
            name,
            {m: random_factors(rng, SHAPES[m], rank, scaling=scaling) for m in modules},
        )
        for name, rank, scaling, modules in [
            ("a", 3, 2.0, ["h.0", "h.1", "h.2"]),
            ("b", 2, 0.5, ["h.0", "h.1", "h.2"]),
            ("c", 4, 1.0, ["h.0", "h.1"]),
        ]
    ]


def dense(adapter: Adapter, module: str) -> np.ndarray[Any, Any]:
    return dense_sum([adapter.factors(module, SHAPES[module])])


def cosine(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    return float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))


def pair_of(scores: Scores, first: str, second: str) -> PairScore:
    return next(pair for pair in scores.pairs if {pair.first, pair.second} == {first, second})


def principal_cosines(X: np.ndarray[Any, Any], Y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the cosines of the principal angles between two column spaces, by QR and SVD."""
    return np.clip(np.linalg.svd(np.linalg.qr(X)[0].T @ np.linalg.qr(Y)[0], compute_uv=False), 0, 1)


# --- by hand ----------------------------------------------------------------------------------------------------------


def unit(shape: tuple[int, int], entries: dict[tuple[int, int], float]) -> LoraFactors:
    """Return rank-one pieces ``value * e_i e_jᵀ``."""
    A, B = np.zeros((len(entries), shape[1])), np.zeros((shape[0], len(entries)))
    for row, ((i, j), value) in enumerate(entries.items()):
        A[row, j], B[i, row] = 1.0, value
    return LoraFactors(A, B)


def test_scores_of_two_small_adapters_are_those_computed_by_hand() -> None:
    # m: [[3, 4]] against [[4, 3]]: cosine 24/25. n: [[1, 0], [0, 0]] against [[0, 0], [0, 2]]: cosine 0.
    first = adapter_of("x", {"m": unit((1, 2), {(0, 0): 3.0, (0, 1): 4.0}), "n": unit((2, 2), {(0, 0): 1.0})})
    second = adapter_of("y", {"m": unit((1, 2), {(0, 0): 4.0, (0, 1): 3.0}), "n": unit((2, 2), {(1, 1): 2.0})})
    scores = score([first, second], [1.0, 0.5])
    (pair,) = scores.pairs
    assert (pair.first, pair.second, pair.shared_modules) == ("x", "y", 2)
    assert scores.norms == pytest.approx((math.sqrt(26), math.sqrt(29)))
    assert pair.modules["m"].cosine == pytest.approx(0.96)
    assert pair.modules["n"].cosine == 0.0
    assert pair.rms_cosine == scores.rms_cosine == pytest.approx(0.96 / math.sqrt(2))
    assert pair.mean_abs_cosine == pytest.approx(0.48)
    assert (pair.max_abs_cosine, pair.max_module) == (pytest.approx(0.96), "m")
    assert pair.global_cosine == pytest.approx(24 / math.sqrt(26 * 29))
    assert pair.sign_conflict == pytest.approx(math.acos(24 / math.sqrt(26 * 29)) / math.pi)
    assert pair.norm_ratio == pytest.approx(math.sqrt(29 / 26))
    assert (pair.modules["m"].chance, pair.modules["n"].chance) == (pytest.approx(1 / math.sqrt(2)), 0.5)
    assert pair.chance == pytest.approx(math.sqrt((0.5 + 0.25) / 2))
    assert pair.times_chance == pytest.approx(0.96 * math.sqrt(2) / math.sqrt(2))
    assert scores.retention == pytest.approx(((26 + 0.5 * 24) / 26, (24 + 0.5 * 29) / 29))
    # n: the output spaces are e0 and e1, the input spaces too, so nothing overlaps
    entry = pair.modules["n"]
    assert (entry.left, entry.right, entry.left_angle, entry.right_angle) == (0.0, 0.0, 90.0, 90.0)
    assert (entry.left_chance, entry.right_chance) == (0.5, 0.5)
    assert entry.a_rows == 0.0
    assert entry.a_rows_chance == pytest.approx(math.sqrt(2 / (2 * math.pi)))
    # m: both input spaces are the whole plane and A is the identity; the output space is the one dimension there is
    entry = pair.modules["m"]
    assert (entry.right, entry.right_angle, entry.a_rows) == (1.0, pytest.approx(0.0, abs=1e-5), 1.0)


def test_an_angle_of_thirty_degrees_between_two_lines_is_found() -> None:
    turned = np.array([[math.cos(math.pi / 6), math.sin(math.pi / 6)]])
    first = adapter_of("x", {"m": LoraFactors(np.array([[5.0, 0.0]]), np.array([[1.0], [0.0]]))})
    second = adapter_of("y", {"m": LoraFactors(-2 * turned, np.array([[0.0], [3.0]]))})
    entry = score([first, second]).pairs[0].modules["m"]
    assert entry.right_angle == pytest.approx(30.0)
    assert entry.right == pytest.approx(0.75)
    assert entry.a_rows == pytest.approx(math.sqrt(0.75))
    assert (entry.left_angle, entry.left, entry.cosine) == (90.0, 0.0, 0.0)


# --- against dense deltas ---------------------------------------------------------------------------------------------


def test_every_number_of_a_pair_agrees_with_the_dense_deltas(rng: np.random.Generator) -> None:
    adapters = three(rng)
    scores = score(adapters)
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        one, two = adapters[i], adapters[j]
        pair = pair_of(scores, one.name, two.name)
        shared = sorted(one.modules.keys() & two.modules.keys())
        assert sorted(pair.modules) == shared
        cosines = np.array([cosine(dense(one, m), dense(two, m)) for m in shared])
        chances = np.array([1 / math.sqrt(math.prod(SHAPES[m])) for m in shared])
        assert [pair.modules[m].cosine for m in shared] == pytest.approx(cosines.tolist(), abs=1e-12)
        assert pair.rms_cosine == pytest.approx(math.sqrt((cosines**2).mean()))
        assert pair.mean_abs_cosine == pytest.approx(np.abs(cosines).mean())
        assert pair.max_abs_cosine == pytest.approx(np.abs(cosines).max())
        assert pair.max_module == shared[int(np.abs(cosines).argmax())]
        assert pair.chance == pytest.approx(math.sqrt((chances**2).mean()))
        assert pair.times_chance == pytest.approx(math.sqrt(((cosines / chances) ** 2).mean()))
        whole = [np.concatenate([dense(adapter, m).ravel() for m in SHAPES]) for adapter in (one, two)]
        assert pair.global_cosine == pytest.approx(cosine(*whole))
        norms = [np.linalg.norm(vector) for vector in whole]
        assert pair.norm_ratio == pytest.approx(max(norms) / min(norms))
    means = [pair.rms_cosine for pair in scores.pairs]
    assert scores.rms_cosine == pytest.approx(np.mean(means))  # type: ignore[arg-type]


def test_angles_and_overlaps_agree_with_dense_qr_and_svd(rng: np.random.Generator) -> None:
    adapters = three(rng)
    pair = pair_of(score(adapters), "a", "c")
    lefts, rights = [], []
    for module, entry in pair.modules.items():
        one, two = adapters[0].factors(module), adapters[2].factors(module)
        left, right = principal_cosines(one.B, two.B), principal_cosines(one.A.T, two.A.T)
        assert entry.left == pytest.approx((left**2).sum() / 3)
        assert entry.right == pytest.approx((right**2).sum() / 3)
        assert entry.left_angle == pytest.approx(math.degrees(math.acos(left.max())))
        assert entry.right_angle == pytest.approx(math.degrees(math.acos(right.max())))
        out_features, in_features = SHAPES[module]
        assert (entry.left_chance, entry.right_chance) == (
            pytest.approx(4 / out_features),
            pytest.approx(4 / in_features),
        )
        lefts.append(entry.left)
        rights.append(entry.right)
    assert (pair.left, pair.right) == (pytest.approx(np.mean(lefts)), pytest.approx(np.mean(rights)))


def test_retention_is_the_share_of_each_delta_that_the_weighted_sum_keeps(rng: np.random.Generator) -> None:
    adapters = three(rng)
    weights = [0.7, -0.3, {"h.0": 2.0, "*": 0.25}]
    by_module = [dict.fromkeys(SHAPES, 0.7), dict.fromkeys(SHAPES, -0.3), {"h.0": 2.0, "h.1": 0.25, "h.2": 0.25}]
    merged = {m: sum(w[m] * dense(a, m) for a, w in zip(adapters, by_module, strict=True)) for m in SHAPES}
    wanted = [
        sum((merged[m] * dense(a, m)).sum() for m in SHAPES) / sum((dense(a, m) ** 2).sum() for m in SHAPES)
        for a in adapters
    ]
    assert score(adapters, weights).retention == pytest.approx(wanted)


# --- what must not matter ---------------------------------------------------------------------------------------------


def test_scores_are_symmetric_and_follow_a_permutation(rng: np.random.Generator) -> None:
    adapters = three(rng)
    given, turned = score(adapters, [1, 2, 3]), score(adapters[::-1], [3, 2, 1])
    assert turned.norms == pytest.approx(given.norms[::-1])
    assert turned.retention == pytest.approx(given.retention[::-1])
    assert turned.rms_cosine == pytest.approx(given.rms_cosine)
    for pair in given.pairs:
        other = pair_of(turned, pair.first, pair.second)
        for name in ("rms_cosine", "global_cosine", "left", "right", "a_rows", "norm_ratio", "chance", "left_chance"):
            assert getattr(other, name) == pytest.approx(getattr(pair, name)), name
    rows = np.array(given.matrix(), dtype=float)
    assert np.array_equal(rows, rows.T)
    assert np.array_equal(np.diag(rows), np.ones(3))
    assert rows[0, 2] == pair_of(given, "a", "c").rms_cosine


@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e6])
def test_cosines_do_not_depend_on_the_scale_and_flip_with_the_sign(factor: float, rng: np.random.Generator) -> None:
    one, two, _ = three(rng)
    scaled = adapter_of(
        "a", {m: LoraFactors(one.load(m).A, one.load(m).B, -factor * one.load(m).scaling) for m in one.modules}
    )
    before, after = score([one, two]).pairs[0], score([scaled, two]).pairs[0]
    assert after.rms_cosine == pytest.approx(before.rms_cosine)
    assert after.global_cosine == pytest.approx(-before.global_cosine)  # type: ignore[operator]
    assert (after.left, after.right) == (pytest.approx(before.left), pytest.approx(before.right))


def test_scores_depend_on_the_deltas_alone_save_for_the_rows_of_a(rng: np.random.Generator) -> None:
    one, two, _ = three(rng)
    rewritten = adapter_of("a", {m: in_basis(one.load(m), random_basis(rng, 3)) for m in one.modules})
    before, after = score([one, two]).pairs[0], score([rewritten, two]).pairs[0]
    for name in ("rms_cosine", "global_cosine", "left", "right", "norm_ratio"):
        assert getattr(after, name) == pytest.approx(getattr(before, name)), name
    assert after.a_rows != pytest.approx(before.a_rows)


def test_an_adapter_beside_itself_has_cosine_one_and_beside_its_negative_minus_one(rng: np.random.Generator) -> None:
    one, *_ = three(rng)
    same = score([one, adapter_of("copy", {m: one.load(m) for m in one.modules})], [1.0, 1.0])
    assert same.pairs[0].rms_cosine == pytest.approx(1.0)
    assert (same.pairs[0].left, same.pairs[0].right) == (pytest.approx(1.0), pytest.approx(1.0))
    assert same.pairs[0].sign_conflict == pytest.approx(0.0, abs=1e-7)
    assert same.retention == pytest.approx((2.0, 2.0))
    negative = adapter_of(
        "n", {m: LoraFactors(one.load(m).A, -one.load(m).B, one.load(m).scaling) for m in one.modules}
    )
    assert score([one, negative]).pairs[0].global_cosine == pytest.approx(-1.0)


# --- zeros, gaps ------------------------------------------------------------------------------------------------------

UNDEFINED = (
    "rms_cosine",
    "chance",
    "times_chance",
    "global_cosine",
    "mean_abs_cosine",
    "max_module",
    "norm_ratio",
    "left",
)


def assert_finite(value: Any) -> None:
    if isinstance(value, dict):
        assert all(assert_finite(item) is None for item in value.values())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        assert all(assert_finite(item) is None for item in value)
    elif isinstance(value, float):
        assert math.isfinite(value)


def test_an_untrained_adapter_has_no_cosine_rather_than_a_nan_or_a_zero(rng: np.random.Generator) -> None:
    one, *_ = three(rng)
    untrained = adapter_of("zero", {m: LoraFactors(one.load(m).A, 0 * one.load(m).B) for m in one.modules})
    scores = score([one, untrained])
    assert all(getattr(scores.pairs[0], name) is None for name in UNDEFINED)
    assert scores.pairs[0].shared_modules == 0
    assert scores.rms_cosine is None
    assert scores.norms[1] == 0.0
    assert scores.retention == (pytest.approx(1.0), None)
    assert_finite(scores.to_dict())


def test_a_module_with_a_zero_delta_does_not_count(rng: np.random.Generator) -> None:
    one, two, _ = three(rng)
    half = adapter_of(
        "b", {**{m: two.load(m) for m in two.modules}, "h.1": LoraFactors(two.load("h.1").A, 0 * two.load("h.1").B)}
    )
    pair = score([one, half]).pairs[0]
    assert pair.shared_modules == 2
    wanted = [cosine(dense(one, m), dense(two, m)) for m in ("h.0", "h.2")]
    assert pair.rms_cosine == pytest.approx(math.sqrt(np.mean(np.square(wanted))))
    assert pair.modules["h.1"].cosine is None


def test_rows_and_columns_of_zeros_change_nothing(rng: np.random.Generator) -> None:
    """A composite is padded to one rank in all modules when it is written."""
    adapters = three(rng)
    written = [adapter_of(one.name, {m: padded(one.load(m), 8) for m in one.modules}) for one in adapters]
    for given, found in zip(score(adapters).pairs, score(written).pairs, strict=True):
        wanted, seen = asdict(given), asdict(found)
        for entry, other in zip(wanted.pop("modules").values(), seen.pop("modules").values(), strict=True):
            assert other == pytest.approx(entry, rel=1e-9)
        assert seen == pytest.approx(wanted)


def test_an_adapter_whose_pieces_cancel_counts_as_zero(rng: np.random.Generator) -> None:
    one, *_ = three(rng)
    for seed in range(20):
        part = random_factors(np.random.default_rng(seed), SHAPES["h.0"], 3)
        nothing = LoraFactors(np.concatenate([part.A, 3 * part.A]), np.concatenate([part.B, -part.B / 3], axis=1))
        scores = score([one, adapter_of("nothing", {"h.0": nothing})])
        assert (scores.norms[1], scores.pairs[0].rms_cosine) == (0.0, None)
        assert_finite(scores.to_dict())


def test_adapters_without_a_common_module_have_no_cosine_and_keep_their_whole_weight(rng: np.random.Generator) -> None:
    one = adapter_of("x", {"h.0": random_factors(rng, SHAPES["h.0"], 2)})
    two = adapter_of("y", {"h.1": random_factors(rng, SHAPES["h.1"], 2)})
    scores = score([one, two], [0.5, -2.0])
    assert scores.rms_cosine is None
    assert scores.pairs[0].modules == {}
    assert scores.pairs[0].global_cosine is None and scores.pairs[0].sign_conflict is None
    assert scores.retention == pytest.approx((0.5, -2.0))


def test_one_adapter_alone_has_a_norm_and_no_pairs(rng: np.random.Generator) -> None:
    one, *_ = three(rng)
    scores = score([one])
    assert (scores.pairs, scores.rms_cosine, scores.matrix()) == ((), None, [[1.0]])
    assert scores.norms[0] == pytest.approx(math.sqrt(sum((dense(one, m) ** 2).sum() for m in SHAPES)))


def test_factors_of_half_precision_are_scored_as_the_numbers_they_are(rng: np.random.Generator) -> None:
    halves = [{"h.0": random_factors(rng, SHAPES["h.0"], 3, dtype=np.float16)} for _ in range(2)]
    doubles = [{m: part.astype(np.float64) for m, part in parts.items()} for parts in halves]
    low, high = (score([adapter_of(n, p) for n, p in zip("ab", x, strict=True)]) for x in (halves, doubles))
    assert low == high


# --- the level of chance ----------------------------------------------------------------------------------------------


def test_random_pairs_reach_the_level_of_chance_that_is_stated() -> None:
    rng, shape, rank, pairs = np.random.default_rng(5), (48, 40), 4, 600
    modules = {f"m{i}": None for i in range(pairs)}
    one, two = (adapter_of(name, {m: random_factors(rng, shape, rank) for m in modules}) for name in "ab")
    pair = score([one, two]).pairs[0]
    # the mean of n squares that scatter by about sqrt(2 + 12/rank) of their mean is known to that / sqrt(n)
    squares = np.array([pair.modules[m].cosine for m in modules]) ** 2
    chance = 1 / math.sqrt(shape[0] * shape[1])
    error = squares.std() / math.sqrt(pairs) / chance**2
    assert error < 0.1
    assert abs(squares.mean() / chance**2 - 1) < 4 * error
    assert pair.chance == pytest.approx(chance)
    assert pair.times_chance == pytest.approx(1.0, abs=0.2)
    assert pair.a_rows == pytest.approx(pair.a_rows_chance, rel=0.05)
    assert pair.left == pytest.approx(pair.left_chance, rel=0.05)
    assert pair.right == pytest.approx(pair.right_chance, rel=0.05)


def test_one_initialisation_shows_in_the_rows_of_a_and_not_in_the_cosine(rng: np.random.Generator) -> None:
    start = rng.standard_normal((4, 200))
    one, two = (
        adapter_of(
            name, {"m": LoraFactors(start + 0.1 * rng.standard_normal(start.shape), rng.standard_normal((100, 4)))}
        )
        for name in "ab"
    )
    pair = score([one, two]).pairs[0]
    assert pair.a_rows is not None
    assert pair.a_rows > 0.95
    assert pair.rms_cosine is not None
    assert pair.rms_cosine < 0.3


def test_plain_data_of_the_scores_can_leave_the_modules_out(rng: np.random.Generator) -> None:
    scores = score(three(rng))
    assert "modules" in scores.to_dict()["pairs"][0]
    short = scores.to_dict(modules=False)
    assert "modules" not in short["pairs"][0]
    assert short["pairs"][0]["rms_cosine"] == scores.pairs[0].rms_cosine


# --- singular values, against dense deltas ----------------------------------------------------------------------------


def spectra_of(adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> Spectra:
    found = score(adapters, weights, spectra=True).spectra
    assert found is not None
    return found


def having(adapter: Adapter) -> list[str]:
    return [module for module in SHAPES if module in adapter.modules]


def singular(delta: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.linalg.svd(delta, compute_uv=False)


def graded(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return the adapters with pieces of quickly falling size, as trained ones have."""
    return [
        adapter_of(
            adapter.name,
            {
                m: LoraFactors(part.A, part.B * 0.4 ** np.arange(part.rank), part.scaling)
                for m, part in ((m, adapter.load(m)) for m in adapter.modules)
            },
        )
        for adapter in adapters
    ]


def test_stable_and_effective_rank_are_those_of_the_dense_deltas(rng: np.random.Generator) -> None:
    adapters = graded(three(rng))
    for adapter, entry in zip(adapters, spectra_of(adapters).adapters, strict=True):
        stable, effective = [], []
        for module in having(adapter):
            squares = singular(dense(adapter, module)) ** 2
            shares = squares[squares > 1e-20 * squares[0]] / squares.sum()
            stable.append(squares.sum() / squares[0])
            effective.append(np.exp(-(shares * np.log(shares)).sum()))
        assert entry.stable_rank == pytest.approx(np.mean(stable), rel=1e-10)
        assert entry.effective_rank == pytest.approx(np.mean(effective), rel=1e-10)


def test_ranks_of_equal_and_of_single_directions_are_their_number() -> None:
    equal = adapter_of("x", {"m": unit((4, 5), {(0, 1): 3.0, (1, 0): -3.0, (2, 4): 3.0})})
    line = adapter_of("y", {"m": unit((4, 5), {(1, 1): 0.2})})
    first, second = spectra_of([equal, line]).adapters
    assert (first.stable_rank, first.effective_rank) == (pytest.approx(3.0), pytest.approx(3.0))
    assert (second.stable_rank, second.effective_rank) == (pytest.approx(1.0), pytest.approx(1.0))


def dense_sar(delta: np.ndarray[Any, Any], merged: np.ndarray[Any, Any]) -> float:
    U, S, _ = np.linalg.svd(merged)
    k = int(np.argmax(np.sqrt(np.cumsum(S**2) / (S**2).sum()) > 0.95)) + 1
    return float(np.linalg.norm(U[:, :k] @ U[:, :k].T @ delta) / np.linalg.norm(delta))


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, -0.3, 2.0], [1.0, 0.0, 0.5]])
def test_subspace_alignment_is_that_of_the_dense_deltas(weights: list[float], rng: np.random.Generator) -> None:
    adapters = graded(three(rng))
    merged = {m: sum(w * dense(a, m) for a, w in zip(adapters, weights, strict=True) if m in a.modules) for m in SHAPES}
    for adapter, entry in zip(adapters, spectra_of(adapters, weights).adapters, strict=True):
        wanted = np.mean([dense_sar(dense(adapter, m), merged[m]) for m in having(adapter)])
        assert entry.sar == pytest.approx(wanted, rel=1e-10)


def test_the_alignment_of_an_adapter_with_itself_is_below_one(rng: np.random.Generator) -> None:
    one = adapter_of("x", {"m": unit((4, 4), {(0, 0): 4.0, (1, 1): 1.0})})  # k = 1 keeps 4 / sqrt(17) = 0.97
    assert spectra_of([one]).adapters[0].sar == pytest.approx(4 / math.sqrt(17))


def dense_sti(deltas: Sequence[np.ndarray[Any, Any]], ranks: Sequence[int]) -> float:
    found = [np.linalg.svd(delta, full_matrices=False) for delta in deltas]
    U = np.concatenate([u[:, :r] for (u, _, _), r in zip(found, ranks, strict=True)], axis=1)
    S = np.concatenate([s[:r] for (_, s, _), r in zip(found, ranks, strict=True)])
    V = np.concatenate([vt[:r] for (_, _, vt), r in zip(found, ranks, strict=True)]).T
    eye = np.eye(len(S))
    return float(np.abs((U.T @ U - eye) @ np.diag(S) @ (V.T @ V - eye)).sum())


def test_singular_task_interference_is_that_of_the_dense_deltas(rng: np.random.Generator) -> None:
    adapters = three(rng)
    by_module = []
    for module in SHAPES:
        present = [adapter for adapter in adapters if module in adapter.modules]
        by_module.append(dense_sti([dense(a, module) for a in present], [a.modules[module].rank for a in present]))
    assert spectra_of(adapters).sti == pytest.approx(np.mean(by_module), rel=1e-10)


def test_interference_is_zero_for_orthogonal_adapters_and_none_for_those_that_share_nothing() -> None:
    one, two = (adapter_of(name, {"m": unit((4, 4), {place: 2.0})}) for name, place in (("x", (0, 0)), ("y", (1, 1))))
    assert spectra_of([one, two]).sti == pytest.approx(0.0, abs=1e-14)
    assert spectra_of([one]).sti is None
    assert spectra_of([one, adapter_of("z", {"n": unit((4, 4), {(0, 0): 1.0})})]).sti is None


def test_the_energy_of_the_weighted_sum_at_every_rank_is_that_of_the_dense_sum(rng: np.random.Generator) -> None:
    adapters, weights = graded(three(rng)), [0.7, -0.3, 2.0]
    squares = np.zeros(14)
    for module in SHAPES:
        there = [(a, w) for a, w in zip(adapters, weights, strict=True) if module in a.modules]
        values = singular(sum(w * dense(a, module) for a, w in there))
        squares[: len(values)] += values**2
    energy = spectra_of(adapters, weights).energy
    assert energy == pytest.approx((np.cumsum(squares) / squares.sum())[: len(energy)], rel=1e-10)
    assert len(energy) == 9
    assert energy[-1] == 1.0
    assert energy[smallest_rank(energy, 0.9) - 1] >= 0.9 > energy[smallest_rank(energy, 0.9) - 2]  # type: ignore[operator]


def test_spectra_do_not_depend_on_how_a_delta_is_factored(rng: np.random.Generator) -> None:
    one, two, _ = three(rng)
    rewritten = adapter_of("a", {m: in_basis(one.load(m), random_basis(rng, 3)) for m in one.modules})
    before, after = spectra_of([one, two]), spectra_of([rewritten, two])
    assert after.sti == pytest.approx(before.sti)
    assert after.energy == pytest.approx(before.energy)
    assert after.adapters[0].sar == pytest.approx(before.adapters[0].sar)


def test_zero_and_cancelling_deltas_have_no_spectrum_rather_than_a_nan(rng: np.random.Generator) -> None:
    one, *_ = three(rng)
    untrained = adapter_of("zero", {m: LoraFactors(one.load(m).A, 0 * one.load(m).B) for m in one.modules})
    found = score([one, untrained], spectra=True)
    assert_finite(found.to_dict())
    assert found.spectra is not None
    assert found.spectra.adapters[1].stable_rank is None
    assert found.spectra.sti is None
    negative = adapter_of(
        "n", {m: LoraFactors(one.load(m).A, -one.load(m).B, one.load(m).scaling) for m in one.modules}
    )
    cancelled = spectra_of([one, negative])
    assert (cancelled.energy, cancelled.adapters[0].sar) == ((), None)
    assert cancelled.to_dict()["energy"] == []
    assert smallest_rank(cancelled.energy, 0.99) is None


def test_what_is_asked_for_beside_the_scores_only_adds_keys(rng: np.random.Generator) -> None:
    adapters = three(rng)
    plain, full = score(adapters), score(adapters, spectra=True, exact_signs=True)
    assert (plain.spectra, plain.pairs[0].exact_sign_conflict) == (None, None)
    content = full.to_dict()
    assert [entry["rank"] for entry in content["spectra"]["energy"]] == [1, 2, 4, 8, 9]
    content["spectra"] = None
    for pair in content["pairs"]:
        pair["exact_sign_conflict"] = None
    assert content == plain.to_dict()


# --- signs, entry by entry --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 1000, 2**25])
def test_exact_sign_conflict_is_the_dense_count_whatever_the_blocks(
    budget: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores_module, "BLOCK_BYTES", budget)
    one, two, three_ = three(rng)
    part = two.load("h.0")
    sparse = part.B.copy()
    sparse[::3] = 0.0  # entries that are zero do not count
    adapters = [one, adapter_of("b", {**{m: two.load(m) for m in SHAPES}, "h.0": LoraFactors(part.A, -sparse)}), three_]
    for pair in score(adapters, exact_signs=True).pairs:
        i, j = (next(a for a in adapters if a.name == name) for name in (pair.first, pair.second))
        products = [dense(i, m) * dense(j, m) for m in having(i) if m in j.modules]
        opposite = sum(int((product < 0).sum()) for product in products)
        assert pair.exact_sign_conflict == opposite / sum(int((product != 0).sum()) for product in products)


def test_the_estimate_of_the_sign_conflict_is_near_the_count() -> None:
    rng = np.random.default_rng(7)
    start = random_factors(rng, (200, 180), 24)
    other = random_factors(rng, (200, 180), 24)
    both = LoraFactors(np.concatenate([start.A, other.A]), np.concatenate([start.B, other.B], axis=1))
    pair = score([adapter_of("x", {"m": start}), adapter_of("y", {"m": both})], exact_signs=True).pairs[0]
    assert pair.exact_sign_conflict == pytest.approx(pair.sign_conflict, abs=0.02)
    assert pair.global_cosine == pytest.approx(math.sqrt(0.5), abs=0.05)


def test_a_delta_of_zero_has_no_exact_sign_conflict(rng: np.random.Generator) -> None:
    one, *_ = three(rng)
    untrained = adapter_of("zero", {m: LoraFactors(one.load(m).A, 0 * one.load(m).B) for m in one.modules})
    assert score([one, untrained], exact_signs=True).pairs[0].exact_sign_conflict is None


@pytest.mark.parametrize(
    ("rows", "chance", "alike"),
    [(0.97, 0.03, True), (0.2, 0.03, False), (0.26, 0.03, True), (0.3, 0.1, False), (None, None, False)],
)
def test_one_start_is_told_only_far_above_chance(rows: float | None, chance: float | None, alike: bool) -> None:
    assert started_alike(rows, chance) is alike
