"""Writing in the portable profile: one rank, ``lora_alpha == r``, no patterns and no variants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hub_merge.adapter import Adapter, LoraFactors, ModuleSpec
from hub_merge.errors import MergeError, ProofFailed
from hub_merge.formats.names import is_flat
from hub_merge.formats.pairs import factor_shapes
from hub_merge.formats.tensors import dtype_named, safetensors_writer
from hub_merge.layout import COMPONENT_KEY, CONFIG_FILE, WEIGHTS_FILE

__all__ = ["only_component", "rounded", "write_portable"]

PREFIX = "base_model.model."


def write_portable(
    adapter: Adapter, folder: Path, *, base_model: str | None, dtype: str, rank: int, progress: Callable[[str], None]
) -> None:
    """Write ``adapter`` to the existing, empty ``folder`` in the portable profile.

    One module is in memory at a time. Factors of a smaller rank are padded with zeros, which leaves the delta as it is.

    Args:
        adapter: What to write; its scaling goes into B.
        folder: Existing folder without these files.
        base_model: Base to name in the config, a Hub id, or ``None``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        rank: The one rank of the file, at least that of every module.
        progress: Called with each module's name when it is written.

    Raises:
        MergeError: PEFT cannot hold it; see ``only_component``.
        ProofFailed: A factor holds NaN or infinity, or does in ``dtype``.
    """
    component = only_component(adapter)
    config = _portable_config(adapter, base_model, rank, component)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    infos = {}
    for spec in adapter.modules.values():
        a_key, b_key = _factor_keys(spec)
        a_shape, b_shape = factor_shapes(spec, rank)
        infos[a_key], infos[b_key] = (dtype, a_shape), (dtype, b_shape)
    metadata = {COMPONENT_KEY: component} if component else {}
    with safetensors_writer(folder / WEIGHTS_FILE, infos, metadata) as writer:
        for module, spec in adapter.modules.items():
            A, B = rounded(adapter.factors(module), module, rank, dtype)
            for key, tensor in zip(_factor_keys(spec), (A, B), strict=True):
                writer.write(key, tensor.reshape(infos[key][1]))
            progress(module)


def only_component(adapter: Adapter) -> str:
    """Return the model of a pipeline that all modules belong to, empty for a model of its own.

    Raises:
        MergeError: There are several, or names that PEFT could not find in a model.
    """
    components = sorted({spec.component for spec in adapter.modules.values()})
    if flat := next((module for module in adapter.modules if is_flat(module)), None):
        raise MergeError(
            f"{flat} is a name of kohya's whose place in the model is unknown, so PEFT could not find it.",
            remedy="Write the format it came in: --format kohya.",
        )
    if len(components) > 1:
        raise MergeError(
            f"The adapter is for several models ({', '.join(components)}); a PEFT folder holds an adapter of one.",
            remedy="Write one file for all of them: --format diffusers, or --format kohya.",
        )
    return components[0] if components else ""


def rounded(
    factors: LoraFactors, module: str, rank: int, dtype: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return A and B as they are written: of ``rank``, in ``dtype``, with the scaling in B.

    Raises:
        ProofFailed: A factor holds NaN or infinity, or does in ``dtype``.
    """
    A, B = _padded(factors, rank, dtype)
    if not (np.isfinite(A).all() and np.isfinite(B).all()):
        raise ProofFailed(
            f"{module} would hold NaN or infinity in {dtype}.",
            remedy="Try --dtype float32 or bfloat16, or smaller weights.",
        )
    return A, B


def _factor_keys(spec: ModuleSpec) -> tuple[str, str]:
    module = spec.local_name
    if spec.kind == "embedding":
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _padded(factors: LoraFactors, rank: int, dtype: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    out_features, in_features = factors.shape
    A = np.zeros((rank, in_features), dtype_named(dtype))
    B = np.zeros((out_features, rank), dtype_named(dtype))
    scaled = factors.B if factors.scaling == 1.0 else factors.scaling * factors.B.astype(np.float64)
    with np.errstate(over="ignore"):  # the caller looks for infinity
        A[: factors.rank] = factors.A.astype(A.dtype, copy=False)
        B[:, : factors.rank] = scaled.astype(B.dtype, copy=False)
    return A, B


def _portable_config(adapter: Adapter, base_model: str | None, rank: int, component: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": base_model,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(target.removeprefix(f"{component}.") for target in adapter.target_modules),
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
    }
