"""The proof finds what is wrong with a written composite, and names it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.composite import Composite
from hub_merge.pipeline import merge
from hub_merge.proof import Proof, difference, prove
from tests.helpers import adapter_of, random_factors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODULES = ("layers.0.q_proj", "layers.1.q_proj")
KEY = "base_model.model.{}.lora_{}.weight"


def parent(name: str, seed: int, **fields: Any) -> Adapter:
    rng = np.random.default_rng(seed)
    parts = {module: random_factors(rng, (9, 8), 3, scaling=0.7, dtype=np.float32) for module in MODULES}
    settings = {"base_model": "acme/base", "target_modules": ("q_proj",), **fields}
    return adapter_of(name, parts, **settings)


@pytest.fixture(params=["sum", "lego"])
def composite(request: pytest.FixtureRequest) -> Composite:
    return merge([parent("a", 0), parent("b", 1)], request.param, weights=[1, -0.5])


@pytest.fixture
def folder(composite: Composite, tmp_path: Path) -> Path:
    return composite.save_pretrained(tmp_path / "out")


def judged(folder: Path, composite: Composite) -> Proof:
    return prove(folder, Adapter.from_pretrained(folder), composite)


def failed(proof: Proof) -> dict[str, str]:
    assert proof.passed is all(check.passed for check in proof.checks)
    return {check.name: check.detail for check in proof.checks if not check.passed}


def change_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_what_was_written_passes_every_check(folder: Path, composite: Composite) -> None:
    proof = judged(folder, composite)
    assert proof.passed and failed(proof) == {}
    assert [check.name for check in proof.checks] == [
        "parser",
        "modules",
        "shapes",
        "config",
        "targets",
        "delta",
        "retention",
    ]
    assert proof.modules == 2 and proof.max_error is not None and proof.max_error <= proof.tolerance == 1e-6
    assert proof.reference == ("definition" if composite.method.name == "sum" else "recomputed")


# --- tampering --------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found_in_its_module(folder: Path, composite: Composite) -> None:
    """Any bit that changes a number by more than a millionth of the delta; here the sign of the last one."""
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 0x80
    (folder / WEIGHTS).write_bytes(bytes(content))
    proof = judged(folder, composite)
    assert "layers.1.q_proj" in failed(proof)["delta"] and proof.worst_module == "layers.1.q_proj"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_found_wherever_it_stands(
    value: float, module: str, folder: Path, composite: Composite
) -> None:
    def poison(tensors: dict[str, Any]) -> None:
        tensors[KEY.format(module, "B")][2, 1] = value

    change_tensors(folder, poison)
    proof = judged(folder, composite)
    assert module in failed(proof)["delta"] and proof.worst_module == module
    json.dumps(proof.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"lora_alpha": 99}, "lora_alpha is 99"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"alpha_pattern": {"q_proj": 1}}, "alpha_pattern"),
        ({"rank_pattern": {"q_proj": 3}}, "rank_pattern"),
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True, expected False"),
        ({"layers_to_transform": [0]}, "layers_to_transform is [0]"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules is ['q_proj']"),
        ({"base_model_name_or_path": "acme/other"}, "base_model_name_or_path is 'acme/other', expected 'acme/base'"),
        ({"lora_bias": True}, "lora_bias is true"),
        ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow"),
    ],
)
def test_a_config_that_says_something_else_is_found_by_its_field(
    fields: dict[str, Any], told: str, folder: Path, composite: Composite
) -> None:
    change_config(folder, **fields)
    proof = judged(folder, composite)
    assert told in failed(proof)["config"]
    assert proof.max_error is None and proof.worst_module is None
    json.dumps(proof.to_dict(), allow_nan=False)


@pytest.fixture
def by_module(tmp_path: Path) -> tuple[Path, Composite]:
    """A composite with rank 1 in the first module and rank 4 in the second, and where it was written."""
    small, large = parent("a", 0), parent("b", 1)
    parts = {MODULES[0]: (1e-3, 1), MODULES[1]: (1.0, 3)}
    faint = {m: LoraFactors(large.factors(m).A[:n], s * large.factors(m).B[:, :n], 0.7) for m, (s, n) in parts.items()}
    first = {MODULES[0]: faint[MODULES[0]], MODULES[1]: small.factors(MODULES[1])}
    adapters = [
        adapter_of(name, found, base_model="acme/base", target_modules=("q_proj",))
        for name, found in (("a", first), ("b", {MODULES[1]: faint[MODULES[1]]}))
    ]
    asked = merge(adapters, profile="peft")
    return asked.save_pretrained(tmp_path / "by module"), asked


def test_ranks_by_module_pass_with_exactly_the_patterns_that_name_them(by_module: tuple[Path, Composite]) -> None:
    folder, asked = by_module
    config = json.loads((folder / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"]) == (6, 6)
    assert config["rank_pattern"] == config["alpha_pattern"] == {MODULES[0]: 1}
    proof = judged(folder, asked)
    assert proof.passed and "a rank for each module" in {check.name: check.detail for check in proof.checks}["config"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rank_pattern": {}}, "rank_pattern is {}, expected {'layers.0.q_proj': 1}"),
        ({"alpha_pattern": {}}, "alpha_pattern is {}, expected"),
        ({"alpha_pattern": {MODULES[0]: 2}}, "alpha_pattern is {'layers.0.q_proj': 2}, expected"),
        ({"alpha_pattern": {MODULES[0]: 1, "k_proj": 9}}, "'k_proj': 9}, expected {'layers.0.q_proj': 1}"),
        ({"rank_pattern": {MODULES[0]: 1, MODULES[1]: 6}}, "'layers.1.q_proj': 6}, expected"),
        ({"r": 1, "lora_alpha": 1}, "r is 1, expected 6"),
        ({"use_rslora": True}, "use_rslora is True"),
    ],
)
def test_other_patterns_than_those_are_found(
    fields: dict[str, Any], told: str, by_module: tuple[Path, Composite]
) -> None:
    folder, asked = by_module
    change_config(folder, **fields)
    proof = judged(folder, asked)
    assert told in failed(proof)["config"]


def test_a_rank_for_each_module_is_not_taken_for_one_rank_nor_the_other_way(by_module: tuple[Path, Composite]) -> None:
    folder, asked = by_module
    portable = merge(asked.parents)
    assert "rank_pattern is {'layers.0.q_proj': 1}, expected {}" in failed(judged(folder, portable))["config"]
    plain = portable.save_pretrained(folder.parent / "plain")
    assert "rank_pattern is {}, expected {'layers.0.q_proj': 1}" in failed(judged(plain, asked))["config"]


def test_a_module_that_is_missing_is_named(folder: Path, composite: Composite) -> None:
    def drop(tensors: dict[str, Any]) -> None:
        for side in "AB":
            del tensors[KEY.format("layers.1.q_proj", side)]

    change_tensors(folder, drop)
    assert failed(judged(folder, composite)) == {
        "parser": "safetensors reads 2 tensors of 4",
        "modules": "1 missing (layers.1.q_proj), 0 unexpected",
    }


def test_a_module_too_many_is_named(folder: Path, composite: Composite) -> None:
    def add(tensors: dict[str, Any]) -> None:
        for side in "AB":
            tensors[KEY.format("layers.2.q_proj", side)] = tensors[KEY.format("layers.1.q_proj", side)].copy()

    change_tensors(folder, add)
    assert failed(judged(folder, composite))["modules"] == "0 missing, 1 unexpected (layers.2.q_proj)"


def test_half_a_module_is_found(folder: Path, composite: Composite) -> None:
    change_tensors(folder, lambda tensors: tensors.pop(KEY.format("layers.0.q_proj", "A")))
    found = failed(judged(folder, composite))
    assert "layers.0.q_proj" in found["modules"] and "missing_factor" in found["config"]


def test_another_shape_is_named(folder: Path, composite: Composite) -> None:
    def widen(tensors: dict[str, Any]) -> None:
        key = KEY.format("layers.0.q_proj", "A")
        tensors[key] = np.pad(tensors[key], ((0, 0), (0, 1)))

    change_tensors(folder, widen)
    assert failed(judged(folder, composite)) == {"shapes": "1 of another shape (layers.0.q_proj)"}


@pytest.mark.parametrize(
    ("targets", "missed"),
    [
        (["layers.0.q_proj"], "1 that target_modules does not select (layers.1.q_proj)"),
        ([], "2 that target_modules does not select (layers.0.q_proj, layers.1.q_proj)"),
        (["proj"], "2 that target_modules does not select (layers.0.q_proj, layers.1.q_proj)"),
        (None, "2 that target_modules does not select (layers.0.q_proj, layers.1.q_proj)"),
        (7, "2 that target_modules does not select (layers.0.q_proj, layers.1.q_proj)"),
    ],
)
def test_targets_that_miss_a_module_are_found(targets: Any, missed: str, folder: Path, composite: Composite) -> None:
    change_config(folder, target_modules=targets)
    assert failed(judged(folder, composite)) == {"targets": missed}


def test_a_file_that_the_safetensors_library_refuses_is_found(folder: Path, composite: Composite) -> None:
    written = Adapter.from_pretrained(folder)
    (folder / WEIGHTS).rename(folder / "elsewhere")
    assert "safetensors cannot open it" in failed(prove(folder, written, composite))["parser"]


@pytest.mark.parametrize(("weights", "caught"), [([1, -0.5], False), ([1, -0.5001], True), ([-1, 0.5], True)])
def test_another_merge_than_the_written_one_is_found(weights: list[float], caught: bool, folder: Path) -> None:
    asked = merge([parent("a", 0), parent("b", 1)], weights=weights)
    if json.loads((folder / "hub_merge.json").read_text())["recipe"]["merge_method"] == "lego":
        asked = merge([parent("a", 0), parent("b", 1)], "lego", weights=weights)
    assert (not judged(folder, asked).passed) is caught


def test_a_share_that_is_not_as_predicted_is_told_with_both_figures(tmp_path: Path) -> None:
    parents = [parent("a", 0), parent("b", 1)]
    folder = merge(parents, "sum").save_pretrained(tmp_path / "out")
    proof = judged(folder, merge(parents, "mean"))
    shares = {share.name: share for share in proof.retention}
    dense = [np.concatenate([one.factors(module).delta() for module in MODULES]) for one in parents]
    for name, delta in zip("ab", dense, strict=True):
        share = np.vdot(dense[0] + dense[1], delta) / np.vdot(delta, delta)
        assert shares[name].measured == pytest.approx(share, rel=1e-5)
        assert shares[name].predicted == pytest.approx(share / 2, rel=1e-5)
        told = f"{name}: measured {shares[name].measured:.7g}, predicted {shares[name].predicted:.7g}"
        assert told in failed(proof)["retention"]
    assert "what was predicted" not in failed(proof)["retention"]


# --- numbers of the proof ---------------------------------------------------------------------------------------------


def test_a_parent_with_a_zero_delta_has_no_share_and_hurts_nothing(tmp_path: Path) -> None:
    first = parent("a", 0)
    zero = {m: LoraFactors(first.factors(m).A, np.zeros_like(first.factors(m).B)) for m in MODULES}
    untrained = adapter_of("b", zero, base_model="acme/base", target_modules=("q_proj",))
    composite = merge([first, untrained])
    proof = judged(composite.save_pretrained(tmp_path / "out"), composite)
    assert proof.passed and proof.retention[1].measured is None and proof.retention[1].predicted is None
    assert proof.retention[0].measured == pytest.approx(1, rel=1e-6)
    assert proof.distance_to_sum == pytest.approx(0, abs=1e-6) and proof.energy_kept == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_judged_by_its_own_rounding(dtype: str, tmp_path: Path) -> None:
    composite = merge([parent("a", 0), parent("b", 1)], dtype=dtype)
    proof = judged(composite.save_pretrained(tmp_path / "out"), composite)
    assert proof.passed and 1e-6 < proof.max_error <= proof.tolerance  # type: ignore[operator]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rank=st.integers(0, 4),
    other=st.integers(0, 4),
    scaling=st.sampled_from([1.0, -2.0, 1e-3, 1e4]),
)
def test_the_difference_is_that_of_the_dense_deltas(seed: int, rank: int, other: int, scaling: float) -> None:
    rng = np.random.default_rng(seed)
    x, y = random_factors(rng, (7, 6), rank, scaling=scaling), random_factors(rng, (7, 6), other)
    assert difference(x, y) == pytest.approx(np.linalg.norm(x.delta() - y.delta()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("change", [1e-4, 1e-8, 1e-12])
def test_a_small_difference_is_not_lost_in_rounding(change: float) -> None:
    """Formed from dense deltas or from their Gram matrix, a change of 1e-12 would drown in 1e-8."""
    rng = np.random.default_rng(3)
    x = random_factors(rng, (40, 30), 5)
    step = rng.standard_normal((40, 5))
    y = LoraFactors(x.A, x.B + change * step)
    effective = (y.B - x.B) @ x.A  # what the addition in float64 really left of the step
    assert difference(x, y) == pytest.approx(np.linalg.norm(effective), rel=1e-6)
    assert difference(x, x) == 0
