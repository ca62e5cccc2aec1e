"""Reading PEFT's format: the delta of every module is the one PEFT computes; everything else is a finding."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from hub_merge.adapter import Adapter, LoraFactors, Origin
from hub_merge.errors import AdapterError, AdapterFormatError, ProofFailed, UnsupportedAdapter
from hub_merge.findings import Finding
from hub_merge.formats.peft import (
    Scalings,
    adapter_from_headers,
    adapter_from_tensors,
    open_folder,
    parse_config,
    weight_files,
    write_folder,
)
from hub_merge.formats.tensors import ArrayStore
from tests.helpers import adapter_of, peft_config, peft_tensors, random_factors, relative_error, write_adapter

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from peft.tuners.lora import LoraLayer  # noqa: E402
from peft.tuners.tuners_utils import check_target_module_exists  # noqa: E402
from peft.utils.other import get_pattern_key  # noqa: E402


def tiny_gpt2() -> Any:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=8, vocab_size=24)
    )


def tiny_llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=24,
        )
    )


def trained(base: Any, **config: Any) -> Any:
    """Return a PEFT model whose trainable tensors, B included, are random."""
    model = peft.get_peft_model(base, peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def deltas_of(model: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return PEFT's own delta of every module as ``(out, in)``; an embedding's as ``(dim, vocabulary)``."""
    deltas = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            delta = layer.get_delta_weight("default").detach().to(torch.float64).numpy()
            transposed = isinstance(layer.get_base_layer(), torch.nn.Embedding) or getattr(
                layer, "fan_in_fan_out", False
            )
            deltas[name.removeprefix("base_model.model.")] = delta.T if transposed else delta
    return deltas


def opened(folder: Path) -> Adapter:
    return open_folder(folder, name="it", origin=Origin())


def built(tensors: Mapping[str, Any], **config: Any) -> Adapter:
    return adapter_from_tensors(peft_config(**config), ArrayStore(tensors), name="it")


def codes(adapter: Adapter) -> list[str]:
    return [found.code for found in adapter.findings]


# --- the effective scaling, against PEFT ------------------------------------------------------------------------------

GPT2 = {"r": 4, "lora_alpha": 12, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
LLAMA = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj", "down_proj"]}

MODELS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "GPT-2's Conv1D": (tiny_gpt2, GPT2),
    "GPT-2, rsLoRA": (tiny_gpt2, {**GPT2, "use_rslora": True}),
    "GPT-2, rank pattern": (tiny_gpt2, {**GPT2, "rank_pattern": {"c_attn": 2, r"h\.1\.mlp\.c_proj": 7}}),
    "GPT-2, alpha pattern": (tiny_gpt2, {**GPT2, "alpha_pattern": {"mlp.c_proj": 5, r"h\.0\..*\.c_attn": 1}}),
    "GPT-2, anchored pattern": (
        tiny_gpt2,
        {**GPT2, "alpha_pattern": {"^transformer.h.0.attn.c_attn": 5, "^c_proj": 3}},
    ),
    "Llama": (tiny_llama, LLAMA),
    "Llama, rsLoRA and both patterns": (
        tiny_llama,
        {**LLAMA, "use_rslora": True, "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"v_proj": 7, "q_proj": 2}},
    ),
    "Llama, two patterns match and the first counts": (
        tiny_llama,
        {
            **LLAMA,
            "alpha_pattern": {"q_proj": 7, "layers.0.self_attn.q_proj": 2, "layers.1.mlp.down_proj": 3, "down_proj": 5},
        },
    ),
    "Llama, a dot in a pattern matches anything": (tiny_llama, {**LLAMA, "alpha_pattern": {"self.attn.q.proj": 5}}),
    "Llama, alpha 0": (tiny_llama, {**LLAMA, "lora_alpha": 0}),
    "Llama, alpha is no whole number": (tiny_llama, {**LLAMA, "lora_alpha": 0.3}),
    "GPT-2, embedding": (tiny_gpt2, {**GPT2, "target_modules": ["wte", "c_attn"]}),
    "Llama, embedding with rsLoRA and patterns": (
        tiny_llama,
        {
            "r": 4,
            "target_modules": ["embed_tokens", "q_proj"],
            "use_rslora": True,
            "rank_pattern": {"embed_tokens": 2},
            "alpha_pattern": {"embed_tokens": 9},
        },
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The folder that PEFT saved a model to, and that model as PEFT loads it again.

    Loading matters: PEFT sorts the patterns when it saves them, so where two match another one may count then.
    """
    base, config = MODELS[request.param]
    folder = tmp_path_factory.mktemp("saved")
    trained(base(), **config).save_pretrained(folder, save_embedding_layers=False)
    return peft.PeftModel.from_pretrained(base(), folder), folder


def assert_same_deltas(adapter: Adapter, wanted: Mapping[str, np.ndarray[Any, Any]]) -> None:
    assert set(adapter.modules) == set(wanted)
    for module, delta in wanted.items():
        ours = adapter.factors(module).delta()
        assert ours.shape == delta.shape == adapter.modules[module].shape
        assert np.linalg.norm(ours - delta) <= 1e-6 * np.linalg.norm(delta)


def test_the_delta_of_every_module_is_the_one_peft_computes(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    adapter = opened(folder)
    assert_same_deltas(adapter, deltas_of(model))
    assert [found for found in adapter.findings if found.severity == "problem"] == []


def test_an_adapter_from_a_state_dict_in_memory_is_the_same(saved: tuple[Any, Path]) -> None:
    model, _ = saved
    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    adapter = Adapter.from_state_dict(state, model.peft_config["default"].to_dict(), name="it")
    assert_same_deltas(adapter, deltas_of(model))
    assert all(type(text) in (str, type(None)) for text in (adapter.task_type, adapter.base_model))


def test_the_portable_file_gives_peft_the_same_deltas_without_patterns(saved: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = saved
    adapter, done = opened(folder), []
    rank = max(spec.rank for spec in adapter.modules.values()) + 1
    write_folder(adapter, tmp_path, base_model="owner/base", dtype="float32", rank=rank, progress=done.append)
    assert done == list(adapter.modules)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (rank, rank, False)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})

    fresh = tiny_gpt2() if "transformer.wte" in dict(model.get_base_model().named_modules()) else tiny_llama()
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path)
    wanted, got = deltas_of(model), deltas_of(loaded)
    assert got.keys() == wanted.keys()
    for module, delta in wanted.items():
        assert np.linalg.norm(got[module] - delta) <= 1e-6 * np.linalg.norm(delta)
    theirs = peft.get_peft_model_state_dict(loaded, save_embedding_layers=False)
    assert set(theirs) == set(load_file(tmp_path / "adapter_model.safetensors"))


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_low_precision_factors_come_over_bit_for_bit(name: str) -> None:
    dtype = getattr(torch, name)
    model = trained(tiny_llama().to(dtype), **LLAMA).to(dtype)
    state = peft.get_peft_model_state_dict(model)
    adapter = Adapter.from_state_dict(state, model.peft_config["default"].to_dict(), name="it")
    for module, spec in adapter.modules.items():
        assert spec.dtype == name
        wanted = state[f"base_model.model.{module}.lora_A.weight"].to(torch.float32).numpy()
        assert np.array_equal(adapter.factors(module).A.astype(np.float32), wanted)


def test_scaling_is_alpha_over_r_or_over_its_root_by_hand(rng: np.random.Generator) -> None:
    tensors = peft_tensors(rng, {"a.c_attn": 4, "b.c_attn": 9})
    plain = built(tensors, r=4, lora_alpha=6, rank_pattern={"b.c_attn": 9}, alpha_pattern={"a.c_attn": 2})
    assert {name: spec.scaling for name, spec in plain.modules.items()} == {"a.c_attn": 0.5, "b.c_attn": 6 / 9}
    rooted = built(tensors, r=4, lora_alpha=6, rank_pattern={"b.c_attn": 9}, use_rslora=True)
    assert {name: spec.scaling for name, spec in rooted.modules.items()} == {"a.c_attn": 3.0, "b.c_attn": 2.0}


# --- patterns, against PEFT -------------------------------------------------------------------------------------------

SEGMENTS = st.sampled_from(
    ["model", "layers", "0", "1", "10", "attn", "self_attn", "q_proj", "proj", "c_attn", "attn_c", "é"]
)
MODULES = st.lists(SEGMENTS, min_size=1, max_size=5).map(".".join)
PIECES = st.one_of(
    SEGMENTS, st.sampled_from([".", r"\.", r"\d", "[01]", "(0|1)", ".*", ".+", "^", "$", r"\w", "_", "(?:q|c)", "|"])
)
PATTERNS = st.one_of(MODULES, st.lists(PIECES, min_size=1, max_size=5).map("".join))


def compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def test_patterns_that_disagree_about_a_module_are_a_caution(rng: np.random.Generator) -> None:
    tensors = peft_tensors(rng, {"h.c_attn": 2})
    found = only(built(tensors, alpha_pattern={"c_attn": 2, "h.c_attn": 8}))
    assert (found.severity, found.code, found.where) == ("caution", "ambiguous_pattern", "alpha_pattern")
    assert "h.c_attn" in found.seen
    assert built(tensors, alpha_pattern={"c_attn": 2, "h.c_attn": 2.0}).findings == ()


@settings(max_examples=800, deadline=None)
@given(patterns=st.lists(PATTERNS, min_size=1, max_size=4, unique=True), module=MODULES, start=st.integers(0, 3))
def test_the_pattern_that_counts_is_the_one_peft_finds(patterns: list[str], module: str, start: int) -> None:
    assume(all(compiles(pattern) for pattern in patterns))
    patterns.append(".".join(module.split(".")[start:]) or module)
    numbered = {pattern: float(number) for number, pattern in enumerate(patterns, 1)}
    wanted = numbered.get(get_pattern_key(list(numbered), module), 64.0)
    scalings = Scalings(rank=1, alpha=64.0, use_rslora=False, rank_pattern={}, alpha_pattern=numbered)
    assert scalings.resolve(module) == (1, wanted)


def test_plain_patterns_are_matched_without_being_compiled(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(40) for expert in range(25)]
    scalings = Scalings(1, 1.0, False, {}, {name: float(number) for number, name in enumerate(names)})
    compiled, compile_pattern = [], re.compile
    monkeypatch.setattr(re, "compile", lambda pattern: compiled.append(pattern) or compile_pattern(pattern))
    for number in rng.permutation(1000)[:50]:
        assert scalings.resolve(names[number]) == (1, float(number))
    assert compiled == []
    assert Scalings(1, 1.0, False, {}, {"experts.*_proj": 3.0}).resolve(names[0]) == (1, 3.0) and len(compiled) == 1


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+",
        "(a|aa)*b",
        r"(a)\1",
        "(?=a)",
        "(?P<x>a)",
        ".*.*.*.*",
        "(",
        "[",
        "a{2}{3}",
        "a" * 513,
        "(a){9}",
        "x*x+x{1,}x*",
    ],
)
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_could_take_for_ever_or_is_none_is_refused(field: str, pattern: str) -> None:
    with pytest.raises(AdapterFormatError, match=f"{field} of adapter_config.json") as refusal:
        built({}, **{field: {pattern: 2}})
    assert "no safe regular expression" in refusal.value.problem


# --- names of tensors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.",
        "base_model.",
        "",
        "_orig_mod.base_model.model.",
        "base_model.model._orig_mod.",
        "module.base_model.model.",
        "base_model.model.module.",
        "_orig_mod.module.base_model.model.",
    ],
)
def test_prefixes_of_wrappers_are_no_part_of_the_module_name(prefix: str, rng: np.random.Generator) -> None:
    adapter = built(peft_tensors(rng, {"h.0.attn.c_attn": 2}, prefix=prefix))
    assert list(adapter.modules) == ["h.0.attn.c_attn"]
    assert adapter.findings == ()


def test_a_base_whose_own_parts_are_called_model_and_module_keeps_its_names(rng: np.random.Generator) -> None:
    assert list(built(peft_tensors(rng, {"model.model.module.c_attn": 2})).modules) == ["model.model.module.c_attn"]


def test_the_name_of_the_adapter_inside_a_key_is_no_part_of_the_module(rng: np.random.Generator) -> None:
    plain = peft_tensors(rng, {"h.c_attn": 2})
    named = {key.replace(".weight", ".my-adapter.weight"): value for key, value in plain.items()}
    assert list(built(named).modules) == ["h.c_attn"]
    embedding = {"wte.lora_embedding_A.default": np.ones((2, 9)), "wte.lora_embedding_B.default": np.ones((4, 2))}
    spec = built(embedding, target_modules=["wte"]).modules["wte"]
    assert (spec.kind, spec.shape) == ("embedding", (4, 9))


@pytest.mark.parametrize("second", ["h.c_attn.lora_A.weight", "base_model.model.h.c_attn.lora_A.other.weight"])
def test_two_tensors_for_one_factor_are_refused_by_name(second: str, rng: np.random.Generator) -> None:
    tensors = peft_tensors(rng, {"h.c_attn": 2})
    with pytest.raises(AdapterFormatError, match="adapt the same module") as refusal:
        built({**tensors, second: np.ones((2, 5))})
    assert second in refusal.value.problem
    assert "base_model.model.h.c_attn.lora_A.weight" in refusal.value.problem


def test_a_module_that_is_both_linear_and_embedding_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(AdapterFormatError, match="adapt the same module"):
        built({**peft_tensors(rng, {"wte": 2}), "wte.lora_embedding_A": np.ones((2, 5))})


# --- files ------------------------------------------------------------------------------------------------------------


def test_shards_read_as_one_file_with_and_without_an_index(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = peft_tensors(rng, {f"h.{layer}.c_attn": 2 for layer in range(3)})
    whole = opened(write_adapter(tmp_path / "whole", tensors))
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(peft_config()))
    keys = sorted(tensors)
    shards = {
        "adapter_model-00001-of-00002.safetensors": keys[:3],  # A and B of one module lie in different files
        "adapter_model-00002-of-00002.safetensors": keys[3:],
    }
    for file, held in shards.items():
        save_file({key: tensors[key] for key in held}, folder / file)
    for index in (None, {"weight_map": {key: file for file, held in shards.items() for key in held}}):
        if index:
            (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(index))
        adapter = opened(folder)
        assert adapter.modules == whole.modules
        for module in whole.modules:
            assert np.array_equal(adapter.factors(module).delta(), whole.factors(module).delta())


@pytest.mark.parametrize(
    ("names", "index", "reason"),
    [
        ([], None, "There is no adapter_model.safetensors"),
        (["README.md"], None, "There is no adapter_model.safetensors"),
        (
            ["adapter_model-00001-of-00002.safetensors"],
            None,
            "Shard adapter_model-00002-of-00002.safetensors is missing",
        ),
        (["a.safetensors"], {"weight_map": {"x": "b.safetensors"}}, "Shard b.safetensors is missing"),
        ([], {"weight_map": {"x": "../b.safetensors"}}, "out of its folder"),
        ([], {"weight_map": {"x": "/etc/passwd"}}, "out of its folder"),
        ([], {"weight_map": {"x": "sub/b.safetensors"}}, "out of its folder"),
        ([], {"weight_map": {"x": ".."}}, "missing"),
        ([], {"weight_map": {"x": 5}}, "out of its folder"),
        ([], {"weight_map": {"x": ["b"]}}, "not a shard index"),
        ([], {"weight_map": [1]}, "not a shard index"),
        ([], {}, "not a shard index"),
        ([], [], "not a shard index"),
    ],
)
def test_missing_and_hostile_files_are_refused(names: list[str], index: Any, reason: str) -> None:
    with pytest.raises(AdapterFormatError, match=reason):
        weight_files(names, None if index is None else json.dumps(index).encode())


def test_an_index_that_is_no_json_is_refused() -> None:
    with pytest.raises(AdapterFormatError, match="not a shard index"):
        weight_files([], b"version https://git-lfs")


@pytest.mark.parametrize("file", ["adapter_model.bin", "adapter_model.pt", "pytorch_model.pth"])
def test_weights_that_are_only_a_pickle_are_refused_without_opening_them(file: str) -> None:
    with pytest.raises(UnsupportedAdapter, match=rf"a pickle only \({file}\), which can run any code"):
        weight_files(["adapter_config.json", file])
    assert weight_files([file, "adapter_model.safetensors"]) == ("adapter_model.safetensors",)


def test_weights_that_are_a_git_lfs_pointer_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = write_adapter(tmp_path, peft_tensors(rng, {"c_attn": 2}))
    (folder / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(AdapterFormatError, match="git-lfs pointer"):
        opened(folder)


def test_headers_alone_tell_the_same_modules_and_findings(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = write_adapter(tmp_path, peft_tensors(rng, {"h.0.c_attn": 2, "h.1.c_attn": 3}))
    content = (folder / "adapter_model.safetensors").read_bytes()
    adapter = adapter_from_headers(
        (folder / "adapter_config.json").read_bytes(),
        {"adapter_model.safetensors": content[: 8 + int.from_bytes(content[:8], "little")]},
        {"adapter_model.safetensors": len(content)},
        name="it",
        origin=Origin(),
    )
    whole = opened(folder)
    assert adapter.modules == whole.modules
    assert adapter.findings == whole.findings
    assert (adapter.has_values, whole.has_values) == (False, True)
    with pytest.raises(AdapterFormatError, match="not downloaded"):
        adapter.factors("h.0.c_attn")


def test_added_tokens_are_read_from_both_tokenizer_files(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = write_adapter(tmp_path, peft_tensors(rng, {"c_attn": 2}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"7": {"content": "<a>"}}}))
    (folder / "added_tokens.json").write_text(json.dumps({"<b>": 8}))
    assert opened(folder).added_tokens == {7: "<a>", 8: "<b>"}
    (folder / "added_tokens.json").write_text("[1]")
    with pytest.raises(AdapterFormatError, match=r"added_tokens\.json"):
        opened(folder)


def test_files_that_give_one_id_two_tokens_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = write_adapter(tmp_path, peft_tensors(rng, {"c_attn": 2}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"7": {"content": "<a>"}}}))
    (folder / "added_tokens.json").write_text(json.dumps({"<b>": 7}))
    with pytest.raises(AdapterFormatError, match="Token 7 of the adapter is '<a>' in one of its files and '<b>'"):
        opened(folder)


@pytest.mark.parametrize(
    ("tensors", "size"),
    [
        ({}, None),
        ({"embed_tokens.lora_embedding_A": (2, 300), "embed_tokens.lora_embedding_B": (8, 2)}, 300),
        ({"lm_head.lora_A.weight": (2, 8), "lm_head.lora_B.weight": (300, 2)}, 300),
        ({"embed_tokens.weight": (300, 8)}, 300),
        ({"lm_head.base_layer.weight": (300, 8)}, 300),
        ({"embed_tokens.modules_to_save.default.weight": (300, 8)}, 300),
        ({"embed_tokens.weight": (300, 8), "lm_head.weight": (300, 8)}, 300),
        ({"embed_tokens.weight": (300, 8), "lm_head.weight": (200, 8)}, None),
        ({"score.weight": (3, 8)}, None),
    ],
)
def test_the_size_of_the_vocabulary_is_what_embeddings_and_heads_have(
    tensors: dict[str, tuple[int, int]], size: int | None, rng: np.random.Generator
) -> None:
    extra = {f"base_model.model.{name}": np.zeros(shape, np.float32) for name, shape in tensors.items()}
    assert built({**peft_tensors(rng, {"c_attn": 2}), **extra}).vocabulary == size


# --- oddities of the config -------------------------------------------------------------------------------------------


def test_a_byte_order_mark_before_the_config_does_no_harm() -> None:
    assert parse_config(b"\xef\xbb\xbf" + json.dumps(peft_config()).encode())["r"] == 2


def test_a_nan_in_a_field_that_does_not_count_does_no_harm_and_one_in_alpha_is_refused() -> None:
    text = b'{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "lora_dropout": NaN}'
    assert adapter_from_tensors(parse_config(text), ArrayStore({}), name="it").modules == {}
    for literal in (b"NaN", b"Infinity", b'"4"', b"true", b"null", b"[4]"):
        with pytest.raises(AdapterFormatError, match="lora_alpha"):
            adapter_from_tensors(
                parse_config(text.replace(b'"lora_alpha": 4', b'"lora_alpha": ' + literal)), ArrayStore({}), name="it"
            )


def test_a_rank_written_as_a_float_is_that_rank(rng: np.random.Generator) -> None:
    adapter = built(peft_tensors(rng, {"c_attn": 2}), r=2.0, lora_alpha=3)
    assert adapter.modules["c_attn"].scaling == 1.5
    assert adapter.findings == ()


@pytest.mark.parametrize("rank", [0, -4, 2.5, "8", None, True, [8], float("nan")])
def test_a_rank_that_is_none_is_refused(rank: Any) -> None:
    for config in ({"r": rank}, {"rank_pattern": {"c_attn": rank}}):
        with pytest.raises(AdapterFormatError, match=r"rank|^r of"):
            built({}, **config)


@pytest.mark.parametrize("patterns", [["c_attn"], "c_attn", 3])
def test_patterns_that_are_no_object_are_refused(patterns: Any) -> None:
    with pytest.raises(AdapterFormatError, match=r"rank_pattern of adapter_config\.json is"):
        built({}, rank_pattern=patterns)


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", AdapterFormatError, "git-lfs pointer"),
        (b"", AdapterFormatError, "not valid JSON"),
        (b"{'peft_type': 'LORA'}", AdapterFormatError, "not valid JSON"),
        (b"\xff\xfe{", AdapterFormatError, "not valid JSON"),
        (b"[" * 100_000, AdapterFormatError, "not valid JSON"),
        (b"[]", AdapterFormatError, "not a JSON object"),
        (b'"LORA"', AdapterFormatError, "not a JSON object"),
        (b" " * 1_000_001, AdapterFormatError, "1000001 bytes"),
        (b"{}", UnsupportedAdapter, "no peft_type; it was written by another tool"),
        (b'{"fine_tune_type": "lora", "num_layers": 16}', UnsupportedAdapter, "written by MLX-LM"),
        (b'{"lora_parameters": {"rank": 8, "scale": 20.0}}', UnsupportedAdapter, "written by MLX-LM"),
        (b'{"peft_type": "LOHA"}', UnsupportedAdapter, "type LOHA, not LORA"),
        (b'{"peft_type": "IA3"}', UnsupportedAdapter, "type IA3, not LORA"),
        (b'{"peft_type": ["LORA"]}', UnsupportedAdapter, "not LORA"),
    ],
)
def test_a_config_that_is_none_of_a_lora_is_refused(text: bytes, error: type[AdapterError], reason: str) -> None:
    with pytest.raises(error, match=reason) as refusal:
        parse_config(text)
    assert refusal.value.remedy


def test_what_the_config_says_of_the_base_is_kept_where_it_is_text(rng: np.random.Generator) -> None:
    said = built({}, base_model_name_or_path="gpt2", revision="main", task_type="CAUSAL_LM", fan_in_fan_out=True)
    assert (said.base_model, said.base_revision, said.task_type, said.fan_in_fan_out) == (
        "gpt2",
        "main",
        "CAUSAL_LM",
        True,
    )
    unsaid = built({}, base_model_name_or_path="", revision=None, task_type=3)
    assert (unsaid.base_model, unsaid.base_revision, unsaid.task_type, unsaid.fan_in_fan_out) == (
        None,
        None,
        None,
        False,
    )
    enumerated = built({}, task_type=peft.TaskType.CAUSAL_LM)
    assert type(enumerated.task_type) is str
    assert enumerated.task_type == "CAUSAL_LM"


# --- findings ---------------------------------------------------------------------------------------------------------

VARIANTS = {
    "use_dora": (True, "dora"),
    "use_qalora": (True, "qalora"),
    "lora_bias": (True, "lora_bias"),
    "trainable_token_indices": ([3, 5], "trainable_tokens"),
    "target_parameters": (["mlp.experts.gate_up_proj"], "target_parameters"),
    "layer_replication": ([[0, 4], [2, 5]], "layer_replication"),
    "alora_invocation_tokens": ([7, 8], "alora"),
    "arrow_config": ({"top_k": 2}, "arrow"),
    "kasa_config": ({"x": 1}, "kasa"),
    "velora_config": ({"x": 1}, "velora"),
    "monteclora_config": ({"x": 1}, "monteclora"),
    "use_bdlora": ({"x": 1}, "bdlora"),
    "megatron_config": ({"x": 1}, "megatron"),
}


def only(adapter: Adapter) -> Finding:
    (found,) = adapter.findings
    return found


@pytest.mark.parametrize("field", VARIANTS)
def test_a_variant_is_a_problem_that_names_its_field(field: str, rng: np.random.Generator) -> None:
    value, code = VARIANTS[field]
    tensors = peft_tensors(rng, {"c_attn": 2})
    found = only(built(tensors, **{field: value}))
    assert (found.severity, found.code, found.adapter, found.where) == ("problem", code, "it", field)
    assert json.dumps(value)[:20] in found.seen
    assert found.overrule is None
    assert built(tensors, **{field: None}).findings == built(tensors, **{field: False}).findings == ()


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "lora_ga"])
def test_an_initialisation_that_changed_the_base_is_a_problem(init: str, rng: np.random.Generator) -> None:
    found = only(built(peft_tensors(rng, {"c_attn": 2}), init_lora_weights=init))
    assert (found.severity, found.code, found.where) == ("problem", "changed_base", "init_lora_weights")
    assert init in found.seen


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal", "mica", None])
def test_an_initialisation_that_leaves_the_base_alone_is_none(init: Any, rng: np.random.Generator) -> None:
    assert built(peft_tensors(rng, {"c_attn": 2}), init_lora_weights=init).findings == ()


def test_unknown_fields_are_a_problem_that_may_be_overruled_unless_they_are_empty(rng: np.random.Generator) -> None:
    tensors = peft_tensors(rng, {"c_attn": 2})
    found = only(built(tensors, use_new_thing=True, b_field={"x": 1}, empty=None, off=False, none=[]))
    assert (found.severity, found.code, found.where) == ("problem", "unknown_fields", "b_field, use_new_thing")
    assert found.overrule == "--allow unknown_fields"


def test_every_field_of_the_installed_peft_is_known(rng: np.random.Generator) -> None:
    tensors = peft_tensors(rng, {"c_attn": 2})
    judged = {"r", "lora_alpha", "peft_type", "rank_pattern", "alpha_pattern", "target_modules"}
    for field in dataclasses.fields(peft.LoraConfig):
        if field.name not in judged:
            assert "unknown_fields" not in codes(built(tensors, **{field.name: ["something"]})), field.name


def test_trained_tensors_of_real_peft_adapters_are_named_beside_the_field(tmp_path: Path) -> None:
    cases: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
        "dora": ({"use_dora": True}, {"dora": "q_proj.lora_magnitude_vector"}),
        "lora_bias": ({"lora_bias": True}, {"lora_bias": "q_proj.lora_B.bias"}),
        "head": ({"modules_to_save": ["lm_head"]}, {"trained_weights": "base_model.model.lm_head.weight"}),
        "tokens": ({"trainable_token_indices": [1, 2]}, {"trainable_tokens": "embed_tokens"}),
    }
    for name, (config, wanted) in cases.items():
        base = transformers.LlamaForCausalLM(tiny_llama().config)
        if name == "lora_bias":
            layer = base.model.layers[0].self_attn.q_proj
            base.model.layers[0].self_attn.q_proj = torch.nn.Linear(layer.in_features, layer.out_features, bias=True)
        trained(base, **{"r": 2, "target_modules": ["layers.0.self_attn.q_proj"], **config}).save_pretrained(
            tmp_path / name
        )
        problems = [found for found in opened(tmp_path / name).findings if found.severity == "problem"]
        for code, tensor in wanted.items():
            places = [found.where for found in problems if found.code == code]
            assert any(tensor in place for place in places), (name, places)


def test_trained_biases_are_a_problem_and_copies_of_base_embeddings_may_be_overruled(rng: np.random.Generator) -> None:
    tensors = peft_tensors(rng, {"c_attn": 2})
    found = only(built({**tensors, "base_model.model.c_attn.bias": np.ones(3)}, bias="all"))
    assert (found.severity, found.code, found.where) == ("problem", "trained_weights", "base_model.model.c_attn.bias")
    assert "biases" in found.seen
    copy = "base_model.model.transformer.wte.base_layer.weight"
    found = only(built({**tensors, copy: np.ones((3, 4))}))
    assert (found.severity, found.code, found.where) == ("problem", "base_copy", copy)
    assert found.overrule == "--allow base_copy"


def test_many_leftovers_of_a_kind_are_one_finding_with_their_number(rng: np.random.Generator) -> None:
    heads = {f"classifier.{layer}.weight": np.ones(2) for layer in range(6)}
    found = only(built({**peft_tensors(rng, {"c_attn": 2}), **heads}))
    assert "6 tensors" in found.seen
    assert found.where.endswith("classifier.3.weight and 2 more")


def test_tensors_of_an_unknown_kind_are_a_problem(rng: np.random.Generator) -> None:
    found = only(built({**peft_tensors(rng, {"c_attn": 2}), "c_attn.hada_w1_a": np.ones(2)}))
    assert (found.code, found.where) == ("unknown_tensors", "c_attn.hada_w1_a")


@pytest.mark.parametrize(
    ("changed", "code", "seen"),
    [
        ({"B": None}, "missing_factor", "lora_B is missing"),
        ({"A": None}, "missing_factor", "lora_A is missing"),
        ({"A": np.ones((2, 5), np.int8)}, "factor_dtype", "int8"),
        ({"B": np.ones((6, 3))}, "factor_shape", "[6, 3]"),
        ({"B": np.ones((6, 2, 1))}, "factor_shape", "[6, 2, 1]"),
        ({"A": np.ones((2, 0)), "B": np.ones((6, 2))}, "factor_shape", "[2, 0]"),
        ({"A": np.ones((2, 5)), "B": np.ones((0, 2))}, "factor_shape", "[0, 2]"),
        (
            {"A": np.ones((3, 5)), "B": np.ones((6, 3))},
            "rank_mismatch",
            "the config gives rank 2, the tensors have rank 3",
        ),
    ],
)
def test_factors_that_do_not_fit_are_a_problem_that_names_the_module(
    changed: dict[str, Any], code: str, seen: str, rng: np.random.Generator
) -> None:
    tensors: dict[str, Any] = peft_tensors(rng, {"h.0.c_attn": 2, "h.1.c_attn": 2})
    for side, value in changed.items():
        key = f"base_model.model.h.0.c_attn.lora_{side}.weight"
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    adapter = built(tensors)
    found = only(adapter)
    assert (found.severity, found.code, found.where) == ("problem", code, "h.0.c_attn")
    assert seen in found.seen
    assert list(adapter.modules) == ["h.1.c_attn"]


def test_a_file_without_any_factor_is_a_problem() -> None:
    assert only(built({})).code == "no_factors"


def test_patterns_and_targets_that_match_nothing_are_cautions(rng: np.random.Generator) -> None:
    adapter = built(
        peft_tensors(rng, {"h.c_attn": 2}),
        target_modules=["c_attn", "v_proj"],
        rank_pattern={"k_proj": 2},
        alpha_pattern={"^c_attn": 8, "h.c_attn": 4},
    )
    assert {(found.severity, found.code, found.where) for found in adapter.findings} == {
        ("caution", "unused_pattern", "target_modules"),
        ("caution", "unused_pattern", "rank_pattern"),
        ("caution", "unused_pattern", "alpha_pattern"),
    }
    seen = " ".join(found.seen for found in adapter.findings)
    assert all(name in seen for name in ("v_proj", "k_proj", "^c_attn"))
    assert "names h.c_attn" not in seen


# --- safe targets, against PEFT ---------------------------------------------------------------------------------------

TARGETS: dict[str, dict[str, Any]] = {
    "one name": {"target_modules": ["c_attn"]},
    "a name that occurs twice in a layer": {"target_modules": ["c_proj"]},
    "that name with its parent": {"target_modules": ["attn.c_proj"]},
    "several": {"target_modules": ["c_attn", "mlp.c_proj", "c_fc"]},
    "a name and a longer one that it covers": {"target_modules": ["c_proj", "h.0.mlp.c_proj"]},
    "full name of a name that occurs twice": {"target_modules": ["transformer.h.0.mlp.c_proj"]},
    "part of a full name": {"target_modules": ["h.1.mlp.c_fc", "c_attn"]},
    "full name of a plain one": {"target_modules": ["transformer.h.1.attn.c_attn"]},
    "a regular expression": {"target_modules": r".*attn\.c_(attn|proj)"},
    "some layers": {"target_modules": ["c_attn"], "layers_to_transform": [1]},
    "exceptions": {"target_modules": ["c_proj"], "exclude_modules": ["h.0.attn.c_proj"]},
    "all linear": {"target_modules": "all-linear"},
    "embedding and head": {"target_modules": ["wte", "lm_head"]},
}


@pytest.mark.parametrize("case", TARGETS)
def test_the_targets_select_exactly_the_modules_of_the_file_in_a_real_gpt2(case: str, tmp_path: Path) -> None:
    model = trained(tiny_gpt2(), r=2, **TARGETS[case])
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    adapter = opened(tmp_path)
    assert set(adapter.modules) == set(deltas_of(model))
    config = peft.LoraConfig(target_modules=list(adapter.target_modules))
    selected = {name for name, _ in tiny_gpt2().named_modules() if check_target_module_exists(config, name)}
    assert selected == set(adapter.modules)


def test_suffixes_stay_short_where_they_are_safe(rng: np.random.Generator) -> None:
    tensors = peft_tensors(
        rng, {f"h.{layer}.{name}": 2 for layer in range(3) for name in ("attn.c_attn", "mlp.c_proj")}
    )
    assert built(tensors, target_modules=["c_attn", "c_proj"]).target_modules == ("c_attn", "mlp.c_proj")
    assert built(tensors, target_modules=["mlp.c_proj", "c_attn"]).target_modules == ("c_attn", "mlp.c_proj")


def test_a_name_is_given_with_its_parent_when_the_file_lacks_its_namesake(rng: np.random.Generator) -> None:
    tensors = peft_tensors(rng, {"encoder.0.output.dense": 2})
    safe = built(tensors, target_modules=["dense"], modules_to_save=["classifier"]).target_modules
    assert safe == ("output.dense",)  # "dense" would select classifier.dense as well


def test_targets_that_do_not_explain_the_file_give_way_to_full_names(rng: np.random.Generator) -> None:
    tensors = peft_tensors(rng, {"h.0.c_attn": 2, "h.1.k_proj": 2})
    for targets in (["c_attn"], ["attn"], None, "c_attn", [3]):
        assert built(tensors, target_modules=targets).target_modules == ("h.0.c_attn", "h.1.k_proj")


# --- writing ----------------------------------------------------------------------------------------------------------


def test_written_factors_carry_the_scaling_and_zeros_fill_the_rank(tmp_path: Path, rng: np.random.Generator) -> None:
    part = random_factors(rng, (6, 5), 2, scaling=-2.0, dtype=np.float32)
    adapter = adapter_of("it", {"h.c_attn": part}, target_modules=("c_attn",), task_type="CAUSAL_LM")
    write_folder(adapter, tmp_path, base_model=None, dtype="float32", rank=4, progress=lambda name: None)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    A, B = (tensors[f"base_model.model.h.c_attn.lora_{side}.weight"] for side in "AB")
    assert (A.shape, B.shape) == ((4, 5), (6, 4))
    assert np.array_equal(A[:2], part.A)
    assert np.array_equal(B[:, :2], -2 * part.B)
    assert not A[2:].any()
    assert not B[:, 2:].any()
    back = opened(tmp_path)
    assert back.findings == ()
    assert (back.task_type, back.base_model, back.target_modules) == ("CAUSAL_LM", None, ("c_attn",))
    assert relative_error(back.factors("h.c_attn").delta(), part.delta()) < 1e-7


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrow_file_holds_each_number_rounded_once(dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    part = random_factors(rng, (6, 5), 2)
    write_folder(
        adapter_of("it", {"m": part}), tmp_path, base_model=None, dtype=dtype, rank=2, progress=lambda name: None
    )
    A = opened(tmp_path).factors("m").A
    wanted = torch.from_numpy(part.A).to(getattr(torch, dtype)).to(torch.float64).numpy()
    assert A.dtype.name == dtype
    assert np.array_equal(A.astype(np.float64), wanted)


@pytest.mark.filterwarnings("error")
def test_numbers_that_do_not_fit_the_dtype_are_told_and_not_written_as_infinity(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    part = random_factors(rng, (6, 5), 2)
    adapter = adapter_of("it", {"h.m": LoraFactors(part.A, part.B, 1e30)})
    with pytest.raises(ProofFailed, match=r"h\.m would hold NaN or infinity in float16"):
        write_folder(adapter, tmp_path, base_model=None, dtype="float16", rank=2, progress=lambda name: None)


def test_an_adapter_lacking_a_module_gives_rank_zero_factors_of_the_shape_asked_for(rng: np.random.Generator) -> None:
    adapter = built(peft_tensors(rng, {"c_attn": 2}))
    empty = adapter.factors("elsewhere", (6, 5))
    assert (empty.rank, empty.shape) == (0, (6, 5))
    with pytest.raises(KeyError):
        adapter.factors("elsewhere")
    with pytest.raises(AdapterFormatError, match="do not form a product"):
        LoraFactors(np.ones((2, 5)), np.ones((6, 3)))


# --- real adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.wild
def test_real_configs_are_read_or_refused_with_a_reason(wild: Path) -> None:
    seen = {"LORA": 0, "other": 0}
    for path in sorted((wild / "configs").glob("*.json")):
        text = path.read_bytes()
        try:
            assert parse_config(text)["peft_type"] == "LORA"
            seen["LORA"] += 1
        except UnsupportedAdapter:
            assert json.loads(text.decode("utf-8-sig")).get("peft_type") != "LORA"
            seen["other"] += 1
        except AdapterFormatError:
            with pytest.raises((ValueError, AssertionError)):
                assert isinstance(json.loads(text), dict)
    assert min(seen.values()) > 10


@pytest.mark.wild
def test_real_adapters_open_or_are_refused_with_a_reason_and_nothing_else(wild: Path) -> None:
    opened_ones = 0
    for config in sorted((wild / "adapters_real").rglob("adapter_config.json")):
        try:
            adapter = opened(config.parent)
        except AdapterError as refusal:
            assert refusal.remedy
            continue
        opened_ones += 1
        for module, spec in list(adapter.modules.items())[:2]:
            assert adapter.factors(module).shape == spec.shape
    assert opened_ones > 10


@pytest.mark.wild
def test_the_adapters_trained_for_this_project_open_without_a_problem_but_dora(wild: Path) -> None:
    folders = sorted(path.parent for path in (wild / "adapters").glob("*/adapter_config.json"))
    assert folders
    for folder in folders:
        adapter = opened(folder)
        wanted = {"dora"} if "dora" in folder.name else set()
        assert {found.code for found in adapter.findings if found.severity == "problem"} == wanted
        if "rslora" in folder.name:
            assert {spec.scaling for spec in adapter.modules.values()} == {16 / 8**0.5}


@pytest.mark.wild
def test_broken_repositories_are_refused(wild: Path) -> None:
    for config in sorted((wild / "adapters_broken").rglob("adapter_config.json")):
        with pytest.raises(AdapterError):
            opened(config.parent)
