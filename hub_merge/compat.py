"""Do these adapters fit together? Every finding at once, as data; problems block a merge, cautions inform."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from hub_merge.adapter import Adapter
from hub_merge.bases import read_base
from hub_merge.findings import Finding, Report, caution, problem
from hub_merge.lineage import Standing, base_findings, common_base, standings
from hub_merge.outliers import ModuleStatistic, measure, outlier_findings
from hub_merge.parallel import map_modules

__all__ = ["Compatibility", "Coverage", "check", "total_rank"]

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
        bases: What each adapter was trained on, and which model that stands for.
        statistics: Norm and spectrum by module, one mapping an adapter; empty where only headers were read.
    """

    adapters: tuple[str, ...]
    report: Report
    base_model: str | None
    coverage: tuple[Coverage, ...]
    total_rank: int
    norms: tuple[float | None, ...]
    bases: tuple[Standing, ...] = ()
    statistics: tuple[Mapping[str, ModuleStatistic], ...] = ()

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
            "bases": [asdict(standing) for standing in self.bases],
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
    original: Callable[[str], str | None] | None = None,
) -> Compatibility:
    """Return whether ``adapters`` can be merged, with every problem and caution.

    Adapters whose tensors were downloaded are read once for finite values and norms; of others only headers count.

    Args:
        adapters: One or more adapters with different names.
        base: Hub id that the user asserts to be the base of all of them.
        allow: Codes of findings that the user accepts.
        canonical: Follows renames of a Hub id; ``None`` leaves ids as they are.
        original: Tells which model a quantised copy was made from; ``None`` leaves that to its name.
    """
    asserted = None if base is None else read_base(base)
    bases = standings(adapters, asserted, canonical=canonical, original=original)
    statistics = _read_values(adapters)
    norms = tuple(
        _norm(entry) if adapter.has_values else None for adapter, entry in zip(adapters, statistics, strict=True)
    )
    findings = [
        *(finding for adapter in adapters for finding in adapter.findings),
        *base_findings(adapters, bases, asserted),
        *_shape_findings(adapters),
        *_task_findings(adapters),
        *_token_findings(adapters),
        *_vocabulary_findings(adapters),
        *_layout_findings(adapters),
        *(f for adapter, entry in zip(adapters, statistics, strict=True) for f in _value_findings(adapter, entry)),
        *_norm_findings(adapters, norms),
        *_twin_findings(adapters, norms),
        *outlier_findings([adapter.name for adapter in adapters], statistics),
        *_serving_findings(adapters),
    ]
    findings.extend(_allow_findings(findings, allow))
    return Compatibility(
        adapters=tuple(adapter.name for adapter in adapters),
        report=Report.of(findings, allow),
        base_model=common_base(bases),
        bases=tuple(bases),
        statistics=statistics,
        coverage=tuple(_coverage(adapters)),
        total_rank=total_rank(adapters),
        norms=norms,
    )


def _allow_findings(findings: Iterable[Finding], allow: Iterable[str]) -> Iterator[Finding]:
    """Tell of each code that accepts nothing here: it may be misspelt."""
    found = sorted({finding.code for finding in findings if finding.allowable})
    for code in sorted(set(allow).difference(found)):
        yield caution("allow_unused", "", f"there is no finding {code} to allow", _some(found), "Leave it out.")


def _some(names: Iterable[str], most: int = 4) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


# --- task, tokens -----------------------------------------------------------------------------------------------------


def _task_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    tasks = {adapter.name: adapter.task_type for adapter in adapters if adapter.task_type}
    if len(set(tasks.values())) > 1:
        yield problem(
            "task_differs",
            "task_type",
            "; ".join(f"{name}: {task}" for name, task in tasks.items()),
            "one task type",
            "A classifier's adapter loads into a language model without a word and harms it.",
            overrule="--allow task_differs",
        )


def _token_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    """Compare added tokens by id: one id for two tokens blocks, one token with two ids informs."""
    known: dict[int, tuple[str, str]] = {}
    places: dict[str, tuple[str, int]] = {}
    for adapter in adapters:
        clashes = [(n, t) for n, t in adapter.added_tokens.items() if known.setdefault(n, (adapter.name, t))[1] != t]
        moved = [(n, t) for n, t in adapter.added_tokens.items() if places.setdefault(t, (adapter.name, n))[1] != n]
        if clashes:
            number, token = clashes[0]
            owner, meaning = known[number]
            more = f", and {len(clashes) - 1} more ids" if len(clashes) > 1 else ""
            yield problem(
                "token_clash",
                "added tokens",
                f"token {number} is {token!r} here and {meaning!r} in {owner}{more}",
                "one meaning an id",
                "Retrain one of them with the other's tokenizer.",
                adapter=adapter.name,
                overrule="--allow token_clash",
            )
        elif moved:
            number, token = moved[0]
            owner, place = places[token]
            yield caution(
                "token_moved",
                "added tokens",
                f"{token!r} is token {number} here and token {place} in {owner}",
                "one id a token",
                "Use the tokenizer whose ids the composite is to know.",
                adapter=adapter.name,
            )


def _vocabulary_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    known = {adapter.name: adapter.vocabulary for adapter in adapters if adapter.vocabulary is not None}
    if len(set(known.values())) > 1:
        yield problem(
            "vocabulary_size",
            "embeddings",
            "; ".join(f"{name}: {size} tokens" for name, size in known.items()),
            "one size of the vocabulary",
            "One of them was trained with added tokens, which the other does not know.",
            overrule="--allow vocabulary_size",
        )


# --- shapes and layout ------------------------------------------------------------------------------------------------


def _shape_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    first: dict[str, tuple[str, tuple[str, tuple[int, int], tuple[int, ...]]]] = {}
    for adapter in adapters:
        clashes = []
        for name, spec in adapter.modules.items():
            owner, expected = first.setdefault(name, (adapter.name, (spec.kind, spec.shape, spec.kernel)))
            if (spec.kind, spec.shape, spec.kernel) != expected:
                clashes.append((name, spec, owner, expected))
        if clashes:
            name, spec, owner, (kind, shape, kernel) = clashes[0]
            vocabulary = "embed" in name or "lm_head" in name or spec.kind == "embedding"
            yield problem(
                "vocabulary_differs" if vocabulary else "shape_differs",
                _some(clash[0] for clash in clashes),
                f"{name} is {spec.kind} {_size(spec.shape, spec.kernel)}",
                f"{kind} {_size(shape, kernel)} as in {owner}",
                "Their vocabularies differ." if vocabulary else "They were trained on different bases.",
                adapter=adapter.name,
            )


def _size(shape: tuple[int, int], kernel: tuple[int, ...]) -> str:
    return f"{list(shape)}" + (f" of kernel {list(kernel)}" if kernel else "")


def _layout_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    if len({adapter.fan_in_fan_out for adapter in adapters}) > 1:
        yield caution(
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
        yield caution(
            "no_common_module", "", "no module is adapted by all of them", "", "They are put side by side, untouched."
        )
    elif any(names != common for names in modules):
        union = len(set.union(*modules))
        yield caution(
            "partial_overlap", "", f"{len(common)} of {union} modules are adapted by all", "", "See the coverage table."
        )
    dtypes = {spec.dtype for adapter in adapters for spec in adapter.modules.values()}
    if len(dtypes) > 1:
        yield caution(
            "dtype_differs", "", f"factors are {_some(sorted(dtypes))}", "one dtype", "The widest is written."
        )


def _parameter_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    """Tell of different target_parameters: the same key of a file then stands for different parameters."""
    with_experts = [adapter for adapter in adapters if adapter.target_parameters]
    for other in with_experts[1:]:
        first = with_experts[0]
        if set(other.target_parameters) != set(first.target_parameters):
            yield problem(
                "target_parameters_differ",
                "target_parameters",
                f"it adapts {_some(sorted(other.target_parameters))}",
                f"{_some(sorted(first.target_parameters))} as in {first.name}",
                "Merge adapters that adapt the same parameters.",
                adapter=other.name,
            )
        elif _experts(other) != _experts(first):
            yield problem(
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


def total_rank(adapters: Sequence[Adapter]) -> int:
    """Return the rank of the exact sum: the largest sum of ranks over the modules."""
    ranks: Counter[str] = Counter()
    for adapter in adapters:
        ranks.update({name: spec.rank for name, spec in adapter.modules.items()})
    return max(ranks.values(), default=0)


def _serving_findings(adapters: Sequence[Adapter]) -> Iterator[Finding]:
    rank = total_rank(adapters)
    passed = [limit for limit in SERVED_RANKS if rank > limit]
    if passed:
        yield caution(
            "serving_rank",
            "",
            f"the exact sum has rank {rank}",
            f"at most {passed[-1]} for many servers",
            f"Use --method svd or --rank {passed[-1]} for a smaller one, or raise the server's limit.",
        )


# --- values -----------------------------------------------------------------------------------------------------------


def _read_values(adapters: Sequence[Adapter]) -> tuple[Mapping[str, ModuleStatistic], ...]:
    """Return norm and spectrum of every module of each adapter; nothing of one whose numbers cannot be read."""
    return tuple(
        dict(zip(adapter.modules, map_modules(partial(_statistic, adapter), adapter.modules, forks=True), strict=True))
        if adapter.has_values
        else {}
        for adapter in adapters
    )


def _statistic(adapter: Adapter, module: str) -> ModuleStatistic:
    return measure(adapter.factors(module))


def _norm(statistics: Mapping[str, ModuleStatistic]) -> float:
    return math.sqrt(sum(module.square for module in statistics.values() if math.isfinite(module.square)))


def _value_findings(adapter: Adapter, statistics: Mapping[str, ModuleStatistic]) -> Iterator[Finding]:
    broken = [name for name, module in statistics.items() if not math.isfinite(module.square)]
    zero = [name for name, module in statistics.items() if module.square == 0]
    if broken:
        yield problem(
            "not_finite",
            _some(broken),
            f"{len(broken)} modules hold NaN or infinity",
            "finite numbers",
            "Ask its author to upload it again; nothing of it can be trusted.",
            adapter=adapter.name,
        )
    if zero and len(zero) == len(statistics):
        yield caution(
            "untrained",
            "",
            "its delta is zero everywhere",
            "a trained adapter",
            "It adds nothing.",
            adapter=adapter.name,
        )
    elif zero:
        yield caution(
            "partly_zero",
            _some(zero),
            f"{len(zero)} of {len(statistics)} modules have a zero delta",
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
        yield caution(
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
            yield caution(
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
