"""Safetensors files read and written by hand: what the package reads and writes is compared with these few lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tests.helpers import Dense

KINDS: dict[str, tuple[str, Any]] = {
    "float64": ("F64", np.float64),
    "float32": ("F32", np.float32),
    "float16": ("F16", np.float16),
    "bfloat16": ("BF16", ml_dtypes.bfloat16),
}
"""Name in a file, and type."""


def write_tensors(path: Path, tensors: Mapping[str, Dense], dtype: str) -> None:
    code, kind = KINDS[dtype]
    header, content = {}, b""
    for name, tensor in tensors.items():
        data = tensor.astype(kind).tobytes()
        header[name] = {"dtype": code, "shape": tensor.shape, "data_offsets": [len(content), len(content) + len(data)]}
        content += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def read_tensors(path: Path) -> dict[str, Dense]:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    kinds = dict(KINDS.values())
    tensors = {}
    for name, info in json.loads(data[8:end]).items():
        if name != "__metadata__":
            start, stop = (end + offset for offset in info["data_offsets"])
            flat = np.frombuffer(data[start:stop], kinds[info["dtype"]])
            tensors[name] = flat.reshape(info["shape"]).astype(np.float64)
    return tensors
