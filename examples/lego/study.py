"""What is compared: LEGO in all its settings, and the other methods, on adapters of math, medicine and finance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hub_merge import Adapter, merge
from hub_merge.adapter import LoraFactors

__all__ = ["RANK", "Subject", "subjects"]

RANK = 4
ALL = ("math", "medicine", "finance")
MIXED = ("math_r8_rslora", "medicine", "finance_r2_qv")
METHODS = ("mean", "linear", "ties", "dare_ties", "knots", "core", "ctm", "tsv_m", "iso_c")
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "ties": {"space": "delta", "density": 0.2},
    "dare_ties": {"space": "delta", "density": 0.5},
}
"""As in their papers: on the entries of the deltas, of which TIES keeps a fifth and DARE half."""

EXACT = ("sum", "mean", "ties", "dare_ties", "tsv_m")
FAITHFUL = {"preset": "faithful"}
FORMS = {"faithful": FAITHFUL, "balance": {"canonicalize": "balance"}, "svd form": {"canonicalize": "svd"}}
REWEIGHTS = [
    (RANK, "none", "sqrt_rank_over_k"),
    (RANK, "none", "none"),
    (RANK, "inf", "sqrt_total_over_k"),
    (8, "inf", "none"),
    (8, "none", "sqrt_rank_over_k"),
    (8, "none", "none"),
]
"""Rank, reweighting of parameters and of the output, whose factor sqrt(r/k) is 1 where the adapters' rank is kept."""


@dataclass(frozen=True)
class Subject:
    """Something to measure.

    Attributes:
        group: Part of the report that it belongs to.
        name: Its name, unlike all others of its group.
        adapter: The adapter or composite, ``None`` for the base.
        domains: What it is measured on.
        settings: What it was made with.
    """

    group: str
    name: str
    adapter: Adapter | None
    domains: tuple[str, ...] = ALL
    settings: Mapping[str, Any] = field(default_factory=dict)


def subjects(folder: Path) -> Iterator[Subject]:
    """Yield everything to measure; what the rest is compared with comes first."""
    adapters = {name: Adapter.from_pretrained(folder / name) for name in {*ALL, *MIXED, "math_medicine_finance"}}
    three = [adapters[name] for name in ALL]
    yield Subject("reference", "base", None)
    yield Subject("reference", "merged data", adapters["math_medicine_finance"])
    yield composite("equal rank", "sum (svd)", three, "svd", RANK)
    for name, form in FORMS.items():
        yield composite("equal rank", f"lego, {name}", three, "lego", RANK, **form)
    for method in METHODS:
        yield composite("equal rank", method, three, method, RANK, **OPTIONS.get(method, {}))
    yield from gauges(three)
    yield from reweighted(three)
    yield from compressed(adapters["medicine"])
    yield from by_rank(three)
    for method in EXACT:
        yield composite("own rank", method, three, method, None, **OPTIONS.get(method, {}))
    mixed = [adapters[name] for name in MIXED]
    yield composite("mixed ranks", "sum, exact", mixed, "sum", None)
    yield composite("mixed ranks", "sum (svd)", mixed, "svd", RANK)
    for name, form in FORMS.items():
        yield composite("mixed ranks", f"lego, {name}", mixed, "lego", RANK, **form)


def composite(
    group: str,
    name: str,
    parents: Sequence[Adapter],
    method: str,
    rank: int | None,
    domains: tuple[str, ...] = ALL,
    **options: Any,
) -> Subject:
    """Return a composite as a subject."""
    settings = {"method": method, "rank": rank, **options}
    return Subject(group, name, merge(parents, method, rank=rank, **options), domains, settings)


def reweighted(parents: Sequence[Adapter]) -> Iterator[Subject]:
    """Yield LEGO with other combinations of its two reweightings."""
    for rank, parameter, output in REWEIGHTS:
        options = {**FAITHFUL, "parameter_reweight": parameter, "output_reweight": output}
        name = f"rank {rank}, parameters {parameter}, output {output}"
        yield composite("reweighting", name, parents, "lego", rank, **options)


def by_rank(parents: Sequence[Adapter]) -> Iterator[Subject]:
    """Yield LEGO and the truncated sum at other ranks."""
    for rank in (2, 8):
        yield composite("by rank", f"sum (svd), rank {rank}", parents, "svd", rank)
        for name in ("faithful", "svd form"):
            yield composite("by rank", f"lego, {name}, rank {rank}", parents, "lego", rank, **FORMS[name])


def compressed(adapter: Adapter) -> Iterator[Subject]:
    """Yield one adapter at smaller ranks; by itself it is the reference."""
    domain = (adapter.name,)
    yield Subject("compression", f"{adapter.name}, as it is", adapter, domain)
    for rank in (2, 1):
        yield composite("compression", f"svd, rank {rank}", [adapter], "svd", rank, domain)
        for name in ("faithful", "svd form"):
            yield composite("compression", f"lego, {name}, rank {rank}", [adapter], "lego", rank, domain, **FORMS[name])


def gauges(parents: Sequence[Adapter]) -> Iterator[Subject]:
    """Yield faithful LEGO after the second adapter's factors were rewritten, its delta unchanged."""
    for name, change in GAUGES.items():
        rewritten = [parents[0], in_gauge(parents[1], change), parents[2]]
        for form in ("faithful", "svd form"):
            made = composite("gauge", f"lego, {form}, {name}", rewritten, "lego", RANK, **FORMS[form])
            if form == "faithful" or name == "another basis":  # the singular form gives one result in every gauge
                yield made


def in_gauge(adapter: Adapter, change: Callable[[int], Any]) -> Adapter:
    """Return the adapter with factors ``B G⁻¹`` and ``G A``, which have the same product."""

    def load(module: str) -> LoraFactors:
        part = adapter.factors(module)
        G = change(part.rank)
        return LoraFactors(G @ part.A.astype(np.float64), part.B.astype(np.float64) @ np.linalg.inv(G), part.scaling)

    return replace(adapter, load=load)


def another_basis(rank: int) -> Any:
    """Return a fixed matrix that mixes the units."""
    return np.random.default_rng(0).standard_normal((rank, rank))


GAUGES: Mapping[str, Callable[[int], Any]] = {
    "signs flipped": lambda rank: -np.eye(rank),
    "scaled by ten": lambda rank: 10 * np.eye(rank),
    "another basis": another_basis,
}
