"""Proof that a file on disk is the merge that was asked for.

The written composite is opened again and its delta compared, module by module, with what the recipe asks for: for
methods that are a linear combination of deltas with the combination itself, straight from the parents' factors; for
others with the method run once more. Differences are formed factor by factor, ``X - Y = (B_x - B_y) A_x + B_y (A_x -
A_y)``, so that nothing cancels and rounding of one part in 10⁸ shows as such.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors

from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.composite import Composite
from hub_merge.formats.output import get_format
from hub_merge.formats.peft import covered, parse_config
from hub_merge.gram import Float64, combined_products, inner_products, stack
from hub_merge.layout import CONFIG_FILE
from hub_merge.methods.sum import concatenated
from hub_merge.parallel import map_modules

__all__ = ["Check", "Proof", "Retention", "difference", "prove"]

TOLERANCES = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 2e-3}
"""Largest relative error that rounding both factors to a dtype explains, with some room."""

PLAIN_FIELDS = (
    "rank_pattern alpha_pattern use_rslora use_dora bias modules_to_save layers_to_transform exclude_modules".split()
)
"""Fields of the config that a composite leaves empty."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Retention:
    """Share of a parent's delta that lies in the composite, ``<delta, delta_i> / ‖delta_i‖²``, over all its modules.

    Attributes:
        name: The parent.
        measured: From the written file.
        predicted: From what was asked; ``None`` for a parent whose delta is zero.
    """

    name: str
    measured: float | None
    predicted: float | None


@dataclass(frozen=True, slots=True)
class Proof:
    """What re-reading the written file showed.

    Attributes:
        passed: Whether every check passed.
        tolerance: Largest relative error accepted for this dtype.
        max_error: Largest relative error of a module's delta against what was asked. Relative to the larger of the
            wanted delta and the weighted deltas that went in, so that a sum that cancels is judged fairly. ``None``
            where the file is so wrong that no delta was compared.
        worst_module: The module that has it.
        modules: Number of modules compared.
        reference: ``definition`` (the weighted sum of the parents' factors) or ``recomputed`` (the method run again).
        distance_to_sum: Relative Frobenius distance of the whole composite to the exact weighted sum.
        energy_kept: Squared norm of the composite over that of the exact weighted sum.
        retention: Per parent.
        checks: Everything that was looked at.
    """

    passed: bool
    tolerance: float
    max_error: float | None
    worst_module: str | None
    modules: int
    reference: Literal["definition", "recomputed"]
    distance_to_sum: float | None
    energy_kept: float | None
    retention: tuple[Retention, ...]
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the proof as plain data; numbers that are not finite, which JSON lacks, become ``None``."""
        return asdict(self, dict_factory=lambda fields: {name: _finite(value) for name, value in fields})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class _Measured:
    module: str
    error: float
    distance: float
    products: Float64
    """Inner products of the written delta, the wanted one, the exact sum and each parent, in this order."""


def prove(
    folder: Path, written: Adapter, asked: Composite, progress: Callable[[str], None] = lambda module: None
) -> Proof:
    """Return what comparing the file in ``folder`` with the recipe shows.

    Args:
        folder: Folder of the written composite.
        written: The same, opened.
        asked: The merge that it should be.
        progress: Called with each module's name when it is compared.
    """
    dtype = next(iter(written.modules.values())).dtype if written.modules else asked.dtype
    tolerance = TOLERANCES.get(dtype, TOLERANCES["float32"])
    checks = _structure_checks(folder, written, asked)
    measured: list[_Measured] = []
    if all(check.passed for check in checks):
        for entry in map_modules(lambda module: _measure(module, written, asked), asked.modules):
            measured.append(entry)
            progress(entry.module)
    worst = max(measured, key=lambda entry: entry.error, default=None)
    products = sum((entry.products for entry in measured), _left_out(asked))
    retention = tuple(
        Retention(
            parent.name,
            _ratio(products[0, 3 + i], products[3 + i, 3 + i]),
            _ratio(products[1, 3 + i], products[3 + i, 3 + i]),
        )
        for i, parent in enumerate(asked.parents)
    )
    if worst is not None:
        norms = np.sqrt(np.maximum(np.diag(products), 0.0))
        detail = f"largest relative error {worst.error:.3g} in {worst.module}, at most {tolerance:g} accepted"
        checks = (
            *checks,
            Check("delta", worst.error <= tolerance, detail),
            Check("retention", _as_predicted(retention, norms, tolerance), "each parent's share is what was predicted"),
        )
    distance = math.sqrt(sum(entry.distance**2 for entry in measured))
    return Proof(
        passed=all(check.passed for check in checks),
        tolerance=tolerance,
        max_error=worst.error if worst else None,
        worst_module=worst.module if worst else None,
        modules=len(measured),
        reference="definition" if asked.is_linear else "recomputed",
        distance_to_sum=_ratio(distance, math.sqrt(max(products[2, 2], 0.0))),
        energy_kept=_ratio(products[0, 0], products[2, 2]),
        retention=retention,
        checks=checks,
    )


def _ratio(value: float, of: float) -> float | None:
    return float(value / of) if of > 0 else None


def _as_predicted(retention: Sequence[Retention], norms: Float64, tolerance: float) -> bool:
    """Whether measured and predicted agree to what an error of ``tolerance`` in the composite can move them."""
    room = tolerance * (norms[0] + norms[3:].sum())
    return all(
        entry.measured is None or entry.predicted is None or abs(entry.measured - entry.predicted) * norm <= room
        for entry, norm in zip(retention, norms[3:], strict=True)
    )


# --- structure --------------------------------------------------------------------------------------------------------


def _structure_checks(folder: Path, written: Adapter, asked: Composite) -> tuple[Check, ...]:
    """Check the file as any loader will see it."""
    weights = folder / written.origin.files[-1]
    missing, extra = asked.modules.keys() - written.modules.keys(), written.modules.keys() - asked.modules.keys()
    shapes = [
        name for name in asked.modules.keys() & written.modules.keys() if _shape(asked, name) != _shape(written, name)
    ]
    findings = [finding.describe() for finding in written.findings if finding.severity == "problem"]
    return (
        _parser_check(weights, get_format(written.format).tensors * len(asked.modules)),
        Check("modules", not (missing or extra), _listed(("missing", missing), ("unexpected", extra))),
        Check("shapes", not shapes, _listed(("of another shape", shapes))),
        *(_peft_checks(folder, written, asked, findings) if written.format == "peft" else _plain_checks(findings)),
    )


def _plain_checks(findings: Sequence[str]) -> Iterator[Check]:
    yield Check("content", not findings, "; ".join(findings) or "factors and nothing else")


def _peft_checks(folder: Path, written: Adapter, asked: Composite, findings: Sequence[str]) -> Iterator[Check]:
    config = parse_config((folder / CONFIG_FILE).read_bytes())
    targets = config.get("target_modules")
    listed = targets if isinstance(targets, list) else []
    untargeted = [module for module in written.modules if not covered(module, listed)]
    problems = [*_config_problems(config, asked), *findings]
    yield Check("config", not problems, "; ".join(problems) or "one rank, alpha equals rank, no variant")
    yield Check("targets", not untargeted, _listed(("that target_modules does not select", untargeted)))


def _shape(adapter: Adapter, module: str) -> tuple[tuple[int, int], tuple[int, ...]]:
    spec = adapter.modules[module]
    return spec.shape, spec.kernel


def _listed(*groups: tuple[str, Collection[str]]) -> str:
    """Return how many modules each group has, and the first few of them."""
    return ", ".join(
        f"{len(names)} {what}" + (f" ({', '.join(sorted(names)[:3])})" if names else "") for what, names in groups
    )


def _config_problems(config: Mapping[str, Any], asked: Composite) -> Iterator[str]:
    """Tell which fields make a loader see another delta, or put it into another base, than was asked for."""
    wanted = {
        "lora_alpha": config.get("r"),
        "fan_in_fan_out": asked.fan_in_fan_out,
        "base_model_name_or_path": asked.base_model,
    }
    for field, value in wanted.items():
        if config.get(field) != value:
            yield f"{field} is {config.get(field)!r}, expected {value!r}"
    for field in PLAIN_FIELDS:
        if config.get(field) not in (None, False, "none", "", [], {}):
            yield f"{field} is {config[field]!r}, expected none"


def _parser_check(path: Path, tensors: int) -> Check:
    """Let the safetensors library judge the file."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            count = len(file.keys())
    except (OSError, safetensors.SafetensorError) as error:
        return Check("parser", False, f"safetensors cannot open it: {error}")
    return Check("parser", count == tensors, f"safetensors reads {count} tensors of {tensors}")


# --- deltas -----------------------------------------------------------------------------------------------------------


def _measure(module: str, written: Adapter, asked: Composite) -> _Measured:
    shape = asked.modules[module].shape
    parts, weights = asked.parts(module)
    parents = [
        part if weight else parent.factors(module, shape)
        for parent, part, weight in zip(asked.parents, parts, weights, strict=True)
    ]
    coefficients = asked.coefficients(weights, parts) if asked.is_linear else None
    if coefficients is None:
        wanted = asked.factors(module)
    else:
        wanted = concatenated([part.astype(np.float64) for part in parts], coefficients)
    got = _trimmed(written.factors(module), wanted.rank)
    products = _products([got, wanted] if coefficients is None else [got], coefficients, weights, parents)
    went_in = math.sqrt(sum((w**2) * products[3 + i, 3 + i] for i, w in enumerate(weights)))
    scale = max(math.sqrt(max(products[1, 1], 0.0)), went_in)
    apart = difference(got, wanted)
    error = math.inf if math.isnan(apart) else apart / (scale or 1.0)
    to_sum = math.sqrt(max(products[0, 0] - 2 * products[0, 2] + products[2, 2], 0.0))
    is_sum = coefficients is not None and list(coefficients) == list(weights)
    return _Measured(module, error, apart if is_sum else to_sum, products)


def _products(
    deltas: Sequence[LoraFactors],
    coefficients: Sequence[float] | None,
    weights: Sequence[float],
    parents: Sequence[LoraFactors],
) -> Float64:
    """Return the inner products of ``_Measured``.

    Args:
        deltas: The written delta, and the wanted one unless ``coefficients`` make it from the parents.
        coefficients: Of the wanted delta, if it is a linear combination of the parents.
        weights: Of the exact sum.
        parents: Their factors.
    """
    first, count = len(deltas), len(parents)
    rows = np.zeros((3 + count, first + count))
    rows[0, 0] = 1.0
    if coefficients is None:
        rows[1, 1] = 1.0
    else:
        rows[1, first:] = coefficients
    rows[2, first:] = weights
    rows[3:, first:] = np.eye(count)
    return combined_products(inner_products(stack([*deltas, *parents]), first + count), rows)


def _left_out(asked: Composite) -> Float64:
    """Return the parents' own products in modules that the composite lacks because every weight there is zero."""
    products = np.zeros((3 + len(asked.parents),) * 2)
    for i, parent in enumerate(asked.parents):
        for module in sorted(parent.modules.keys() - asked.modules.keys()):
            products[3 + i, 3 + i] += inner_products(stack([parent.factors(module)]), 1)[0, 0]
    return products


def _trimmed(factors: LoraFactors, rank: int) -> LoraFactors:
    """Return the factors without the zero rows and columns that pad them beyond ``rank``."""
    if factors.A[rank:].any() or factors.B[:, rank:].any():
        return factors
    return LoraFactors(factors.A[:rank], factors.B[:, :rank], factors.scaling)


def difference(x: LoraFactors, y: LoraFactors) -> float:
    """Return ``‖delta_x - delta_y‖`` (Frobenius).

    For factors of one rank the difference is formed factor by factor, so that equal parts cancel exactly.
    """
    Ax, Ay = x.A.astype(np.float64), y.A.astype(np.float64)
    Bx, By = x.scaling * x.B.astype(np.float64), y.scaling * y.B.astype(np.float64)
    if x.rank != y.rank:
        pieces = LoraFactors(np.concatenate([Ax, Ay]), np.concatenate([Bx, -By], axis=1))
    elif np.array_equal(Ax, Ay):
        if np.array_equal(Bx, By):
            return 0.0
        pieces = LoraFactors(Ax, Bx - By)
    else:
        pieces = LoraFactors(np.concatenate([Ax, Ax - Ay]), np.concatenate([Bx - By, By], axis=1))
    return math.sqrt(max(float(inner_products(stack([pieces]), 1)[0, 0]), 0.0))
