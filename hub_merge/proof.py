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

from hub_merge.adapter import Adapter, Array, LoraFactors, Tensor
from hub_merge.composite import Composite
from hub_merge.formats.output import get_format
from hub_merge.formats.peft import EXTRAS_FLAG, covered, extra_fields, parse_config, rank_fields, stored_units
from hub_merge.gram import (
    Float64,
    Parts,
    Stack,
    combined_products,
    cross_products,
    inner_products,
    result_dtype,
    stack,
)
from hub_merge.layout import CONFIG_FILE
from hub_merge.methods.sum import combination
from hub_merge.parallel import map_modules
from hub_merge.scores import ModuleScores, Scoring, modules_of, parents_of

__all__ = ["Check", "Loss", "Proof", "Retention", "difference", "prove"]

TOLERANCES = {"float32": 1e-6, "bfloat16": 1e-2, "float16": 2e-3}
"""Largest relative error that rounding both factors to a dtype explains, with some room."""

PLAIN_FIELDS = "use_rslora use_dora bias modules_to_save layers_to_transform exclude_modules".split()
"""Fields of the config that a composite leaves empty."""

LONGEST_VALUE = 200
"""Characters of a field of the config that are quoted."""

MOST_LOSSES = 5
"""Modules that are named with what they lost."""


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
class Loss:
    """What one module lacks of the exact combination of the parents' deltas.

    Attributes:
        module: Its name.
        rank: Its rank in the composite.
        lost: Squared distance to the exact combination over the squared norm of that; ``None`` where that is zero.
        share: Share of the squared distance of the whole composite, [0, 1].
    """

    module: str
    rank: int
    lost: float | None
    share: float


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
        distance_to_sum: Relative Frobenius distance of the whole composite to the exact linear combination of the
            parents' deltas that the method makes without a rank; for a method that makes none, to the weighted sum.
        energy_kept: Squared norm of the composite over that of the same combination.
        losses: The modules that lack most of it, at most five; none where all that lacks is rounding.
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
    losses: tuple[Loss, ...]
    retention: tuple[Retention, ...]
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the proof as plain data; numbers that are not finite, which JSON lacks, become ``None``."""
        return asdict(self, dict_factory=lambda fields: {name: _finite(value) for name, value in fields})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """What one module adds.

    Attributes:
        module: Its name.
        error: Relative error of the written delta against the wanted one.
        distance: Norm of the difference between the written delta and the exact combination.
        squares: Squared norms of the written delta, the wanted one, the exact one and each parent, ``(3 + T,)``.
        along: Inner products of the written and of the wanted delta with each parent, ``(2, T)``.
    """

    module: str
    error: float
    distance: float
    squares: Float64
    along: Float64


def prove(
    folder: Path,
    written: Adapter,
    asked: Composite,
    progress: Callable[[str], None] = lambda module: None,
    scoring: Scoring | None = None,
) -> Proof:
    """Return what comparing the file in ``folder`` with the recipe shows.

    Args:
        folder: Folder of the written composite.
        written: The same, opened.
        asked: The merge that it should be.
        progress: Called with each module's name when it is compared.
        scoring: Sees the parents' factors of every module too, while they are at hand.
    """
    dtype = next(iter(written.modules.values())).dtype if written.modules else asked.dtype
    tolerance = TOLERANCES.get(dtype, TOLERANCES["float32"])
    checks = _structure_checks(folder, written, asked)
    measured: list[_Measured] = []
    if all(check.passed for check in checks):
        measured.extend(_visit_modules(written, asked, progress, scoring))
    compared = [entry for entry in measured if entry.module in asked.modules]
    worst = max(compared, key=lambda entry: entry.error, default=None)
    squares = sum((entry.squares for entry in measured), np.zeros(3 + len(asked.parents)))
    along = sum((entry.along for entry in measured), np.zeros((2, len(asked.parents))))
    retention = tuple(
        Retention(parent.name, _ratio(along[0, i], squares[3 + i]), _ratio(along[1, i], squares[3 + i]))
        for i, parent in enumerate(asked.parents)
    )
    if worst is not None:
        norms = np.sqrt(np.maximum(squares, 0.0))
        detail = f"largest relative error {worst.error:.3g} in {worst.module}, at most {tolerance:g} accepted"
        checks = (
            *checks,
            Check("delta", worst.error <= tolerance, detail),
            Check("retention", _as_predicted(retention, norms, tolerance), "each parent's share is what was predicted"),
        )
    distance = math.sqrt(sum(entry.distance**2 for entry in compared))
    distance_to_sum = _ratio(distance, math.sqrt(max(squares[2], 0.0)))
    return Proof(
        passed=all(check.passed for check in checks),
        tolerance=tolerance,
        max_error=worst.error if worst else None,
        worst_module=worst.module if worst else None,
        modules=len(compared),
        reference="definition" if asked.is_linear else "recomputed",
        distance_to_sum=distance_to_sum,
        energy_kept=_ratio(squares[0], squares[2]),
        losses=_losses(compared, asked) if (distance_to_sum or 0.0) > tolerance else (),
        retention=retention,
        checks=checks,
    )


def _visit_modules(
    written: Adapter, asked: Composite, progress: Callable[[str], None], scoring: Scoring | None
) -> Iterator[_Measured]:
    """Measure every module of the parents, also those that the composite lacks because every weight there is zero."""

    def visit(module: str) -> tuple[_Measured, ModuleScores | None]:
        parents = parents_of(asked.parents, module)
        measured = _measure(module, parents, written, asked) if module in asked.modules else _left_out(module, parents)
        return measured, None if scoring is None else scoring.measure(module, parents)

    for measured, scores in map_modules(visit, modules_of(asked.parents)):
        if scoring is not None and scores is not None:
            scoring.add(scores)
        yield measured
        if measured.module in asked.modules:
            progress(measured.module)


def _losses(measured: Sequence[_Measured], asked: Composite) -> tuple[Loss, ...]:
    """Return the modules that lack most of the exact combination, largest part first."""
    total = sum(entry.distance**2 for entry in measured)
    most = sorted(measured, key=lambda entry: (-entry.distance, entry.module))[:MOST_LOSSES]
    return tuple(
        Loss(
            entry.module,
            asked.modules[entry.module].rank,
            lost=_ratio(entry.distance**2, entry.squares[2]),
            share=entry.distance**2 / total,
        )
        for entry in most
        if entry.distance
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
    findings = [
        finding.describe()
        for finding in written.findings
        if finding.severity == "problem" and not (asked.extras and finding.overrule == EXTRAS_FLAG)
    ]
    tensors = get_format(written.format).tensors * len(stored_units(asked)) + len(asked.extras)
    return (
        _parser_check(weights, tensors),
        Check("modules", not (missing or extra), _listed(("missing", missing), ("unexpected", extra))),
        Check("shapes", not shapes, _listed(("of another shape", shapes))),
        *(_peft_checks(folder, written, asked, findings) if written.format == "peft" else _plain_checks(findings)),
        *([_extras_check(written, asked)] if asked.extras else []),
    )


def _extras_check(written: Adapter, asked: Composite) -> Check:
    """Compare the tensors beside the factors with those asked for, bit by bit."""
    wrong = {name for name, _ in asked.extras.items() ^ written.extras.items()}
    if wrong:
        return Check("extras", False, _listed(("missing, unexpected or of another kind", wrong)))
    differing = [name for name in asked.extras if not _same_bits(written.load_extra(name), asked.load_extra(name))]
    return Check("extras", not differing, f"{len(asked.extras)} tensors, {_listed(('differ', differing))}")


def _same_bits(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


def _plain_checks(findings: Sequence[str]) -> Iterator[Check]:
    yield Check("content", not findings, "; ".join(findings) or "factors and nothing else")


def _peft_checks(folder: Path, written: Adapter, asked: Composite, findings: Sequence[str]) -> Iterator[Check]:
    config = parse_config((folder / CONFIG_FILE).read_bytes())
    targets = config.get("target_modules")
    listed = targets if isinstance(targets, list) else []
    plain = [module for module, spec in written.modules.items() if spec.kind != "expert"]
    untargeted = [module for module in plain if not covered(module, listed)]
    problems = [*_config_problems(config, asked), *findings]
    yield Check("config", not problems, "; ".join(problems) or f"{_ranks(asked)}, alpha equals rank, no variant")
    yield Check("targets", not untargeted, _listed(("that target_modules does not select", untargeted)))


def _shape(adapter: Adapter, module: str) -> tuple[tuple[int, int], tuple[int, ...]]:
    spec = adapter.modules[module]
    return spec.shape, spec.kernel


def _listed(*groups: tuple[str, Collection[str]]) -> str:
    """Return how many modules each group has, and the first few of them."""
    return ", ".join(
        f"{len(names)} {what}" + (f" ({', '.join(sorted(names)[:3])})" if names else "") for what, names in groups
    )


def _ranks(asked: Composite) -> str:
    return "one rank" if asked.uniform_rank else "a rank for each module"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _config_problems(config: Mapping[str, Any], asked: Composite) -> Iterator[str]:
    """Tell which fields make a loader see another delta, or put it into another base, than was asked for."""
    wanted = {
        **rank_fields(asked.modules, asked.uniform_rank),
        "fan_in_fan_out": asked.fan_in_fan_out,
        "base_model_name_or_path": asked.base_model,
        "target_parameters": sorted(asked.target_parameters) or None,
        **extra_fields(asked),
    }
    for field, value in wanted.items():
        if config.get(field) != value:
            yield f"{field} is {_brief(config.get(field))}, expected {_brief(value)}"
    for field in PLAIN_FIELDS:
        if field not in wanted and config.get(field) not in (None, False, "none", "", [], {}):
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


def _measure(module: str, parents: Parts, written: Adapter, asked: Composite) -> _Measured:
    """Compare the written delta of ``module`` with the wanted one."""
    parts, weights = asked.parts(module, parents)
    count = len(parents)
    coefficients = list(asked.coefficients(weights, parts))
    wanted = combination(parts, coefficients) if asked.is_linear else asked.merged(module, parents)
    got = _trimmed(written.factors(module), wanted.rank)
    stacked = stack(parents)
    own = inner_products(stacked, count)
    combined = combined_products(own, np.concatenate([[coefficients], np.eye(count)]))
    exact = float(combined[0, 0])
    apart = difference(got, wanted)
    if asked.is_linear:
        along, squares = combined[:1, 1:], combined[:1, 0]
        if apart:
            along_got, squares_got = _against([got], stacked, count)
            along, squares = np.concatenate([along_got, along]), np.concatenate([squares_got, squares])
        else:
            along, squares = np.repeat(along, 2, axis=0), np.repeat(squares, 2)
    else:
        along, squares = _against([got, wanted], stacked, count)
    went_in = math.sqrt(sum((w**2) * own[i, i] for i, w in enumerate(weights)))
    scale = max(math.sqrt(max(squares[1], 0.0)), went_in)
    to_exact = squares[0] - 2 * float(along[0] @ coefficients) + exact
    return _Measured(
        module,
        error=math.inf if math.isnan(apart) else apart / (scale or 1.0),
        distance=apart if asked.is_linear else math.sqrt(max(to_exact, 0.0)),
        squares=np.concatenate([squares, [exact], np.diag(own)]),
        along=along,
    )


def _against(deltas: Sequence[LoraFactors], stacked: Stack, count: int) -> tuple[Float64, Float64]:
    """Return the inner products of ``deltas`` with each parent, ``(n, T)``, and their own squared norms, ``(n,)``."""
    own = stack(deltas)
    return cross_products(own, stacked, (len(deltas), count)), np.diag(inner_products(own, len(deltas)))


def _left_out(module: str, parents: Parts) -> _Measured:
    """Return what a module adds that the composite lacks: the parents' own norms."""
    own = np.diag(inner_products(stack(parents), len(parents)))
    return _Measured(module, 0.0, 0.0, np.concatenate([np.zeros(3), own]), np.zeros((2, len(parents))))


def _trimmed(factors: LoraFactors, rank: int) -> LoraFactors:
    """Return the factors without the zero rows and columns that pad them beyond ``rank``."""
    if factors.A[rank:].any() or factors.B[:, rank:].any():
        return factors
    return LoraFactors(factors.A[:rank], factors.B[:, :rank], factors.scaling)


def difference(x: LoraFactors, y: LoraFactors) -> float:
    """Return ``‖delta_x - delta_y‖`` (Frobenius).

    For factors of one rank the difference is formed factor by factor, so that equal parts cancel exactly.
    """
    dtype = result_dtype([x, y])  # exact for both
    Ax: Array = x.A.astype(dtype, copy=False)
    Ay: Array = y.A.astype(dtype, copy=False)
    Bx, By = _scaled(x), _scaled(y)
    if x.rank != y.rank:
        pieces = LoraFactors(np.concatenate([Ax, Ay]), np.concatenate([Bx, -By], axis=1))
    elif np.array_equal(Ax, Ay):
        if np.array_equal(Bx, By):
            return 0.0
        pieces = LoraFactors(Ax, Bx - By)
    else:
        pieces = LoraFactors(np.concatenate([Ax, Ax - Ay]), np.concatenate([Bx - By, By], axis=1))
    return math.sqrt(max(float(inner_products(stack([pieces]), 1)[0, 0]), 0.0))


def _scaled(factors: LoraFactors) -> Float64:
    return np.multiply(factors.B, factors.scaling, dtype=np.float64)
