"""Two tensors that make one LoRA: what their shapes say, and the factors they give, whatever the format."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeVar

from hub_merge.adapter import Adapter, Array, LoraFactors, ModuleKind, ModuleSpec, Origin
from hub_merge.errors import AdapterFormatError
from hub_merge.findings import Finding
from hub_merge.formats.tensors import TensorInfo, TensorStore, widest

__all__ = [
    "Note",
    "Part",
    "adapter_of_parts",
    "factor_shapes",
    "factors_of",
    "grouped",
    "leftover_findings",
    "name_finding",
    "notes_of",
    "pair_spec",
]

NAME = re.compile(r"[\w-]+(?:\.[\w-]+)*")
"""What a module of torch may be called here: parts without dots, quotes, slashes, spaces or invisible characters."""

Module = TypeVar("Module")
"""Whatever a format calls a module by: its name, or its name and the model of a pipeline."""

Note = Callable[..., Finding]
"""Makes a finding about one adapter: ``note(code, where, seen, expected, remedy, overrule)``."""


@dataclass(frozen=True, slots=True)
class Part:
    """One module as a file holds it: what it is, and what reads its factors."""

    spec: ModuleSpec
    load: Callable[[], LoraFactors]


def notes_of(name: str) -> Note:
    """Return what makes a problem of the adapter called ``name``."""

    def note(
        code: str,
        where: str,
        seen: str,
        expected: str = "",
        remedy: str = "",
        overrule: str | None = None,
    ) -> Finding:
        return Finding("problem", code, name, where, seen, expected, remedy or "Leave this adapter out.", overrule)

    return note


def grouped(
    keys: Iterable[str], split: Callable[[str], tuple[Module, str] | None]
) -> tuple[dict[Module, dict[str, str]], list[str]]:
    """Return the keys of each module by what they are, and the keys of everything else.

    Args:
        keys: Names of tensors.
        split: Returns the module of a key and what the tensor is, ``None`` if it is no factor.

    Raises:
        AdapterFormatError: Two tensors claim to be the same factor.
    """
    groups: dict[Module, dict[str, str]] = {}
    others: list[str] = []
    for key in keys:
        found = split(key)
        if found is None:
            others.append(key)
            continue
        module, what = found
        group = groups.setdefault(module, {})
        if what in group:
            raise AdapterFormatError(
                f"Tensors {group[what]} and {key} adapt the same module.", remedy="Keep one adapter in a file."
            )
        group[what] = key
    return groups, others


def name_finding(module: str, note: Note) -> Finding | None:
    """Return what is wrong with the name of ``module``, ``None`` for one that a module can have."""
    if NAME.fullmatch(module):
        return None
    return note("module_name", ascii(module)[:80], "the name is not that of a module", "letters, digits, _ and -")


def pair_spec(
    module: str, kind: ModuleKind, a: TensorInfo | None, b: TensorInfo | None, note: Note
) -> ModuleSpec | Finding:
    """Return what a module with the tensors A and B is, with scaling 1, or why it cannot be used.

    Args:
        module: Full name.
        kind: What it is if the tensors have two axes; those of a convolution have more.
        a: ``(rank, in)`` or ``(rank, in, *kernel)``; ``None`` if it is missing.
        b: ``(out, rank)`` or ``(out, rank, 1, …)``; ``None`` if it is missing.
        note: Makes findings.
    """
    if wrong := name_finding(module, note):
        return wrong
    if a is None or b is None:
        missing = "lora_A" if a is None else "lora_B"
        return note("missing_factor", module, f"{missing} is missing", "both factors", "Ask its author to upload it.")
    if not (a.is_float and b.is_float):
        return note("factor_dtype", module, f"factors are {a.dtype} and {b.dtype}", "floating point")
    if not _fit(a.shape, b.shape):
        return note(
            "factor_shape", module, f"A {list(a.shape)} and B {list(b.shape)}", "A [rank, in] and B [out, rank]"
        )
    dtype = a.dtype if a.dtype == b.dtype else widest((a.dtype, b.dtype))
    kernel = a.shape[2:]
    shape = (b.shape[0], prod(a.shape[1:]))
    return ModuleSpec(module, "conv" if kernel else kind, shape, a.shape[0], 1.0, dtype, kernel)


def _fit(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether shapes form ``B @ A``; the kernel of a convolution is all in A."""
    return len(a) == len(b) >= 2 and a[0] == b[1] and 0 not in (*a, *b) and (len(b) == 2 or set(b[2:]) == {1})


def factors_of(A: Array, B: Array, scaling: float) -> LoraFactors:
    """Return the factors of a module; kernels are flattened."""
    return LoraFactors(A.reshape(A.shape[0], -1), B.reshape(B.shape[0], -1), scaling)


def factor_shapes(spec: ModuleSpec, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes in which A and B of ``rank`` are stored: those of a convolution have its kernel's axes."""
    out, columns = spec.shape
    return (rank, columns // prod(spec.kernel), *spec.kernel), (out, rank, *(1 for _ in spec.kernel))


def leftover_findings(
    keys: Iterable[str], kinds: Sequence[tuple[re.Pattern[str], str, str]], note: Note
) -> Iterator[Finding]:
    """Tell of tensors that are no factors, once for each kind.

    Args:
        keys: Their names.
        kinds: Pattern, finding code and description; the first pattern that is found in a name counts.
        note: Makes findings.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        code, what = next((code, what) for pattern, code, what in kinds if pattern.search(key))
        groups.setdefault((code, what), []).append(key)
    for (code, what), names in groups.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        allowed = code == "base_copy"
        yield note(
            code,
            shown,
            f"the file also holds {len(names)} tensors of {what}",
            "LoRA factors only",
            "They are copies of the base unless its vocabulary was resized." if allowed else "",
            overrule="--allow base_copy" if allowed else None,
        )


def adapter_of_parts(
    parts: Iterable[Part | Finding],
    findings: Iterable[Finding],
    store: TensorStore,
    *,
    name: str,
    origin: Origin,
    format: str,
    base_model: str | None = None,
) -> Adapter:
    """Return the adapter that the parts of one file make; what cannot be used becomes findings."""
    given = list(parts)
    usable = {part.spec.name: part for part in given if isinstance(part, Part)}
    told = [*(part for part in given if isinstance(part, Finding)), *findings]
    if not given:
        told.append(notes_of(name)("no_factors", "", "the file holds no LoRA factors", "pairs of low-rank factors"))
    modules = {module: usable[module].spec for module in sorted(usable)}
    if unread := sum(math.isnan(spec.scaling) for spec in modules.values()):
        seen = f"the scaling of {unread} modules is among the weights, which were not downloaded"
        told.append(
            Finding("caution", "scaling_unread", name, "alpha", seen, "", "A merge reads it; check --full too.")
        )
    return Adapter(
        name=name,
        modules=modules,
        load=lambda module: usable[module].load(),
        base_model=base_model,
        target_modules=tuple(spec.local_name for spec in modules.values()),
        findings=tuple(told),
        format=format,
        has_values=store.has_values,
        origin=origin,
    )
