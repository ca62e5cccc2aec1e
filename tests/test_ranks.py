"""Ranks by the energy they keep: against dense singular values in float64, and against trying every choice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub_merge import compress
from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.composite import Composite
from hub_merge.errors import IncompatibleAdapters, MergeError
from hub_merge.hub import Hub
from hub_merge.methods import get_method, registry
from hub_merge.pipeline import merge, merge_to_folder, verify
from hub_merge.provenance import read_record
from hub_merge.ranks import Profile, Squares, energy_by_rank, ranks_by_module, smallest_rank
from hub_merge.recipe import Recipe, Source
from hub_merge.weights import Weight, weight_for
from tests.helpers import Dense, adapter_of, dense_sum

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SHAPES = {"layers.0.q_proj": (9, 8), "layers.1.q_proj": (9, 8), "layers.0.o_proj": (7, 11), "layers.1.o_proj": (7, 11)}
SLACK = 2e-9
"""The tolerance of a chosen rank, and some rounding."""


def graded(name: str, seed: int, modules: Sequence[str] = tuple(SHAPES), **fields: Any) -> Adapter:
    """Return an adapter whose singular values fall off, in every module at its own pace."""
    rng = np.random.default_rng(seed)
    parts = {}
    for module in modules:
        out_features, in_features = SHAPES[module]
        rank = int(rng.integers(2, 5))
        falls = rng.uniform(0.2, 3) * rng.uniform(0.2, 1) ** np.arange(rank)
        A, B = rng.standard_normal((rank, in_features)), rng.standard_normal((out_features, rank)) * falls
        parts[module] = LoraFactors(A.astype(np.float32), B.astype(np.float32), float(rng.uniform(0.5, 2)))
    return adapter_of(name, parts, base_model="acme/base", target_modules=("q_proj", "o_proj"), **fields)


def three(seed: int) -> list[Adapter]:
    """Return three adapters; the last two lack a module each."""
    modules = list(SHAPES)
    return [graded("a", seed), graded("b", seed + 1, modules[:3]), graded("c", seed + 2, modules[1:])]


def dense_sums(adapters: Sequence[Adapter], weights: Sequence[Weight], *, mean: bool = False) -> dict[str, Dense]:
    """Return the weighted sum of the deltas, or their mean over the adapters that take part, in every module."""
    sums = {}
    for module in SHAPES:
        numbers = [weight_for(weight, module) for weight in weights]
        there = [(a.factors(module), w) for a, w in zip(adapters, numbers, strict=True) if module in a.modules and w]
        if there:
            parts, kept = zip(*there, strict=True)
            sums[module] = dense_sum(parts, kept) / (len(kept) if mean else 1)
    return sums


def squares_of(deltas: Mapping[str, Dense]) -> dict[str, Squares]:
    return {module: np.linalg.svd(delta, compute_uv=False) ** 2 for module, delta in deltas.items()}


def kept(squares: Mapping[str, Squares], ranks: Mapping[str, int]) -> float:
    """Return the share of the energy that the best approximation of these ranks keeps."""
    return sum(float(values[: ranks[m]].sum()) for m, values in squares.items()) / sum(
        float(values.sum()) for values in squares.values()
    )


def ranks_of(composite: Composite) -> dict[str, int]:
    return {module: spec.rank for module, spec in composite.modules.items()}


# --- the choice itself ------------------------------------------------------------------------------------------------

SPECTRA = st.lists(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4).map(lambda v: np.array(sorted(v, reverse=True))),
    min_size=1,
    max_size=3,
).map(lambda modules: {f"m{i}": values for i, values in enumerate(modules)})
SHARES = st.floats(0.01, 1.0)


@settings(max_examples=150)
@given(squares=SPECTRA, energy=SHARES)
def test_one_rank_for_all_keeps_the_energy_and_one_less_does_not(squares: dict[str, Squares], energy: float) -> None:
    ranks = ranks_by_module(squares, "auto", energy, "portable")
    assert len(set(ranks.values())) == 1 and ranks.keys() == squares.keys()
    assert kept(squares, ranks) >= energy - SLACK
    if (rank := ranks["m0"]) > 1:
        assert kept(squares, dict.fromkeys(squares, rank - 1)) < energy


@settings(max_examples=150)
@given(squares=SPECTRA, energy=SHARES)
def test_no_other_choice_keeps_the_energy_with_fewer_pieces(squares: dict[str, Squares], energy: float) -> None:
    ranks = ranks_by_module(squares, "auto", energy, "peft")
    assert kept(squares, ranks) >= energy - SLACK
    every = product(*(range(1, len(values) + 1) for values in squares.values()))
    fewest = min(sum(choice) for choice in every if kept(squares, dict(zip(squares, choice, strict=True))) >= energy)
    assert sum(ranks.values()) <= fewest
    assert all(1 <= ranks[module] <= len(values) for module, values in squares.items())


@settings(max_examples=150)
@given(squares=SPECTRA, rank=st.integers(1, 5))
def test_no_other_choice_of_as_many_pieces_keeps_more(squares: dict[str, Squares], rank: int) -> None:
    ranks = ranks_by_module(squares, rank, 0.99, "peft")
    budget = min(rank * len(squares), sum(map(len, squares.values())))
    assert sum(ranks.values()) == budget
    every = product(*(range(1, len(values) + 1) for values in squares.values()))
    best = max(kept(squares, dict(zip(squares, choice, strict=True))) for choice in every if sum(choice) == budget)
    assert kept(squares, ranks) == pytest.approx(best, rel=1e-10)


def test_ranks_of_a_spectrum_that_can_be_counted() -> None:
    squares = {"a": np.array([8.0, 1.0]), "b": np.array([0.5, 0.25, 0.25]), "none": np.array([])}
    assert energy_by_rank(squares.values()) == pytest.approx((0.85, 0.975, 1.0))
    choose = lambda rank, energy, profile: tuple(ranks_by_module(squares, rank, energy, profile).values())
    assert choose("auto", 0.85, "portable") == (1, 1, 1)
    assert choose("auto", 0.8501, "portable") == (2, 2, 2)
    assert choose("auto", 1.0, "portable") == (3, 3, 3)
    assert choose("auto", 0.85, "peft") == (1, 1, 1)
    assert choose("auto", 0.95, "peft") == (2, 1, 1)
    assert choose("auto", 0.96, "peft") == (2, 2, 1)
    assert choose("auto", 1.0, "peft") == (2, 3, 1)
    assert choose(2, 0.99, "peft") == (2, 3, 1)
    assert choose(1, 0.99, "peft") == (1, 1, 1)
    assert choose(7, 0.99, "portable") == (7, 7, 7)


def test_rounding_of_another_processor_changes_no_rank() -> None:
    """Values that are equal but for rounding, and an energy that lies exactly on a rank."""
    plain = {"a": np.array([4.0, 2.0, 1.0]), "b": np.array([4.0, 2.0, 1.0])}
    for sign, profile in product((-1, 1), ("portable", "peft")):
        shaken = {"a": plain["a"] * (1 + sign * 1e-14), "b": plain["b"] * (1 - sign * 1e-14)}
        for rank, energy in (("auto", 6 / 7), ("auto", 1.0), ("auto", 12 / 14), (2, 0.99)):
            asked: Any = (rank, energy, profile)
            assert ranks_by_module(shaken, *asked) == ranks_by_module(plain, *asked)
    odd = {**plain, "c": np.array([3.0])}
    assert ranks_by_module(odd, "auto", 13 / 17, "peft") == {"a": 2, "b": 1, "c": 1}


def test_a_spectrum_that_is_empty_gives_rank_one() -> None:
    nothing = {"a": np.array([]), "b": np.array([])}
    for profile in ("portable", "peft"):
        assert ranks_by_module(nothing, "auto", 0.99, profile) == {"a": 1, "b": 1}  # type: ignore[arg-type]
    assert smallest_rank(energy_by_rank(nothing.values()), 0.99) is None


# --- merges -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    energy=st.floats(0.3, 0.9999),
    weights=st.lists(st.sampled_from([1.0, -0.5, 2.0, {"q_proj": 0.25, "*": -1.0}]), min_size=3, max_size=3),
    method=st.sampled_from(["sum", "svd", "mean"]),
    profile=st.sampled_from(["portable", "peft"]),
)
def test_a_merge_keeps_the_energy_of_the_dense_combination(
    seed: int, energy: float, weights: list[Weight], method: str, profile: Profile
) -> None:
    adapters = three(seed)
    composite = merge(adapters, method, weights=weights, rank="auto", energy=energy, profile=profile)
    deltas = dense_sums(adapters, weights, mean=method == "mean")
    squares, ranks = squares_of(deltas), ranks_of(composite)
    assert kept(squares, ranks) >= energy - SLACK
    got = {module: composite.factors(module).delta() for module in composite.modules}
    left = sum(float(np.sum((got[m] - delta) ** 2)) for m, delta in deltas.items())
    total = sum(float(values.sum()) for values in squares.values())
    assert 1 - left / total == pytest.approx(kept(squares, ranks), abs=1e-6)
    if profile == "portable" and composite.rank > 1:
        assert kept(squares, dict.fromkeys(squares, composite.rank - 1)) < energy
    if profile == "peft":
        dealt = [module for module, rank in ranks.items() if rank > 1]
        weakest = min((squares[module][ranks[module] - 1], module) for module in dealt) if dealt else None
        if weakest:
            assert kept(squares, {**ranks, weakest[1]: ranks[weakest[1]] - 1}) < energy


@pytest.mark.parametrize("method", ["lego", "ties", "ctm"])
def test_a_method_that_is_no_combination_gets_the_ranks_that_suit_the_weighted_sum(method: str) -> None:
    adapters, weights = three(5), [1.0, 0.5, -2.0]
    squares = squares_of(dense_sums(adapters, weights))
    for profile in ("portable", "peft"):
        asked: Any = {"rank": "auto", "energy": 0.9, "profile": profile}
        told = merge(adapters, method, weights=weights, **asked)
        same = merge(adapters, "sum", weights=weights, **asked)
        assert ranks_of(told) == ranks_of(same) and kept(squares, ranks_of(told)) >= 0.9
        assert all(told.factors(module).rank <= rank for module, rank in ranks_of(told).items())


def test_every_method_is_asked_with_a_whole_number(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def watched(parts: Any, weights: Any, *, rank: Any, rng: Any) -> LoraFactors:
        seen.append(rank)
        return LoraFactors.empty(parts[0].shape)

    monkeypatch.setitem(registry._methods, "svd", replace(get_method("svd"), kernel=watched))
    adapters = three(1)
    for asked in ({"rank": "auto"}, {"rank": "auto", "profile": "peft"}, {"rank": 2, "profile": "peft"}, {"rank": 2}):
        composite = merge(adapters, "svd", **asked)  # type: ignore[arg-type]
        for module in composite.modules:
            composite.factors(module)
            assert type(seen.pop()) is int
            assert composite.ranks[module] >= composite.modules[module].rank  # type: ignore[operator]


def test_a_parent_without_weight_has_no_say_and_is_not_read() -> None:
    def explode(module: str) -> LoraFactors:
        raise AssertionError(module)

    first, second, _ = three(8)
    unread = Adapter(name="b", modules=second.modules, load=explode, base_model="acme/base", has_values=False)
    mixed = merge([first, unread], "mean", weights=[1.0, 0.0], rank="auto", energy=0.9)
    assert ranks_of(mixed) == ranks_of(merge([first], rank="auto", energy=0.9))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"rank": "auto", "energy": 0.0}, "Energy 0 is no share"),
        ({"rank": "auto", "energy": 1.5}, "Energy 1.5 is no share"),
        ({"rank": "auto", "energy": float("nan")}, "Energy nan is no share"),
        ({"rank": 4, "energy": 0.9}, "but the rank is 4"),
        ({"energy": 0.9}, "but the rank is left to the method"),
        ({"rank": 0}, "Rank 0 is no rank"),
        ({"rank": "all"}, "Rank all is no rank"),
        ({"rank": True}, "Rank True is no rank"),
        ({"profile": "vllm"}, "no profile 'vllm'"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_read(asked: dict[str, Any], says: str) -> None:
    unread = Adapter(name="a", modules=graded("a", 0).modules, load=lambda module: 1 / 0)  # type: ignore[arg-type,return-value]
    with pytest.raises(MergeError, match=says) as refused:
        merge([unread], **asked)
    assert refused.value.remedy


# --- files ------------------------------------------------------------------------------------------------------------


def test_each_module_keeps_its_own_rank_without_padding(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    adapters = three(2)
    merge(adapters, profile="peft").save_pretrained(tmp_path / "out")
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    wanted = {m: sum(a.modules[m].rank for a in adapters if m in a.modules) for m in SHAPES}
    assert len(set(wanted.values())) > 1
    assert {m: len(tensors[f"base_model.model.{m}.lora_A.weight"]) for m in SHAPES} == wanted
    assert all(tensors[f"base_model.model.{m}.lora_B.weight"].any(axis=0).all() for m in SHAPES)
    record = read_record(tmp_path / "out")
    assert record.output["rank"] == max(wanted.values()) and record.proof["passed"]
    assert record.output["ranks"] == {
        str(rank): list(wanted.values()).count(rank) for rank in sorted(set(wanted.values()))
    }


def test_a_record_tells_what_was_lost_as_dense_numbers_do(tmp_path: Path) -> None:
    adapters, weights = three(3), [1.0, -0.5, 0.7]
    composite = merge(adapters, "mean", weights=weights, rank=1)
    composite.save_pretrained(tmp_path / "out")
    deltas = dense_sums(adapters, weights, mean=True)
    squares = squares_of(deltas)
    tails = {module: float(values[1:].sum()) for module, values in squares.items()}
    total = sum(float(values.sum()) for values in squares.values())
    proof = read_record(tmp_path / "out").proof
    assert proof["energy_kept"] == pytest.approx(1 - sum(tails.values()) / total, rel=1e-5)
    assert proof["distance_to_sum"] == pytest.approx(np.sqrt(sum(tails.values()) / total), rel=1e-5)
    assert [loss["module"] for loss in proof["losses"]] == sorted(tails, key=lambda module: -tails[module])
    for loss in proof["losses"]:
        module = loss["module"]
        assert loss["rank"] == 1
        assert loss["lost"] == pytest.approx(tails[module] / squares[module].sum(), rel=1e-4)
        assert loss["share"] == pytest.approx(tails[module] / sum(tails.values()), rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_told_as_lost_where_only_rounding_is(dtype: str, tmp_path: Path) -> None:
    for number, asked in enumerate(({}, {"rank": "auto", "energy": 1.0}, {"rank": 99, "profile": "peft"})):
        merge(three(4), dtype=dtype, **asked).save_pretrained(tmp_path / str(number))  # type: ignore[arg-type]
        assert read_record(tmp_path / str(number)).proof["losses"] == []


@pytest.mark.parametrize("profile", ["portable", "peft"])
@pytest.mark.parametrize(("method", "rank"), [("sum", "auto"), ("lego", "auto"), ("mean", 2), ("sum", None)])
def test_a_composite_is_made_again_and_verified_from_its_recipe(
    method: str, rank: Any, profile: Profile, tmp_path: Path
) -> None:
    hub = Hub(token=False, endpoint="http://127.0.0.1:9", offline=True)
    folders = [adapter.save_pretrained(tmp_path / adapter.name) for adapter in three(6)]
    energy = 0.93 if rank == "auto" else None
    sources = tuple(Source(f"./{folder.name}", {"q_proj": 0.5, "*": 1.0}) for folder in folders)
    recipe = Recipe(method, sources, rank=rank, energy=energy, profile=profile)
    record = merge_to_folder(recipe, tmp_path / "out", hub=hub, sources_from=tmp_path)
    assert (record.recipe.rank, record.recipe.energy, record.recipe.profile) == (rank, energy, profile)
    again = Recipe.from_yaml((tmp_path / "out" / "recipe.yaml").read_text())
    merge_to_folder(again, tmp_path / "again", hub=hub, sources_from=tmp_path)
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    result = verify(tmp_path / "out", parents=folders, hub=hub)
    assert result.passed and result.proof is not None
    assert json.loads(json.dumps(result.proof.to_dict())) == record.proof


# --- compression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_compressing_takes_the_smallest_rank_that_keeps_the_energy(energy: float, tmp_path: Path) -> None:
    adapter = graded("a", 11)
    squares = squares_of(dense_sums([adapter], [1.0]))
    small = compress(adapter, energy=energy)
    portable = kept(squares, dict.fromkeys(squares, small.rank))
    assert portable >= energy - SLACK > kept(squares, dict.fromkeys(squares, small.rank - 1))
    by_module = compress(adapter, energy=energy, profile="peft")
    assert sum(ranks_of(by_module).values()) <= sum(ranks_of(small).values())
    by_module.save_pretrained(tmp_path / "out")
    proof = read_record(tmp_path / "out").proof
    assert proof["energy_kept"] == pytest.approx(kept(squares, ranks_of(by_module)), rel=1e-5)
    assert proof["passed"] and proof["energy_kept"] >= energy - 1e-6


def test_compressing_keeps_99_percent_unless_told_otherwise() -> None:
    adapter = graded("a", 12)
    small = compress(adapter)
    assert (small.method.name, small.rank_asked, small.energy, small.profile) == ("svd", "auto", 0.99, "portable")
    assert compress(adapter, 2).rank == 2 and compress(adapter, 2).energy is None
    assert compress(adapter, 1, dtype="bfloat16").dtype == "bfloat16"


def test_an_untrained_adapter_is_compressed_to_rank_one_and_said_to_be_untrained(tmp_path: Path) -> None:
    trained = graded("a", 13)
    parts = {m: LoraFactors(trained.factors(m).A, 0 * trained.factors(m).B) for m in trained.modules}
    small = compress(adapter_of("zero", parts, base_model="acme/base", target_modules=("q_proj", "o_proj")))
    assert set(ranks_of(small).values()) == {1}
    small.save_pretrained(tmp_path / "out")
    record = read_record(tmp_path / "out")
    assert record.proof["passed"] and record.proof["energy_kept"] is None and record.proof["losses"] == []
    assert [found["code"] for found in record.findings] == ["untrained"]


def test_an_adapter_that_holds_more_than_factors_is_not_compressed() -> None:
    from tests.helpers import peft_config, peft_tensors

    tensors = peft_tensors(np.random.default_rng(0), {"h.0.attn.c_attn": 2})
    dora = Adapter.from_state_dict(tensors, peft_config(use_dora=True), name="dora")
    with pytest.raises(IncompatibleAdapters, match="dora"):
        compress(dora)
