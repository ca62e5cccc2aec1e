"""What is compared: adapters of one domain by seed, merged-data baselines, and the composites of every combination.

A folder of adapters holds one folder each, named after its domains and its seed: ``math_s0``, ``math_medicine_s0``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

from hub_merge import Adapter, merge

__all__ = ["METHODS", "Subject", "Trained", "found_in", "subjects"]

METHODS = ("sum", "mean")
NAME = re.compile(r"(?P<domains>[a-z]+(?:_[a-z]+)*)_s(?P<seed>\d+)")


@dataclass(frozen=True)
class Trained:
    """An adapter that was trained."""

    domains: tuple[str, ...]
    seed: int
    adapter: Adapter


@dataclass(frozen=True)
class Subject:
    """Something to measure.

    Attributes:
        name: Its name, unlike all others.
        kind: ``base``, ``single``, ``merged data``, ``sum`` or ``mean``.
        domains: What it was made for.
        seeds: One a domain, of the adapter that went in; one for an adapter that was trained on all.
        adapter: The adapter or composite, ``None`` for the base.
        parents: The adapters that went in.
    """

    name: str
    kind: str
    domains: tuple[str, ...]
    seeds: tuple[int, ...]
    adapter: Adapter | None
    parents: tuple[Adapter, ...] = ()


def found_in(folder: Path) -> list[Trained]:
    """Return the adapters in ``folder`` that are finished, in the order of their names."""
    found = []
    for place in sorted(folder.iterdir()):
        named = NAME.fullmatch(place.name)
        if named and (place / "adapter_model.safetensors").is_file():
            adapter = Adapter.from_pretrained(place).renamed(place.name)
            found.append(Trained(tuple(named["domains"].split("_")), int(named["seed"]), adapter))
    return found


def subjects(trained: Sequence[Trained]) -> Iterator[Subject]:
    """Yield everything to measure, what the rest is compared with first; equal seeds before mixed ones."""
    domains = tuple(sorted({domain for one in trained for domain in one.domains}))
    yield Subject("base", "base", domains, (), None)
    for one in trained:
        kind = "single" if len(one.domains) == 1 else "merged data"
        yield Subject(one.adapter.name, kind, tuple(sorted(one.domains)), (one.seed,), one.adapter)
    singles = {domain: [one for one in trained if one.domains == (domain,)] for domain in domains}
    chosen = [chosen for size in range(2, len(domains) + 1) for chosen in combinations(domains, size)]
    groups = [parts for names in chosen for parts in product(*(singles[name] for name in names))]
    for parts in sorted(groups, key=lambda parts: len({one.seed for one in parts})):
        yield from composites(parts)


def composites(parts: Sequence[Trained]) -> Iterator[Subject]:
    """Yield what each method makes of one combination."""
    parents = tuple(one.adapter for one in parts)
    for method in METHODS:
        name = f"{method} of {' + '.join(parent.name for parent in parents)}"
        domains, seeds = tuple(domain for one in parts for domain in one.domains), tuple(one.seed for one in parts)
        yield Subject(name, method, domains, seeds, merge(parents, method), parents)
