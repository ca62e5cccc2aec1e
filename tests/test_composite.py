"""A merge that has been decided: which modules, ranks, dtype and targets it has, and where its numbers come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hub_merge.adapter import Adapter, LoraFactors, Origin
from hub_merge.compat import check
from hub_merge.composite import Composite, compose
from hub_merge.errors import MergeError
from hub_merge.formats.tensors import dtype_named
from hub_merge.methods import get_method
from hub_merge.weights import Weight
from tests.helpers import adapter_of, dense_sum, random_factors, relative_error

Q, V, OUT = "layers.0.q_proj", "layers.0.v_proj", "layers.0.o_proj"
SHAPE = (6, 5)


def two(rng: np.random.Generator, **fields: Any) -> list[Adapter]:
    """Return two adapters that share Q; only the first has V, only the second has OUT."""
    part = lambda rank: random_factors(rng, SHAPE, rank, scaling=0.5, dtype=np.float32)
    return [
        adapter_of(
            "a", {Q: part(2), V: part(3)}, base_model="acme/base", target_modules=("q_proj", "v_proj"), **fields
        ),
        adapter_of("b", {Q: part(4), OUT: part(1)}, base_model="acme/base", target_modules=("q_proj", "o_proj")),
    ]


def composed(adapters: list[Adapter], weights: list[Weight], method: str = "sum", **choices: Any) -> Composite:
    chosen = get_method(method)
    settings: dict[str, Any] = {"rank": None, "seed": 0, "dtype": None, **choices}
    return compose(
        adapters, weights, chosen, options=chosen.parse_options({}), compatibility=check(adapters), **settings
    )


def test_its_modules_are_the_union_in_order_with_the_sum_of_ranks(rng: np.random.Generator) -> None:
    composite = composed(two(rng), [1.0, 1.0])
    assert [(name, spec.rank, spec.shape, spec.scaling) for name, spec in composite.modules.items()] == [
        (OUT, 1, SHAPE, 1.0),
        (Q, 6, SHAPE, 1.0),
        (V, 3, SHAPE, 1.0),
    ]
    assert composite.rank == 6 and composite.base_model == "acme/base"
    assert composite.target_modules == ("o_proj", "q_proj", "v_proj")


@pytest.mark.parametrize(
    ("method", "rank", "ranks"), [("svd", None, [1, 4, 3]), ("svd", 2, [1, 2, 2]), ("sum", 2, [1, 2, 2])]
)
def test_a_rank_is_kept_per_module_and_never_exceeds_what_goes_in(
    method: str, rank: int | None, ranks: list[int], rng: np.random.Generator
) -> None:
    composite = composed(two(rng), [1.0, 1.0], method, rank=rank)
    assert [spec.rank for spec in composite.modules.values()] == ranks
    assert [composite.factors(module).rank for module in composite.modules] == ranks


def test_weight_zero_drops_an_adapter_and_the_targets_become_full_names(rng: np.random.Generator) -> None:
    adapters = two(rng)
    composite = composed(adapters, [1.0, 0.0])
    assert list(composite.modules) == [Q, V] == list(composite.target_modules)
    for module in (Q, V):
        assert relative_error(composite.factors(module).delta(), adapters[0].factors(module).delta()) < 1e-7


def test_weights_by_module_count_where_their_filter_is_found(rng: np.random.Generator) -> None:
    adapters = two(rng)
    composite = composed(adapters, [{"q_proj": -2.0, "*": 0.0}, {"o_proj": 0.5}])
    assert list(composite.modules) == [OUT, Q]
    parts = [adapter.factors(Q) for adapter in adapters]
    assert relative_error(composite.factors(Q).delta(), dense_sum(parts, [-2.0, 1.0])) < 1e-6
    assert relative_error(composite.factors(OUT).delta(), dense_sum([adapters[1].factors(OUT)], [0.5])) < 1e-6


@pytest.mark.parametrize("nothing", [0.0, -0.0, {"*": 0.0}, {"q_proj": 0, "v_proj": 0, "o_proj": 0}])
def test_all_weights_zero_leave_nothing_to_merge(nothing: Weight, rng: np.random.Generator) -> None:
    with pytest.raises(MergeError, match="Every weight is zero") as refused:
        composed(two(rng), [nothing, nothing])
    assert refused.value.remedy


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, -1 / 3], [0.0, 2.0]])
@pytest.mark.parametrize(("method", "rank"), [("sum", None), ("mean", None), ("sum", 2), ("svd", 2)])
def test_what_is_written_is_the_factors_rounded_to_the_dtype(
    method: str, rank: int | None, weights: list[Weight], dtype: str, rng: np.random.Generator
) -> None:
    composite = composed(two(rng), weights, method, rank=rank)
    for module in composite.modules:
        factors, written = composite.factors(module), composite.rounded(module, dtype_named(dtype))
        assert written.scaling == 1.0
        for got, exact in ((written.A, factors.A), (written.B, factors.B)):
            assert got.dtype == dtype
            assert np.array_equal(got, exact.astype(dtype_named(dtype)))


@pytest.mark.parametrize(("method", "rank"), [("sum", None), ("svd", 2), ("lego", 2)])
def test_what_is_written_is_read_once(method: str, rank: int | None, rng: np.random.Generator) -> None:
    seen: list[str] = []

    def watched(adapter: Adapter) -> Adapter:
        return replace(adapter, load=lambda module: (seen.append(module), adapter.load(module))[1])

    composite = composed([watched(adapter) for adapter in two(rng)], [1.0, 1.0], method, rank=rank)
    seen.clear()
    composite.rounded(Q, np.dtype(np.float32))
    assert seen == [Q, Q]  # of each parent


def test_parents_of_weight_zero_are_not_even_read(rng: np.random.Generator) -> None:
    def explode(module: str) -> LoraFactors:
        raise AssertionError(module)

    first, second = two(rng)
    unread = Adapter(name="b", modules=second.modules, load=explode, base_model="acme/base", has_values=False)
    composite = composed([first, unread], [1.0, 0.0])
    assert composite.factors(Q).rank == 2


@pytest.mark.parametrize(
    ("dtypes", "asked", "written"),
    [
        (["float32", "float32"], None, "float32"),
        (["bfloat16", "bfloat16"], None, "bfloat16"),
        (["float16", "float16"], None, "float16"),
        (["bfloat16", "float16"], None, "float32"),
        (["bfloat16", "float32"], None, "float32"),
        (["float64", "float64"], None, "float32"),
        (["float32", "float32"], "bfloat16", "bfloat16"),
    ],
)
def test_the_dtype_is_the_one_asked_for_or_the_widest(
    dtypes: list[str], asked: str | None, written: str, rng: np.random.Generator
) -> None:
    import ml_dtypes

    numpy_types = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}
    adapters = [
        adapter_of(name, {Q: random_factors(rng, SHAPE, 2, dtype=numpy_types[dtype])}, base_model="acme/base")
        for name, dtype in zip("ab", dtypes, strict=True)
    ]
    assert composed(adapters, [1.0, 1.0], dtype=asked).dtype == written


def test_random_choices_depend_on_seed_and_module_but_not_on_the_order_of_asking(rng: np.random.Generator) -> None:
    adapters = [
        adapter_of(name, {f"{i}.q": random_factors(rng, (12, 10), 6) for i in range(3)}, base_model="acme/base")
        for name in "abc"
    ]
    ask = lambda seed: composed(adapters, [1.0] * 3, "lego", rank=4, seed=seed)
    forward = {module: ask(1).factors(module).B for module in ("0.q", "1.q", "2.q")}
    composite = ask(1)
    for module in ("2.q", "0.q", "1.q", "0.q"):
        assert np.array_equal(composite.factors(module).B, forward[module])


def test_it_is_private_or_gated_as_soon_as_one_parent_is(rng: np.random.Generator) -> None:
    assert composed(two(rng), [1.0, 1.0]).origin == Origin()
    guarded = composed(two(rng, origin=Origin(gated=True, private=True)), [1.0, 1.0])
    assert guarded.origin.gated and guarded.origin.private and guarded.origin.folder is None


@pytest.mark.parametrize(
    ("method", "rank", "linear"),
    [("sum", None, True), ("mean", None, True), ("sum", 2, False), ("svd", None, False), ("lego", None, False)],
)
def test_only_a_sum_without_a_rank_is_linear(
    method: str, rank: int | None, linear: bool, rng: np.random.Generator
) -> None:
    assert composed(two(rng), [1.0, 1.0], method, rank=rank).is_linear is linear


def test_coefficients_of_a_mean_count_the_adapters_that_have_the_module(rng: np.random.Generator) -> None:
    composite = composed(two(rng), [1.0, -3.0], "mean")
    for module, wanted in {Q: [0.5, -1.5], V: [1.0, -3.0]}.items():
        parts, weights = composite.parts(module)
        assert list(composite.coefficients(weights, parts)) == wanted


def test_a_method_that_is_no_linear_combination_is_measured_against_the_weighted_sum(rng: np.random.Generator) -> None:
    composite = composed(two(rng), [0.5, -3.0], "lego")
    parts, weights = composite.parts(Q)
    assert list(composite.coefficients(weights, parts)) == [0.5, -3.0]


def test_more_adapters_than_a_method_takes_are_refused_before_anything_is_computed(rng: np.random.Generator) -> None:
    adapters = [*two(rng), adapter_of("c", {Q: random_factors(rng, SHAPE, 1)}, base_model="acme/base")]
    with pytest.raises(MergeError, match="slerp takes at most 2 adapters; there are 3"):
        composed(adapters, [1.0, 1.0, 1.0], "slerp")
