"""Builders and dense references shared by the tests."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from hub_merge.adapter import Adapter, Array, LoraFactors, ModuleSpec

Dense = NDArray[np.float64]


def random_factors(
    rng: np.random.Generator,
    shape: tuple[int, int],
    rank: int,
    *,
    scaling: float = 1.0,
    dtype: Any = np.float64,
) -> LoraFactors:
    """Return factors with normal entries."""
    out_features, in_features = shape
    A, B = rng.standard_normal((rank, in_features)), rng.standard_normal((out_features, rank))
    return LoraFactors(A.astype(dtype), B.astype(dtype), scaling)


def read_only(part: LoraFactors) -> LoraFactors:
    """Return ``part`` with arrays that refuse to be written to."""
    A, B = part.A.copy(), part.B.copy()
    A.flags.writeable = B.flags.writeable = False
    return LoraFactors(A, B, part.scaling)


def dense_sum(parts: Sequence[LoraFactors], weights: Sequence[float] | None = None) -> Dense:
    """Return the weighted sum of deltas the plain way: dense, float64, one outer product at a time."""
    total = np.zeros(parts[0].shape)
    for part, weight in zip(parts, weights or [1.0] * len(parts), strict=True):
        for row in range(part.rank):
            b, a = part.B[:, row].astype(np.float64), part.A[row].astype(np.float64)
            total += weight * part.scaling * np.multiply.outer(b, a)
    return total


def padded(part: LoraFactors, rank: int) -> LoraFactors:
    """Return the same delta with rows of zeros in A and columns of zeros in B, up to a rank."""
    more = rank - part.rank
    return LoraFactors(np.pad(part.A, ((0, more), (0, 0))), np.pad(part.B, ((0, 0), (0, more))), part.scaling)


def relative_error(got: Array, wanted: Array) -> float:
    """Return ``‖got - wanted‖ / ‖wanted‖``."""
    difference = np.linalg.norm(np.asarray(got, np.float64) - np.asarray(wanted, np.float64))
    return float(difference / np.linalg.norm(np.asarray(wanted, np.float64)))


def in_basis(part: LoraFactors, G: Dense) -> LoraFactors:
    """Return the same delta written in another basis: ``(B G⁻¹)(G A)``."""
    return LoraFactors(G @ part.A, part.B @ np.linalg.inv(G), part.scaling)


def random_basis(rng: np.random.Generator, rank: int) -> Dense:
    """Return a well-conditioned invertible matrix that is not orthogonal."""
    Q, _ = np.linalg.qr(rng.standard_normal((rank, rank)))
    P, _ = np.linalg.qr(rng.standard_normal((rank, rank)))
    return (Q * rng.uniform(0.5, 2.0, rank)) @ P


def adapter_of(name: str, parts: Mapping[str, LoraFactors], **fields: Any) -> Adapter:
    """Return an adapter in memory."""
    modules = {
        module: ModuleSpec(module, "linear", part.shape, part.rank, part.scaling, part.A.dtype.name)
        for module, part in parts.items()
    }
    return Adapter(name=name, modules=modules, load=parts.__getitem__, **fields)


def peft_config(**changes: Any) -> dict[str, Any]:
    """Return a small LoRA config as PEFT writes it."""
    return {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["c_attn"], **changes}


def peft_tensors(
    rng: np.random.Generator, modules: Mapping[str, int], *, prefix: str = "base_model.model."
) -> dict[str, NDArray[np.float32]]:
    """Return factors of ``(6, 5)`` modules under PEFT's names; ``modules`` maps names to ranks."""
    tensors = {}
    for module, rank in modules.items():
        tensors[f"{prefix}{module}.lora_A.weight"] = rng.standard_normal((rank, 5)).astype(np.float32)
        tensors[f"{prefix}{module}.lora_B.weight"] = rng.standard_normal((6, rank)).astype(np.float32)
    return tensors


def write_adapter(folder: Path, tensors: Mapping[str, NDArray[Any]], config: Mapping[str, Any] | None = None) -> Path:
    """Write an adapter with the reference library."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config or peft_config()), encoding="utf-8")
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    return folder


def fill_disk(patch: pytest.MonkeyPatch) -> None:
    """Let every file that is written as a whole be cut short by a disk that is full."""

    def cut(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    patch.setattr(Path, "write_bytes", cut)
