"""DoRA and adapters of a changed base made plain, with PEFT as the judge."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from hub_merge import materialize as dora
from hub_merge.adapter import Adapter, LoraFactors, ModuleSpec
from hub_merge.base_weights import BaseWeights, open_base
from hub_merge.conversion import materialized, without_initial
from hub_merge.errors import (
    AdapterFormatError,
    AdapterNotFound,
    HubMergeError,
    IncompatibleAdapters,
    MergeError,
    RecipeError,
    UnsupportedAdapter,
)
from hub_merge.formats.peft import adapter_from_tensors
from hub_merge.formats.tensors import ArrayStore
from hub_merge.hub import Hub
from hub_merge.materialize import DoraDelta, materialize, truncated
from hub_merge.pipeline import merge, run, save, verify
from hub_merge.provenance import read_record
from hub_merge.recipe import Conversion, Recipe, Source
from tests.helpers import Dense, peft_config, peft_tensors, random_factors, relative_error
from tests.hub_double import HubDouble

NO_HUB = Hub(token=False, offline=True)
PREFIX = "base_model.model."


def made(tensors: Mapping[str, NDArray[Any]], name: str = "it", **config: Any) -> Adapter:
    return adapter_from_tensors(peft_config(**config), ArrayStore(tensors), name=name)


def problems(adapter: Adapter) -> list[str]:
    return [found.code for found in adapter.findings if found.severity == "problem"]


# --- the delta of DoRA ------------------------------------------------------------------------------------------------


def dense_dora(weight: Dense, factors: LoraFactors, magnitude: Dense) -> Dense:
    """Return DoRA's delta as its paper has it, row by row."""
    wanted = np.empty(weight.shape)
    for row in range(len(weight)):
        direction = weight[row] + factors.scaling * (factors.B[row] @ factors.A)
        wanted[row] = magnitude[row] * direction / np.sqrt(np.sum(direction**2)) - weight[row]
    return wanted


def dora_case(rng: np.random.Generator, shape: tuple[int, int], rank: int = 3) -> tuple[Dense, LoraFactors, Dense]:
    weight, factors = rng.standard_normal(shape), random_factors(rng, shape, rank, scaling=0.5)
    magnitude = np.linalg.norm(weight, axis=1) * rng.uniform(0.9, 1.1, shape[0])
    return weight, factors, magnitude


def dense(delta: DoraDelta) -> Dense:
    return np.concatenate([block for _, block in delta.blocks()])


@pytest.mark.parametrize("block", [1, 20, 10_000])
def test_the_delta_is_that_of_the_paper_whatever_the_blocks(
    block: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dora, "BLOCK", block)
    weight, factors, magnitude = dora_case(rng, (11, 7))
    delta, wanted = DoraDelta.of(weight, factors, magnitude), dense_dora(weight, factors, magnitude)
    assert relative_error(dense(delta), wanted) <= 1e-14
    assert delta.square() == pytest.approx(np.sum(wanted**2))
    right, left = rng.standard_normal((7, 4)), rng.standard_normal((11, 3))
    assert relative_error(delta.times(right), wanted @ right) <= 1e-13
    assert relative_error(delta.projected(left), left.T @ wanted) <= 1e-13


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
@pytest.mark.parametrize("rank", [1, 5, 24])
def test_a_small_delta_is_truncated_as_well_as_can_be_and_its_loss_is_true(
    shape: tuple[int, int], rank: int, rng: np.random.Generator
) -> None:
    delta = DoraDelta.of(*dora_case(rng, shape))
    factors, square, lost = truncated(delta, rank, rng)
    wanted = dense(delta)
    tail = np.sqrt(np.sum(np.linalg.svd(wanted, compute_uv=False)[rank:] ** 2))
    assert np.linalg.norm(factors.delta() - wanted) == pytest.approx(tail, rel=1e-5, abs=1e-5)
    assert np.sqrt(lost) == pytest.approx(tail, rel=1e-6, abs=1e-6)
    assert square == pytest.approx(np.sum(wanted**2))
    assert factors.rank == rank


def test_a_large_delta_is_truncated_nearly_as_well_and_its_loss_is_true(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dora, "SMALL", 0)
    delta = DoraDelta.of(*dora_case(rng, (120, 90)))
    factors, _, lost = truncated(delta, 8, rng)
    wanted = dense(delta)
    best = np.sqrt(np.sum(np.linalg.svd(wanted, compute_uv=False)[8:] ** 2))
    error = np.linalg.norm(factors.delta() - wanted)
    assert best * (1 - 1e-6) <= error <= best * 1.01
    assert np.sqrt(lost) == pytest.approx(error, rel=1e-5)


def test_a_rank_beyond_the_module_takes_the_whole_delta(rng: np.random.Generator) -> None:
    delta = DoraDelta.of(*dora_case(rng, (6, 5)))
    factors, square, lost = truncated(delta, 50, rng)
    assert factors.rank == 5
    assert lost <= 1e-14 * square
    assert relative_error(factors.delta(), dense(delta)) <= 1e-6


def test_magnitudes_that_started_from_rounded_norms_leave_untrained_rows_alone(rng: np.random.Generator) -> None:
    """PEFT in bfloat16 takes the norm, rounds it, and divides by a norm rounded in the same way."""
    weight = rng.standard_normal((30, 20)).astype(ml_dtypes.bfloat16)
    rounded = np.linalg.norm(weight.astype(np.float64), axis=1).astype(ml_dtypes.bfloat16).astype(np.float32)
    factors = random_factors(rng, (30, 20), 2)
    untrained = LoraFactors(factors.A, 0 * factors.B)
    assert not dense(DoraDelta.of(weight, untrained, rounded)).any()
    exact = np.linalg.norm(weight.astype(np.float64), axis=1)
    assert np.abs(dense(DoraDelta.of(weight, untrained, exact))).max() <= 1e-14


def test_a_weight_with_a_row_of_zeros_and_magnitudes_of_another_length_are_refused(rng: np.random.Generator) -> None:
    weight, factors, magnitude = dora_case(rng, (6, 5))
    with pytest.raises(AdapterFormatError, match=r"magnitudes have shape \[5\], expected \[6\]"):
        DoraDelta.of(weight, factors, magnitude[:5])
    factors.B[2] = weight[2] = 0
    with pytest.raises(AdapterFormatError, match="Row 2 of the weight is zero"):
        DoraDelta.of(weight, factors, magnitude)


def test_an_adapter_without_magnitudes_cannot_be_materialised(rng: np.random.Generator) -> None:
    tensors = peft_tensors(rng, {"h.c_attn": 2})
    with pytest.raises(UnsupportedAdapter, match="it is no DoRA adapter"):
        materialize(made(tensors), lambda module: np.ones((6, 5)), None, print)
    with pytest.raises(AdapterFormatError, match=r"it, h\.c_attn: The DoRA magnitudes are missing"):
        materialize(made(tensors, use_dora=True), lambda module: np.ones((6, 5)), None, print)


# --- base weights -----------------------------------------------------------------------------------------------------

SPEC = ModuleSpec("model.h.0.proj", "linear", (6, 5), 2, 1.0, "float32")


def base_of(tensors: Mapping[str, NDArray[Any]]) -> BaseWeights:
    return BaseWeights(ArrayStore(tensors), "acme/base@1f")


@pytest.mark.parametrize("name", ["model.h.0.proj.weight", "h.0.proj.weight", "wrapper.model.h.0.proj.weight"])
def test_a_weight_is_found_whatever_stands_before_its_name(name: str, rng: np.random.Generator) -> None:
    weight = rng.standard_normal((6, 5))
    base = base_of({name: weight, "model.h.10.proj.weight": weight + 1, "xh.0.proj.weight": weight + 2})
    assert np.array_equal(base.weight(SPEC, fan_in_fan_out=False), weight)


def test_weights_of_conv1d_and_embeddings_are_turned_into_the_layout_of_the_delta(rng: np.random.Generator) -> None:
    weight = rng.standard_normal((5, 6))
    base = base_of({"model.h.0.proj.weight": weight})
    assert np.array_equal(base.weight(SPEC, fan_in_fan_out=True), weight.T)
    embedding = ModuleSpec("model.h.0.proj", "embedding", (6, 5), 2, 1.0, "float32")
    assert np.array_equal(base.weight(embedding, fan_in_fan_out=False), weight.T)


@pytest.mark.parametrize(
    ("tensors", "error", "seen"),
    [
        ({}, AdapterFormatError, r"there is no tensor model\.h\.0\.proj\.weight"),
        (
            {"a.model.h.0.proj.weight": np.ones((6, 5)), "b.model.h.0.proj.weight": np.ones((6, 5))},
            AdapterFormatError,
            "2 tensors could be",
        ),
        (
            {"h.0.proj.weight": np.ones((5, 6))},
            AdapterFormatError,
            r"has shape \[5, 6\]; the adapter's delta is \[6, 5\]",
        ),
        ({"h.0.proj.weight": np.ones((15, 1), np.uint8)}, UnsupportedAdapter, "as uint8, which is quantised"),
        ({"h.0.proj.weight": np.full((6, 5), np.nan)}, AdapterFormatError, "holds NaN"),
    ],
)
def test_a_base_that_is_another_one_is_refused(
    tensors: Mapping[str, NDArray[Any]], error: type[HubMergeError], seen: str
) -> None:
    with pytest.raises(error, match=seen) as refusal:
        base_of(tensors).weight(SPEC, fan_in_fan_out=False)
    assert "acme/base@1f" in refusal.value.problem
    assert refusal.value.remedy


def test_a_folder_without_safetensors_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(AdapterNotFound, match=r"holds no model\.safetensors"):
        open_base(tmp_path, hub=NO_HUB)


def test_a_base_in_shards_is_read_as_one(tmp_path: Path, rng: np.random.Generator) -> None:
    weight = rng.standard_normal((6, 5)).astype(np.float32)
    save_file({"other.weight": weight + 1}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"h.0.proj.weight": weight}, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"h.0.proj.weight": weight + 2}, tmp_path / "consolidated.safetensors")
    assert np.array_equal(open_base(tmp_path, hub=NO_HUB).weight(SPEC, fan_in_fan_out=False), weight)


def test_of_a_base_on_the_hub_only_headers_and_the_weights_needed_are_read(
    hub: HubDouble, tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = rng.standard_normal((6, 5)).astype(np.float32)
    save_file({"big": np.ones((500, 1000), np.float32), "h.0.proj.weight": weight}, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    hub.add_repo("acme/base", {"model.safetensors": content, "config.json": b"{}"})
    client = Hub(token=hub.token("bob"), endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    base = open_base("acme/base", hub=client)
    assert np.array_equal(base.weight(SPEC, fan_in_fan_out=False), weight)
    assert base.label == f"acme/base@{hub.commits('acme/base')[0].oid}"
    spans = [request.headers["range"] for request in hub.requests if request.path.startswith("/objects/")]
    read = [int(end) - int(start) + 1 for start, end in (span.removeprefix("bytes=").split("-") for span in spans)]
    assert sum(read) < 110_000 < len(content)
    assert not list((tmp_path / "cache").glob("**/snapshots/*/*.safetensors"))


# --- recipes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conversion",
    [
        Conversion(initial="o/a@main:init"),
        Conversion(base_weights="base"),
        Conversion(base_weights="./base", rank=12),
    ],
)
def test_a_conversion_survives_the_recipe(conversion: Conversion) -> None:
    asked = Recipe("sum", (Source("o/a", 0.5, conversion), Source("o/b")))
    assert Recipe.from_yaml(asked.to_yaml()) == asked


@pytest.mark.parametrize(
    "convert",
    [
        {},
        {"rank": 3},
        {"initial": "a", "base_weights": "b"},
        {"initial": "a", "rank": 2},
        {"initial": 3},
        "a",
        {"x": 1},
    ],
)
def test_a_conversion_that_is_none_is_refused(convert: Any) -> None:
    with pytest.raises(RecipeError):
        Recipe.from_dict({"models": [{"model": "o/a", "convert": convert}]})


# --- PiSSA and its like -----------------------------------------------------------------------------------------------


def pair(rng: np.random.Generator, **config: Any) -> tuple[Adapter, Adapter]:
    modules = {"h.0.c_attn": 2, "h.1.c_attn": 2}
    trained = made(peft_tensors(rng, modules), "trained", **{"init_lora_weights": "pissa", **config})
    return trained, made(peft_tensors(rng, modules), "initial")


def test_the_initial_product_is_taken_away_exactly(rng: np.random.Generator) -> None:
    trained, initial = pair(rng)
    plain = without_initial(trained, initial)
    assert problems(plain) == []
    for module, spec in plain.modules.items():
        got, first, second = (adapter.factors(module) for adapter in (plain, trained, initial))
        assert (spec.rank, spec.scaling, got.rank) == (4, 2.0, 4)
        assert np.array_equal(got.A, np.concatenate([first.A, second.A]))
        assert np.array_equal(got.B, np.concatenate([first.B, -second.B], axis=1))
        assert relative_error(got.delta(), first.delta() - second.delta()) <= 1e-14


def test_the_initial_product_may_have_another_precision(rng: np.random.Generator) -> None:
    trained, initial = pair(rng)
    halves = [
        replace(one, load={name: one.factors(name).astype(dtype) for name in one.modules}.__getitem__)
        for one, dtype in ((trained, ml_dtypes.bfloat16), (initial, np.float16))
    ]
    plain = without_initial(*halves)
    for module in plain.modules:
        first, second = (one.factors(module).delta() for one in halves)
        assert relative_error(plain.factors(module).delta(), first - second) <= 1e-14


def test_another_scaling_of_the_initial_adapter_counts(rng: np.random.Generator) -> None:
    modules = {"h.0.c_attn": 2}
    trained = made(peft_tensors(rng, modules), "trained", init_lora_weights="olora")
    initial = made(peft_tensors(rng, {"h.0.c_attn": 3}), "initial", r=3, lora_alpha=12)
    plain = without_initial(trained, initial)
    got = plain.factors("h.0.c_attn")
    wanted = 2 * trained.factors("h.0.c_attn").delta() / 2 - initial.factors("h.0.c_attn").delta()
    assert relative_error(got.delta(), wanted) <= 1e-6
    assert (plain.modules["h.0.c_attn"].rank, plain.modules["h.0.c_attn"].scaling) == (5, 1.0)


def test_an_initial_adapter_of_other_modules_or_shapes_is_refused(rng: np.random.Generator) -> None:
    trained, _ = pair(rng)
    fewer = made(peft_tensors(rng, {"h.0.c_attn": 2}), "initial")
    with pytest.raises(
        AdapterFormatError, match=r"trained did not start from initial: h\.1\.c_attn is \(6, 5\) and None"
    ):
        without_initial(trained, fewer)


def test_loftq_is_refused_with_its_reason(rng: np.random.Generator) -> None:
    trained, initial = pair(rng, init_lora_weights="loftq")
    assert problems(trained) == ["quantised_base"]
    with pytest.raises(IncompatibleAdapters, match="quantises the base and starts from factors that only come near"):
        merge([trained])
    with pytest.raises(UnsupportedAdapter, match="its base is quantised"):
        without_initial(trained, initial)


# --- what stays refused -----------------------------------------------------------------------------------------------

REFUSALS = {
    "use_dora": (True, "DoRA rescales the whole weight by a trained magnitude, which takes the base's weights. Leave"),
    "use_qalora": (True, "QALoRA pools the inputs"),
    "lora_bias": (True, "a trained bias belongs to B, which a product B @ A cannot hold"),
    "trainable_token_indices": ([3, 5], "trained token rows are no part of B @ A"),
    "layer_replication": ([[0, 4], [2, 5]], "its layers are copies that the base does not have"),
    "alora_invocation_tokens": ([7, 8], "an activated LoRA only works after its invocation tokens"),
    "arrow_config": ({"top_k": 2}, "Arrow routes tokens between adapters"),
    "kasa_config": ({"x": 1}, "KaSA changes the base weights by their singular values"),
    "velora_config": ({"x": 1}, "VeLoRA trains on compressed activations"),
    "monteclora_config": ({"x": 1}, "MonteCLoRA samples its factors"),
    "use_bdlora": ({"x": 1}, "BD-LoRA keeps block-diagonal factors"),
    "megatron_config": ({"x": 1}, "Megatron splits its layers over devices"),
}


@pytest.mark.parametrize("field", REFUSALS)
def test_a_variant_is_refused_with_its_reason_and_no_flag_lets_it_pass(field: str, rng: np.random.Generator) -> None:
    value, reason = REFUSALS[field]
    adapter = made(peft_tensors(rng, {"h.0.c_attn": 2}), **{field: value})
    with pytest.raises(IncompatibleAdapters) as refusal:
        merge([adapter], extras="drop", allow=problems(adapter))
    assert reason in str(refusal.value)
    assert f"({field})" in str(refusal.value)


def test_dora_is_one_problem_that_names_field_tensors_and_the_way_out(rng: np.random.Generator) -> None:
    magnitude = "base_model.model.h.0.c_attn.lora_magnitude_vector"
    (found,) = made({**peft_tensors(rng, {"h.0.c_attn": 2}), magnitude: np.ones(6, np.float32)}, use_dora=True).findings
    assert (found.code, found.where, found.overrule) == ("dora", f"use_dora, {magnitude}", "--materialize")
    assert "use_dora is true, and the file also holds 1 tensors of DoRA magnitudes" in found.seen
    assert found.describe().endswith(
        "Let merge, compress or convert form its deltas from the base's weights. Overrule: --materialize."
    )
    (found,) = made({**peft_tensors(rng, {"h.0.c_attn": 2}), magnitude: np.ones(6, np.float32)}).findings
    assert (found.code, found.where, found.overrule) == ("dora", magnitude, None)  # nothing says what they are for


@pytest.mark.parametrize("init", ["pissa", "olora", "corda", "lora_ga"])
def test_a_changed_base_is_refused_with_the_way_out(init: str, rng: np.random.Generator) -> None:
    adapter = made(peft_tensors(rng, {"h.0.c_attn": 2}), init_lora_weights=init)
    with pytest.raises(IncompatibleAdapters, match="takes the initial product out of the base") as refusal:
        merge([adapter])
    assert refusal.value.report.problems[0].describe().endswith(" Overrule: --initial ADAPTER=REFERENCE.")
    assert "Give merge, compress or convert the adapter as it was saved before training." in str(refusal.value)


# --- PEFT -------------------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from peft.tuners.lora import LoraLayer  # noqa: E402
from peft.tuners.lora.config import CordaConfig  # noqa: E402
from peft.tuners.lora.corda import preprocess_corda  # noqa: E402
from peft.tuners.lora.loraga import preprocess_loraga  # noqa: E402

from tests.test_peft_oracle import (  # noqa: E402
    CONV1D,
    IDENTITY,
    LOGITS,
    assert_same_deltas,
    deltas,
    gpt2,
    llama,
    load,
    logits,
)

quiet = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def noise(model: Any, size: float = 0.2) -> None:
    """Train, so to speak: change everything that PEFT trains."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * parameter.abs().mean().clamp(min=0.05) * torch.randn(parameter.shape))


def saved_base(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def trained_dora(base: Any, folder: Path, **config: Any) -> tuple[Any, dict[str, Dense]]:
    """Write a DoRA adapter as PEFT does; return the model and what PEFT adds to each weight when it merges."""
    torch.manual_seed(2)
    settings = {"task_type": "CAUSAL_LM", "use_dora": True, "init_lora_weights": False, "r": 2, **config}
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings)).eval()
    noise(model)
    model.save_pretrained(folder, save_embedding_layers=False)
    exact = copy.deepcopy(model).double()
    wanted = {}
    for name, layer in exact.named_modules():
        if isinstance(layer, LoraLayer):
            before = layer.get_base_layer().weight.detach().clone()
            layer.merge()
            wanted[name.removeprefix("base_model.model.")] = (layer.get_base_layer().weight - before).detach().numpy()
    return model, wanted


DORA: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "llama": (llama, {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "llama, rsLoRA and patterns": (
        llama,
        {"target_modules": ["q_proj", "o_proj"], "use_rslora": True, "rank_pattern": {"o_proj": 3}, "lora_alpha": 3},
    ),
    "GPT-2's Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"], **CONV1D}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
}


@quiet
@pytest.mark.parametrize("case", DORA)
def test_a_dora_adapter_at_full_rank_does_what_it_does_in_peft(case: str, tmp_path: Path) -> None:
    build, config = DORA[case]
    base = build()
    model, wanted = trained_dora(base, tmp_path / "dora", **config)
    plain = materialized(
        Adapter.from_pretrained(tmp_path / "dora"), saved_base(base, tmp_path / "base"), rank=80, hub=NO_HUB
    )
    assert plain.converted is not None and plain.converted["error"] <= 1e-6
    save(merge([plain]), tmp_path / "out")
    loaded = load(base, tmp_path / "out")
    assert_same_deltas(deltas(loaded), wanted, tolerance=1e-5)
    assert relative_error(logits(loaded), logits(model)) <= LOGITS
    assert relative_error(logits(loaded), logits(base)) > 100 * LOGITS


@quiet
def test_the_error_stated_is_the_distance_to_what_peft_merges(tmp_path: Path) -> None:
    base = llama()
    _, wanted = trained_dora(base, tmp_path / "dora", target_modules=["q_proj", "down_proj"])
    adapter = Adapter.from_pretrained(tmp_path / "dora")
    plain = materialized(adapter, saved_base(base, tmp_path / "base"), hub=NO_HUB)
    assert plain.converted is not None
    assert {spec.rank for spec in plain.modules.values()} == {8}
    errors = {module: plain.factors(module).delta() - delta for module, delta in wanted.items()}
    for module, error in errors.items():
        relative = np.linalg.norm(error) / np.linalg.norm(wanted[module])
        assert plain.converted["errors"][module] == pytest.approx(relative, rel=1e-4)
    total = [sum(np.sum(part**2) for part in parts.values()) for parts in (errors, wanted)]
    assert plain.converted["error"] == pytest.approx(np.sqrt(total[0] / total[1]), rel=1e-4)
    assert plain.converted["error"] > 1e-3  # rank 8 does not hold all of it


@quiet
def test_a_merge_materialises_proves_and_verifies_from_its_recipe(tmp_path: Path) -> None:
    base = llama()
    trained_dora(base, tmp_path / "dora", target_modules=["q_proj"])
    torch.manual_seed(5)
    other = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["q_proj"])
    )
    other.save_pretrained(tmp_path / "plain")
    saved_base(base, tmp_path / "base")
    conversion = Conversion(base_weights="./base", rank=6)
    recipe = Recipe("sum", (Source("./dora", 1.0, conversion), Source("./plain", 0.5, conversion)))
    told: list[tuple[str, int, int]] = []
    composite = run(recipe, hub=NO_HUB, folder=tmp_path, progress=lambda *step: told.append(step))
    assert [step for step in told if step[0] == "materialize"] == [("materialize", 1, 2), ("materialize", 2, 2)]
    save(composite, tmp_path / "out")
    record = read_record(tmp_path / "out")
    assert [source.convert for source in record.recipe.models] == [conversion, None]
    dora_parent, plain_parent = record.parents
    assert plain_parent.converted is None
    assert dora_parent.converted is not None
    stated = f"relative error of {dora_parent.converted['error']:.3g}"
    assert any(found["code"] == "materialized" and stated in found["seen"] for found in record.findings)
    assert stated in (tmp_path / "out" / "README.md").read_text()
    parents = [tmp_path / name for name in ("dora", "plain", "base")]
    assert verify(tmp_path / "out", parents=parents, hub=NO_HUB).passed
    again = run(record.recipe, hub=NO_HUB, parents=parents)
    save(again, tmp_path / "again")
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == (
        tmp_path / "out" / "adapter_model.safetensors"
    ).read_bytes()


@quiet
def test_a_composite_of_another_base_does_not_verify(tmp_path: Path) -> None:
    base = llama()
    trained_dora(base, tmp_path / "dora", target_modules=["q_proj"])
    adapter = materialized(Adapter.from_pretrained(tmp_path / "dora"), saved_base(base, tmp_path / "base"), hub=NO_HUB)
    save(merge([adapter]), tmp_path / "out")
    with torch.no_grad():
        base.model.layers[0].self_attn.q_proj.weight.mul_(1.5)
    saved_base(base, tmp_path / "elsewhere" / "base")
    proof = verify(tmp_path / "out", parents=[tmp_path / "dora", tmp_path / "elsewhere" / "base"], hub=NO_HUB)
    assert not proof.passed


@quiet
def test_an_adapter_without_a_base_of_the_hub_asks_where_the_weights_are(tmp_path: Path) -> None:
    trained_dora(llama(), tmp_path / "dora", target_modules=["q_proj"])
    config = json.loads((tmp_path / "dora" / "adapter_config.json").read_text())
    (tmp_path / "dora" / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "/home/me/base"})
    )
    with pytest.raises(MergeError, match="dora states no base model of the Hub") as refusal:
        materialized(Adapter.from_pretrained(tmp_path / "dora"), hub=NO_HUB)
    assert "--base-weights" in str(refusal.value)
    assert "/home/me" not in str(refusal.value)


INITS = ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"]


def prepared(model: Any, config: Any) -> Any:
    """Let CorDA see activations and LoRA-GA gradients of the model, as PEFT wants it before these adapters start."""
    tokens = torch.randint(model.config.vocab_size, (1, 96))

    def gradients() -> None:
        model(tokens, labels=tokens).loss.backward()

    if config.init_lora_weights == "corda":
        config.corda_config = CordaConfig(corda_method="kpm")
        preprocess_corda(model, config, run_model=partial(model, tokens))
    if config.init_lora_weights == "lora_ga":
        config.lora_ga_config = peft.LoraGAConfig()
        preprocess_loraga(model, config, train_step=gradients)
    return model


def changed_weights(base: Any, model: Any) -> int:
    """Return how many weights of the base are others in the model that PEFT made of it."""
    made = {
        name.removeprefix("base_model.model."): layer.get_base_layer().weight
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    return sum(not torch.allclose(base.get_submodule(name).weight, weight) for name, weight in made.items())


@quiet
@pytest.mark.parametrize("init", INITS)
def test_an_adapter_of_a_changed_base_is_converted_as_peft_converts_it(init: str, tmp_path: Path) -> None:
    """PEFT's documented way: the initial adapter is saved with init_lora_weights true, and given when converting."""
    base = llama()
    torch.manual_seed(3)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=init, r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"]
    )
    model = peft.get_peft_model(prepared(copy.deepcopy(base), config), config).eval()
    assert changed_weights(base, model) == 4  # else there would be nothing to take away
    model.peft_config["default"].corda_config = None  # PEFT warns of one beside other initial weights
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "init")
    model.peft_config["default"].init_lora_weights = init
    noise(model)
    model.save_pretrained(tmp_path / "trained")
    wanted_logits = logits(model)
    model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "init"))

    recipe = Recipe("sum", (Source("./trained", 1.0, Conversion(initial="./init")),))
    save(run(recipe, hub=NO_HUB, folder=tmp_path), tmp_path / "ours")
    ours, theirs = load(base, tmp_path / "ours"), load(base, tmp_path / "theirs")
    assert_same_deltas(deltas(ours.double()), deltas(theirs.double()), tolerance=IDENTITY)
    assert relative_error(logits(ours.float()), wanted_logits) <= LOGITS
    record = read_record(tmp_path / "ours")
    assert record.recipe.models[0].convert == Conversion(initial="./init")
    assert record.parents[0].converted is not None
    assert [file["name"] for file in record.parents[0].converted["files"]] == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert verify(tmp_path / "ours", parents=[tmp_path / "trained", tmp_path / "init"], hub=NO_HUB).passed


@pytest.mark.wild
def test_a_real_dora_adapter_has_its_magnitudes_beside_every_module(wild: Path) -> None:
    adapter = Adapter.from_pretrained(wild / "adapters" / "medicine_dora")
    assert adapter.load_magnitude is not None
    for module, spec in adapter.modules.items():
        assert adapter.load_magnitude(module).shape == (spec.shape[0],)
