"""Adapters of mlx-lm: ``adapters.safetensors`` and an ``adapter_config.json`` without ``peft_type``.

Keys are ``<module>.lora_a``, ``(in, rank)``, and ``<module>.lora_b``, ``(rank, out)``: both are the transposes of ours.
The scaling is ``lora_parameters.scale``, one for all modules, as it stands (``mlx_lm/tuner/lora.py``: the fused weight
is ``W + scale * lora_b.T @ lora_a.T``). An embedding has ``lora_a`` of shape ``(vocabulary, rank)``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hub_merge.adapter import Adapter, LoraFactors, ModuleKind, Origin
from hub_merge.errors import MergeError, UnsupportedAdapter
from hub_merge.findings import Finding
from hub_merge.formats.names import is_flat
from hub_merge.formats.pairs import Note, Part, adapter_of_parts, grouped, leftover_findings, notes_of, pair_spec
from hub_merge.formats.peft.config import finite_number
from hub_merge.formats.tensors import TensorInfo, TensorStore
from hub_merge.formats.writing import Layout, write_factors
from hub_merge.layout import CONFIG_FILE, MLX_FILE

__all__ = ["adapter_from_mlx", "is_mlx", "is_mlx_config", "require_mlx", "write_mlx"]

KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[ab])")
EMBEDDING = re.compile(r"(?:.+\.)?(?:embed_tokens|tok_embeddings|word_embeddings|wte|wpe|embed_in|shared)")
LAYER = re.compile(r"(?:.+\.)?(?:layers|h|blocks)\.\d+\.")

LEFTOVERS = (
    (re.compile(r"\.m$"), "dora", "DoRA magnitudes"),
    (re.compile(r"\.bias$"), "trained_weights", "trained biases"),
    (re.compile(r"\.(?:weight|scales|biases)$"), "trained_weights", "trained weights outside LoRA"),
    (re.compile(r""), "unknown_tensors", "tensors of an unknown kind"),
)


def is_mlx(keys: Mapping[str, Any]) -> bool:
    """Whether tensors of these names are an adapter of mlx-lm."""
    return any(KEY.fullmatch(key) for key in keys)


def is_mlx_config(config: Mapping[str, Any]) -> bool:
    """Whether this is a config of mlx-lm."""
    return "peft_type" not in config and ("lora_parameters" in config or "fine_tune_type" in config)


def adapter_from_mlx(config: Mapping[str, Any], store: TensorStore, *, name: str, origin: Origin) -> Adapter:
    """Build an adapter from its config and tensors; what cannot be merged becomes findings.

    Raises:
        UnsupportedAdapter: It holds whole weights instead of factors.
        AdapterFormatError: Its scale is missing or no number.
    """
    note = notes_of(name)
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise UnsupportedAdapter(
            f"This is fine-tuning of type {str(kind)[:40]} by MLX-LM, not lora.",
            remedy="Only LoRA adapters can be merged.",
        )
    scale = _scale(config)
    groups, others = grouped(store.infos, _split)
    findings = [*leftover_findings(others, LEFTOVERS, note)]
    if kind == "dora" and not any(found.code == "dora" for found in findings):
        findings.append(note("dora", "fine_tune_type", "fine_tune_type is dora", "lora"))
    parts = [_part(module, keys, store, scale, note) for module, keys in groups.items()]
    base = config.get("model")
    base = base if isinstance(base, str) else None
    return adapter_of_parts(parts, findings, store, name=name, origin=origin, format="mlx", base_model=base)


def _split(key: str) -> tuple[str, str] | None:
    found = KEY.fullmatch(key)
    return (found["module"], found["side"]) if found else None


def _scale(config: Mapping[str, Any]) -> float:
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    return finite_number(scale, "lora_parameters.scale")


def _part(module: str, keys: Mapping[str, str], store: TensorStore, scale: float, note: Note) -> Part | Finding:
    a, b = (store.infos.get(keys.get(side, "")) for side in "ab")
    if any(info is not None and len(info.shape) == 3 for info in (a, b)):
        return note("experts", module, "its factors have an axis of experts", "a linear layer or an embedding")
    kind: ModuleKind = "embedding" if EMBEDDING.fullmatch(module) else "linear"
    spec = pair_spec(module, kind, _turned(a), _turned(b), note)
    if isinstance(spec, Finding):
        return spec

    def load() -> LoraFactors:
        return LoraFactors(store.read(keys["a"]).T, store.read(keys["b"]).T, scale)

    return Part(replace(spec, scaling=scale), load)


def _turned(info: TensorInfo | None) -> TensorInfo | None:
    return None if info is None else TensorInfo(info.dtype, info.shape[::-1])


def write_mlx(
    adapter: Adapter,
    folder: Path,
    *,
    base_model: str | None,
    dtype: str,
    rank: int | None,
    progress: Callable[[str], None],
) -> None:
    """Write ``adapter`` to the existing, empty ``folder`` as mlx-lm does, with a scale of 1.

    The arguments are those of ``peft.write_folder``; ``rank`` is a number, see ``FileFormat``.

    Raises:
        MergeError: It adapts convolutions, or models of a pipeline, which mlx-lm does not have.
        ProofFailed: A factor holds NaN or infinity, or does in ``dtype``.
    """
    require_mlx(adapter)
    config = _config(adapter, base_model, rank)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=4, sort_keys=True) + "\n", encoding="utf-8")
    layout = Layout(lambda spec: (f"{spec.name}.lora_a", f"{spec.name}.lora_b"), transposed=True)
    path, metadata = folder / MLX_FILE, {"format": "mlx"}
    write_factors(path, adapter, layout, dtype=dtype, rank=rank, progress=progress, metadata=metadata)


def require_mlx(adapter: Adapter) -> None:
    """Raise ``MergeError`` unless every module can be a layer of a model of mlx-lm."""
    for module, spec in adapter.modules.items():
        if spec.kernel or spec.component or is_flat(module):
            raise MergeError(
                f"{module} is no layer of a language model of MLX-LM.",
                remedy="Write --format kohya." if is_flat(module) else "Write --format diffusers, or peft.",
            )


def _config(adapter: Adapter, base_model: str | None, rank: int | None) -> dict[str, Any]:
    """Return a config that makes mlx-lm adapt these modules in every layer; those without tensors change nothing."""
    keys = sorted({LAYER.sub("", module, count=1) for module in adapter.modules})
    return {
        "fine_tune_type": "lora",
        "model": base_model,
        "num_layers": -1,
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": keys},
    }
