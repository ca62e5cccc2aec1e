"""Adapters of realistic shapes with random factors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

__all__ = ["GPT2", "Shape", "build"]


@dataclass(frozen=True)
class Shape:
    """Which modules a base has and what its adapters look like."""

    base: str
    layers: int
    module: str
    """Name of a module with ``{layer}`` and ``{name}``."""
    targets: Mapping[str, tuple[int, int]]
    """``(out, in)`` by name."""
    rank: int
    fan_in_fan_out: bool = False


GPT2 = Shape(
    base="openai-community/gpt2",
    layers=12,
    module="transformer.h.{layer}.{name}",
    targets={"attn.c_attn": (2304, 768), "attn.c_proj": (768, 768), "mlp.c_proj": (768, 3072)},
    rank=4,
    fan_in_fan_out=True,
)


def build(shape: Shape, folder: Path, seed: int) -> Path:
    """Write one adapter of ``shape`` to ``folder``."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(shape.layers):
        for name, (out_features, in_features) in shape.targets.items():
            key = "base_model.model." + shape.module.format(layer=layer, name=name)
            tensors[f"{key}.lora_A.weight"] = rng.normal(0, 0.02, (shape.rank, in_features)).astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = rng.normal(0, 0.02, (out_features, shape.rank)).astype(np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": shape.base,
        "r": shape.rank,
        "lora_alpha": 16 * shape.rank,
        "target_modules": list(shape.targets),
        "fan_in_fan_out": shape.fan_in_fan_out,
        "bias": "none",
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
