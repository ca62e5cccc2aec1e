"""Adapters of mlx-lm, against the formula of its ``fuse`` (``mlx_lm/tuner/lora.py``) in plain numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from hub_merge.adapter import Adapter
from hub_merge.errors import AdapterFormatError, UnsupportedAdapter
from hub_merge.hub import Hub
from hub_merge.pipeline import merge, verify
from tests.helpers import Dense, adapter_of, peft_config, peft_tensors, random_factors, relative_error, write_adapter

Q, EMBED = "model.layers.0.self_attn.q_proj", "model.embed_tokens"
CONFIG: Mapping[str, Any] = {
    "fine_tune_type": "lora",
    "model": "Qwen/Qwen3-0.6B",
    "num_layers": 16,
    "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0},
}


def written(folder: Path, tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any] = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "adapters.safetensors")
    return folder


@pytest.fixture
def tensors(rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Factors of a layer of 5 inputs and 6 outputs, and of an embedding of 9 tokens in 4 dimensions."""
    shapes = {f"{Q}.lora_a": (5, 2), f"{Q}.lora_b": (2, 6), f"{EMBED}.lora_a": (9, 2), f"{EMBED}.lora_b": (2, 4)}
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def fused(tensors: Mapping[str, NDArray[Any]], module: str, scale: float, *, embedding: bool = False) -> Dense:
    """Return what ``LoRALinear.fuse`` and ``LoRAEmbedding.fuse`` add to the weight."""
    a, b = (tensors[f"{module}.lora_{side}"].astype(np.float64) for side in "ab")
    return (scale * a) @ b if embedding else (scale * b.T) @ a.T


def test_the_delta_is_what_mlx_adds_when_it_fuses(tmp_path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    adapter = Adapter.from_pretrained(written(tmp_path / "it", tensors))
    assert (adapter.name, adapter.format, adapter.base_model) == ("it", "mlx", "Qwen/Qwen3-0.6B")
    assert not adapter.findings
    assert {module: (spec.kind, spec.shape) for module, spec in adapter.modules.items()} == {
        EMBED: ("embedding", (4, 9)),
        Q: ("linear", (6, 5)),
    }
    assert relative_error(adapter.factors(Q).delta(), fused(tensors, Q, 20.0)) < 1e-12
    assert relative_error(adapter.factors(EMBED).delta().T, fused(tensors, EMBED, 20.0, embedding=True)) < 1e-12


def test_the_other_checkpoints_of_a_run_can_be_named(tmp_path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    folder = written(tmp_path / "it", tensors)
    save_file({key: 2 * tensor for key, tensor in tensors.items()}, folder / "0000100_adapters.safetensors")
    assert Adapter.from_pretrained(folder).origin.files == ("adapter_config.json", "adapters.safetensors")
    early = Adapter.from_pretrained(folder / "0000100_adapters.safetensors")
    assert early.name == "0000100_adapters"
    assert relative_error(early.factors(Q).delta(), 4 * fused(tensors, Q, 20.0)) < 1e-12


def test_a_peft_adapter_written_for_mlx_fuses_to_the_same_delta(tmp_path: Path, rng: np.random.Generator) -> None:
    names = {Q: 2, "model.layers.11.mlp.down_proj": 2}
    parent = write_adapter(tmp_path / "peft", peft_tensors(rng, names), peft_config(base_model_name_or_path="a/b"))
    adapter = Adapter.from_pretrained(parent)
    output = adapter.save_pretrained(tmp_path / "mlx", format="mlx")
    config = json.loads((output / "adapter_config.json").read_text())
    parameters = config["lora_parameters"]
    assert (config["model"], config["fine_tune_type"], config["num_layers"]) == ("a/b", "lora", -1)
    assert parameters == {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": ["mlp.down_proj", "self_attn.q_proj"]}
    stored = load_file(output / "adapters.safetensors")
    assert set(stored) == {f"{name}.lora_{side}" for name in names for side in "ab"}
    for name in names:
        assert stored[f"{name}.lora_a"].shape == (5, 2) and stored[f"{name}.lora_b"].shape == (2, 6)
        assert relative_error(fused(stored, name, 1.0), adapter.factors(name).delta()) < 1e-6
    hub = Hub(token=False, endpoint="http://127.0.0.1:9", offline=True)
    assert verify(output, parents=[parent], hub=hub).passed
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "library_name: mlx" in card and "from mlx_lm import load" in card


def test_adapters_of_mlx_and_peft_merge(
    tmp_path: Path, tensors: dict[str, NDArray[np.float32]], rng: np.random.Generator
) -> None:
    first = Adapter.from_pretrained(written(tmp_path / "it", tensors))
    config = peft_config(base_model_name_or_path="Qwen/Qwen3-0.6B", target_modules=["q_proj"])
    second = Adapter.from_pretrained(write_adapter(tmp_path / "peft", peft_tensors(rng, {Q: 2}), config))
    again = Adapter.from_pretrained(merge([first, second]).save_pretrained(tmp_path / "out"))
    wanted = fused(tensors, Q, 20.0) + second.factors(Q).delta()
    assert relative_error(again.factors(Q).delta(), wanted) < 1e-6
    assert again.modules[EMBED].kind == "embedding"


def test_mixed_ranks_are_padded_to_the_one_rank_that_mlx_knows(tmp_path: Path, rng: np.random.Generator) -> None:
    parts = {"model.layers.0.a": random_factors(rng, (4, 3), 1, scaling=3.0), "lm_head": random_factors(rng, (5, 4), 3)}
    output = adapter_of("it", parts).save_pretrained(tmp_path / "out", format="mlx")
    stored = load_file(output / "adapters.safetensors")
    for name, part in parts.items():
        assert stored[f"{name}.lora_a"].shape[1] == 3
        assert relative_error(fused(stored, name, 1.0), part.delta()) < 1e-6
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["lora_parameters"]["keys"] == ["a", "lm_head"]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"fine_tune_type": "full"}, UnsupportedAdapter, "fine-tuning of type full"),
        ({"lora_parameters": {"rank": 2, "alpha": 3}}, AdapterFormatError, "lora_parameters.scale"),
        ({"lora_parameters": None}, AdapterFormatError, "lora_parameters.scale"),
        ({"lora_parameters": {"scale": True}}, AdapterFormatError, "lora_parameters.scale"),
    ],
)
def test_a_config_that_states_no_scale_or_no_lora_is_refused(
    tmp_path: Path,
    tensors: dict[str, NDArray[np.float32]],
    change: Mapping[str, Any],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        Adapter.from_pretrained(written(tmp_path / "it", tensors, {**CONFIG, **change}))


@pytest.mark.parametrize(
    ("extra", "config", "code"),
    [
        ({f"{Q}.m": np.ones(6, np.float32)}, {"fine_tune_type": "dora"}, "dora"),
        ({}, {"fine_tune_type": "dora"}, "dora"),
        ({"lm_head.bias": np.ones(6, np.float32)}, {}, "trained_weights"),
        ({"x.lora_a": np.ones((2, 3, 4), np.float32), "x.lora_b": np.ones((2, 4, 3), np.float32)}, {}, "experts"),
        ({"x.lora_a": np.ones((3, 4), np.float32)}, {}, "missing_factor"),
        ({"x.lora_a": np.ones((3, 4), np.float32), "x.lora_b": np.ones((5, 3), np.float32)}, {}, "factor_shape"),
    ],
)
def test_what_mlx_has_beyond_plain_factors_is_a_finding(
    tmp_path: Path,
    tensors: dict[str, NDArray[np.float32]],
    extra: Mapping[str, NDArray[Any]],
    config: Mapping[str, Any],
    code: str,
) -> None:
    adapter = Adapter.from_pretrained(written(tmp_path / "it", {**tensors, **extra}, {**CONFIG, **config}))
    assert [found.code for found in adapter.findings] == [code]
    assert set(adapter.modules) == {Q, EMBED}
