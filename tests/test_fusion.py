"""Folding an adapter into a full model: which tensors change, what is carried over, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hub_merge.adapter import Adapter, Origin
from hub_merge.errors import (
    AdapterFormatError,
    CheckpointError,
    HubMergeError,
    IncompatibleAdapters,
    MergeError,
    OutputExists,
    ProofFailed,
    PublishError,
    RecipeError,
)
from hub_merge.formats.checkpoints import open_checkpoint
from hub_merge.fusion import folding, fuse, is_fused, push_fused, verify
from hub_merge.fusion.folding import fold_into, plan_fold, tensor_of
from hub_merge.fusion.proof import prove_fusion
from hub_merge.fusion.record import FusionRecord, read_fusion
from hub_merge.hub import Hub, Reference
from hub_merge.pipeline import card_of, merge, save
from tests.helpers import peft_config, write_adapter
from tests.hub_double import HubDouble

Arrays = dict[str, NDArray[Any]]

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
Q = "model.layers.0.self_attn.q_proj"
OFFLINE = Hub(offline=True)


def weights(rng: np.random.Generator, dtype: Any = np.float32) -> Arrays:
    """Return a model of two adapted matrices ``(6, 5)``, a norm, an embedding and a scalar of integers."""
    shapes = {
        "model.embed_tokens.weight": (7, 5),
        f"{Q}.weight": (6, 5),
        "model.layers.1.self_attn.q_proj.weight": (6, 5),
        "model.norm.weight": (5,),
        "lm_head.weight": (7, 5),
    }
    tensors: Arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    tensors["model.steps"] = np.array(3, np.int64)
    return tensors


def write_model(folder: Path, tensors: Arrays, config: Mapping[str, Any] = LLAMA, shards: int = 1) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    home = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(home.values()):
        save_file({name: tensor for name, tensor in tensors.items() if home[name] == file}, folder / file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": home}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def factors(rng: np.random.Generator, *modules: str, shape: tuple[int, int] = (6, 5)) -> Arrays:
    tensors: Arrays = {}
    for module in modules:
        tensors[f"base_model.model.{module}.lora_A.weight"] = rng.standard_normal((2, shape[1])).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = rng.standard_normal((shape[0], 2)).astype(np.float32)
    return tensors


def write_lora(folder: Path, tensors: Arrays, **config: Any) -> Path:
    return write_adapter(folder, tensors, peft_config(target_modules=["q_proj"], **config))


def delta(tensors: Arrays, module: str, scaling: float = 2.0) -> NDArray[np.float64]:
    """Return the delta of peft_config's rank 2 and alpha 4, dense."""
    A, B = (tensors[f"base_model.model.{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return scaling * np.einsum("or,ri->oi", B, A)


@pytest.fixture
def model(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_model(tmp_path / "base", weights(rng))


@pytest.fixture
def lora(tmp_path: Path, rng: np.random.Generator) -> Path:
    return write_lora(tmp_path / "lora", factors(rng, Q))


# --- the sum ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_each_weight_is_the_nearest_to_base_plus_delta_and_the_rest_is_copied(
    dtype: Any, shards: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    tensors, lora = weights(rng, dtype), factors(rng, Q)
    base = write_model(tmp_path / "base", tensors, shards=shards)
    record = fuse(write_lora(tmp_path / "lora", lora), tmp_path / "out", base=base, hub=OFFLINE)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    fused = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert [file.name for file in files] == sorted(file.name for file in base.glob("*.safetensors"))
    wanted = {**tensors, f"{Q}.weight": (tensors[f"{Q}.weight"].astype(np.float64) + delta(lora, Q)).astype(dtype)}
    assert fused.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert fused[name].dtype == tensor.dtype
        assert fused[name].tobytes() == tensor.tobytes(), name
    assert (record.proof["changed"], record.proof["copied"]) == (1, 5)
    if shards > 1:
        index = "model.safetensors.index.json"
        assert (tmp_path / "out" / index).read_bytes() == (base / index).read_bytes()


def test_the_record_tells_what_rounding_took_of_the_delta(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors, lora = weights(rng, ml_dtypes.bfloat16), factors(rng, Q)
    base = write_model(tmp_path / "base", tensors)
    record = fuse(write_lora(tmp_path / "lora", lora, lora_alpha=0.02), tmp_path / "out", base=base, hub=OFFLINE)
    exact, before = delta(lora, Q, 0.01), tensors[f"{Q}.weight"].astype(np.float64)
    after = load_file(tmp_path / "out" / "model.safetensors")[f"{Q}.weight"].astype(np.float64)
    assert record.proof["rounding"] == pytest.approx(np.linalg.norm(after - before - exact) / np.linalg.norm(exact))
    assert record.proof["change"] == pytest.approx(np.linalg.norm(exact) / np.linalg.norm(before))


def test_small_blocks_change_no_bit(model: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuse(lora, tmp_path / "whole", base=model, hub=OFFLINE)
    monkeypatch.setattr(folding, "BLOCK", 7)
    fuse(lora, tmp_path / "blocks", base=model, hub=OFFLINE)
    whole, blocks = (tmp_path / name / "model.safetensors" for name in ("whole", "blocks"))
    assert whole.read_bytes() == blocks.read_bytes()


def test_a_number_that_is_one_step_off_fails_the_proof(model: Path, lora: Path, tmp_path: Path) -> None:
    plan = plan_fold(open_checkpoint(model, Origin()), Adapter.from_pretrained(lora))
    (tmp_path / "out").mkdir()
    fold_into(plan, tmp_path / "out")
    assert prove_fusion(plan, tmp_path / "out").passed
    path = tmp_path / "out" / "model.safetensors"
    for name, failing in ((f"{Q}.weight", "delta"), ("model.norm.weight", "copies")):
        tensors = load_file(path)
        kept = path.read_bytes()
        tensors[name] = np.nextafter(tensors[name], np.float32(9))
        save_file(tensors, path)
        proof = prove_fusion(plan, tmp_path / "out")
        assert [check.name for check in proof.checks if not check.passed] == [failing]
        path.write_bytes(kept)
    path.write_bytes(kept[:-1])
    assert [check.name for check in prove_fusion(plan, tmp_path / "out").checks if not check.passed] == ["files"]


def test_a_sum_that_overflows_leaves_nothing_behind(tmp_path: Path, rng: np.random.Generator) -> None:
    base = write_model(tmp_path / "base", weights(rng, np.float16))
    lora = write_lora(tmp_path / "lora", factors(rng, Q), lora_alpha=1e6)
    with pytest.raises(ProofFailed, match="overflow"):
        fuse(lora, tmp_path / "out", base=base, hub=OFFLINE)
    assert not (tmp_path / "out").exists()


MEASURE = dedent(
    """
    import sys, tracemalloc
    from pathlib import Path
    from hub_merge.fusion import fuse
    from hub_merge.hub import Hub

    tracemalloc.start()
    fuse(Path(sys.argv[1]), Path(sys.argv[3]), base=Path(sys.argv[2]), hub=Hub(offline=True))
    print(tracemalloc.get_traced_memory()[1])
    """
)


def test_memory_stays_below_two_of_the_largest_tensors(tmp_path: Path, rng: np.random.Generator) -> None:
    """Six tensors of 32 MB, each changed; the whole of it is 200 MB."""
    side, modules = 4096, [f"model.layers.{layer}.self_attn.q_proj" for layer in range(6)]
    block = rng.standard_normal((64, side)).astype(ml_dtypes.bfloat16)
    base = write_model(tmp_path / "base", {f"{module}.weight": np.tile(block, (64, 1)) for module in modules})
    lora = write_lora(tmp_path / "lora", factors(rng, *modules, shape=(side, side)))
    command = [sys.executable, "-c", MEASURE, str(lora), str(base), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, capture_output=True, timeout=120)
    assert int(done.stdout) < 2 * side * side * 2


# --- which tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "module", "found"),
    [
        (["a.b.weight", "x.a.b.weight"], "a.b", ["a.b.weight"]),
        (["h.0.c_attn.weight"], "transformer.h.0.c_attn", ["h.0.c_attn.weight"]),
        (["model.layers.0.q.weight"], "layers.0.q", ["model.layers.0.q.weight"]),
        (["t.layers.0.q.weight", "v.layers.0.q.weight"], "layers.0.q", ["t.layers.0.q.weight", "v.layers.0.q.weight"]),
        (["model.layers.1.gate.weight"], "model.layers.2.gate", []),
        (["language_model.model.l.q.weight"], "model.language_model.l.q", ["language_model.model.l.q.weight"]),
        (["xlayers.0.q.weight"], "layers.0.q", []),
    ],
)  # fmt: skip
def test_a_module_is_found_by_its_name_or_by_their_common_end(names: list[str], module: str, found: list[str]) -> None:
    assert tensor_of(names)(module) == found


def test_every_module_that_does_not_fit_is_listed_at_once(
    model: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    tensors = {**factors(rng, "model.layers.7.self_attn.q_proj"), **factors(rng, Q, shape=(5, 6))}
    lora = write_lora(tmp_path / "lora", tensors)
    with pytest.raises(MergeError) as error:
        fuse(lora, tmp_path / "out", base=model, hub=OFFLINE)
    assert "lora does not fit base: of its 2 modules" in error.value.problem
    assert "1 of another shape (model.layers.0.self_attn.q_proj [5, 6], in the base [6, 5])" in error.value.problem
    assert "1 that it lacks (model.layers.7.self_attn.q_proj)" in error.value.problem
    assert "--base" in str(error.value.remedy)
    assert not (tmp_path / "out").exists()


def test_two_modules_of_one_tensor_are_refused(model: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    lora = write_lora(tmp_path / "lora", factors(rng, Q, Q.removeprefix("model.")))
    with pytest.raises(MergeError, match=r"that are one tensor in it"):
        fuse(lora, tmp_path / "out", base=model, hub=OFFLINE)


def test_a_conv1d_takes_the_transpose_even_where_the_shape_does_not_tell(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    names = ["h.0.attn.c_proj", "h.0.mlp.c_fc"]
    tensors: Arrays = {
        f"{names[0]}.weight": rng.standard_normal((6, 6)).astype(np.float32),
        f"{names[1]}.weight": rng.standard_normal((6, 9)).astype(np.float32),
    }
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}
    base = write_model(tmp_path / "base", tensors, config)
    lora = {
        **factors(rng, f"transformer.{names[0]}", shape=(6, 6)),
        **factors(rng, f"transformer.{names[1]}", shape=(9, 6)),
    }
    folder = write_adapter(tmp_path / "lora", lora, peft_config(target_modules=["c_proj", "c_fc"], fan_in_fan_out=True))
    fuse(folder, tmp_path / "out", base=base, hub=OFFLINE)
    fused = load_file(tmp_path / "out" / "model.safetensors")
    for name in names:
        wanted = tensors[f"{name}.weight"] + delta(lora, f"transformer.{name}").T
        np.testing.assert_allclose(fused[f"{name}.weight"], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_tied_head_becomes_a_tensor_of_its_own(shards: int, tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = weights(rng)
    del tensors["lm_head.weight"]
    config = {**LLAMA, "tie_word_embeddings": True, "_name_or_path": "/home/someone/llama"}
    base = write_model(tmp_path / "base", tensors, config, shards=shards)
    lora = factors(rng, "lm_head", shape=(7, 5))
    folder = write_adapter(tmp_path / "lora", lora, peft_config(target_modules=["lm_head"]))
    record = fuse(folder, tmp_path / "out", base=base, hub=OFFLINE)
    out = tmp_path / "out"
    fused = {name: tensor for file in out.glob("*.safetensors") for name, tensor in load_file(file).items()}
    embedding = tensors["model.embed_tokens.weight"]
    np.testing.assert_array_equal(fused["model.embed_tokens.weight"], embedding)
    np.testing.assert_allclose(fused["lm_head.weight"], embedding + delta(lora, "lm_head"), rtol=0, atol=1e-6)
    assert json.loads((out / "config.json").read_text()) == {**LLAMA, "tie_word_embeddings": False}
    assert record.output["untied"]
    assert "tie_word_embeddings" in record.cautions[0]
    if shards > 1:
        index = json.loads((out / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == fused.keys()
        assert index["weight_map"]["lm_head.weight"] == index["weight_map"]["model.embed_tokens.weight"]
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in fused.values())


def test_an_embedding_that_an_encoder_and_a_decoder_share_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True}
    base = write_model(tmp_path / "base", {"shared.weight": rng.standard_normal((7, 5)).astype(np.float32)}, config)
    tensors = {
        "base_model.model.shared.lora_embedding_A": rng.standard_normal((2, 7)).astype(np.float32),
        "base_model.model.shared.lora_embedding_B": rng.standard_normal((5, 2)).astype(np.float32),
    }
    lora = write_adapter(tmp_path / "lora", tensors, peft_config(target_modules=["shared"]))
    with pytest.raises(MergeError, match="several layers share"):
        fuse(lora, tmp_path / "out", base=base, hub=OFFLINE)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_quantised_base_is_refused_with_the_way_out(model: Path, lora: Path, tmp_path: Path) -> None:
    config = {**LLAMA, "quantization_config": {"quant_method": "bitsandbytes"}}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"quantised \(bitsandbytes\)") as error:
        fuse(lora, tmp_path / "out", base=model, hub=OFFLINE)
    assert "--base" in str(error.value.remedy)


def test_a_base_of_packed_weights_without_a_word_in_its_config_is_refused(
    tmp_path: Path, lora: Path, rng: np.random.Generator
) -> None:
    packed = write_model(tmp_path / "packed", {f"{Q}.qweight": np.zeros((6, 1), np.int32)})
    with pytest.raises(MergeError, match="lacks") as error:
        fuse(lora, tmp_path / "out", base=packed, hub=OFFLINE)
    assert "quantised from" in str(error.value.remedy)
    float8 = write_model(tmp_path / "f8", {f"{Q}.weight": rng.standard_normal((6, 5)).astype(ml_dtypes.float8_e4m3fn)})
    with pytest.raises(CheckpointError, match="float8_e4m3fn"):
        fuse(lora, tmp_path / "out", base=float8, hub=OFFLINE)


@pytest.mark.parametrize(
    ("broken", "error", "told"),
    [
        ({"config.json": None}, CheckpointError, "no full model"),
        ({"config.json": b"["}, CheckpointError, "not JSON"),
        ({"model.safetensors": None, "pytorch_model.bin": b"PK"}, CheckpointError, "pytorch_model.bin"),
        ({"model.safetensors": b"broken"}, AdapterFormatError, "not a sound safetensors file"),
        (
            {"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'},
            AdapterFormatError,
            "out of its folder",
        ),
        (
            {"model.safetensors": None, "model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors"}}'},
            CheckpointError,
            "Shard x.safetensors of base is missing",
        ),
    ],
)
def test_a_base_that_is_no_sound_model_is_named(
    broken: Mapping[str, bytes | None],
    error: type[HubMergeError],
    told: str,
    model: Path,
    lora: Path,
    tmp_path: Path,
) -> None:
    for name, content in broken.items():
        (model / name).unlink(missing_ok=True)
        if content is not None:
            (model / name).write_bytes(content)
    with pytest.raises(error, match=told):
        fuse(lora, tmp_path / "out", base=model, hub=OFFLINE)


def test_an_adapter_that_is_more_than_its_factors_is_refused(
    model: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    tensors = {**factors(rng, Q), "base_model.model.score.weight": np.ones((2, 5), np.float32)}
    with pytest.raises(IncompatibleAdapters, match="trained_weights"):
        fuse(write_lora(tmp_path / "lora", tensors), tmp_path / "out", base=model, hub=OFFLINE)


def test_an_adapter_without_a_base_on_the_hub_asks_for_one(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="states no base model") as error:
        fuse(lora, tmp_path / "out", hub=OFFLINE)
    assert "--base" in str(error.value.remedy)


# --- the folder -------------------------------------------------------------------------------------------------------


def test_config_tokenizer_and_licence_travel_along_and_nothing_else_does(
    model: Path, lora: Path, tmp_path: Path
) -> None:
    carried = ["generation_config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja", "USE_POLICY.md"]
    left = ["training_args.bin", "optimizer.pt", "modeling_x.py", "notes.txt", "pytorch_model.bin"]
    for name in (*carried, *left, "LICENSE"):
        (model / name).write_text(name)
    fuse(lora, tmp_path / "out", base=model, hub=OFFLINE)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(*carried, "LICENSE", "config.json", "model.safetensors", "README.md", "hub_merge.json")
    }
    assert (tmp_path / "out" / "config.json").read_bytes() == (model / "config.json").read_bytes()


@pytest.mark.parametrize("given", [None, "Words of the base.\n"], ids=["alone", "behind the base's"])
def test_the_notice_that_a_licence_prescribes_is_written_recorded_and_published(
    given: str | None, model: Path, lora: Path, tmp_path: Path, hub_lfs: HubDouble
) -> None:
    for folder in (model, lora):
        (folder / "README.md").write_text("---\nlicense: llama3.1\n---\n")
    if given is not None:
        (model / "NOTICE").write_text(given)
    record = fuse(lora, tmp_path / "out", base=model, hub=OFFLINE)
    notice = (tmp_path / "out" / "NOTICE").read_text()
    assert notice.startswith(given.strip() if given else "Llama 3.1 is licensed under")
    assert notice.count("Llama 3.1 is licensed under") == 1 and "folding a LoRA adapter into a model" in notice
    assert "NOTICE" in {file["name"] for file in record.output["files"]}
    assert verify(tmp_path / "out", parents=[model, lora], hub=OFFLINE).verdict == "reproduced"
    push_fused(tmp_path / "out", "alice/Llama-mine", hub=connect(hub_lfs))
    assert hub_lfs.file("alice/Llama-mine", "NOTICE").decode() == notice


def test_code_travels_with_a_config_that_names_it(model: Path, lora: Path, tmp_path: Path) -> None:
    (model / "config.json").write_text(json.dumps({**LLAMA, "auto_map": {"AutoModel": "modeling_x.X"}}))
    (model / "modeling_x.py").write_text("class X: ...")
    fuse(lora, tmp_path / "out", base=model, hub=OFFLINE)
    assert (tmp_path / "out" / "modeling_x.py").is_file()


def test_a_fused_model_is_replaced_only_when_asked_and_only_if_it_is_one(
    model: Path, lora: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fuse(lora, out, base=model, hub=OFFLINE)
    with pytest.raises(OutputExists, match="exists already"):
        fuse(lora, out, base=model, hub=OFFLINE)
    card = (out / "README.md").read_text()
    (out / "README.md").write_text(card + "\nMy own words.\n")
    fuse(lora, out, base=model, hub=OFFLINE, force=True)
    assert "My own words." in (out / "README.md").read_text()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputExists, match=r"mine\.txt"):
        fuse(lora, out, base=model, hub=OFFLINE, force=True)
    with pytest.raises(OutputExists):
        fuse(lora, model, base=model, hub=OFFLINE, force=True)
    (out / "mine.txt").unlink()
    with pytest.raises(OutputExists, match="base itself"):
        fuse(lora, out, base=out, hub=OFFLINE, force=True)


def test_the_record_reads_back_and_tells_of_no_local_path(model: Path, lora: Path, tmp_path: Path) -> None:
    record = fuse(lora, tmp_path / "out", base=model, hub=OFFLINE)
    text = (tmp_path / "out" / "hub_merge.json").read_text()
    assert read_fusion(tmp_path / "out").to_json() == record.to_json() == text
    assert is_fused(tmp_path / "out")
    assert not is_fused(lora)
    for told in (text, (tmp_path / "out" / "README.md").read_text()):
        assert str(tmp_path) not in told
    with pytest.raises(RecipeError, match="fused model, made by another command"):
        card_of(tmp_path / "out")
    with pytest.raises(HubMergeError, match="not the record of a fused model"):
        FusionRecord.from_json('{"schema_version": 1, "kind": "other"}')


def test_the_record_of_a_newer_version_is_said_to_be_one(model: Path, lora: Path, tmp_path: Path) -> None:
    fuse(lora, tmp_path / "out", base=model, hub=OFFLINE)
    path = tmp_path / "out" / "hub_merge.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2', 1))
    with pytest.raises(RecipeError, match=r"schema version 2; this version reads up to 1\.") as refused:
        read_fusion(tmp_path / "out")
    assert refused.value.remedy == "Upgrade hub-merge."


def test_the_licence_texts_of_the_adapter_and_its_parents_travel_along(
    model: Path, lora: Path, tmp_path: Path, hub_lfs: HubDouble
) -> None:
    for folder in (model, lora):
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (lora / "LICENSE").write_text("Words of the adapter.\n")
    (model / "LICENSE").write_text("Words of the base.\n")
    fuse(lora, tmp_path / "plain", base=model, hub=OFFLINE)
    assert (tmp_path / "plain" / "LICENSE").read_text() == "Words of the base.\n"
    assert (tmp_path / "plain" / "LICENSES" / "adapter" / "LICENSE").read_text() == "Words of the adapter.\n"

    merged = save(merge([Adapter.from_pretrained(lora)]), tmp_path / "merged")
    for _ in range(2):  # the second replaces the first, texts and all
        record = fuse(merged, tmp_path / "out", base=model, hub=OFFLINE, force=True)
    name = "LICENSES/adapter/LICENSES/lora/LICENSE"
    assert (tmp_path / "out" / name).read_text() == "Words of the adapter.\n"
    assert name in {file["name"] for file in record.output["files"]}
    assert verify(tmp_path / "out", parents=[model, merged], hub=OFFLINE).verdict == "reproduced"
    push_fused(tmp_path / "out", "alice/full", hub=connect(hub_lfs), accept_unknown_license=True)
    assert hub_lfs.file("alice/full", name) == b"Words of the adapter.\n"


# --- on the Hub -------------------------------------------------------------------------------------------------------


def connect(hub: HubDouble) -> Hub:
    return Hub(token=hub.token("alice"), endpoint=hub.endpoint, cache_dir=hub.folder / "cache", timeout=5.0, retries=0)


def upload(hub: HubDouble, repo_id: str, folder: Path, **settings: Any) -> str:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return hub.add_repo(repo_id, {**files, "optimizer.pt": b"x"}, **settings)


def test_base_and_adapter_of_the_hub_are_pinned_and_the_result_published_once(
    hub: HubDouble, tmp_path: Path, rng: np.random.Generator
) -> None:
    hub.add_user("alice")
    base = write_model(tmp_path / "base", weights(rng), shards=2)
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    lora = write_lora(tmp_path / "lora", factors(rng, Q), base_model_name_or_path="acme/base", task_type="CAUSAL_LM")
    (lora / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    commits = upload(hub, "acme/base", base), upload(hub, "bob/lora", lora, gated="auto")
    hub.repo("bob/lora").gated = False
    client = connect(hub)
    record = fuse("bob/lora", tmp_path / "out", hub=client)
    assert (record.base.model, record.adapter.model) == (f"acme/base@{commits[0]}", f"bob/lora@{commits[1]}")
    assert record.license.identifier == "apache-2.0"
    assert not any("optimizer" in request.path for request in hub.requests)
    published = push_fused(tmp_path / "out", "alice/full", hub=client, private=True)
    assert published.created
    assert {file.name for file in published.files} == {path.name for path in (tmp_path / "out").iterdir()}
    again = push_fused(tmp_path / "out", "alice/full", hub=client)
    assert not again.changed
    card = client.readme(client.describe(Reference("alice/full"))) or ""
    assert "base_model: acme/base\nbase_model_relation: finetune" in card
    assert f"hub-merge fuse bob/lora@{commits[1]} --base acme/base@{commits[0]} -o fused" in card
    with pytest.raises(PublishError, match="made from"):
        push_fused(tmp_path / "out", "acme/base", hub=client)


def test_a_model_made_from_something_closed_is_published_in_private(
    hub_lfs: HubDouble, tmp_path: Path, rng: np.random.Generator
) -> None:
    hub_lfs.add_user("alice")
    upload(hub_lfs, "alice/base", write_model(tmp_path / "base", weights(rng)), private=True)
    lora = write_lora(tmp_path / "lora", factors(rng, Q), base_model_name_or_path="acme/other")
    record = fuse(lora, tmp_path / "out", base="alice/base", hub=connect(hub_lfs))
    assert record.cautions == ("The adapter states the base acme/other; it was folded into alice/base, as asked.",)
    push_fused(tmp_path / "out", "alice/full", hub=connect(hub_lfs), accept_unknown_license=True)
    assert hub_lfs.repo("alice/full").private


def test_whoever_pushes_a_fused_model_is_told_how_it_is_verified(
    hub_lfs: HubDouble, model: Path, lora: Path, tmp_path: Path
) -> None:
    hub_lfs.add_user("alice")
    fuse(lora, tmp_path / "out", base=model, hub=OFFLINE)
    words = ["push", "out", "alice/full", "--accept-unknown-license"]
    environment = {**os.environ, **hub_lfs.environment(tmp_path, "alice")}
    command = [sys.executable, "-m", "hub_merge", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert re.fullmatch("Hint: .* verify alice/full\n", done.stderr)


def test_a_model_that_the_licences_do_not_let_share_is_not_published(
    hub_lfs: HubDouble, tmp_path: Path, rng: np.random.Generator
) -> None:
    hub_lfs.add_user("alice")
    base = write_model(tmp_path / "base", weights(rng))
    (base / "README.md").write_text("---\nlicense: cc-by-nd-4.0\n---\n")
    lora = write_lora(tmp_path / "lora", factors(rng, Q))
    fuse(lora, tmp_path / "out", base=str(base), hub=OFFLINE)
    with pytest.raises(PublishError, match=r"\[license_unknown\] No licence is known for lora"):
        push_fused(tmp_path / "out", "alice/full", hub=connect(hub_lfs))
    with pytest.raises(PublishError, match=r"\[no_derivatives\] cc-by-nd-4.0 holds for base"):
        push_fused(tmp_path / "out", "alice/full", hub=connect(hub_lfs), accept_unknown_license=True)
    assert read_fusion(tmp_path / "out").base.license_details.found_in == "card"


def test_a_quantised_model_of_the_hub_is_refused_before_its_weights_are_downloaded(
    hub_lfs: HubDouble, lora: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    hub_lfs.add_user("alice")
    config = {**LLAMA, "quantization_config": {"quant_method": "gptq"}}
    upload(hub_lfs, "acme/quantised", write_model(tmp_path / "quantised", weights(rng), config))
    with pytest.raises(CheckpointError, match="gptq"):
        fuse(lora, tmp_path / "out", base="acme/quantised", hub=connect(hub_lfs))
    assert not any("model.safetensors" in request.path for request in hub_lfs.requests)


@pytest.mark.parametrize("trap", ["far too long", "a link that leads out"])
def test_a_record_that_is_a_trap_is_not_read(trap: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if trap == "far too long":
        (folder / "hub_merge.json").write_bytes(b" " * 10_000_001)
    else:
        (tmp_path / "elsewhere.json").write_text('{"kind": "fused"}')
        (folder / "hub_merge.json").symlink_to(tmp_path / "elsewhere.json")
    assert not is_fused(folder)
    with pytest.raises(AdapterFormatError, match=r"hub_merge\.json"):
        read_fusion(folder)


def test_the_index_of_a_model_may_be_longer_than_that_of_an_adapter(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = weights(rng)
    save_file(tensors, tmp_path / "model-00001-of-00001.safetensors")
    index = {
        "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors"),
        "metadata": {"x": "y" * 5_000_000},
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert open_checkpoint(tmp_path, Origin(folder=tmp_path)).infos.keys() == tensors.keys()
