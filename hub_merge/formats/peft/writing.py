"""Writing in the portable profile: one rank, ``lora_alpha == r``, no patterns and no variants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hub_merge.adapter import Adapter, Array, LoraFactors, ModuleKind, Tensor
from hub_merge.errors import ProofFailed
from hub_merge.formats.peft.experts import expert_number, joined, path_of
from hub_merge.formats.peft.extras import extra_fields, extra_key
from hub_merge.formats.tensors import dtype_named, is_finite, safetensors_writer
from hub_merge.layout import CONFIG_FILE, WEIGHTS_FILE
from hub_merge.parallel import map_modules

__all__ = ["stored_units", "write_portable"]

PREFIX = "base_model.model."


def write_portable(
    adapter: Adapter, folder: Path, *, base_model: str | None, dtype: str, rank: int, progress: Callable[[str], None]
) -> None:
    """Write ``adapter`` to the existing, empty ``folder`` in the portable profile.

    A few modules are in memory at a time. Factors of a smaller rank are padded with zeros, which leaves the delta as it
    is.

    Args:
        adapter: What to write; its scaling goes into B. Its extras are written as they are.
        folder: Existing folder without these files.
        base_model: Base to name in the config, a Hub id, or ``None``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        rank: The one rank of the file, at least that of every module.
        progress: Called with each module's name when it is written.

    Raises:
        ProofFailed: A factor holds NaN or infinity, or does in ``dtype``.
    """
    config = _portable_config(adapter, base_model, rank)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    infos: dict[str, tuple[str, tuple[int, ...]]] = {}
    units = stored_units(adapter)
    for path, modules in units.items():
        spec = adapter.modules[modules[0]]
        out_features, in_features = spec.shape
        a_key, b_key = _factor_keys(path, spec.kind)
        infos[a_key] = (dtype, (rank * len(modules), in_features))
        infos[b_key] = (dtype, (out_features, rank * len(modules)))
    extra_keys = {name: PREFIX + extra_key(spec, adapter) for name, spec in adapter.extras.items()}
    infos |= {extra_keys[name]: (spec.dtype, spec.shape) for name, spec in adapter.extras.items()}

    def prepare(path: str) -> tuple[str, Tensor, Tensor]:
        factors = [_prepared(module, adapter.factors(module), rank, dtype) for module in units[path]]
        return path, *(joined(factors) if len(factors) > 1 else factors[0])

    with safetensors_writer(folder / WEIGHTS_FILE, infos) as writer:
        for path, A, B in map_modules(prepare, units):
            a_key, b_key = _factor_keys(path, adapter.modules[units[path][0]].kind)
            writer.write(a_key, A)
            writer.write(b_key, B)
            for module in units[path]:
                progress(module)
        for name, key in extra_keys.items():
            writer.write(key, _finite_extra(name, adapter.load_extra(name)))


def _finite_extra(name: str, tensor: Tensor) -> Tensor:
    if np.issubdtype(tensor.dtype, np.integer) or tensor.dtype == np.bool_ or is_finite(tensor):
        return tensor
    raise ProofFailed(f"{name} holds NaN or infinity.", remedy="Leave it out with --extras drop.")


def stored_units(adapter: Adapter) -> dict[str, list[str]]:
    """Return the modules whose factors share two tensors in a file, by their path: one module, or a layer's experts."""
    units: dict[str, list[str]] = {}
    for module, spec in adapter.modules.items():
        units.setdefault(path_of(spec), []).append(module)
    for modules in units.values():
        modules.sort(key=lambda module: expert_number(adapter.modules[module]))
    return units


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


def _portable_config(adapter: Adapter, base_model: str | None, rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": base_model,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(adapter.target_modules),
        **({"target_parameters": sorted(adapter.target_parameters)} if adapter.target_parameters else {}),
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        **extra_fields(adapter),
    }
