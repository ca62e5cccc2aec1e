"""Writing: alpha is the rank in every module, so that the scaling is 1; no variants; one rank, or one a module."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hub_merge.adapter import Adapter, Array, LoraFactors, ModuleKind, ModuleSpec
from hub_merge.errors import ProofFailed
from hub_merge.formats.peft.patterns import matches
from hub_merge.formats.tensors import dtype_named, is_finite, safetensors_writer
from hub_merge.layout import CONFIG_FILE, WEIGHTS_FILE
from hub_merge.parallel import map_modules

__all__ = ["rank_fields", "write_folder"]

PREFIX = "base_model.model."

Tensor: TypeAlias = NDArray[Any]


def write_folder(
    adapter: Adapter,
    folder: Path,
    *,
    base_model: str | None,
    dtype: str,
    rank: int | None,
    progress: Callable[[str], None],
) -> None:
    """Write ``adapter`` to the existing, empty ``folder``.

    A few modules are in memory at a time. Factors of a smaller rank are padded with zeros, which leaves the delta as it
    is.

    Args:
        adapter: What to write; its scaling goes into B.
        folder: Existing folder without these files.
        base_model: Base to name in the config, a Hub id, or ``None``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        rank: The one rank of the file, at least that of every module; ``None`` for the rank of each module.
        progress: Called with each module's name when it is written.

    Raises:
        ProofFailed: A factor holds NaN or infinity, or does in ``dtype``.
    """
    config = _config(adapter, base_model, rank)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    infos = {}
    for module, spec in adapter.modules.items():
        out_features, in_features = spec.shape
        a_key, b_key = _factor_keys(module, spec.kind)
        infos[a_key] = (dtype, (rank or spec.rank, in_features))
        infos[b_key] = (dtype, (out_features, rank or spec.rank))

    def prepare(module: str) -> tuple[str, Tensor, Tensor]:
        return module, *_prepared(module, adapter.factors(module), rank or adapter.modules[module].rank, dtype)

    with safetensors_writer(folder / WEIGHTS_FILE, infos) as writer:
        for module, A, B in map_modules(prepare, adapter.modules):
            a_key, b_key = _factor_keys(module, adapter.modules[module].kind)
            writer.write(a_key, A)
            writer.write(b_key, B)
            progress(module)


def _factor_keys(module: str, kind: ModuleKind) -> tuple[str, str]:
    if kind == "embedding":
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _prepared(module: str, factors: LoraFactors, rank: int, dtype: str) -> tuple[Tensor, Tensor]:
    """Return A and B as they are to be written: scaling in B, padded to ``rank``, in ``dtype``."""
    B = factors.B if factors.scaling == 1.0 else np.multiply(factors.B, factors.scaling, dtype=np.float64)
    with np.errstate(over="ignore"):  # the check looks for infinity
        prepared = _cast(factors.A, (rank, factors.shape[1]), dtype), _cast(B, (factors.shape[0], rank), dtype)
    if not all(map(is_finite, prepared)):
        raise ProofFailed(
            f"{module} would hold NaN or infinity in {dtype}.",
            remedy="Try --dtype float32 or bfloat16, or smaller weights.",
        )
    return prepared


def _cast(factor: Array, shape: tuple[int, int], dtype: str) -> Tensor:
    if factor.shape == shape:
        return factor.astype(dtype_named(dtype), copy=False)
    padded = np.zeros(shape, dtype_named(dtype))
    padded[: factor.shape[0], : factor.shape[1]] = factor.astype(padded.dtype, copy=False)
    return padded


def rank_fields(modules: Mapping[str, ModuleSpec], rank: int | None) -> dict[str, Any]:
    """Return the fields of the config that state rank and alpha, which are equal in every module.

    Args:
        modules: The modules of the file.
        rank: The one rank of all; ``None`` to name, by patterns, the modules that differ from the most frequent rank.
    """
    counts = Counter(spec.rank for spec in modules.values())
    common = rank or max(counts, key=lambda value: (counts[value], value))
    others = {
        _pattern(name, modules): spec.rank for name, spec in modules.items() if rank is None and spec.rank != common
    }
    return {"r": common, "lora_alpha": common, "rank_pattern": others, "alpha_pattern": others}


def _pattern(module: str, modules: Mapping[str, ModuleSpec]) -> str:
    """Return the pattern that, by PEFT's rule, matches ``module`` and no other of ``modules``.

    The name does, unless it is the end of a longer name, or a dot in it, which stands for any character, matches there.
    """
    if any(matches(module, other) for other in modules if other != module):
        return f"^{re.escape(module)}"
    return module


def _config(adapter: Adapter, base_model: str | None, rank: int | None) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": base_model,
        "revision": None,
        "inference_mode": True,
        **rank_fields(adapter.modules, rank),
        "lora_dropout": 0.0,
        "target_modules": sorted(adapter.target_modules),
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "use_rslora": False,
        "use_dora": False,
    }
