"""From adapters to a proved folder and back: what is written is what was asked for, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.composite import Composite
from hub_merge.errors import (
    AdapterNotFound,
    IncompatibleAdapters,
    MergeError,
    OutputExists,
    ProofFailed,
    RecipeError,
    UnknownMethod,
)
from hub_merge.hub import Hub
from hub_merge.measurements import Measurement
from hub_merge.methods import merge_method, registry
from hub_merge.pipeline import (
    add_measurements,
    card_of,
    check_references,
    merge,
    merge_to_folder,
    save,
    score_references,
    verify,
)
from hub_merge.provenance import read_record
from hub_merge.recipe import Recipe, Source
from tests.helpers import Dense, adapter_of, dense_sum, random_factors, relative_error, write_adapter
from tests.plain_files import read_tensors

Q, V = "layers.{}.q_proj", "layers.{}.v_proj"
SHAPES = {"q_proj": (12, 10), "v_proj": (7, 10)}
CONFIG, WEIGHTS, RECORD, RECIPE, CARD = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "hub_merge.json",
    "recipe.yaml",
    "README.md",
)
FILES = {CONFIG, WEIGHTS, RECORD, RECIPE, CARD}


@pytest.fixture
def hub() -> Hub:
    """A client that cannot reach anything: local adapters never need the Hub."""
    return Hub(token=False, endpoint="http://127.0.0.1:9", offline=True)


def write(
    folder: Path,
    seed: int,
    *,
    rank: int = 3,
    names: tuple[str, ...] = ("q_proj", "v_proj"),
    layers: int = 2,
    dtype: Any = np.float32,
    **config: Any,
) -> Path:
    """Write an adapter of ``layers`` layers as PEFT does, alpha 6."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for name in names:
            out_features, in_features = SHAPES[name]
            key = f"base_model.model.layers.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = rng.standard_normal((rank, in_features)).astype(dtype)
            tensors[f"{key}.lora_B.weight"] = rng.standard_normal((out_features, rank)).astype(dtype)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "acme/base",
        "r": rank,
        "lora_alpha": 6,
        "target_modules": list(names),
    }
    return write_adapter(folder, tensors, {**settings, **config})


def as_a_server_reads(folder: Path) -> dict[str, Dense]:
    """Return the deltas by the rule of vLLM and llama.cpp: one global alpha over r, nothing else of the config."""
    config = json.loads((folder / CONFIG).read_text())
    scaling = config["lora_alpha"] / config["r"]
    tensors = read_tensors(folder / WEIGHTS)
    modules = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    assert len(tensors) == 2 * len(modules)
    for module in modules:
        assert tensors[f"{module}.lora_A.weight"].shape[0] == config["r"] == tensors[f"{module}.lora_B.weight"].shape[1]
    return {
        module.removeprefix("base_model.model."): scaling
        * tensors[f"{module}.lora_B.weight"]
        @ tensors[f"{module}.lora_A.weight"]
        for module in modules
    }


def dense(folder: Path) -> dict[str, Dense]:
    """Return the deltas of a source that ``write`` wrote."""
    return as_a_server_reads(folder)


def assert_deltas(folder: Path, wanted: Mapping[str, Dense], tolerance: float = 1e-6) -> None:
    got = as_a_server_reads(folder)
    assert got.keys() == wanted.keys()
    for module, delta in wanted.items():
        assert relative_error(got[module], delta) <= tolerance, module


def sha(folder: Path, *names: str) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names or (CONFIG, WEIGHTS)]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def opened(*folders: Path) -> list[Adapter]:
    return [Adapter.from_pretrained(folder) for folder in folders]


@pytest.fixture
def parents(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "math", 0), write(tmp_path / "medicine", 1, rank=2, names=("q_proj",))


# --- what is written --------------------------------------------------------------------------------------------------


def test_a_merge_writes_the_sum_with_record_recipe_and_card(parents: tuple[Path, Path], tmp_path: Path) -> None:
    folder = merge(opened(*parents), weights=[0.5, -2]).save_pretrained(tmp_path / "out")
    assert folder == tmp_path / "out" and names(folder) == FILES
    math, medicine = map(dense, parents)
    wanted = {module: 0.5 * delta - 2 * medicine.get(module, 0.0) for module, delta in math.items()}
    assert_deltas(folder, wanted)
    record = read_record(folder)
    assert record.proof["passed"] and record.proof["reference"] == "definition"
    assert record.output["rank"] == 5 and record.output["modules"] == 4
    assert [entry["sha256"] for entry in record.output["files"]] == sha(folder)
    assert [[file["sha256"] for file in parent.files] for parent in record.parents] == [sha(p) for p in parents]


def test_the_config_is_the_portable_profile(parents: tuple[Path, Path], tmp_path: Path) -> None:
    patterned = write(tmp_path / "patterned", 2, use_rslora=True, alpha_pattern={"v_proj": 2}, lora_dropout=0.1)
    merge(opened(*parents, patterned)).save_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["r"] == config["lora_alpha"] == 8
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["bias"] == "none" and config["lora_dropout"] == 0.0 and config["inference_mode"] is True
    assert not any(config[name] for name in ("use_rslora", "use_dora", "modules_to_save", "layers_to_transform"))
    assert config["target_modules"] == ["q_proj", "v_proj"] and config["base_model_name_or_path"] == "acme/base"


def test_the_retention_is_that_of_the_dense_deltas(parents: tuple[Path, Path], tmp_path: Path) -> None:
    """``<delta, delta_i> / ‖delta_i‖²`` over all modules of parent i, also those that a weight of zero leaves out."""
    weights = [{"v_proj": 0.0, "*": 1.0}, 0.5]
    merge(opened(*parents), weights=weights).save_pretrained(tmp_path / "out")
    written, parent = as_a_server_reads(tmp_path / "out"), [dense(folder) for folder in parents]
    record = read_record(tmp_path / "out")
    for i, deltas in enumerate(parent):
        product = sum(float(np.sum(written[module] * delta)) for module, delta in deltas.items() if module in written)
        wanted = product / sum(float(np.sum(delta**2)) for delta in deltas.values())
        assert record.proof["retention"][i]["measured"] == pytest.approx(wanted, rel=1e-6)
        assert record.proof["retention"][i]["predicted"] == pytest.approx(wanted, rel=1e-6)
        assert record.scores["retention"][i] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_error_of_svd_in_the_file_is_the_tail_energy_of_the_dense_sum(
    rank: int, parents: tuple[Path, Path], tmp_path: Path
) -> None:
    merge(opened(*parents), "svd", rank=rank).save_pretrained(tmp_path / "out")
    math, medicine = map(dense, parents)
    wanted = {module: delta + medicine.get(module, 0.0) for module, delta in math.items()}
    squared, total = 0.0, sum(float(np.sum(delta**2)) for delta in wanted.values())
    for module, delta in as_a_server_reads(tmp_path / "out").items():
        tail = float(np.sum(np.linalg.svd(wanted[module], compute_uv=False)[rank:] ** 2))
        squared += tail
        error = float(np.sum((delta - wanted[module]) ** 2))
        assert error == pytest.approx(tail, rel=1e-5, abs=1e-10 * total)
    proof = read_record(tmp_path / "out").proof
    assert proof["distance_to_sum"] == pytest.approx(np.sqrt(squared / total), rel=1e-5, abs=1e-6)
    assert proof["energy_kept"] == pytest.approx(1 - squared / total, rel=1e-5)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_weight_zero_drops_an_adapter(parents: tuple[Path, Path], tmp_path: Path) -> None:
    merge(opened(*parents), weights=[0, 1.5]).save_pretrained(tmp_path / "out")
    assert_deltas(tmp_path / "out", {module: 1.5 * delta for module, delta in dense(parents[1]).items()})
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["target_modules"] == [
        "layers.0.q_proj",
        "layers.1.q_proj",
    ]


def test_all_weights_zero_are_refused(parents: tuple[Path, Path]) -> None:
    with pytest.raises(MergeError, match="Every weight is zero"):
        merge(opened(*parents), weights=[0, 0])


def test_minus_one_on_a_copy_gives_a_zero_delta_that_is_still_proved(
    parents: tuple[Path, Path], tmp_path: Path, hub: Hub
) -> None:
    folder = parents[0]
    merge(opened(folder, folder), weights=[1, -1]).save_pretrained(tmp_path / "out")
    scale = {module: np.linalg.norm(delta) for module, delta in dense(folder).items()}
    for module, delta in as_a_server_reads(tmp_path / "out").items():
        assert np.linalg.norm(delta) <= 1e-6 * scale[module]
    proof = read_record(tmp_path / "out").proof
    assert proof["passed"] and proof["max_error"] <= 1e-6
    assert proof["distance_to_sum"] is None and proof["energy_kept"] is None
    assert [entry["measured"] for entry in proof["retention"]] == pytest.approx([0, 0], abs=1e-6)
    assert verify(tmp_path / "out", parents=[folder], hub=hub).passed


def test_weights_by_module_weigh_each_module(parents: tuple[Path, Path], tmp_path: Path, hub: Hub) -> None:
    weights = [{"layers.0": 2.0, "v_proj": -1.0, "*": 0.25}, {"layers.1.q_proj": 3.0}]
    merge(opened(*parents), weights=weights).save_pretrained(tmp_path / "out")
    math, medicine = map(dense, parents)
    wanted = {
        "layers.0.q_proj": 2 * math["layers.0.q_proj"] + medicine["layers.0.q_proj"],
        "layers.0.v_proj": 2 * math["layers.0.v_proj"],
        "layers.1.q_proj": 0.25 * math["layers.1.q_proj"] + 3 * medicine["layers.1.q_proj"],
        "layers.1.v_proj": -math["layers.1.v_proj"],
    }
    assert_deltas(tmp_path / "out", wanted)
    assert [source.weight for source in read_record(tmp_path / "out").recipe.models] == weights
    assert verify(tmp_path / "out", parents=parents, hub=hub).passed


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"weights": [1.0]}, RecipeError, "2 adapters and 1 weights"),
        ({"weights": [1.0, float("nan")]}, RecipeError, "medicine"),
        ({"weights": [1.0, {"*": float("inf")}]}, RecipeError, "medicine"),
        ({"weights": [True, 1.0]}, RecipeError, "math"),
        ({"rank": 0}, MergeError, "Rank 0"),
        ({"seed": -1}, MergeError, "Seed -1"),
        ({"dtype": "float64"}, MergeError, "float64"),
        ({"method": "smu"}, UnknownMethod, "smu"),
        ({"method": "lego", "starts": 0}, MergeError, "starts"),
        ({"density": 0.5}, MergeError, "density"),
    ],
)
def test_what_cannot_be_understood_is_refused_before_anything_is_read(
    asked: dict[str, Any], error: type[Exception], says: str, parents: tuple[Path, Path]
) -> None:
    with pytest.raises(error, match=says) as refused:
        merge(opened(*parents), **asked)
    assert refused.value.remedy  # type: ignore[attr-defined]


def test_nothing_to_merge_is_refused() -> None:
    with pytest.raises(MergeError, match="nothing to merge"):
        merge([])


# --- dtypes -----------------------------------------------------------------------------------------------------------

ROUNDING = {"float32": 2**-24, "bfloat16": 2**-8, "float16": 2**-11}
"""Largest relative error of rounding one number to the dtype."""


@pytest.mark.parametrize(
    ("sources", "asked", "written"),
    [
        ((ml_dtypes.bfloat16, ml_dtypes.bfloat16), None, "bfloat16"),
        ((np.float16, np.float16), None, "float16"),
        ((np.float16, ml_dtypes.bfloat16), None, "float32"),
        ((ml_dtypes.bfloat16, np.float32), None, "float32"),
        ((np.float32, np.float32), "bfloat16", "bfloat16"),
        ((ml_dtypes.bfloat16, ml_dtypes.bfloat16), "float32", "float32"),
        ((np.float32, np.float32), "float16", "float16"),
    ],
)
def test_the_widest_dtype_is_written_unless_another_is_asked_for(
    sources: tuple[Any, Any], asked: str | None, written: str, tmp_path: Path, hub: Hub
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    folders = []
    for i, dtype in enumerate(sources):
        folder = write(tmp_path / f"source{i}", i)
        torch_dtype = getattr(torch, np.dtype(dtype).name)
        tensors = {key: tensor.to(torch_dtype) for key, tensor in load_file(folder / WEIGHTS).items()}
        save_file(tensors, folder / WEIGHTS)
        folders.append(folder)
    merge(opened(*folders), weights=[1, -0.3], dtype=asked).save_pretrained(tmp_path / "out")
    with safe_open(tmp_path / "out" / WEIGHTS, framework="pt") as file:
        assert {str(file.get_tensor(key).dtype) for key in file.keys()} == {f"torch.{written}"}  # noqa: SIM118
    first, second = map(dense, folders)
    wanted = {module: delta - 0.3 * second[module] for module, delta in first.items()}
    assert_deltas(tmp_path / "out", wanted, tolerance=4 * ROUNDING[written])
    assert read_record(tmp_path / "out").recipe.dtype == written
    assert verify(tmp_path / "out", parents=folders, hub=hub).passed


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numbers_beyond_float16_are_caught_by_the_proof_and_nothing_is_left(tmp_path: Path) -> None:
    """The last module overflows, so that a comparison which skips NaN would not see it."""
    rng = np.random.default_rng(0)
    parts = {f"layers.{i}.q_proj": random_factors(rng, (12, 10), 2, dtype=np.float32) for i in range(3)}
    huge = parts["layers.2.q_proj"]
    parts["layers.2.q_proj"] = LoraFactors(huge.A, huge.B * np.float32(1e6))
    adapter = adapter_of("huge", parts, base_model="acme/base", target_modules=("q_proj",))
    with pytest.raises(ProofFailed, match=r"layers\.2\.q_proj") as refused:
        merge([adapter], dtype="float16").save_pretrained(tmp_path / "out")
    assert "--dtype float32" in (refused.value.remedy or "")
    assert not any(tmp_path.iterdir())


# --- names and privacy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["/home/ann/secret/llama", "C:\\Users\\ann\\secret\\llama", "./secret/llama", "llama"])
def test_the_base_is_never_named_by_a_local_path(base: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "parent_of_ann" / "math", 0, base_model_name_or_path=base)
    merge(opened(folder)).save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["base_model_name_or_path"] is None
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        for secret in (b"secret", b"parent_of_ann", str(tmp_path).encode()):
            assert secret not in content, path.name


def test_a_cached_base_is_named_by_its_repository(tmp_path: Path) -> None:
    base = f"/home/ann/.cache/huggingface/hub/models--acme--base/snapshots/{'0' * 40}"
    merge(opened(write(tmp_path / "math", 0, base_model_name_or_path=base))).save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["base_model_name_or_path"] == "acme/base"


def test_a_folder_cannot_be_asserted_as_base(parents: tuple[Path, Path]) -> None:
    with pytest.raises(IncompatibleAdapters, match="base_not_on_hub"):
        merge(opened(*parents), base="/home/ann/llama")


def test_two_adapters_of_one_folder_name_are_told_apart(tmp_path: Path, hub: Hub) -> None:
    folders = [write(tmp_path / run / "adapter", seed) for seed, run in enumerate(("a", "b"))]
    merge(opened(*folders), weights=[1, 2]).save_pretrained(tmp_path / "out")
    record = read_record(tmp_path / "out")
    assert [parent.name for parent in record.parents] == ["adapter", "adapter-2"]
    assert record.scores["adapters"] == ["adapter", "adapter-2"]
    first, second = map(dense, folders)
    assert_deltas(tmp_path / "out", {module: delta + 2 * second[module] for module, delta in first.items()})
    assert verify(tmp_path / "out", parents=list(reversed(folders)), hub=hub).passed


# --- what the user accepts --------------------------------------------------------------------------------------------


def test_an_accepted_finding_and_an_asserted_base_stand_in_record_and_recipe(tmp_path: Path, hub: Hub) -> None:
    folders = [
        write(tmp_path / "math", 0),
        write(tmp_path / "classifier", 1, task_type="SEQ_CLS", base_model_name_or_path="acme/copy"),
    ]
    with pytest.raises(IncompatibleAdapters) as refused:
        merge(opened(*folders))
    assert [found.code for found in refused.value.report.problems] == ["base_differs", "task_differs"]
    merge(opened(*folders), base="acme/base", allow=["task_differs"]).save_pretrained(tmp_path / "out")
    record = read_record(tmp_path / "out")
    assert (record.base_model, record.recipe.base_model, record.recipe.allow) == (
        "acme/base",
        "acme/base",
        ("task_differs",),
    )
    told = {found["code"]: found for found in record.findings}
    assert told["task_differs"]["severity"] == "caution" and "accepted by the user" in told["task_differs"]["seen"]
    assert "acme/copy" in told["base_asserted"]["seen"]
    assert verify(tmp_path / "out", parents=folders, hub=hub).passed


def test_a_finding_that_cannot_be_overruled_stays_a_problem(tmp_path: Path) -> None:
    folder = write(tmp_path / "dora", 0, use_dora=True)
    with pytest.raises(IncompatibleAdapters, match="dora"):
        merge(opened(folder), allow=["dora"])


# --- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "choices"),
    [("sum", {}), ("svd", {"rank": 2}), ("lego", {"rank": 3, "seed": 5, "feature": "unit_halves"}), ("mean", {})],
)
def test_the_written_recipe_gives_the_same_bytes_again(
    method: str, choices: dict[str, Any], parents: tuple[Path, Path], tmp_path: Path, hub: Hub
) -> None:
    weights = [1.0, {"layers.0": -0.3, "*": 1e-3}]
    merge(opened(*parents), method, weights=weights, **choices).save_pretrained(tmp_path / "out")
    recipe = Recipe.from_yaml((tmp_path / "out" / RECIPE).read_text())
    record = merge_to_folder(recipe, tmp_path / "again", hub=hub, sources_from=tmp_path)
    everything = (CONFIG, WEIGHTS, RECORD, RECIPE, CARD)
    assert sha(tmp_path / "again", *everything) == sha(tmp_path / "out", *everything)
    assert record.recipe == recipe


def test_every_process_writes_the_same_bytes_of_a_recipe(parents: tuple[Path, Path], tmp_path: Path) -> None:
    """Neither hash seeds nor the number of threads may show."""
    recipe = Recipe("lego", (Source("./math"), Source("./medicine", -0.5)), rank=2, seed=3)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    results = []
    for run, (hash_seed, threads) in enumerate([("1", "1"), ("2", "4")]):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "OPENBLAS_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, "-m", "hub_merge", "merge", "recipe.yaml", "-o", f"run{run}", "--json"]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=120)
        results.append(sha(tmp_path / f"run{run}", CONFIG, WEIGHTS, RECORD, RECIPE, CARD))
    assert results[0] == results[1]


def test_relative_parents_of_a_recipe_start_at_its_folder(
    parents: tuple[Path, Path], tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = Recipe("sum", (Source("./math"), Source("./medicine")))
    merge_to_folder(recipe, tmp_path / "out", hub=hub, sources_from=tmp_path)
    assert names(tmp_path / "out") == FILES
    with pytest.raises(AdapterNotFound, match="math"):
        merge_to_folder(recipe, tmp_path / "other", hub=hub)
    assert not (tmp_path / "other").exists()


# --- whole or not at all ----------------------------------------------------------------------------------------------


@pytest.fixture
def breaking_method() -> Iterator[str]:
    """A method that works for two modules and raises on the third; gone from the registry afterwards."""
    calls = []

    @merge_method("breaks_on_third_module", formula="none")
    def breaks_on_third_module(
        parts: list[LoraFactors], weights: list[float], *, rank: int | None = None, rng: np.random.Generator
    ) -> LoraFactors:
        """Return the first part, twice."""
        calls.append(rank)
        if len(calls) == 3:
            raise RuntimeError("the third module")
        return parts[0]

    yield "breaks_on_third_module"
    del registry._methods["breaks_on_third_module"]


def test_a_failure_midway_leaves_nothing_behind(
    breaking_method: str, parents: tuple[Path, Path], tmp_path: Path
) -> None:
    before = names(tmp_path)
    with pytest.raises(RuntimeError, match="the third module"):
        merge(opened(*parents), breaking_method).save_pretrained(tmp_path / "deep" / "er" / "out")
    assert names(tmp_path) == before


def test_with_force_a_failure_midway_leaves_the_old_composite_in_place(
    breaking_method: str, parents: tuple[Path, Path], tmp_path: Path
) -> None:
    merge(opened(*parents)).save_pretrained(tmp_path / "out")
    before, files = names(tmp_path), sha(tmp_path / "out", *FILES)
    with pytest.raises(RuntimeError, match="the third module"):
        merge(opened(*parents), breaking_method).save_pretrained(tmp_path / "out", force=True)
    assert names(tmp_path) == before and sha(tmp_path / "out", *FILES) == files


def test_an_output_that_exists_is_refused_and_force_replaces_an_adapter_only(
    parents: tuple[Path, Path], tmp_path: Path, hub: Hub
) -> None:
    merge(opened(parents[0])).save_pretrained(tmp_path / "out")
    composite = merge(opened(*parents))
    with pytest.raises(OutputExists, match="--force"):
        composite.save_pretrained(tmp_path / "out")
    composite.save_pretrained(tmp_path / "out", force=True)
    assert len(read_record(tmp_path / "out").parents) == 2
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("years of work")
    with pytest.raises(OutputExists, match="holds no composite"):
        composite.save_pretrained(tmp_path / "thesis", force=True)
    assert names(tmp_path / "thesis") == {"chapter1"}


def test_an_output_in_use_is_told_before_any_parent_is_opened(tmp_path: Path, hub: Hub) -> None:
    write(tmp_path / "out", 0)
    with pytest.raises(OutputExists):
        merge_to_folder(Recipe("sum", (Source("./absent"),)), tmp_path / "out", hub=hub)


def test_a_composite_never_replaces_its_own_parent(parents: tuple[Path, Path], tmp_path: Path) -> None:
    merge(opened(*parents)).save_pretrained(tmp_path / "first")
    for parent in (parents[0], tmp_path / "first"):
        before = {path.name: path.read_bytes() for path in parent.iterdir()}
        with pytest.raises(OutputExists, match="goes into the merge"):
            merge(opened(parent), weights=[-1]).save_pretrained(parent, force=True)
        assert {path.name: path.read_bytes() for path in parent.iterdir()} == before


def test_the_recipe_of_a_composite_runs_with_its_local_parents_named_behind_it(
    parents: tuple[Path, Path], tmp_path: Path, hub: Hub
) -> None:
    merge(opened(*parents), weights=[1, -0.5]).save_pretrained(tmp_path / "first" / "out")
    recipe = Recipe.from_yaml((tmp_path / "first" / "out" / "recipe.yaml").read_text(encoding="utf-8"))
    with pytest.raises(AdapterNotFound, match="no such folder"):
        merge_to_folder(recipe, tmp_path / "again", hub=hub, sources_from=tmp_path / "first" / "out")
    merge_to_folder(recipe, tmp_path / "again", hub=hub, sources_from=tmp_path / "first" / "out", parents=parents)
    weights = "adapter_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "first" / "out" / weights).read_bytes()


def test_a_rank_beyond_what_the_adapters_have_is_told(parents: tuple[Path, Path]) -> None:
    composite = merge(opened(*parents), rank=1000)
    assert any("rank 1000 is more than" in found.seen for found in composite.compatibility.report.cautions)


# --- other ways in ----------------------------------------------------------------------------------------------------


def test_a_plain_adapter_is_saved_as_the_sum_of_itself_alone(parents: tuple[Path, Path], tmp_path: Path) -> None:
    Adapter.from_pretrained(parents[0]).save_pretrained(tmp_path / "out")
    assert_deltas(tmp_path / "out", dense(parents[0]))
    assert read_record(tmp_path / "out").recipe.models == (Source("./math", 1.0),)


def test_saving_a_dora_adapter_is_refused_with_the_whole_list(tmp_path: Path) -> None:
    folder = write(tmp_path / "dora", 0, use_dora=True, lora_bias=True, trainable_token_indices=[1])
    with pytest.raises(IncompatibleAdapters) as refused:
        Adapter.from_pretrained(folder).save_pretrained(tmp_path / "out")
    assert {found.code for found in refused.value.report.problems} == {"dora", "lora_bias", "trainable_tokens"}
    assert all(f"[{code}]" in str(refused.value) for code in ("dora", "lora_bias", "trainable_tokens"))
    assert names(tmp_path) == {"dora"}


def test_a_composite_in_memory_can_be_merged_on_like_the_written_one(
    parents: tuple[Path, Path], tmp_path: Path
) -> None:
    math, medicine = opened(*parents)
    inner = merge([math, medicine], weights=[1, -2])
    inner.save_pretrained(tmp_path / "inner")
    merge([inner, math], weights=[0.5, 3]).save_pretrained(tmp_path / "from_memory")
    merge([*opened(tmp_path / "inner"), math], weights=[0.5, 3]).save_pretrained(tmp_path / "from_disk")
    first, second = map(dense, parents)
    wanted = {module: 3.5 * delta - second.get(module, 0.0) for module, delta in first.items()}
    for name in ("from_memory", "from_disk"):
        assert_deltas(tmp_path / name, wanted)


def test_a_parent_that_was_only_in_memory_cannot_be_verified_and_the_error_says_why(
    parents: tuple[Path, Path], tmp_path: Path, hub: Hub
) -> None:
    math, medicine = opened(*parents)
    merge([merge([math, medicine]), math]).save_pretrained(tmp_path / "out")
    result = verify(tmp_path / "out", parents=parents, hub=hub)
    assert result.verdict == "parents gone" and result.proof is None
    (missing,) = result.missing
    assert "Parent composite was only in memory" in missing.detail
    assert "Save such a parent first" in (missing.remedy or "")


def test_a_composite_of_a_composite_is_verified_with_the_inner_one(
    parents: tuple[Path, Path], tmp_path: Path, hub: Hub
) -> None:
    merge(opened(*parents), "svd", rank=2).save_pretrained(tmp_path / "inner")
    merge(opened(tmp_path / "inner", parents[0])).save_pretrained(tmp_path / "outer")
    assert verify(tmp_path / "outer", parents=[parents[0], tmp_path / "inner"], hub=hub).passed
    assert verify(tmp_path / "inner", parents=parents, hub=hub).passed


def test_factors_of_a_composite_are_there_without_saving_it(parents: tuple[Path, Path]) -> None:
    composite = merge(opened(*parents), weights=[1, 2])
    assert isinstance(composite, Composite)
    module = "layers.1.q_proj"
    parts = [adapter.factors(module) for adapter in opened(*parents)]
    assert relative_error(composite.factors(module).delta(), dense_sum(parts, [1, 2])) <= 1e-6


def test_progress_counts_each_module_once_when_written_and_once_when_proved(
    parents: tuple[Path, Path], tmp_path: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    save(merge(opened(*parents)), tmp_path / "out", progress=lambda *step: seen.append(step))
    assert seen == [(step, done, 4) for step in ("write", "prove") for done in range(5)]


def test_a_method_tells_of_what_it_cannot_do_well_in_the_report(parents: tuple[Path, Path]) -> None:
    cautions = merge(opened(*parents), "lego", weights=[1, -1]).compatibility.report.cautions
    assert [found.seen for found in cautions if found.code == "method"] != []
    assert not [
        found for found in merge(opened(*parents), "lego").compatibility.report.cautions if found.code == "method"
    ]


def test_the_card_of_a_folder_keeps_what_the_user_wrote_around_ours(parents: tuple[Path, Path], tmp_path: Path) -> None:
    merge(opened(*parents)).save_pretrained(tmp_path / "out")
    path = tmp_path / "out" / CARD
    assert card_of(tmp_path / "out") == path.read_text()
    path.write_text(path.read_text() + "\nMy own words.\n")
    assert "My own words." in card_of(tmp_path / "out", repo_id="ann/mine")
    assert "ann/mine" not in path.read_text()
    card_of(tmp_path / "out", repo_id="ann/mine", write=True)
    assert "ann/mine" in path.read_text() and "My own words." in path.read_text()


def test_measured_results_are_added_to_record_and_card_of_a_folder(parents: tuple[Path, Path], tmp_path: Path) -> None:
    folder = merge(opened(*parents)).save_pretrained(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / CARD).write_text((folder / CARD).read_text() + "\nMy own words.\n")
    first = Measurement("acme/exam", "test", "perplexity", 3.5, "answers only", 20)
    add_measurements(folder, [first])
    record = add_measurements(folder, [replace(first, value=3.25), replace(first, subject="base", value=9.0)])
    assert record == read_record(folder)
    assert [(entry.subject, entry.value) for entry in record.measured] == [("", 3.25), ("base", 9.0)]
    card = (folder / CARD).read_text()
    assert "| perplexity | 3.25 |" in card and "My own words." in card and "3.50" not in card
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (CARD, RECORD)} == {
        name: content for name, content in before.items() if name not in (CARD, RECORD)
    }
    again = card
    add_measurements(folder, [])
    assert (folder / CARD).read_text() == again


def test_check_and_score_by_reference_read_folders(parents: tuple[Path, Path], hub: Hub) -> None:
    references = [str(folder) for folder in parents]
    result = check_references(references, hub=hub)
    assert result.compatible and result.adapters == ("math", "medicine")
    scores = score_references(references, hub=hub, weights=[1, 2])
    first, second = map(dense, parents)
    cosines = [
        np.sum(first[module] * second[module]) / np.linalg.norm(first[module]) / np.linalg.norm(second[module])
        for module in second
    ]
    assert scores.rms_cosine == pytest.approx(np.sqrt(np.mean(np.square(cosines))), rel=1e-6)


def test_adapters_that_cannot_be_merged_can_be_scored_unless_their_deltas_cannot_be_compared(
    tmp_path: Path, hub: Hub
) -> None:
    math = write(tmp_path / "math", 0)
    other = write(tmp_path / "other", 1, base_model_name_or_path="acme/other", task_type="SEQ_CLS")
    tokens = write(tmp_path / "tokens", 3, trainable_token_indices=[1])
    dora = write(tmp_path / "dora", 2, use_dora=True)
    assert score_references([str(math), str(other), str(tokens)], hub=hub).rms_cosine is not None
    with pytest.raises(IncompatibleAdapters, match=r"\[dora\]") as refused:
        score_references([str(math), str(other), str(dora)], hub=hub)
    assert [found.code for found in refused.value.report.problems] == ["dora"]


# --- verifying --------------------------------------------------------------------------------------------------------
# Deleted repositories, changed bytes and other tensors: tests/test_verification.py


def test_local_parents_are_recognised_by_their_hashes_wherever_they_lie(
    parents: tuple[Path, Path], tmp_path: Path, hub: Hub
) -> None:
    merge(opened(*parents), "lego", seed=4).save_pretrained(tmp_path / "out")
    moved = [folder.rename(tmp_path / f"moved{i}") for i, folder in enumerate(parents)]
    (moved[0] / CARD).write_text("a card is not what was merged")
    result = verify(str(tmp_path / "out"), parents=[str(folder) for folder in reversed(moved)], hub=hub)
    assert result.verdict == "reproduced" and result.proof is not None
    assert result.proof.reference == "recomputed" and result.proof.max_error == 0
    assert [entry.name for entry in result.proof.retention] == ["math", "medicine"]


def test_a_parent_that_is_not_given_is_named(parents: tuple[Path, Path], tmp_path: Path, hub: Hub) -> None:
    merge(opened(*parents)).save_pretrained(tmp_path / "out")
    result = verify(tmp_path / "out", parents=parents[:1], hub=hub)
    assert result.verdict == "parents gone" and not result.passed
    assert [(missing.source, missing.model) for missing in result.missing] == [("medicine", "./medicine")]
    assert result.missing[0].local and "where it is now" in (result.missing[0].remedy or "")


def test_a_wrong_or_changed_parent_is_named_with_its_file(parents: tuple[Path, Path], tmp_path: Path, hub: Hub) -> None:
    merge(opened(*parents)).save_pretrained(tmp_path / "out")
    wrong = write(tmp_path / "wrong" / "medicine", 9, rank=2, names=("q_proj",))
    result = verify(tmp_path / "out", parents=[parents[0], wrong], hub=hub)
    assert result.verdict == "differs"
    assert {(found.source, found.file) for found in result.differences if found.source} == {("medicine", WEIGHTS)}
    config = parents[1] / CONFIG
    config.write_text(config.read_text().replace('"lora_alpha": 6', '"lora_alpha": 7'))
    result = verify(tmp_path / "out", parents=parents, hub=hub)
    assert result.verdict == "differs"
    assert [(found.source, found.file) for found in result.differences if found.source] == [("medicine", CONFIG)]


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_changed_composite_is_told_with_the_name_of_the_file(
    name: str, parents: tuple[Path, Path], tmp_path: Path, hub: Hub
) -> None:
    merge(opened(*parents)).save_pretrained(tmp_path / "out")
    content = bytearray((tmp_path / "out" / name).read_bytes())
    content[-3] ^= 0x40 if name == WEIGHTS else 0
    (tmp_path / "out" / name).write_bytes(bytes(content) + (b"\n" if name == CONFIG else b""))
    result = verify(tmp_path / "out", parents=parents, hub=hub)
    assert result.verdict == "differs"
    assert {(found.source, found.file) for found in result.differences} == {("", name)}


def test_a_record_that_tells_of_another_merge_does_not_pass(
    parents: tuple[Path, Path], tmp_path: Path, hub: Hub
) -> None:
    merge(opened(*parents)).save_pretrained(tmp_path / "out")
    path = tmp_path / "out" / RECORD
    record = json.loads(path.read_text())
    record["recipe"]["models"][1]["parameters"]["weight"] = 0.999
    path.write_text(json.dumps(record))
    result = verify(tmp_path / "out", parents=parents, hub=hub)
    assert result.verdict == "differs" and result.proof is not None and not result.proof.passed
    assert [check.name for check in result.proof.checks if not check.passed] == ["delta", "retention"]


def test_what_is_no_composite_cannot_be_verified(parents: tuple[Path, Path], hub: Hub) -> None:
    with pytest.raises(AdapterNotFound, match=r"hub_merge\.json"):
        verify(parents[0], hub=hub)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1}', "\x00"])
def test_a_damaged_record_is_told_as_such(content: str, parents: tuple[Path, Path], tmp_path: Path, hub: Hub) -> None:
    merge(opened(*parents)).save_pretrained(tmp_path / "out")
    (tmp_path / "out" / RECORD).write_text(content)
    with pytest.raises(RecipeError, match=r"hub_merge\.json"):
        verify(tmp_path / "out", parents=parents, hub=hub)
