"""Do these adapters fit together? Every finding at once, as data; problems block a merge, cautions inform."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from hub_merge.adapter import Adapter
from hub_merge.bases import Base, read_base
from hub_merge.findings import Finding, Report
from hub_merge.formats.tensors import is_finite
from hub_merge.gram import inner_products, stack
from hub_merge.parallel import map_modules

__all__ = ["Compatibility", "Coverage", "check"]

DOMINANT = 5.0
"""Ratio of norms from which the larger adapter drowns the smaller in a plain sum."""

SERVED_RANKS = (16, 64)
"""vLLM's default ``max_lora_rank`` and the largest that many deployments allow."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many modules of one kind each adapter changes, such as all ``self_attn.q_proj``."""

    group: str
    shape: tuple[int, int]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Compatibility:
    """What checking a set of adapters brought to light.

    Attributes:
        adapters: Names, in the order given.
        report: The findings.
        base_model: Hub id of the common base, or the one the user asserted; ``None`` if there is none.
        coverage: Modules by group, one count an adapter.
        total_rank: Rank of the exact sum: the largest sum of ranks over the modules.
        norms: Frobenius norm of each delta; ``None`` where only headers were read.
    """

    adapters: tuple[str, ...]
    report: Report
    base_model: str | None
    coverage: tuple[Coverage, ...]
    total_rank: int
    norms: tuple[float | None, ...]

    @property
    def compatible(self) -> bool:
        """Whether nothing blocks a merge."""
        return self.report.compatible

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return {
            "compatible": self.compatible,
            "adapters": list(self.adapters),
            "base_model": self.base_model,
            "total_rank": self.total_rank,
            "norms": list(self.norms),
            "coverage": [asdict(group) for group in self.coverage],
            "findings": [finding.to_dict() for finding in self.report.findings],
        }


def check(
    adapters: Sequence[Adapter],
    *,
    base: str | None = None,
    allow: Collection[str] = (),
    canonical: Callable[[str], str | None] | None = None,
) -> Compatibility:
    """Return whether ``adapters`` can be merged, with every problem and caution.

    Adapters whose tensors were downloaded are read once for finite values and norms; of others only headers count.

    Args:
        adapters: One or more adapters with different names.
        base: Hub id that the user asserts to be the base of all of them.
        allow: Codes of findings that the user accepts.
        canonical: Follows renames of a Hub id; ``None`` leaves ids as they are.
    """
    asserted = None if base is None else read_base(base)
    bases = _common_names([read_base(adapter.base_model) for adapter in adapters], canonical)
    norms, value_findings = _read_values(adapters)
    findings = [
        *(finding for adapter in adapters for finding in adapter.findings),
        *_base_findings(adapters, bases, asserted),
        *_revision_findings(adapters),
        *_shape_findings(adapters),
        *_task_findings(adapters),
        *_token_findings(adapters),
        *_layout_findings(adapters),
        *value_findings,
        *_norm_findings(adapters, norms),
        *_twin_findings(adapters, norms),
        *_serving_findings(adapters),
    ]
    findings.extend(_allow_findings(findings, allow))
    known = {entry.model_id for entry in bases}
    return Compatibility(
        adapters=tuple(adapter.name for adapter in adapters),
        report=Report.of(findings, allow),
        base_model=asserted.model_id if asserted else known.pop() if len(known) == 1 else None,
        coverage=tuple(_coverage(adapters)),
        total_rank=_total_rank(adapters),
        norms=norms,
    )


def _allow_findings(findings: Iterable[Finding], allow: Iterable[str]) -> Iterator[Finding]:
    """Tell of each code that accepts nothing here: it may be misspelt."""
    found = sorted({finding.code for finding in findings if finding.allowable})
    for code in sorted(set(allow).difference(found)):
        yield _caution("allow_unused", "allow", f"{code} accepts nothing here", _some(found) or "no code", "")


def _common_names(bases: Sequence[Base], canonical: Callable[[str], str | None] | None) -> list[Base]:
    """Follow renames where the names differ; equal names need no question to the Hub."""
    if canonical is None or len({base.label for base in bases}) == 1:
        return list(bases)
    moved = [base.model_id and (canonical(base.model_id) or base.model_id) for base in bases]
    return [replace(base, model_id=now, label=now) if now else base for base, now in zip(bases, moved, strict=True)]


def _problem(
    code: str, where: str, seen: str, expected: str, remedy: str, *, adapter: str = "", overrule: str | None = None
) -> Finding:
    return Finding("problem", code, adapter, where, seen, expected, remedy, overrule)


def _caution(code: str, where: str, seen: str, expected: str, remedy: str, *, adapter: str = "") -> Finding:
    return Finding("caution", code, adapter, where, seen, expected, remedy)


def _some(names: Iterable[str], most: int = 4) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


# --- base, task, tokens -----------------------------------------------------------------------------------------------


def _base_findings(adapters: Sequence[Adapter], bases: Sequence[Base], asserted: Base | None) -> Iterator[Finding]:
    seen = "; ".join(f"{adapter.name}: {base.label}" for adapter, base in zip(adapters, bases, strict=True))
    labels = {base.label for base in bases}
    unproven = any(base.model_id is None for base in bases)
    apart = len(labels) > 1 or (unproven and len({adapter.base_model or None for adapter in adapters}) > 1)
    if asserted is not None:
        if asserted.model_id is None:
            yield _problem(
                "base_not_on_hub",
                "base_model",
                f"the base you assert is {asserted.label}, which is no Hub id",
                "OWNER/NAME",
                "A composite never names a folder of your machine.",
            )
        elif labels != {asserted.label}:
            yield _caution(
                "base_asserted", "base_model", f"stated bases: {seen}", f"{asserted.label}, as you assert", ""
            )
    elif apart:
        yield _problem(
            "base_differs" if not unproven else "base_unknown",
            "base_model_name_or_path",
            f"the adapters state different bases ({seen})",
            "one base model",
            "If they stand for the same weights, name it.",
            overrule="--base OWNER/NAME",
        )
    elif unproven and labels == {"not stated"} and len(adapters) > 1:
        yield _problem(
            "base_unknown",
            "base_model_name_or_path",
            "no adapter states its base model",
            "a Hub id",
            "If you know the base, name it.",
            overrule="--base OWNER/NAME",
        )
    elif unproven:
        yield _caution(
            "base_not_on_hub",
            "base_model_name_or_path",
            f"the base is {labels.pop()}, which is no Hub id",
            "a Hub id",
            "Name it with --base OWNER/NAME; the composite states no base otherwise.",
        )


def _revision_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    revisions = {adapter.name: adapter.base_revision or read_base(adapter.base_model).revision for adapter in adapters}
    if len({revision for revision in revisions.values() if revision}) > 1:
        seen = "; ".join(f"{name}: {revision}" for name, revision in revisions.items() if revision)
        yield _caution(
            "base_revision_differs", "revision", f"trained on different revisions of the base ({seen})", "one", ""
        )


def _task_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    tasks = {adapter.name: adapter.task_type for adapter in adapters if adapter.task_type}
    if len(set(tasks.values())) > 1:
        yield _problem(
            "task_differs",
            "task_type",
            "; ".join(f"{name}: {task}" for name, task in tasks.items()),
            "one task type",
            "A classifier's adapter loads into a language model without a word and harms it.",
            overrule="--allow task_differs",
        )


def _token_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    known: dict[int, tuple[str, str]] = {}
    for adapter in adapters:
        for number, token in adapter.added_tokens.items():
            owner, meaning = known.setdefault(number, (adapter.name, token))
            if meaning != token:
                yield _problem(
                    "token_clash",
                    "added tokens",
                    f"token {number} is {token!r} here and {meaning!r} in {owner}",
                    "one meaning an id",
                    "Retrain one of them with the other's tokenizer.",
                    adapter=adapter.name,
                    overrule="--allow token_clash",
                )
                break


# --- shapes and layout ------------------------------------------------------------------------------------------------


def _shape_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    first: dict[str, tuple[str, tuple[str, tuple[int, int]]]] = {}
    for adapter in adapters:
        clashes = []
        for name, spec in adapter.modules.items():
            owner, expected = first.setdefault(name, (adapter.name, (spec.kind, spec.shape)))
            if (spec.kind, spec.shape) != expected:
                clashes.append((name, spec, owner, expected))
        if clashes:
            name, spec, owner, (kind, shape) = clashes[0]
            vocabulary = "embed" in name or "lm_head" in name or spec.kind == "embedding"
            yield _problem(
                "vocabulary_differs" if vocabulary else "shape_differs",
                _some(clash[0] for clash in clashes),
                f"{name} is {spec.kind} {list(spec.shape)}",
                f"{kind} {list(shape)} as in {owner}",
                "Their vocabularies differ." if vocabulary else "They were trained on different bases.",
                adapter=adapter.name,
            )


def _layout_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    if len({adapter.fan_in_fan_out for adapter in adapters}) > 1:
        yield _caution(
            "fan_in_fan_out_differs",
            "fan_in_fan_out",
            "set in some adapters and not in others",
            "the same everywhere",
            "The factors are the same either way; the composite sets it.",
        )
    yield from _parameter_findings(adapters)
    modules = [set(adapter.modules) for adapter in adapters]
    common = set.intersection(*modules) if modules else set()
    if len(adapters) > 1 and not common:
        yield _caution(
            "no_common_module", "", "no module is adapted by all of them", "", "They are put side by side, untouched."
        )
    elif any(names != common for names in modules):
        union = len(set.union(*modules))
        yield _caution(
            "partial_overlap", "", f"{len(common)} of {union} modules are adapted by all", "", "See the coverage table."
        )
    dtypes = {spec.dtype for adapter in adapters for spec in adapter.modules.values()}
    if len(dtypes) > 1:
        yield _caution(
            "dtype_differs", "", f"factors are {_some(sorted(dtypes))}", "one dtype", "The widest is written."
        )


def _parameter_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    """Tell of different target_parameters: the same key of a file then stands for different parameters."""
    with_experts = [adapter for adapter in adapters if adapter.target_parameters]
    for other in with_experts[1:]:
        first = with_experts[0]
        if set(other.target_parameters) != set(first.target_parameters):
            yield _problem(
                "target_parameters_differ",
                "target_parameters",
                f"it adapts {_some(sorted(other.target_parameters))}",
                f"{_some(sorted(first.target_parameters))} as in {first.name}",
                "Merge adapters that adapt the same parameters.",
                adapter=other.name,
            )
        elif _experts(other) != _experts(first):
            yield _problem(
                "experts_differ",
                "target_parameters",
                f"its {len(_experts(other))} experts are not the {len(_experts(first))} of {first.name}",
                "the same experts",
                "They were trained on different bases, or on different layers.",
                adapter=other.name,
            )


def _experts(adapter: Adapter) -> set[str]:
    return {name for name, spec in adapter.modules.items() if spec.kind == "expert"}


def _coverage(adapters: Sequence[Adapter]) -> Iterator[Coverage]:
    groups: dict[tuple[str, tuple[int, int]], Counter[int]] = {}
    for number, adapter in enumerate(adapters):
        for name, spec in adapter.modules.items():
            groups.setdefault((_group(name), spec.shape), Counter())[number] += 1
    for (group, shape), counts in sorted(groups.items()):
        yield Coverage(group, shape, tuple(counts[number] for number in range(len(adapters))))


def _group(module: str) -> str:
    """Return the module's place in a layer: its last two names that are no number."""
    path = module.partition("[")[0]  # an expert stands with the others
    return ".".join([part for part in path.split(".") if not part.isdigit()][-2:])


def _total_rank(adapters: Sequence[Adapter]) -> int:
    ranks: Counter[str] = Counter()
    for adapter in adapters:
        ranks.update({name: spec.rank for name, spec in adapter.modules.items()})
    return max(ranks.values(), default=0)


def _serving_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    rank = _total_rank(adapters)
    passed = [limit for limit in SERVED_RANKS if rank > limit]
    if passed:
        yield _caution(
            "serving_rank",
            "",
            f"the exact sum has rank {rank}",
            f"at most {passed[-1]} for many servers",
            f"Use --method svd or --rank {passed[-1]} for a smaller one, or raise the server's limit.",
        )


# --- values -----------------------------------------------------------------------------------------------------------


def _read_values(adapters: Sequence[Adapter]) -> tuple[tuple[float | None, ...], list[Finding]]:
    """Return the norm of each delta, and what its numbers show."""
    norms: list[float | None] = []
    findings: list[Finding] = []
    for adapter in adapters:
        if not adapter.has_values:
            norms.append(None)
            continue
        squares = dict(map_modules(lambda name, adapter=adapter: (name, _square(adapter, name)), adapter.modules))  # type: ignore[misc]
        norms.append(math.sqrt(sum(square for square in squares.values() if math.isfinite(square))))
        findings.extend(_value_findings(adapter, squares))
    return tuple(norms), findings


def _square(adapter: Adapter, module: str) -> float:
    """Return the squared Frobenius norm of the delta; NaN if a factor holds NaN or infinity."""
    factors = adapter.factors(module)
    if not (is_finite(factors.A) and is_finite(factors.B)):
        return math.nan
    return float(inner_products(stack([factors]), 1)[0, 0])


def _value_findings(adapter: Adapter, squares: Mapping[str, float]) -> Iterator[Finding]:
    broken = [name for name, square in squares.items() if not math.isfinite(square)]
    zero = [name for name, square in squares.items() if square == 0]
    if broken:
        yield _problem(
            "not_finite",
            _some(broken),
            f"{len(broken)} modules hold NaN or infinity",
            "finite numbers",
            "Ask its author to upload it again; nothing of it can be trusted.",
            adapter=adapter.name,
        )
    if zero and len(zero) == len(squares):
        yield _caution(
            "untrained",
            "",
            "its delta is zero everywhere",
            "a trained adapter",
            "It adds nothing.",
            adapter=adapter.name,
        )
    elif zero:
        yield _caution(
            "partly_zero",
            _some(zero),
            f"{len(zero)} of {len(squares)} modules have a zero delta",
            "",
            "",
            adapter=adapter.name,
        )


def _norm_findings(adapters: Sequence[Adapter], norms: Sequence[float | None]) -> Iterator[Finding]:
    known = [(norm, adapter.name) for norm, adapter in zip(norms, adapters, strict=True) if norm]
    if len(known) < 2:
        return
    (small, weak), (large, strong) = min(known), max(known)
    if large / small > DOMINANT:
        yield _caution(
            "norms_differ",
            "",
            f"the delta of {strong} is {large / small:.3g} times as large as that of {weak}",
            f"a ratio below {DOMINANT:g}",
            f"A plain sum is mostly {strong}; balance it with weights.",
        )


def _twin_findings(adapters: Sequence[Adapter], norms: Sequence[float | None]) -> Iterator[Finding]:
    """Tell of adapters that are one under two names, as copies and re-uploads are."""
    for (first, norm), (second, other) in combinations(zip(adapters, norms, strict=True), 2):
        if norm and norm == other and _same_numbers(first, second):
            yield _caution(
                "same_adapter",
                "",
                f"it holds the same numbers as {first.name}",
                "different adapters",
                "It counts twice; leave one out.",
                adapter=second.name,
            )


def _same_numbers(first: Adapter, second: Adapter) -> bool:
    return first.modules == second.modules and all(
        np.array_equal(mine, other)
        for module in first.modules
        for one, two in [(first.factors(module), second.factors(module))]
        for mine, other in ((one.A, two.A), (one.B, two.B))
    )
