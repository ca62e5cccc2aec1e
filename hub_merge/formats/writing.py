"""Writing the factors of an adapter to one safetensors file, whatever the format calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from hub_merge.adapter import Adapter, Array, ModuleSpec, Tensor
from hub_merge.errors import ProofFailed
from hub_merge.formats.pairs import factor_shapes
from hub_merge.formats.tensors import dtype_named, is_finite, safetensors_writer
from hub_merge.parallel import map_modules

__all__ = ["Layout", "write_factors"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a format stores the factors of a module.

    Attributes:
        keys: Returns the names of the tensors that hold A and B.
        transposed: Whether they are ``(in, rank)`` and ``(rank, out)``; else A is ``(rank, in)`` and B ``(out, rank)``,
            with a convolution's kernel behind.
        alpha: Returns the name of a tensor that holds alpha, which is the rank; ``None`` for no such tensor.
        join: Returns the A and B in which modules keep theirs together; ``None`` where each has its own.
    """

    keys: Callable[[ModuleSpec], tuple[str, str]]
    transposed: bool = False
    alpha: Callable[[ModuleSpec], str] | None = None
    join: Callable[[Sequence[tuple[Tensor, Tensor]]], tuple[Tensor, Tensor]] | None = None

    def infos(self, spec: ModuleSpec, rank: int, dtype: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return dtype and shape of each tensor of a module, by name, in the order of ``tensors``."""
        shapes = factor_shapes(spec, rank)
        if self.transposed:
            shapes = shapes[0][::-1], shapes[1][::-1]
        infos = {key: (dtype, shape) for key, shape in zip(self.keys(spec), shapes, strict=True)}
        return infos if self.alpha is None else {**infos, self.alpha(spec): ("float32", ())}

    def tensors(self, A: Tensor, B: Tensor) -> list[Tensor]:
        """Return the tensors of a module; kernels are still flattened."""
        factors = [A.T, B.T] if self.transposed else [A, B]
        return factors if self.alpha is None else [*factors, np.asarray(len(A), np.float32)]


def write_factors(
    path: Path,
    adapter: Adapter,
    layout: Layout,
    *,
    dtype: str,
    rank: int | None,
    progress: Callable[[str], None],
    metadata: Mapping[str, str] = MappingProxyType({}),
    units: Mapping[str, Sequence[str]] | None = None,
    extras: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the factors of ``adapter`` to the new file ``path``.

    A few modules are in memory at a time. Factors of a smaller rank are padded with zeros, which leaves the delta as it
    is.

    Args:
        path: File to create.
        adapter: What to write; its scaling goes into B.
        layout: How the format stores a module.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        rank: The one rank of the file, at least that of every module; ``None`` for the rank of each module.
        progress: Called with each module's name when it is written.
        metadata: Texts for the file's header.
        units: Modules that ``layout.join`` puts together, by the name that they have there; ``None`` for none.
        extras: Which of the adapter's extras to write behind the factors, by the names of their tensors.

    Raises:
        ProofFailed: A factor holds NaN or infinity, or does in ``dtype``.
    """
    units = units or {module: [module] for module in adapter.modules}
    infos: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for unit, modules in units.items():
        spec = adapter.modules[modules[0]]
        infos[unit] = layout.infos(replace(spec, name=unit), (rank or spec.rank) * len(modules), dtype)

    def write(unit: str) -> str:
        factors = [_prepared(module, adapter, rank or adapter.modules[module].rank, dtype) for module in units[unit]]
        tensors = layout.tensors(*(layout.join(factors) if layout.join and len(factors) > 1 else factors[0]))
        for (key, (_, shape)), tensor in zip(infos[unit].items(), tensors, strict=True):
            writer.write(key, tensor.reshape(shape))
        return unit

    flat = {key: info for tensors in infos.values() for key, info in tensors.items()}
    flat |= {key: (adapter.extras[name].dtype, adapter.extras[name].shape) for key, name in extras.items()}
    with safetensors_writer(path, flat, metadata) as writer:
        for unit in map_modules(write, units, forks=True):
            for key in infos[unit]:
                writer.written(key)
            for module in units[unit]:
                progress(module)
        for key, name in extras.items():
            writer.write(key, _finite_extra(name, adapter.load_extra(name)))


def _finite_extra(name: str, tensor: Tensor) -> Tensor:
    if np.issubdtype(tensor.dtype, np.integer) or tensor.dtype == np.bool_ or is_finite(tensor):
        return tensor
    raise ProofFailed(f"{name} holds NaN or infinity.", remedy="Leave it out with --extras drop.")


def _prepared(module: str, adapter: Adapter, rank: int, dtype: str) -> tuple[Tensor, Tensor]:
    """Return A and B as they are to be written: scaling in B, in ``dtype``, padded to ``rank``."""
    with np.errstate(over="ignore"):  # the check looks for infinity
        factors = adapter.rounded(module, dtype_named(dtype))
    out_features, in_features = factors.shape
    prepared = _padded(factors.A, (rank, in_features)), _padded(factors.B, (out_features, rank))
    if not all(map(is_finite, prepared)):
        raise ProofFailed(
            f"{module} would hold NaN or infinity in {dtype}.",
            remedy="Try --dtype float32 or bfloat16, or smaller weights.",
        )
    return prepared


def _padded(factor: Array, shape: tuple[int, int]) -> Tensor:
    if factor.shape == shape:
        return factor
    padded = np.zeros(shape, factor.dtype)
    padded[: factor.shape[0], : factor.shape[1]] = factor
    return padded
