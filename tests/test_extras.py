"""Heads, biases and token rows under each policy, with PEFT as the judge of what a written composite loads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hub_merge.adapter import Adapter, Origin
from hub_merge.errors import AdapterFormatError, IncompatibleAdapters, MergeError, ProofFailed, RecipeError
from hub_merge.formats.peft import adapter_from_tensors, open_folder
from hub_merge.formats.tensors import ArrayStore
from hub_merge.pipeline import merge, verify
from hub_merge.proof import prove
from hub_merge.provenance import read_record
from tests.helpers import peft_config, peft_tensors, relative_error, write_adapter

Tensors = Mapping[str, NDArray[Any]]

PREFIX = "base_model.model."


def adapter(name: str, seed: int, extras: Tensors, **config: Any) -> Adapter:
    """Return an adapter of one module, c_attn of a layer, in memory."""
    tensors = peft_tensors(np.random.default_rng(seed), {"h.0.c_attn": 2})
    return adapter_from_tensors(
        peft_config(base_model_name_or_path="acme/base", **config),
        ArrayStore({**tensors, **{PREFIX + key: value for key, value in extras.items()}}),
        name=name,
    )


def head(value: float, shape: tuple[int, ...] = (3, 5)) -> dict[str, NDArray[Any]]:
    return {"score.weight": np.full(shape, value, np.float32)}


def codes(refusal: pytest.ExceptionInfo[IncompatibleAdapters]) -> set[str]:
    return {found.code for found in refusal.value.report.problems}


def written(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the tensors that are no factors, without prefix, and the config of a written composite."""
    tensors = load_file(folder / "adapter_model.safetensors")
    extras = {key.removeprefix(PREFIX): value for key, value in tensors.items() if "lora_" not in key}
    return extras, json.loads((folder / "adapter_config.json").read_text())


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "config", "kind", "name", "module"),
    [
        ("score.weight", {}, "weights", "score.weight", "score"),
        ("score.bias", {"modules_to_save": ["score"]}, "weights", "score.bias", "score"),
        (
            "classifier.dense.weight",
            {"modules_to_save": ["classifier"]},
            "weights",
            "classifier.dense.weight",
            "classifier",
        ),
        ("classifier.out_proj.bias", {"task_type": "SEQ_CLS"}, "weights", "classifier.out_proj.bias", "classifier"),
        ("qa_outputs.bias", {"task_type": "QUESTION_ANS"}, "weights", "qa_outputs.bias", "qa_outputs"),
        ("head.scale", {"modules_to_save": ["head"]}, "weights", "head.scale", "head"),
        ("h.0.c_attn.base_layer.bias", {"bias": "lora_only"}, "bias", "h.0.c_attn.bias", "h.0.c_attn"),
        ("h.0.ln_1.bias", {"bias": "all"}, "bias", "h.0.ln_1.bias", "h.0.ln_1"),
    ],
)
def test_tensors_beside_the_factors_are_told_apart(
    key: str, config: dict[str, Any], kind: str, name: str, module: str
) -> None:
    source = adapter("a", 0, {key: np.ones(4, np.float32)}, **config)
    (spec,) = source.extras.values()
    assert (spec.name, spec.kind, spec.module) == (name, kind, module)
    assert np.array_equal(source.load_extra(name), np.ones(4))
    (found,) = source.findings
    assert (found.severity, found.code, found.where) == ("problem", "trained_weights", PREFIX + key)
    assert found.overrule == "--extras keep:NAME, --extras average or --extras drop"


@pytest.mark.parametrize(
    ("indices", "rows"),
    [([3, 1], (3, 1)), ({"embed_tokens": [3, 1]}, (3, 1)), ({"wte": [0], "tokens": [2, 5]}, (2, 5))],
)
def test_rows_of_tokens_know_their_tokens(indices: Any, rows: tuple[int, ...]) -> None:
    key = "model.embed_tokens.token_adapter.trainable_tokens_delta"
    source = adapter("a", 0, {key: np.ones((2, 5), np.float32)}, trainable_token_indices=indices)
    assert (source.extras[key].rows, source.extras[key].module) == (rows, "model.embed_tokens")
    assert [found.code for found in source.findings] == ["trainable_tokens"]


@pytest.mark.parametrize(
    ("key", "config"),
    [
        ("m.embed_tokens.token_adapter.trainable_tokens_delta", {}),
        ("m.embed_tokens.token_adapter.trainable_tokens_delta", {"trainable_token_indices": [1, 2, 3]}),
        ("m.embed_tokens.token_adapter.trainable_tokens_delta", {"trainable_token_indices": {"other": [1, 2]}}),
        ("score.original_module.weight", {}),
        ("score.modules_to_save.weight", {"modules_to_save": ["score"]}),
        ("h.0.c_attn.lora_B.bias", {"lora_bias": True}),
        ("h.0.c_attn.lora_magnitude_vector", {"use_dora": True}),
        ("h.0.c_attn.something", {}),
    ],
)
def test_tensors_that_could_not_be_written_again_are_refused_under_every_policy(
    key: str, config: dict[str, Any]
) -> None:
    source = adapter("a", 0, {key: np.ones((2, 5), np.float32)}, **config)
    assert not source.extras
    for policy in ("refuse", "drop", "average"):
        with pytest.raises(IncompatibleAdapters):
            merge([source], extras=policy)


def test_one_parameter_under_two_keys_is_refused_by_name() -> None:
    with pytest.raises(AdapterFormatError, match=r"h\.0\.c_attn\.bias and .*base_layer\.bias are the same"):
        adapter("a", 0, {"h.0.c_attn.bias": np.ones(6), "h.0.c_attn.base_layer.bias": np.ones(6)})


# --- policies ---------------------------------------------------------------------------------------------------------


def test_nothing_is_decided_without_the_user() -> None:
    with pytest.raises(IncompatibleAdapters, match="Overrule: --extras keep:NAME") as refusal:
        merge([adapter("a", 0, head(1)), adapter("b", 1, {})])
    assert codes(refusal) == {"trained_weights"}
    with pytest.raises(IncompatibleAdapters):
        merge([adapter("a", 0, head(1))], allow=["trained_weights"])


def test_the_extras_of_one_adapter_are_kept_bit_for_bit(tmp_path: Path) -> None:
    kept = {**head(0.1), "h.0.ln_1.bias": np.arange(5, dtype=np.float16)}
    composite = merge([adapter("a", 0, head(7)), adapter("b", 1, kept)], extras="keep:b", weights=[1, -2])
    composite.save_pretrained(tmp_path / "out")
    tensors, config = written(tmp_path / "out")
    assert {key: value.dtype for key, value in tensors.items()} == {key: value.dtype for key, value in kept.items()}
    assert all(np.array_equal(tensors[key], value) for key, value in kept.items())
    assert (config["modules_to_save"], config["bias"]) == (["score"], "all")
    record = read_record(tmp_path / "out")
    assert record.recipe.extras == "keep:b"
    assert record.output["extras"]["dropped"] == [{"adapter": "a", "names": ["score.weight"]}]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Kept as they are in `b`" in card
    assert "Left out of `a`, which was trained with them: `score.weight`" in card


def test_an_average_is_the_mean_in_double_precision_rounded_once(tmp_path: Path) -> None:
    values = {name: np.array(row, np.float32) for name, row in {"a": [0.1, 1e8], "b": [0.2, 1], "c": [0.7, 0]}.items()}
    adapters = [adapter(name, 0, {"h.0.ln_1.bias": value}) for name, value in values.items()]
    merge([*adapters, adapter("d", 1, {})], extras="average", weights=[1, 5, 0, 1]).save_pretrained(tmp_path / "out")
    tensors, _ = written(tmp_path / "out")
    wanted = ((values["a"].astype(np.float64) + values["b"].astype(np.float64)) / 2).astype(np.float32)
    assert np.array_equal(tensors["h.0.ln_1.bias"], wanted)
    assert read_record(tmp_path / "out").output["extras"]["dropped"] == [{"adapter": "c", "names": ["h.0.ln_1.bias"]}]


def test_an_average_of_two_precisions_takes_the_wider() -> None:
    half = {"score.weight": np.full((3, 5), 0.1, np.float16)}
    composite = merge([adapter("a", 0, head(0.3)), adapter("b", 1, half)], extras="average")
    assert composite.extras["score.weight"].dtype == "float32"
    wanted = np.float32((np.float64(np.float32(0.3)) + np.float64(np.float16(0.1))) / 2)
    assert np.array_equal(composite.load_extra("score.weight"), np.full((3, 5), wanted))


@pytest.mark.parametrize(
    ("first", "second", "seen"),
    [
        (head(1), head(1, (2, 5)), "score.weight is weights of float [2, 5] in score here"),
        (head(1), {"other.weight": np.ones((3, 5), np.float32)}, "score.weight is absent here"),
        (head(1), {**head(1), "score.scale": np.ones(2, np.float32)}, "score.scale is weights"),
        (
            {"score.weight": np.ones(3, np.int64)},
            {"score.weight": np.ones(3, np.int64)},
            "score.weight is weights of int64 [3]",
        ),
    ],
)
def test_extras_that_differ_have_no_mean(first: Tensors, second: Tensors, seen: str) -> None:
    saved = {"modules_to_save": ["score"]}
    with pytest.raises(IncompatibleAdapters) as refusal:
        merge([adapter("a", 0, first, **saved), adapter("b", 1, second, **saved)], extras="average")
    assert codes(refusal) == {"extras_differ"}
    assert seen in str(refusal.value)


def test_rows_of_other_tokens_have_no_mean() -> None:
    key = "wte.token_adapter.trainable_tokens_delta"
    rows = {key: np.ones((2, 5), np.float32)}
    with pytest.raises(IncompatibleAdapters, match=r"for tokens \[4, 5\] here and .* for tokens \[1, 2\] in a"):
        merge(
            [
                adapter("a", 0, rows, trainable_token_indices=[1, 2]),
                adapter("b", 1, rows, trainable_token_indices=[4, 5]),
            ],
            extras="average",
        )


def test_what_is_dropped_is_listed_in_record_and_card(tmp_path: Path) -> None:
    many = {f"h.{layer}.ln_1.bias": np.ones(5, np.float32) for layer in range(7)}
    merge([adapter("a", 0, many), adapter("b", 1, {})], extras="drop").save_pretrained(tmp_path / "out")
    tensors, config = written(tmp_path / "out")
    assert (tensors, config["bias"], config["modules_to_save"]) == ({}, "none", None)
    (entry,) = read_record(tmp_path / "out").output["extras"]["dropped"]
    assert entry == {"adapter": "a", "names": list(many)}
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"`{name}`" in card for name in many)


def test_a_trained_module_and_factors_for_it_exclude_each_other() -> None:
    replaced = {"h.0.c_attn.weight": np.ones((6, 5), np.float32)}
    adapters = [adapter("a", 0, {}), adapter("b", 1, replaced, modules_to_save=["c_attn"])]
    with pytest.raises(IncompatibleAdapters) as refusal:
        merge(adapters, extras="keep:b")
    assert codes(refusal) == {"extras_clash"}
    assert merge(adapters, extras="drop").extras == {}


def test_targets_that_would_select_a_kept_module_give_way_to_full_names() -> None:
    kept = {"head.c_attn.weight": np.ones((6, 5), np.float32)}
    adapters = [adapter("a", 0, {}), adapter("b", 1, kept)]
    assert merge(adapters, extras="drop").target_modules == ("c_attn",)
    assert merge(adapters, extras="keep:b").target_modules == ("h.0.c_attn",)


@pytest.mark.parametrize("policy", ["keep", "keep:", "mean", "", "drop "])
def test_a_policy_that_is_none_is_refused(policy: str) -> None:
    with pytest.raises(RecipeError, match="refuse, keep:NAME"):
        merge([adapter("a", 0, {})], extras=policy)


@pytest.mark.parametrize("name", ["a", "nobody"])
def test_keeping_what_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match="Those that do: b") as refusal:
        merge([adapter("a", 0, {}), adapter("b", 1, head(1))], extras=f"keep:{name}")
    assert f"keep:{name}" in refusal.value.problem


def test_a_policy_without_anything_to_decide_changes_nothing(tmp_path: Path) -> None:
    merge([adapter("a", 0, {})], extras="drop").save_pretrained(tmp_path / "out")
    assert "extras" not in read_record(tmp_path / "out").output


@pytest.mark.parametrize("format", ["kohya", "diffusers", "mlx"])
def test_only_peft_holds_extras(tmp_path: Path, format: str) -> None:
    with pytest.raises(MergeError, match=f"tensors beside its factors, which format {format} cannot hold") as caught:
        merge([adapter("a", 0, head(1))], extras="keep:a").save_pretrained(tmp_path / "out", format=format)
    assert "--format peft" in caught.value.remedy and not (tmp_path / "out").exists()


@pytest.mark.parametrize("profile", ["portable", "peft"])
def test_extras_are_written_in_either_profile(tmp_path: Path, profile: Any) -> None:
    composite = merge([adapter("a", 0, head(1))], extras="keep:a", rank="auto", profile=profile)
    composite.save_pretrained(tmp_path / "out")
    assert written(tmp_path / "out")[0].keys() == {"score.weight"}


# --- proof ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proved(tmp_path: Path) -> tuple[Path, Adapter]:
    composite = merge([adapter("a", 0, head(0.5)), adapter("b", 1, {})], extras="keep:a")
    return composite.save_pretrained(tmp_path / "out"), composite


@pytest.mark.parametrize("change", ["value", "dtype", "missing", "unexpected"])
def test_an_extra_that_is_not_the_one_asked_for_fails_the_proof(change: str, proved: tuple[Path, Any]) -> None:
    folder, asked = proved
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = f"{PREFIX}score.weight"
    tensors[key] = tensors[key].copy()
    if change == "value":
        tensors[key][0, 0] = np.nextafter(tensors[key][0, 0], np.float32(1))
    elif change == "dtype":
        tensors[key] = tensors[key].astype(np.float16)
    elif change == "missing":
        del tensors[key]
    else:
        tensors[f"{PREFIX}score.bias"] = np.ones(3, np.float32)
    save_file(tensors, path)
    proof = prove(folder, open_folder(folder, name="out", origin=Origin(folder=folder)), asked)
    assert not proof.passed
    assert "extras" in {check.name for check in proof.checks if not check.passed}


def test_the_proof_of_kept_extras_counts_them(proved: tuple[Path, Any]) -> None:
    folder, asked = proved
    proof = prove(folder, open_folder(folder, name="out", origin=Origin(folder=folder)), asked)
    assert proof.passed
    assert "1 tensors, 0 differ" in {check.detail for check in proof.checks}


def test_extras_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    composite = merge([adapter("a", 0, head(np.nan))], extras="keep:a")
    with pytest.raises(ProofFailed, match=r"score\.weight holds NaN"):
        composite.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_composite_with_extras_is_verified_from_its_record(tmp_path: Path) -> None:
    config = peft_config(base_model_name_or_path="acme/base", modules_to_save=["score"])
    for number, name in enumerate("ab"):
        tensors = peft_tensors(np.random.default_rng(number), {"h.0.c_attn": 2})
        write_adapter(
            tmp_path / name, {**tensors, f"{PREFIX}score.weight": np.full((3, 5), number, np.float32)}, config
        )
    adapters = [Adapter.from_pretrained(tmp_path / name) for name in "ab"]
    merge(adapters, extras="average").save_pretrained(tmp_path / "out")
    proof = verify(tmp_path / "out", parents=[tmp_path / "a", tmp_path / "b"], hub=hub())
    assert proof.passed
    again = Adapter.from_pretrained(tmp_path / "out")
    assert np.array_equal(again.load_extra("score.weight"), np.full((3, 5), 0.5))


def hub() -> Any:
    from hub_merge.hub import Hub

    return Hub(token=False, offline=True)


# --- PEFT reads them --------------------------------------------------------------------------------------------------

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file as load_torch  # noqa: E402

from tests.test_peft_oracle import CONV1D, LOGITS, deltas, gpt2, llama, load, logits, with_added  # noqa: E402


def tied_llama() -> Any:
    config = llama().config
    config.tie_word_embeddings = True
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(config).eval()
    model.name_or_path = model.config._name_or_path = "acme/tied"
    return model


def classifier() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_labels=3,
        pad_token_id=0,
    )
    torch.manual_seed(4)
    model = transformers.LlamaForSequenceClassification(config).eval()
    model.name_or_path = model.config._name_or_path = "acme/classifier"
    return model


def bert() -> Any:
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4, num_labels=3
    )
    torch.manual_seed(5)
    model = transformers.BertForSequenceClassification(config).eval()
    model.name_or_path = model.config._name_or_path = "acme/bert"
    return model


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "a head": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "norms by a common ending": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    "embeddings that are tied": (tied_llama, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "tying enforced": (
        tied_llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "a score head of the task": (classifier, {"task_type": "SEQ_CLS", "target_modules": ["q_proj"]}),
    "head and biases": (bert, {"task_type": "SEQ_CLS", "target_modules": ["query"], "bias": "lora_only"}),
    "every bias": (gpt2, {"target_modules": ["c_attn"], "bias": "all", **CONV1D}),
    "biases of adapted modules": (gpt2, {"target_modules": ["c_attn"], "bias": "lora_only", **CONV1D}),
    "tokens": (llama, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 1]}),
    "tokens that are tied": (tied_llama, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 1]}),
    "tokens of both ends": (
        llama,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [4]}},
    ),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(base: Any, folder: Path, seed: int, **config: Any) -> Any:
    """Train, so to speak: add noise to all that PEFT trains; save it and return the model."""
    torch.manual_seed(seed)
    settings = {"task_type": "CAUSAL_LM", "init_lora_weights": False, "r": 2, "lora_alpha": 4, **config}
    model = peft.get_peft_model(base, peft.LoraConfig(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder, save_embedding_layers=False)
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", MODELS)
def test_one_adapter_with_its_extras_comes_back_in_peft(case: str, tmp_path: Path) -> None:
    build, config = MODELS[case]
    model = trained(build(), tmp_path / "source", 1, **config)
    merge([Adapter.from_pretrained(tmp_path / "source")], extras="keep:source").save_pretrained(tmp_path / "out")
    loaded = load_quietly(build(), tmp_path / "out")
    assert relative_error(logits(loaded), logits(model)) <= LOGITS
    without = merge([Adapter.from_pretrained(tmp_path / "source")], extras="drop")
    without.save_pretrained(tmp_path / "without")
    if build not in (classifier, bert):  # PEFT wants a head for the task of a classifier
        assert relative_error(logits(load_quietly(build(), tmp_path / "without")), logits(model)) > 100 * LOGITS


def load_quietly(base: Any, folder: Path) -> Any:
    """Load a composite; a key that is missing or unexpected fails the test. PEFT takes one adapter with biases only."""
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    result = peft.set_peft_model_state_dict(model, load_torch(folder / "adapter_model.safetensors"))
    missing = [key for key in result.missing_keys if ".default" in key]
    assert [key for key in missing if "lm_head.token_adapter" not in key] == []  # tied: PEFT's own files lack it too
    assert result.unexpected_keys == []
    return model


@pytest.mark.filterwarnings("ignore")
def test_a_sum_of_two_with_an_averaged_head_is_what_peft_loads(tmp_path: Path) -> None:
    """The reference is the base itself with the deltas added and the mean of both heads in place of its own."""
    config = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    models = [trained(llama(), tmp_path / name, number, **config) for number, name in enumerate("ab")]
    adapters = [Adapter.from_pretrained(tmp_path / name) for name in "ab"]
    merge(adapters, extras="average", weights=[1, 0.5]).save_pretrained(tmp_path / "out")
    first, second = (deltas(model.double()) for model in models)
    wanted = with_added(llama(), {module: delta + 0.5 * second[module] for module, delta in first.items()})
    heads = [load_file(tmp_path / name / "adapter_model.safetensors")[f"{PREFIX}lm_head.weight"] for name in "ab"]
    wanted.lm_head.weight.data = torch.from_numpy((heads[0].astype(np.float64) + heads[1]) / 2).float()
    assert relative_error(logits(load(llama(), tmp_path / "out")), logits(wanted)) <= LOGITS


@pytest.mark.filterwarnings("ignore")
def test_biases_find_their_place_whether_the_composite_adapts_their_module_or_not(tmp_path: Path) -> None:
    first = trained(gpt2(), tmp_path / "a", 1, target_modules=["c_attn"], bias="all", **CONV1D)
    trained(gpt2(), tmp_path / "b", 2, target_modules=["c_fc"], **CONV1D)
    adapters = [Adapter.from_pretrained(tmp_path / name) for name in "ab"]
    merge(adapters, extras="keep:a").save_pretrained(tmp_path / "out")
    loaded = load_quietly(gpt2(), tmp_path / "out").get_base_model()
    for layer in range(2):
        for module in ("attn.c_attn.base_layer", "mlp.c_fc", "ln_1"):
            trained_bias = first.get_base_model().get_submodule(f"transformer.h.{layer}.{module}").bias
            place = module if module != "mlp.c_fc" else "mlp.c_fc.base_layer"
            assert torch.equal(loaded.get_submodule(f"transformer.h.{layer}.{place}").bias, trained_bias)


COMPONENT = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


@pytest.mark.parametrize(
    ("key", "config"),
    [
        (f"{COMPONENT}.to_q.base_layer.bias", {"bias": "lora_only"}),
        ("conv_out.bias", {"bias": "all"}),
        ("conv_out.weight", {"modules_to_save": ["conv_out"]}),
    ],
)
def test_extras_beside_one_model_of_a_pipeline_keep_their_keys(
    key: str, config: dict[str, Any], tmp_path: Path
) -> None:
    """Modules of a pipeline have the model's name before theirs, the keys of PEFT's file do not."""
    rng = np.random.default_rng(0)
    tensors = peft_tensors(rng, {f"{COMPONENT}.to_q": 2, f"{COMPONENT}.to_k": 2})
    tensors[f"base_model.model.{key}"] = np.ones((6, 5) if key.endswith("weight") else 6, np.float32)
    mapping = {"base_model_class": "UNet2DConditionModel"}
    write_adapter(tmp_path / "it", tensors, peft_config(auto_mapping=mapping, task_type=None, **config))
    adapter = Adapter.from_pretrained(tmp_path / "it")
    assert {spec.component for spec in adapter.modules.values()} == {"unet"}
    merge([adapter], base="acme/sd", extras="keep:it").save_pretrained(tmp_path / "out")
    assert load_file(tmp_path / "out" / "adapter_model.safetensors").keys() == tensors.keys()
    written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert all(written[field] == value for field, value in config.items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kept", ["classifier", "generator"])
def test_the_task_is_that_of_the_adapter_whose_extras_are_kept(kept: str, tmp_path: Path) -> None:
    """So the class that the card names has a place for them, and PEFT wraps it."""
    generator = transformers.LlamaForCausalLM(classifier().config).eval()
    trained(generator, tmp_path / "generator", 1, target_modules=["q_proj"], modules_to_save=["lm_head"])
    trained(classifier(), tmp_path / "classifier", 2, target_modules=["q_proj"], task_type="SEQ_CLS")
    adapters = [Adapter.from_pretrained(tmp_path / name) for name in ("generator", "classifier")]
    composite = merge(adapters, extras=f"keep:{kept}", allow=["task_differs"], base="acme/llama")
    composite.save_pretrained(tmp_path / "out")
    task, loader, head = {
        "classifier": ("SEQ_CLS", "AutoModelForSequenceClassification", "score"),
        "generator": ("CAUSAL_LM", "AutoModelForCausalLM", "lm_head"),
    }[kept]
    extras, config = written(tmp_path / "out")
    assert config["task_type"] == read_record(tmp_path / "out").output["task_type"] == task
    assert f"base = {loader}.from_pretrained" in (tmp_path / "out" / "README.md").read_text()
    base = getattr(transformers, loader).from_config(classifier().config)
    loaded = load_quietly(base, tmp_path / "out").get_base_model().get_submodule(f"{head}.modules_to_save.default")
    assert np.array_equal(loaded.weight.detach().numpy(), extras[f"{head}.weight"])
