"""Zoos of generated adapters with GPT-2's shapes, and what was planted in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import save

from hub_merge.adapter import Adapter, LoraFactors
from tests.helpers import adapter_of
from tests.hub_double import HubDouble

BASE = "openai-community/gpt2"
LAYERS, SHAPE, RANK = 12, (2304, 768), 4
FAMILY = 5
"""Members of each family."""

Factors = dict[str, LoraFactors]


def gpt2_factors(seed: Any, layers: int = LAYERS) -> Factors:
    """Return factors of rank 4 on GPT-2's c_attn, float16 as a small file keeps them."""
    rng = np.random.default_rng(seed)
    out, into = SHAPE
    return {
        f"transformer.h.{layer}.attn.c_attn": LoraFactors(
            (rng.standard_normal((RANK, into), np.float32) / into**0.5).astype(np.float16),
            (rng.standard_normal((out, RANK), np.float32) * 0.02).astype(np.float16),
        )
        for layer in range(layers)
    }


def moved(factors: Factors, seed: Any, far: float) -> Factors:
    """Return factors of a training that began and went alike: A is the same, B is apart by ``far`` of its size."""
    rng = np.random.default_rng(seed)
    return {
        module: LoraFactors(
            part.A,
            (part.B + far * 0.02 * rng.standard_normal(part.B.shape, np.float32)).astype(np.float16),
        )
        for module, part in factors.items()
    }


def confined(factors: Factors, block: int, blocks: int) -> Factors:
    """Return factors that write to one of several blocks of outputs only: those of two blocks are orthogonal."""
    kept = np.arange(SHAPE[0]) * blocks // SHAPE[0] == block
    return {module: LoraFactors(part.A, part.B * kept[:, None].astype(np.float16)) for module, part in factors.items()}


def adapter_files(
    factors: Factors, *, base: str = BASE, license: str = "apache-2.0", tags: str = "lora"
) -> dict[str, bytes]:
    """Return the files of an adapter in PEFT's format."""
    tensors = {}
    for module, part in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = part.A
        tensors[f"base_model.model.{module}.lora_B.weight"] = part.B
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["c_attn"],
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "fan_in_fan_out": True,
    }
    card = f"---\nbase_model: {base}\nlicense: {license}\ntags: [{tags}]\n---\n"
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save(tensors),
        "README.md": card.encode(),
    }


@dataclass
class Planted:
    """What is in a zoo on purpose, as Hub ids."""

    ids: list[str] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    families: list[list[str]] = field(default_factory=list)
    orthogonal: list[str] = field(default_factory=list)


def planted_factors(count: int, layers: int = LAYERS) -> Iterator[tuple[str, str, Factors]]:
    """Yield id, kind and factors: of each ten adapters five are a family, one a copy, two orthogonal, two alone."""
    for number in range(count):
        group, place = divmod(number, 10)
        start = gpt2_factors((group, 0), layers)
        if place < FAMILY:
            yield f"author/run-{group}-step-{place}", "family", moved(start, (group, 1, place), 0.3)
        elif place == FAMILY:
            yield f"copier/run-{group}-again", "copy", moved(start, (group, 1, 0), 0.3)
        elif place < 8:
            kind, blocks = "orthogonal", 2
            yield f"maths/apart-{group}-{place}", kind, confined(gpt2_factors((group, 2), layers), place - 6, blocks)
        else:
            yield f"someone/alone-{group}-{place}", "alone", gpt2_factors((group, 3, place), layers)


def fill(hub: HubDouble, count: int, layers: int = LAYERS) -> Planted:
    """Put a zoo of ``count`` adapters on the Hub double."""
    planted = Planted()
    for number, (repo_id, kind, factors) in enumerate(planted_factors(count, layers)):
        hub.add_repo(repo_id, adapter_files(factors), downloads=number)
        planted.ids.append(repo_id)
        if kind == "family":
            if repo_id.endswith("-0"):
                planted.families.append([])
            planted.families[-1].append(repo_id)
        elif kind == "copy":
            planted.duplicates.append((planted.families[-1][0], repo_id))
            planted.families[-1].append(repo_id)
        elif kind == "orthogonal":
            planted.orthogonal.append(repo_id)
    return planted


def in_memory(name: str, factors: Factors) -> Adapter:
    """Return an adapter of the factors."""
    return adapter_of(name, factors, base_model=BASE)
