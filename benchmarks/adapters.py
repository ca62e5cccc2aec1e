"""Adapters of realistic shapes with random factors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

__all__ = ["GPT2", "LLAMA_1B", "LLAMA_8B", "Shape", "build"]


@dataclass(frozen=True)
class Shape:
    """Which modules a base has and what its adapters look like."""

    base: str
    config: Mapping[str, Any]
    """Of the base, for transformers, without its number of layers."""
    layers: int
    module: str
    """Name of a module with ``{layer}`` and ``{name}``."""
    targets: Mapping[str, tuple[int, int]]
    """``(out, in)`` by name."""
    rank: int
    dtype: str
    fan_in_fan_out: bool = False

    @property
    def modules(self) -> int:
        """How many modules an adapter has."""
        return self.layers * len(self.targets)


GPT2 = Shape(
    base="openai-community/gpt2",
    config={"model_type": "gpt2", "n_embd": 768, "n_head": 12},
    layers=12,
    module="transformer.h.{layer}.{name}",
    targets={"attn.c_attn": (2304, 768), "attn.c_proj": (768, 768), "mlp.c_proj": (768, 3072)},
    rank=4,
    dtype="float32",
    fan_in_fan_out=True,
)


def _llama(base: str, layers: int, hidden: int, heads: int, intermediate: int, key_values: int) -> Shape:
    """Return rank-16 bfloat16 adapters of all seven linear modules in a layer."""
    return Shape(
        base=base,
        config={
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_attention_heads": heads,
            "num_key_value_heads": heads * key_values // hidden,
        },
        layers=layers,
        module="model.layers.{layer}.{name}",
        targets={
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (key_values, hidden),
            "self_attn.v_proj": (key_values, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden),
            "mlp.down_proj": (hidden, intermediate),
        },
        rank=16,
        dtype="bfloat16",
    )


LLAMA_1B = _llama("meta-llama/Llama-3.2-1B", layers=16, hidden=2048, heads=32, intermediate=8192, key_values=512)
LLAMA_8B = _llama("meta-llama/Llama-3.1-8B", layers=32, hidden=4096, heads=32, intermediate=14336, key_values=1024)


def build(shape: Shape, folder: Path, seed: int) -> Path:
    """Write one adapter of ``shape`` to ``folder``."""
    rng = np.random.default_rng(seed)
    dtype = ml_dtypes.bfloat16 if shape.dtype == "bfloat16" else np.dtype(shape.dtype)

    def factor(rows: int, columns: int) -> np.ndarray:
        return (0.02 * rng.standard_normal((rows, columns), np.float32)).astype(dtype)

    tensors = {}
    for layer in range(shape.layers):
        for name, (out_features, in_features) in shape.targets.items():
            key = "base_model.model." + shape.module.format(layer=layer, name=name)
            tensors[f"{key}.lora_A.weight"] = factor(shape.rank, in_features)
            tensors[f"{key}.lora_B.weight"] = factor(out_features, shape.rank)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": shape.base,
        "r": shape.rank,
        "lora_alpha": 2 * shape.rank,
        "target_modules": list(shape.targets),
        "fan_in_fan_out": shape.fan_in_fan_out,
        "bias": "none",
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
