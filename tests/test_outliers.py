"""Modules that stand out by norm or spectrum are told, and ordinary ones are not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.compat import check
from hub_merge.errors import AdapterError
from hub_merge.findings import Finding
from hub_merge.hub import Hub
from hub_merge.outliers import ModuleStatistic, dominance_findings, measure
from hub_merge.pipeline import merge, score_references
from tests.helpers import adapter_of, padded, random_factors, write_adapter

LAYERS = 12
SHAPE, RANK = (40, 30), 4
MODULES = [f"layers.{layer}.{name}" for name in ("q_proj", "up_proj") for layer in range(LAYERS)]
ODD = "layers.5.q_proj"


def lora(name: str, seed: int, *, scale: float = 1.0, changed: Mapping[str, LoraFactors] | None = None) -> Adapter:
    """An adapter of ordinary numbers: modules of a kind differ by some percent, kinds by a factor of ten."""
    rng = np.random.default_rng(seed)
    parts = {}
    for module in MODULES:
        part = random_factors(rng, SHAPE, RANK)
        parts[module] = LoraFactors(part.A, part.B, scale * (10.0 if "up" in module else 1.0) * rng.uniform(0.8, 1.2))
    parts |= changed or {}
    return adapter_of(name, parts, base_model="acme/base", target_modules=("q_proj", "up_proj"))


def told(adapters: list[Adapter]) -> dict[str, Finding]:
    return {f"{f.code} {f.adapter}": f for f in check(adapters).report.findings if f.code.endswith("outlier")}


def test_norm_and_spectrum_are_those_of_the_dense_delta() -> None:
    part = random_factors(np.random.default_rng(0), SHAPE, RANK, scaling=-3.0)
    values = np.linalg.svd(part.delta(), compute_uv=False) ** 2
    found = measure(part)
    assert found.square == pytest.approx(values.sum(), rel=1e-12)
    assert found.concentration == pytest.approx(values[0] / values.sum(), rel=1e-12)
    assert found.chance == pytest.approx((1 + math.sqrt(4 / 40)) ** 2 * (1 + math.sqrt(4 / 30)) ** 2 / 4)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_factors_of_16_bits_have_the_norm_and_spectrum_of_their_dense_delta(dtype: type[np.generic]) -> None:
    part = random_factors(np.random.default_rng(0), (3000, 5000), 16)
    short = LoraFactors(part.A.astype(dtype), part.B.astype(dtype), 2.0)
    values = np.linalg.svd(_core(short), compute_uv=False) ** 2
    found = measure(short)
    assert found.square == pytest.approx(4 * values.sum(), rel=1e-5)
    assert found.concentration == pytest.approx(values[0] / values.sum(), rel=1e-5)


def _core(factors: LoraFactors) -> NDArray[np.float64]:
    """Return a small matrix with the singular values of ``B @ A``."""
    return np.linalg.qr(factors.B.astype(np.float64))[1] @ np.linalg.qr(factors.A.astype(np.float64).T)[1].T


@pytest.mark.parametrize(
    ("a", "b"),
    [([1.0, 1.0], [1.0, -1.0 - 2**-7]), ([1e25, 1.0], [1e25, 1.0]), ([1e-30, 0.0], [1e-30, 0.0])],
    ids=["nearly cancelled", "beyond float32", "below float32"],
)
def test_float32_is_not_trusted_where_its_sums_overflow_underflow_or_cancel(a: list[float], b: list[float]) -> None:
    A, B = np.outer(a, np.ones(8)).astype(ml_dtypes.bfloat16), np.outer(np.ones(8), b).astype(ml_dtypes.bfloat16)
    dense = B.astype(np.float64) @ A.astype(np.float64)
    found = measure(LoraFactors(A, B))
    assert found.square == pytest.approx((dense**2).sum(), rel=1e-12)
    assert found.concentration == pytest.approx(1.0)


def test_rows_and_columns_of_zeros_change_nothing() -> None:
    part = random_factors(np.random.default_rng(0), SHAPE, RANK)
    assert asdict(measure(padded(part, 4 * RANK))) == pytest.approx(asdict(measure(part)))


def test_random_factors_stay_below_what_chance_gives_at_most() -> None:
    for seed in range(20):
        found = measure(random_factors(np.random.default_rng(seed), (300, 200), 16))
        assert 1 / 16 < found.concentration < found.chance < 0.17


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_and_zero_factors_have_no_spectrum(value: float) -> None:
    part = random_factors(np.random.default_rng(0), SHAPE, RANK)
    part.B[0, 0] = value
    assert math.isnan(measure(part).square) and measure(part).concentration == 0
    assert measure(LoraFactors(part.A, np.zeros_like(part.B))) == ModuleStatistic(0.0, 0.0, 1.0)
    assert measure(LoraFactors.empty(SHAPE)).square == 0


def test_what_differs_by_kind_by_size_or_a_little_is_no_outlier() -> None:
    assert told([lora("a", 0), lora("b", 1, scale=1000.0), lora("c", 2)]) == {}
    assert told([lora("a", 0)]) == {}


@pytest.mark.parametrize("others", [0, 1, 3])
def test_a_module_far_larger_than_its_like_is_told_with_its_share(others: int) -> None:
    part = random_factors(np.random.default_rng(9), SHAPE, RANK, scaling=100.0)
    adapters = [lora("odd", 0, changed={ODD: part}), *(lora(f"b{n}", n + 1) for n in range(others))]
    found = told(adapters)
    assert found.keys() == {"norm_outlier odd"}
    finding = found["norm_outlier odd"]
    squares = {module: float(np.sum(adapters[0].factors(module).delta() ** 2)) for module in MODULES}
    assert finding.severity == "caution" and finding.where == ODD
    assert f"{squares[ODD] / sum(squares.values()):.1%}" in finding.seen and "no safety audit" in finding.remedy


def test_what_all_trainings_do_is_no_outlier_and_what_one_leaves_out_neither() -> None:
    large = {ODD: random_factors(np.random.default_rng(9), SHAPE, RANK, scaling=100.0)}
    assert told([lora("a", 0, changed=large), lora("b", 1, changed=large), lora("c", 2, changed=large)]) == {}
    small = {ODD: random_factors(np.random.default_rng(9), SHAPE, RANK, scaling=1e-4)}
    assert told([lora("a", 0, changed=small), lora("b", 1)]).keys() <= {"norm_outlier b"}


def test_one_hidden_direction_is_told_though_the_norm_is_ordinary() -> None:
    part = random_factors(np.random.default_rng(9), SHAPE, RANK)
    spiked = part.B * np.array([1.0, 0.01, 0.01, 0.01])
    part = LoraFactors(part.A, spiked * np.linalg.norm(part.B) / np.linalg.norm(spiked))
    found = told([lora("odd", 0, changed={ODD: part}), lora("b", 1), lora("c", 2)])
    assert found.keys() == {"spectrum_outlier odd"} and found["spectrum_outlier odd"].where == ODD


def test_few_modules_say_nothing_of_what_is_usual() -> None:
    parts = {f"layers.{n}.q": random_factors(np.random.default_rng(n), SHAPE, RANK, scaling=10.0**n) for n in range(7)}
    assert told([adapter_of("a", parts, base_model="acme/base")]) == {}


def test_a_hidden_scale_is_judged_by_the_delta_and_not_by_the_factors() -> None:
    """B of 1e-12 and a scaling of 1e14: the factors look untrained, the delta is a hundred times too large."""
    part = random_factors(np.random.default_rng(9), SHAPE, RANK)
    hidden = LoraFactors(part.A, part.B * 1e-12, 1e14)
    adapters = [lora("odd", 0, changed={ODD: hidden}), lora("b", 1)]
    result = check(adapters)
    assert "norm_outlier odd" in told(adapters)
    squares = sum(float(np.sum(adapters[0].factors(module).delta() ** 2)) for module in MODULES)
    assert result.norms[0] == pytest.approx(math.sqrt(squares), rel=1e-9)


# --- dominated merges -------------------------------------------------------------------------------------------------


def dominated(scale: float, weights: list[float]) -> list[tuple[str, str]]:
    """Two adapters of equal norms by module, the second ``scale`` times as large."""
    unit = {name: ModuleStatistic(1.0, 0.5, 0.5) for name in ("x", "y")}
    large = {name: ModuleStatistic(scale**2, 0.5, 0.5) for name in ("y", "z")}
    return [(f.adapter, f.where) for f in dominance_findings(["a", "b"], [unit, large], weights)]


@pytest.mark.parametrize(
    ("scale", "weights", "found"),
    [
        (4.9, [1.0, 1.0], []),
        (5.1, [1.0, 1.0], [("b", "y")]),
        (5.1, [1.0, 0.5], []),
        (5.1, [1.0, -1.0], [("b", "y")]),
        (1.0, [6.0, 1.0], [("a", "y")]),
        (1.0, [1.0, 0.0], [("a", "y")]),
    ],
)
def test_an_adapter_that_drowns_the_others_is_told_where_weights_counted(
    scale: float, weights: list[float], found: list[tuple[str, str]]
) -> None:
    assert dominated(scale, weights) == found


def test_a_merge_tells_of_what_is_drowned_and_balanced_weights_end_it() -> None:
    adapters = [lora("a", 0), lora("b", 1, scale=50.0)]
    codes = lambda composite: [f.code for f in composite.compatibility.report.cautions]
    assert "dominated" in codes(merge(adapters))
    assert "dominated" not in codes(merge(adapters, weights=[1.0, 0.02]))


def test_scores_by_reference_tell_what_stands_out(tmp_path: Path) -> None:
    tensors = {}
    for module, factors in {m: lora("a", 0).factors(m) for m in MODULES}.items():
        size = 100.0 if module == ODD else factors.scaling
        tensors[f"base_model.model.{module}.lora_A.weight"] = factors.A.astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = (size * factors.B).astype(np.float32)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "up_proj"]}
    folder = write_adapter(tmp_path / "odd", tensors, config)
    found: list[str] = []
    hub = Hub(token=False, endpoint="http://127.0.0.1:9", offline=True)
    score_references([str(folder)], hub=hub, tell=lambda finding: found.append(finding.code))
    assert found == ["norm_outlier"]


# --- real adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.wild
def test_of_the_adapters_of_the_community_about_one_in_seven_has_an_outlier(wild: Path) -> None:
    judged, told_of = 0, 0
    places = (wild / "adapters", wild / "adapters_real")
    for config in sorted(path for place in places for path in place.rglob("adapter_config.json")):
        try:
            adapter = Adapter.from_pretrained(config.parent)
        except AdapterError:
            continue
        if adapter.modules:
            judged += 1
            told_of += bool(told([adapter]))
    assert judged > 50 and 0 < told_of <= judged / 7
