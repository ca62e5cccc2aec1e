"""What every merge method promises; a new method is tested here without an edit."""

from __future__ import annotations

import inspect
import itertools
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub_merge.adapter import LoraFactors
from hub_merge.errors import MergeError, UnknownMethod
from hub_merge.methods import Bounds, Method, get_method, list_methods, merge_method, registry
from hub_merge.methods.registry import RESERVED
from hub_merge.pipeline import merge
from tests.helpers import dense_sum, random_factors, read_only, relative_error

SHAPE = (24, 20)
METHODS = list_methods()
NAMES = [method.name for method in METHODS]


def settings_of(method: Method) -> Iterator[dict[str, Any]]:
    """Yield the defaults, every preset and every choice of every option."""
    yield {}
    yield from ({"preset": preset} for preset in method.presets)
    for option in method.options:
        yield from ({option.name: choice} for choice in option.choices)


def broken(method: Method, promise: registry.Promise | None) -> list[pytest.MarkDecorator]:
    """Expect a test to fail where the method declares that it breaks the promise: a declaration must be true."""
    told = f"{method.name} declares that it breaks {promise}"
    return [pytest.mark.xfail(raises=AssertionError, strict=True, reason=told)] if promise in method.breaks else []


def variations(promise: registry.Promise | None = None) -> list[Any]:
    return [
        pytest.param(method, choice, id="-".join([method.name, *choice.values()]), marks=broken(method, promise))
        for method in METHODS
        for choice in settings_of(method)
    ]


VARIATIONS = variations()


def run(
    method: Method,
    parts: Sequence[LoraFactors],
    weights: Sequence[float],
    *,
    rank: int | None = None,
    seed: int = 0,
    **given: Any,
) -> LoraFactors:
    return method.kernel(parts, weights, rank=rank, rng=np.random.default_rng(seed), **method.parse_options(given))


def some(
    rng: np.random.Generator, dtype: Any = np.float64, most: int | None = None
) -> tuple[list[LoraFactors], list[float]]:
    """Return three adapters of different ranks and their weights; with ``most`` only the first so many."""
    ranks_and_scalings = [(3, 2.0), (5, 0.5), (2, -1.5)]
    parts = [random_factors(rng, SHAPE, rank, scaling=scaling, dtype=dtype) for rank, scaling in ranks_and_scalings]
    return parts[:most], [1.0, 0.7, 0.4][:most]


def same_bytes(one: LoraFactors, two: LoraFactors) -> bool:
    return (one.A.tobytes(), one.B.tobytes(), one.scaling) == (two.A.tobytes(), two.B.tobytes(), two.scaling)


# --- promises ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "given"), variations("identity"))
@pytest.mark.parametrize("scaling", [1.0, 16.0, -0.3])
def test_one_adapter_at_weight_one_comes_back(
    method: Method, given: Mapping[str, Any], scaling: float, rng: np.random.Generator
) -> None:
    part = random_factors(rng, SHAPE, 4, scaling=scaling)
    merged = run(method, [part], [1.0], **given)
    assert merged.scaling == 1.0
    assert merged.rank <= 4
    assert relative_error(merged.delta(), dense_sum([part])) < 1e-12


@pytest.mark.parametrize(("method", "given"), VARIATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
def test_inputs_are_not_written_to_and_not_handed_back(
    method: Method, given: Mapping[str, Any], dtype: Any, rng: np.random.Generator
) -> None:
    parts, weights = some(rng, dtype, method.most_adapters)
    frozen = [read_only(part) for part in parts]
    for held in (frozen, frozen[:1]):
        merged = run(method, held, weights[: len(held)], **given)
        run(method, held, weights[: len(held)], rank=2, **given)
        for part, original in zip(frozen, parts, strict=True):
            assert same_bytes(part, original)
            assert not np.shares_memory(merged.A, part.A)
            assert not np.shares_memory(merged.B, part.B)


@pytest.mark.parametrize(("method", "given"), VARIATIONS)
@pytest.mark.parametrize("rank", [None, 2])
def test_the_same_seed_gives_the_same_bytes(
    method: Method, given: Mapping[str, Any], rank: int | None, rng: np.random.Generator
) -> None:
    parts, weights = some(rng, most=method.most_adapters)
    state = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    one, two = (run(method, parts, weights, rank=rank, seed=3, **given) for _ in range(2))
    assert same_bytes(one, two)
    assert np.array_equal(np.random.get_state()[1], state)  # type: ignore[index]  # the global generator was left alone


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
@pytest.mark.parametrize("rank", [None, 1, 3])
@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2), (2, 1, 0)])
def test_the_order_of_adapters_does_not_matter(
    method: Method, rank: int | None, order: tuple[int, ...], rng: np.random.Generator
) -> None:
    parts, weights = some(rng, most=method.most_adapters)
    order = tuple(i for i in order if i < len(parts))
    turned = run(method, [parts[i] for i in order], [weights[i] for i in order], rank=rank)
    assert relative_error(turned.delta(), run(method, parts, weights, rank=rank).delta()) < 1e-12


@pytest.mark.parametrize(("method", "given"), VARIATIONS)
@pytest.mark.parametrize("rank", [None, 2])
def test_an_adapter_without_the_module_changes_nothing(
    method: Method, given: Mapping[str, Any], rank: int | None, rng: np.random.Generator
) -> None:
    parts, weights = some(rng, most=method.most_adapters)
    alone = run(method, parts, weights, rank=rank, **given)
    absent = LoraFactors.empty(SHAPE)
    beside = run(method, [absent, *parts, absent], [5.0, *weights, -1.0], rank=rank, **given)
    assert same_bytes(alone, beside)


@pytest.mark.parametrize(("method", "given"), VARIATIONS)
def test_a_module_that_nobody_adapts_stays_as_it_is(method: Method, given: Mapping[str, Any]) -> None:
    merged = run(method, [LoraFactors.empty(SHAPE)] * 2, [1.0, 1.0], **given)
    assert (merged.shape, merged.rank) == (SHAPE, 0)


@pytest.mark.parametrize(("method", "given"), variations("identity"))
@pytest.mark.parametrize("weight", [1.0, 0.25, -2.0])
def test_a_module_of_one_adapter_only_is_its_delta_times_its_weight(
    method: Method, given: Mapping[str, Any], weight: float, rng: np.random.Generator
) -> None:
    part = random_factors(rng, SHAPE, 3, scaling=2.0)
    merged = run(method, [LoraFactors.empty(SHAPE), part], [1.0, weight], **given)
    assert relative_error(merged.delta(), weight * dense_sum([part])) < 1e-12


@pytest.mark.parametrize(("method", "given"), VARIATIONS)
@pytest.mark.parametrize("rank", [None, 2])
def test_untrained_and_deficient_factors_give_no_nan(
    method: Method, given: Mapping[str, Any], rank: int | None, rng: np.random.Generator
) -> None:
    part = random_factors(rng, SHAPE, 3)
    untrained = LoraFactors(part.A, np.zeros_like(part.B))
    nothing = LoraFactors(np.zeros_like(part.A), np.zeros_like(part.B))
    doubled = LoraFactors(np.concatenate([part.A, part.A]), np.concatenate([part.B, part.B], axis=1))
    with np.errstate(all="raise", under="ignore"):
        for held in ([untrained], [nothing], [untrained, nothing], [untrained, part], [doubled, part, nothing]):
            parts = held[: method.most_adapters]
            merged = run(method, parts, [1.0] * len(parts), rank=rank, **given)
            assert np.isfinite(merged.delta()).all()
            assert merged.shape == SHAPE
        for parts in ([untrained], [nothing], [untrained, nothing]):
            assert not run(method, parts, [1.0] * len(parts), rank=rank, **given).delta().any()


@pytest.mark.parametrize(("method", "given"), variations("identity"))
def test_an_adapter_of_weight_zero_leaves_the_direction_of_the_rest(
    method: Method, given: Mapping[str, Any], rng: np.random.Generator
) -> None:
    parts, _ = some(rng)
    merged = run(method, parts[:2], [1.0, 0.0], **given).delta()
    kept = dense_sum(parts[:1])
    along = (merged * kept).sum() / (kept * kept).sum()
    assert along > 0
    assert relative_error(merged, along * kept) < 1e-12


@pytest.mark.parametrize(("method", "given"), VARIATIONS)
def test_low_precision_inputs_are_computed_in_float32_or_better(
    method: Method, given: Mapping[str, Any], rng: np.random.Generator
) -> None:
    narrow = [ml_dtypes.bfloat16, np.float16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
    for dtype, rank in itertools.product(narrow, [None, 2]):
        parts, weights = some(rng, dtype, method.most_adapters)
        merged = run(method, parts, weights, rank=rank, **given)
        assert merged.B.dtype == np.float32
        assert merged.A.dtype in (np.float32, dtype)  # A that only moves keeps its dtype
        wide = run(method, [part.astype(np.float32) for part in parts], weights, rank=rank, **given)
        assert same_bytes(merged.astype(np.float32), wide)
        precise = run(method, [part.astype(np.float64) for part in parts], weights, rank=rank, **given)
        assert relative_error(merged.delta(), precise.delta()) < 1e-5


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
@pytest.mark.parametrize("rank", [None, 4])
def test_a_module_of_two_hundred_thousand_square_is_never_made_dense(method: Method, rank: int | None) -> None:
    rng, side = np.random.default_rng(1), 200_000
    parts = [
        LoraFactors(rng.standard_normal((4, side), np.float32), rng.standard_normal((side, 4), np.float32))
        for _ in range(2)
    ]
    stacked = 2 * 2 * 4 * side * 8  # bytes of all factors in float64; the dense delta would take 320 GB
    tracemalloc.start()
    try:
        started = time.monotonic()
        merged = run(method, parts, [1.0, 0.5], rank=rank)
        assert time.monotonic() - started < 20
        assert tracemalloc.get_traced_memory()[1] < 8 * stacked
    finally:
        tracemalloc.stop()
    assert merged.shape == (side, side)


@pytest.mark.parametrize(("method", "given"), VARIATIONS)
def test_the_result_has_at_most_the_rank_asked_for(
    method: Method, given: Mapping[str, Any], rng: np.random.Generator
) -> None:
    parts, weights = some(rng, most=method.most_adapters)
    for rank in (1, 2, 9, 10, 50):
        merged = run(method, parts, weights, rank=rank, **given)
        assert 1 <= merged.rank <= min(rank, 10)
        assert merged.rank <= method.output_rank([part.rank for part in parts], rank)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_the_result_without_a_rank_has_the_rank_that_the_method_announces(
    method: Method, rng: np.random.Generator
) -> None:
    parts, weights = some(rng, most=method.most_adapters)
    ranks = [part.rank for part in parts]
    announced = {"total": sum(ranks), "largest": max(ranks)}[method.default_rank]
    assert method.output_rank(ranks, None) == announced
    assert run(method, parts, weights).rank == announced


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.coefficients], ids=[m.name for m in METHODS if m.coefficients]
)
def test_a_linear_method_is_the_combination_that_it_declares(method: Method, rng: np.random.Generator) -> None:
    parts, weights = some(rng)
    parts.insert(1, LoraFactors.empty(SHAPE))
    weights.insert(1, 3.0)
    assert method.coefficients is not None
    coefficients = method.coefficients(weights, [part.rank > 0 for part in parts])
    assert relative_error(run(method, parts, weights).delta(), dense_sum(parts, list(coefficients))) < 1e-12


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 8), alike=st.floats(0, 1))
def test_no_method_is_nearer_to_the_exact_sum_than_svd_at_the_same_rank(seed: int, rank: int, alike: float) -> None:
    rng = np.random.default_rng(seed)
    parts, weights = some(rng)
    parts[1] = LoraFactors(parts[1].A, alike * rng.permutation(parts[1].B.T).T + (1 - alike) * parts[1].B)
    exact = dense_sum(parts, weights)
    best = np.linalg.norm(run(get_method("svd"), parts, weights, rank=rank).delta() - exact)
    for method in METHODS:
        for choice in settings_of(method):
            taken = slice(method.most_adapters)
            distance = np.linalg.norm(run(method, parts[taken], weights[taken], rank=rank, **choice).delta() - exact)
            assert best <= distance + 1e-10 * np.linalg.norm(exact), (method.name, choice)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_a_wrong_value_is_refused_with_the_option_and_what_it_takes(method: Method) -> None:
    for option in method.options:
        wrong: list[Any] = ["nonsense", [1], {"a": 1}]
        if not option.optional:
            wrong.append(None)
        if option.bounds is not None:
            wrong += [option.bounds.low - 1, "nan", "inf", "-inf"]
            wrong += [option.bounds.high + 1] if option.bounds.high < float("inf") else []
        for value in wrong:
            with pytest.raises(MergeError, match=f"Option {option.name} is") as refusal:
                method.parse_options({option.name: value})
            assert option.describe() in str(refusal.value.remedy)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_an_unknown_option_or_preset_is_refused_with_the_known_ones(method: Method) -> None:
    with pytest.raises(MergeError, match=f"Method {method.name} has no option densty") as refusal:
        method.parse_options({"densty": 0.5})
    assert all(option.name in str(refusal.value.remedy) for option in method.options)
    with pytest.raises(MergeError, match="preset") as refusal:
        method.parse_options({"preset": "nonsense"})
    assert all(preset in str(refusal.value.remedy) for preset in method.presets)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_defaults_and_presets_are_valid_values_and_an_option_given_beats_the_preset(method: Method) -> None:
    defaults = method.parse_options({})
    assert list(defaults) == [option.name for option in method.options]
    assert {option.name: option.parse(option.default) for option in method.options} == defaults
    for name, preset in method.presets.items():
        assert method.parse_options({"preset": name}) == {**defaults, **preset}
        for changed in preset:
            other = next(o for o in method.options if o.name == changed)
            given = {"preset": name, changed: str(other.default)}
            assert method.parse_options(given)[changed] == other.default


PROOFS: dict[registry.Promise, Callable[..., None]] = {
    "identity": test_one_adapter_at_weight_one_comes_back,
    "inputs": test_inputs_are_not_written_to_and_not_handed_back,
    "seed": test_the_same_seed_gives_the_same_bytes,
    "order": test_the_order_of_adapters_does_not_matter,
    "absent": test_an_adapter_without_the_module_changes_nothing,
    "untrained": test_untrained_and_deficient_factors_give_no_nan,
    "precision": test_low_precision_inputs_are_computed_in_float32_or_better,
    "memory": test_a_module_of_two_hundred_thousand_square_is_never_made_dense,
    "rank": test_the_result_has_at_most_the_rank_asked_for,
}


def methods_under(test: Any) -> set[str]:
    """Return the names of the methods that a test is parametrised over."""
    (given,) = (mark.args[1] for mark in test.pytestmark if "method" in (mark.args[0], mark.args[0][0]))
    return {(case if isinstance(case, Method) else case.values[0]).name for case in given}


@pytest.mark.parametrize("promise", registry.PROMISES)
def test_each_promise_has_a_test_that_runs_over_every_method(promise: registry.Promise) -> None:
    assert PROOFS.keys() == registry.PROMISES.keys()
    assert methods_under(PROOFS[promise]) == set(NAMES)


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_every_method_says_what_it_does(method: Method) -> None:
    assert method.summary.startswith("Return ")
    assert "Args:" not in method.description
    assert method.description.startswith(method.summary)
    assert "=" in method.formula
    for name in (method.name, *method.aliases):
        assert get_method(name) is method


def test_an_unknown_method_is_refused_with_the_nearest_name_and_all_names() -> None:
    with pytest.raises(UnknownMethod, match="no merge method 'legoo'") as refusal:
        get_method("legoo")
    assert "Did you mean lego?" in str(refusal.value)
    assert all(name in str(refusal.value) for name in NAMES)
    with pytest.raises(UnknownMethod) as refusal:
        get_method("zzz")
    assert "Did you mean" not in str(refusal.value)


def test_methods_are_listed_once_and_by_name() -> None:
    assert NAMES == sorted(set(NAMES))
    assert {"lego", "mean", "sum", "svd"} <= set(NAMES)


# --- registering ------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Method]:
    """A copy of the table that is thrown away after the test."""
    copy = dict(registry._methods)
    monkeypatch.setattr(registry, "_methods", copy)
    return copy


def test_options_are_read_from_the_signature(table: dict[str, Method]) -> None:
    @merge_method("made_up", formula="x = y", aliases=("mu",), default_rank="largest")
    def kernel(
        parts: Sequence[LoraFactors],
        weights: Sequence[float],
        *,
        rank: int | None = None,
        density: Annotated[float, Bounds(0, 1)] = 0.5,
        rounds: Annotated[int, Bounds(1)] = 3,
        sign: Literal["total", "frequency"] = "total",
        exact: bool = False,
        limit: float | None = None,
        rng: np.random.Generator,
    ) -> LoraFactors:
        """Return nothing."""
        return parts[0]

    method = table["made_up"]
    assert table["mu"] is method
    asked = {"density": "0.25", "rounds": "7", "sign": "frequency", "exact": "TRUE", "limit": "none"}
    assert method.parse_options(asked) == {
        "density": 0.25,
        "rounds": 7,
        "sign": "frequency",
        "exact": True,
        "limit": None,
    }
    assert method.parse_options({"rounds": 4.0, "exact": False, "limit": 2}) == {
        "density": 0.5,
        "rounds": 4,
        "sign": "total",
        "exact": False,
        "limit": 2.0,
    }
    assert [option.describe() for option in method.options] == [
        "float from 0 to 1",
        "int from 1",
        "total | frequency",
        "bool",
        "float",
    ]
    for wrong in (
        {"density": 1.01},
        {"density": "nan"},
        {"rounds": 0},
        {"rounds": 2.5},
        {"rounds": "inf"},
        {"exact": "yes"},
    ):
        with pytest.raises(MergeError, match=f"Option {next(iter(wrong))} is"):
            method.parse_options(wrong)
    assert [method.output_rank(ranks, rank) for ranks, rank in [([2, 5], None), ([2, 5], 6), ([2, 5], 9), ([], 4)]] == [
        5,
        6,
        7,
        0,
    ]


def test_two_methods_cannot_share_a_name(table: dict[str, Method]) -> None:
    for name, aliases in [("sum", ()), ("new", ("cat",))]:
        with pytest.raises(ValueError, match="two merge methods are called"):
            merge_method(name, formula="x = y", aliases=aliases)(get_method("mean").kernel)
    assert "new" not in table


def test_a_function_that_is_no_method_is_refused(table: dict[str, Method]) -> None:
    def no_seed(parts: Any, weights: Any, *, rank: int | None = None) -> LoraFactors:
        return LoraFactors.empty((1, 1))

    def no_default(parts: Any, weights: Any, *, rank: int | None = None, density: float, rng: Any) -> LoraFactors:
        return LoraFactors.empty((1, 1))

    def strange(parts: Any, weights: Any, *, rank: int | None = None, x: bytes = b"", rng: Any) -> LoraFactors:
        return LoraFactors.empty((1, 1))

    def taken(parts: Any, weights: Any, *, rank: int | None = None, energy: float = 0.9, rng: Any) -> LoraFactors:
        return LoraFactors.empty((1, 1))

    for kernel, reason in [
        (no_seed, "takes parts"),
        (no_default, "density needs a default"),
        (strange, "x needs"),
        (taken, "option energy has a name that merge itself takes"),
    ]:
        with pytest.raises(ValueError, match=reason):
            merge_method("broken", formula="x = y")(kernel)
    assert "broken" not in table


def test_no_option_can_have_the_name_of_an_argument_of_merge() -> None:
    assert {*inspect.signature(merge).parameters} - {"options"} <= RESERVED
