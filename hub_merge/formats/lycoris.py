"""The tensors of one module as kohya's scripts and LyCORIS write them: LoRA, LoCon, LoHa and LoKr.

All four are low-rank updates, and all become ``scaling * B @ A`` without loss:

- LoRA: ``up @ down``; a LoCon with a core ``mid`` (Tucker) has ``mid`` contracted with ``down``.
- LoHa: the entrywise product of two low-rank matrices, ``(P1 Q1) * (P2 Q2)``. Its factors are all products of a column
  of P1 with one of P2, and of a row of Q1 with one of Q2: rank ``r1 * r2``.
- LoKr: the Kronecker product ``W1 ⊗ W2``, which is ``(P1 ⊗ P2)(Q1 ⊗ Q2)`` for any ``W = P Q``; a half that is stored
  whole is ``W @ I`` or ``I @ W``.

Where that would give a larger rank than the module has rows or columns, the delta itself is one factor and a unit
matrix the other.
Definitions: LyCORIS, ``lycoris/modules/{locon,loha,lokr}.py``; paper arXiv 2309.14859. The scaling is ``alpha / dim``
with the dim of the factors; without alpha, or for a LoKr of two whole halves, it is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from hub_merge.adapter import LoraFactors, ModuleKind, ModuleSpec
from hub_merge.findings import Finding
from hub_merge.formats.names import kernel_of
from hub_merge.formats.pairs import Note, Part, factors_of, name_finding, pair_spec
from hub_merge.formats.tensors import TensorInfo, TensorStore

__all__ = ["TENSORS", "Named", "module_part"]

Matrix = NDArray[np.floating]

TENSORS = r"lora_(?:down|up|mid)\.weight|alpha|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t[12])"
"""Pattern of the ends of the keys that ``module_part`` takes."""

MAX_EXPANDED = 2**28
"""Numbers in the factors of one module that a LoHa or LoKr may make; small halves can make factors without end."""


@dataclass(frozen=True, slots=True)
class Named:
    """A module's place: its component, empty for none, and its full name."""

    component: str
    name: str

    @property
    def local_name(self) -> str:
        """Name inside the component."""
        return self.name.removeprefix(f"{self.component}.") if self.component else self.name


@dataclass(frozen=True, slots=True)
class _Half:
    """One matrix ``P @ Q`` of a LoHa or LoKr: its shape, rank, kernel, the dim it was trained with, and its factors."""

    out: int
    columns: int
    rank: int
    kernel: tuple[int, ...]
    dim: int | None
    load: Callable[[], tuple[Matrix, Matrix]]


def module_part(module: Named, keys: Mapping[str, str], store: TensorStore, note: Note) -> Part | Finding:
    """Return the module that the tensors of ``keys`` make, or why they make none.

    Args:
        module: Its place.
        keys: Names of its tensors in the file by what they are, such as ``lora_down.weight`` (see ``TENSORS``).
        store: The file.
        note: Makes findings.
    """
    if any(what.startswith("hada_") for what in keys):
        made = _product_part(module, keys, store, note, ("hada_w1", "hada_w2"))
    elif any(what.startswith("lokr_") for what in keys):
        made = _product_part(module, keys, store, note, ("lokr_w1", "lokr_w2"))
    else:
        made = _lora_part(module, keys, store, note)
    return made


def _scaling(
    dim: int | None, keys: Mapping[str, str], store: TensorStore, module: Named, note: Note
) -> float | Finding:
    """Return ``alpha / dim``; NaN where only headers are there and alpha is not."""
    if "alpha" not in keys or dim is None:
        return 1.0
    info = store.infos[keys["alpha"]]
    if prod(info.shape) != 1:
        return note("alpha", module.name, f"alpha has shape {list(info.shape)}", "one number")
    if not store.has_values:
        return math.nan
    alpha = float(store.read(keys["alpha"]).reshape(()).astype(np.float64))
    if not math.isfinite(alpha) or alpha == 0:
        return note("alpha", module.name, f"alpha is {alpha:g}, which loaders read differently", "a finite number")
    return alpha / dim


# --- LoRA and LoCon ---------------------------------------------------------------------------------------------------


def _lora_part(module: Named, keys: Mapping[str, str], store: TensorStore, note: Note) -> Part | Finding:
    down, up, mid = (store.infos.get(keys.get(f"lora_{side}.weight", "")) for side in ("down", "up", "mid"))
    whole = down if mid is None or down is None else _contracted(down, mid)
    if whole is None and down is not None and mid is not None:
        return note("factor_shape", module.name, f"down {list(down.shape)} and mid {list(mid.shape)}", "a Tucker core")
    spec = pair_spec(module.name, "linear", whole, up, note)
    if isinstance(spec, Finding) or down is None:
        return spec if isinstance(spec, Finding) else note("missing_factor", module.name, "lora_down is missing")
    scaling = _scaling(down.shape[0], keys, store, module, note)
    if isinstance(scaling, Finding):
        return scaling

    def load() -> LoraFactors:
        A = store.read(keys["lora_down.weight"])
        if mid is not None:
            core = store.read(keys["lora_mid.weight"])
            A = np.einsum("ij...,jc->ic...", _wide(core), _wide(A.reshape(A.shape[0], -1)))
        return factors_of(A, store.read(keys["lora_up.weight"]), scaling)

    dtype = spec.dtype if mid is None else "float32"
    return Part(replace(spec, scaling=scaling, component=module.component, dtype=dtype), load)


def _contracted(down: TensorInfo, mid: TensorInfo) -> TensorInfo | None:
    """Return what ``mid`` makes of ``down``: ``(rank, in, *kernel)``; ``None`` if they do not belong together."""
    fit = len(mid.shape) > 2 and len(down.shape) >= 2 and mid.shape[1] == down.shape[0] and set(down.shape[2:]) <= {1}
    if not (fit and mid.is_float):
        return None
    return TensorInfo(down.dtype, (mid.shape[0], down.shape[1], *mid.shape[2:]))


def _wide(tensor: Matrix) -> Matrix:
    """Return the tensor in a dtype in which a product of two of its entries is rounded to 1e-7 at most."""
    return tensor.astype(np.float64 if tensor.dtype in (np.float32, np.float64) else np.float32)


# --- LoHa and LoKr ----------------------------------------------------------------------------------------------------


def _product_part(
    module: Named, keys: Mapping[str, str], store: TensorStore, note: Note, prefixes: tuple[str, str]
) -> Part | Finding:
    """Return the module that the entrywise (LoHa) or Kronecker product (LoKr) of two matrices makes."""
    if strange := name_finding(module.name, note):
        return strange
    halves = [_half(prefix, keys, store) for prefix in prefixes]
    if wrong := [half for half in halves if isinstance(half, str)]:
        return note("factor_shape", module.name, wrong[0], "two factors, or one matrix, for each half")
    first, second = (half for half in halves if isinstance(half, _Half))
    entrywise = prefixes[0].startswith("hada")
    if entrywise and (first.out, first.columns) != (second.out, second.columns):
        return note("factor_shape", module.name, "its halves have different shapes", "one shape")
    out, columns = (first.out, first.columns) if entrywise else (first.out * second.out, first.columns * second.columns)
    dims = [half.dim for half in (first, second) if half.dim is not None]
    scaling = _scaling(dims[0] if dims else None, keys, store, module, note)
    if isinstance(scaling, Finding):
        return scaling
    rank = min(first.rank * second.rank, out, columns)
    if rank * (out + columns) > MAX_EXPANDED:
        seen = f"its halves make factors of rank {rank} and a delta of {[out, columns]}"
        return note("expanded_size", module.name, seen, f"at most {MAX_EXPANDED} numbers in the factors")
    kernel = second.kernel or _known_kernel(module, columns)
    kind: ModuleKind = "conv" if kernel else "linear"
    spec = ModuleSpec(module.name, kind, (out, columns), rank, scaling, "float32", kernel, module.component)
    combine = _entrywise if entrywise else _kronecker
    whole = rank < first.rank * second.rank
    return Part(spec, lambda: LoraFactors(*combine(first.load(), second.load(), whole), scaling))


def _known_kernel(module: Named, columns: int) -> tuple[int, ...]:
    """Return the kernel that a UNet's layer is known to have, for factors that were flattened when they were saved."""
    kernel = kernel_of(module.component, module.local_name) or ()
    return kernel if columns % prod(kernel) == 0 else ()


def _half(prefix: str, keys: Mapping[str, str], store: TensorStore) -> _Half | str:
    """Return one half, or what is wrong with it."""
    names = {end: keys.get(f"{prefix}{end}", "") for end in ("", "_a", "_b")}
    names["_t"] = keys.get(prefix.replace("_w", "_t"), "")
    infos = {end: store.infos.get(name) for end, name in names.items()}
    if any(info is not None and (not info.is_float or 0 in info.shape) for info in infos.values()):
        return f"{prefix} is empty or no floating point"
    if infos[""] is not None:
        return _whole(names[""], infos[""], store, prefix)
    a, b, t = infos["_a"], infos["_b"], infos["_t"]
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) < 2:
        return f"{prefix} has no matrix and no two factors"
    if t is not None:
        return _tucker(names, a, b, t, store, prefix)
    if a.shape[1] != b.shape[0]:
        return f"{prefix}_a {list(a.shape)} and {prefix}_b {list(b.shape)} do not fit"
    rank = a.shape[1]

    def load() -> tuple[Matrix, Matrix]:
        return _wide(store.read(names["_a"])), _wide(store.read(names["_b"]).reshape(rank, -1))

    return _Half(a.shape[0], prod(b.shape[1:]), rank, b.shape[2:], rank, load)


def _whole(name: str, info: TensorInfo, store: TensorStore, prefix: str) -> _Half | str:
    if len(info.shape) < 2:
        return f"{prefix} has shape {list(info.shape)}"
    out, columns = info.shape[0], prod(info.shape[1:])

    def load() -> tuple[Matrix, Matrix]:
        matrix = _wide(store.read(name).reshape(out, columns))
        return _with_unit(matrix)

    return _Half(out, columns, min(out, columns), info.shape[2:], None, load)


def _tucker(
    names: Mapping[str, str], a: TensorInfo, b: TensorInfo, t: TensorInfo, store: TensorStore, prefix: str
) -> _Half | str:
    """Return a half with a core: ``sum_ij t[i, j, …] a[i, out] b[j, in]``."""
    if len(t.shape) < 3 or t.shape[:2] != (a.shape[0], b.shape[0]) or len(b.shape) != 2:
        return f"{prefix}: core {list(t.shape)} does not fit {list(a.shape)} and {list(b.shape)}"

    def load() -> tuple[Matrix, Matrix]:
        core = np.einsum("ij...,jc->ic...", _wide(store.read(names["_t"])), _wide(store.read(names["_b"])))
        return _wide(store.read(names["_a"])).T, core.reshape(t.shape[0], -1)

    kernel = t.shape[2:]
    return _Half(a.shape[1], b.shape[1] * prod(kernel), t.shape[0], kernel, b.shape[0], load)


def _with_unit(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Return ``(P, Q)`` with ``P @ Q == matrix``, one of them a unit matrix, of the smaller rank."""
    out, columns = matrix.shape
    if out <= columns:
        return np.eye(out, dtype=matrix.dtype), matrix
    return matrix, np.eye(columns, dtype=matrix.dtype)


def _entrywise(first: tuple[Matrix, Matrix], second: tuple[Matrix, Matrix], whole: bool) -> tuple[Matrix, Matrix]:
    """Return ``(A, B)`` of the entrywise product; ``whole`` forms it instead of its factors."""
    (P1, Q1), (P2, Q2) = first, second
    if whole:
        B, A = _with_unit((P1 @ Q1) * (P2 @ Q2))
    else:
        B = (P1[:, :, None] * P2[:, None, :]).reshape(len(P1), -1)
        A = (Q1[:, None, :] * Q2[None, :, :]).reshape(-1, Q1.shape[1])
    return A, B


def _kronecker(first: tuple[Matrix, Matrix], second: tuple[Matrix, Matrix], whole: bool) -> tuple[Matrix, Matrix]:
    """Return ``(A, B)`` of the Kronecker product; ``whole`` forms it instead of its factors."""
    (P1, Q1), (P2, Q2) = first, second
    if whole:
        B, A = _with_unit(np.kron(P1 @ Q1, P2 @ Q2))
    else:
        B, A = np.kron(P1, P2), np.kron(Q1, Q2)
    return A, B
