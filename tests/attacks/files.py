"""Builders of hostile files, from the bytes up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS, INDEX = "adapter_config.json", "adapter_model.safetensors", "adapter_model.safetensors.index.json"
MODULE = "base_model.model.h.0.c_attn"


def config_of(**changes: Any) -> bytes:
    """Return a sound config, with changes."""
    sound = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["c_attn"],
        "base_model_name_or_path": "a/b",
    }
    return json.dumps({**sound, **changes}).encode()


def safetensors_of(header: Any, data: bytes = b"") -> bytes:
    """Return a file with this header, which need not be sound."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def weights_of(modules: Mapping[str, tuple[int, tuple[int, int]]], *, fill: bytes = b"\0") -> bytes:
    """Return a sound file of float32 factors: rank and ``(out, in)`` by module."""
    header: dict[str, Any] = {}
    position = 0
    for module, (rank, (out_features, in_features)) in modules.items():
        for side, shape in (("A", (rank, in_features)), ("B", (out_features, rank))):
            end = position + 4 * shape[0] * shape[1]
            entry = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, end]}
            header[f"{module}.lora_{side}.weight"] = entry
            position = end
    return safetensors_of(header, (fill * position)[:position])


SOUND = weights_of({MODULE: (2, (6, 5))})


def put(folder: Path, *, config: bytes | None = None, weights: bytes | None = SOUND, **more: bytes) -> None:
    """Write an adapter's files; the names in ``more`` have ``__`` for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_bytes(config_of() if config is None else config)
    if weights is not None:
        (folder / WEIGHTS).write_bytes(weights)
    for name, content in more.items():
        (folder / name.replace("__", ".")).write_bytes(content)


def grow(path: Path, size: int) -> None:
    """Make a file appear ``size`` bytes long without using the disk."""
    with path.open("ab") as file:
        file.truncate(size)
