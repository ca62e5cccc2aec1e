"""Many random merges of random adapters, read from disk and computed again as dense float64 matrices.

Nothing here uses the package's own readers: files, scalings and methods are the few lines below. ``METHODS`` has a row
for each method, with options under which it can be told in a few lines what has to come out; ``test_torture.py`` fails
when a method has none.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hub_merge import Adapter, merge
from hub_merge.pipeline import save
from tests.helpers import Dense
from tests.plain_files import read_tensors, write_tensors
from tests.torture.tally import Outcome

BASE = "acme/base"
TOLERANCES = {"float32": 5e-5, "float16": 2e-2, "bfloat16": 1e-1}
"""Largest relative error of a result by the dtype in which it is written."""
FLAT = 20_000_000
"""Bytes that the memory may grow by over all merges."""


@dataclass(frozen=True)
class Part:
    """One module of one adapter in float64: its delta is ``scaling * B @ A``."""

    A: Dense
    B: Dense
    scaling: float

    @property
    def rank(self) -> int:
        return len(self.A)

    @property
    def delta(self) -> Dense:
        return self.scaling * self.B @ self.A


# --- files ------------------------------------------------------------------------------------------------------------


def read_parts(folder: Path) -> dict[str, Part]:
    """Return the modules of an adapter in PEFT's format, by name."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = read_tensors(folder / "adapter_model.safetensors")
    start, ends = "base_model.model.", (".lora_A.weight", ".lora_B.weight")
    modules = {name[len(start) : -len(ends[0])] for name in tensors if name.endswith(ends[0])}
    parts = {}
    for module in modules:
        rank = config.get("rank_pattern", {}).get(module, config["r"])
        alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
        A, B = (tensors[f"{start}{module}{end}"] for end in ends)
        assert len(A) == rank
        parts[module] = Part(A, B, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    return parts


# --- what has to come out ---------------------------------------------------------------------------------------------

Check = Callable[[Dense, "Case"], float]


@dataclass
class Case:
    """One module of one merge: its parts, with their weights, and the rank that was asked for."""

    parts: list[Part]
    weights: list[float]
    rank: int | None

    @property
    def deltas(self) -> list[Dense]:
        """The weighted deltas."""
        return [weight * part.delta for weight, part in zip(self.weights, self.parts, strict=True)]

    @property
    def total_rank(self) -> int:
        return sum(part.rank for part in self.parts)


def error_of(got: Dense, wanted: Dense) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


def closest(dense: Dense, rank: int) -> Dense:
    u, s, vt = np.linalg.svd(dense, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def polar(columns: Dense) -> Dense:
    u, _, vt = np.linalg.svd(columns, full_matrices=False)
    return u @ vt


def is_sum(got: Dense, case: Case) -> float:
    return error_of(got, sum(case.deltas))


def is_mean(got: Dense, case: Case) -> float:
    return error_of(got, sum(case.deltas) / len(case.deltas))


def is_closest(got: Dense, case: Case) -> float:
    """As near to the sum as its rank allows: the rounding of a nearly equal singular value does not count."""
    total = sum(case.deltas)
    best = np.linalg.norm(total - closest(total, case.rank or 1))
    return abs(float(np.linalg.norm(total - got) - best)) / float(np.linalg.norm(total))


def is_ties(got: Dense, case: Case) -> float:
    """The mean of the weighted entries that agree in sign with the sum; not told where the sum nearly vanishes."""
    deltas = np.stack([part.delta for part in case.parts])
    weights = np.array(case.weights)[:, None, None]
    votes = deltas.sum(axis=0)
    agreeing = np.sign(deltas) == np.where(votes >= 0, 1, -1)
    wanted = (weights * deltas * agreeing).sum(axis=0) / np.maximum(agreeing.sum(axis=0), 1)
    if np.abs(votes).min() < 1e-6 * np.abs(deltas).max():
        return 0.0
    return error_of(got, closest(wanted, case.total_rank))


def is_sce(got: Dense, case: Case) -> float:
    """SCE without selection: what agrees in sign with the sum, each adapter by its share of the energy."""
    deltas = np.stack([part.delta for part in case.parts])
    energy = (deltas**2).mean(axis=(1, 2))
    votes = deltas.sum(axis=0)
    shares = (energy / energy.sum())[:, None, None] * (deltas * np.where(votes >= 0, 1, -1) > 0)
    total = (shares * deltas * np.array(case.weights)[:, None, None]).sum(axis=0)
    wanted = total / np.where(shares.sum(axis=0) > 0, shares.sum(axis=0), 1.0)
    if np.abs(votes).min() < 1e-6 * np.abs(deltas).max():
        return 0.0
    return error_of(got, closest(wanted, case.total_rank))


def is_tsv(got: Dense, case: Case) -> float:
    triplets = [np.linalg.svd(delta, full_matrices=False) for delta in case.deltas]
    kept = [part.rank for part in case.parts]
    U, V = (
        polar(np.concatenate([side(each)[:, :k] for each, k in zip(triplets, kept, strict=True)], axis=1))
        for side in (lambda each: each[0], lambda each: each[2].T)
    )
    return error_of(got, (U * np.concatenate([s[:k] for (_, s, _), k in zip(triplets, kept, strict=True)])) @ V.T)


def is_isotropic(got: Dense, case: Case) -> float:
    u, s, vt = np.linalg.svd(sum(case.deltas), full_matrices=False)
    k = case.total_rank
    return error_of(got, s[:k].mean() * u[:, :k] @ vt[:k])


def angle(one: Dense, two: Dense) -> float:
    return math.acos(min(1.0, max(-1.0, float((one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two)))))


def is_midway(got: Dense, case: Case) -> float:
    one, two = case.deltas
    whole = angle(one, two)
    return error_of(got, math.sin(whole / 2) / math.sin(whole) * (one + two))


def is_karcher_mean(got: Dense, case: Case) -> float:
    """No pull is left at the mean of directions, and its norm is the mean norm."""
    at = got / np.linalg.norm(got)
    pull = np.zeros_like(at)
    for delta in case.deltas:
        to = delta / np.linalg.norm(delta)
        away = to - (to * at).sum() * at
        pull += angle(at, to) * away / np.linalg.norm(away)
    norms = [float(np.linalg.norm(delta)) for delta in case.deltas]
    return max(float(np.linalg.norm(pull)), abs(float(np.linalg.norm(got)) / np.mean(norms) - 1))


def is_linear(got: Dense, case: Case) -> float:
    """The product of the summed factors, each with the root of its reach, the sign on A's side."""
    rank = max(part.rank for part in case.parts)
    A = B = np.zeros(())
    for part, weight in zip(case.parts, case.weights, strict=True):
        reach = weight * part.scaling
        root, pad = math.sqrt(abs(reach)), rank - part.rank
        A = A + math.copysign(root, reach) * np.pad(part.A, ((0, pad), (0, 0)))
        B = B + root * np.pad(part.B, ((0, 0), (0, pad)))
    return error_of(got, B @ A)


def is_robustmerge(got: Dense, case: Case) -> float:
    """RobustMerge without trimming, for one adapter: the adapter itself."""
    return is_sum(got, case)


def is_wudi(got: Dense, case: Case) -> float:
    """The gradient of the objective is zero."""

    def gradient(at: Dense) -> Dense:
        own = [(at - delta) @ delta.T @ delta / np.linalg.norm(delta) ** 2 for delta in case.deltas]
        return sum(own) + 0.01 * (at - sum(case.deltas))

    return float(np.linalg.norm(gradient(got)) / np.linalg.norm(gradient(np.zeros_like(got))))


def is_pico(got: Dense, case: Case) -> float:
    deltas = case.deltas
    U, D, _ = np.linalg.svd(np.concatenate(deltas, axis=1), full_matrices=False)
    factor = 1 / (1 + (len(deltas) - 1) * D**2 / (D**2).sum())
    wanted = sum(delta + (U * (factor - 1)) @ (U.T @ delta) for delta in deltas)
    return error_of(got, wanted * np.mean([np.linalg.norm(delta) for delta in deltas]) / np.linalg.norm(wanted))


@dataclass(frozen=True)
class Row:
    """How a method is asked, and how it is judged.

    Attributes:
        check: Returns the relative error of a module.
        options: Options, each a list to choose from.
        rank: ``none``, ``some`` for a small one, or ``all`` for that of all adapters together.
        most: Most adapters.
        plain: All weights are 1, and all adapters have all modules.
    """

    check: Check
    options: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    rank: str = "none"
    most: int = 4
    plain: bool = False


LOSSLESS = {"density": [1.0], "space": ["core", "knots", "delta"]}
DENSE = {"density": [1.0], "space": ["delta"]}
METHODS = {
    "sum": Row(is_sum),
    "mean": Row(is_mean),
    "svd": Row(is_closest, rank="some"),
    "mix": Row(is_closest, rank="some"),
    "magnitude_prune": Row(is_sum, LOSSLESS),
    "dare_linear": Row(is_sum, LOSSLESS),
    "breadcrumbs": Row(is_sum, LOSSLESS),
    "ties": Row(is_ties, DENSE),
    "dare_ties": Row(is_ties, DENSE),
    "della": Row(is_ties, DENSE),
    "sce": Row(is_sce, DENSE),
    "knots": Row(is_sum, {"rule": ["sum"]}),
    "core": Row(is_sum, {"rule": ["sum"]}),
    "tsv_m": Row(is_tsv, {"keep": ["all"]}),
    "iso_c": Row(is_isotropic),
    "iso_cts": Row(is_isotropic, {"common": [1.0]}),
    "slerp": Row(is_midway, most=2, plain=True),
    "karcher": Row(is_karcher_mean, plain=True),
    "linear": Row(is_linear),
    "robustmerge": Row(is_robustmerge, {"density": [1.0], "scale": [1.0]}, most=1),
    "wudi": Row(is_wudi, {"ridge": [0.01]}),
    "pico": Row(is_pico, {"directions": ["deltas"]}, plain=True),
    "ctm": Row(is_sum, {"rule": ["sum"]}, rank="all", plain=True),
    "lego": Row(is_sum, {"output_reweight": ["none"], "clustering": ["kmeans", "ward"]}, rank="all", plain=True),
}


# --- merges -----------------------------------------------------------------------------------------------------------


def random_adapter(folder: Path, rng: np.random.Generator, shapes: Mapping[str, tuple[int, int]], whole: bool) -> str:
    """Write a random adapter; return its dtype."""
    names = sorted(shapes)
    modules = names if whole else sorted(rng.choice(names, rng.integers(1, len(names) + 1), replace=False).tolist())
    rank, dtype = int(rng.integers(1, 5)), str(rng.choice(list(TOLERANCES)))
    ranks = {module: int(rng.integers(1, 5)) if rng.random() < 0.3 else rank for module in modules}
    alphas = {module: float(rng.uniform(0.5, 16)) for module in modules if rng.random() < 0.2}
    tensors = {}
    for module in modules:
        out_features, in_features = shapes[module]
        tensors[f"base_model.model.{module}.lora_A.weight"] = rng.standard_normal((ranks[module], in_features))
        tensors[f"base_model.model.{module}.lora_B.weight"] = rng.standard_normal((out_features, ranks[module]))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": BASE,
        "r": rank,
        "lora_alpha": float(rng.uniform(0.5, 16)),
        "use_rslora": bool(rng.random() < 0.2),
        "target_modules": modules,
        "rank_pattern": {module: own for module, own in ranks.items() if own != rank},
        "alpha_pattern": alphas,
    }
    folder.mkdir()
    write_tensors(folder / "adapter_model.safetensors", tensors, dtype)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return dtype


def one_merge(folder: Path, method: str, seed: int) -> str:
    """Merge random adapters by a method; return what is wrong with the result, empty if nothing is."""
    rng, row = np.random.default_rng(seed), METHODS[method]
    shapes = {f"model.layers.{i}.mlp.up_proj": tuple(rng.integers(24, 60, 2).tolist()) for i in range(3)}
    count = min(row.most, int(rng.integers(2, 5)))
    folders = [folder / f"adapter{number}" for number in range(count)]
    dtypes = [random_adapter(place, rng, shapes, row.plain or row.rank != "none") for place in folders]
    weights = (
        [1.0] * count if row.plain else [float(w) for w in rng.choice([-1.0, 1.0], count) * rng.uniform(0.2, 2, count)]
    )
    parents = [read_parts(place) for place in folders]
    totals = [sum(parent[module].rank for parent in parents if module in parent) for module in shapes]
    rank = {"none": None, "some": int(rng.integers(1, 4)), "all": max(totals)}[row.rank]
    dtype = str(rng.choice(["float32", ""])) or None
    profile = "portable" if rank is not None else str(rng.choice(["portable", "peft"]))
    composite = merge(
        [Adapter.from_pretrained(place) for place in folders],
        method,
        weights=weights,
        rank=rank,
        dtype=dtype,
        seed=seed,
        profile=profile,  # type: ignore[arg-type]
        **{name: choices[int(rng.integers(len(choices)))] for name, choices in row.options.items()},
    )
    written = read_parts(save(composite, folder / "out"))
    if written.keys() != set().union(*parents):
        return f"modules {sorted(written)}"
    most = max(TOLERANCES[name] for name in ([dtype] if dtype else dtypes))
    for module, got in written.items():
        mine = [(parent[module], weight) for parent, weight in zip(parents, weights, strict=True) if module in parent]
        case = Case([part for part, _ in mine], [weight for _, weight in mine], rank)
        error = row.check(got.delta, case)
        if not error < most:
            return f"{module} is off by {error:.1e}, more than {most:.0e} (seed {seed}, {dtypes}, {dtype}, {profile})"
    return ""


def soaked(folder: Path, rounds: int, seed: int) -> Iterator[Outcome]:
    """Merge ``rounds`` times, method by method in turn, and look at the memory."""
    names, early = sorted(METHODS), 0
    for number in range(rounds):
        place = folder / f"merge{number}"
        place.mkdir()
        try:
            lost = one_merge(place, names[number % len(names)], seed + number)
        except Exception as error:
            lost = f"{type(error).__name__}: {error} (seed {seed + number})"
        yield Outcome("soak", names[number % len(names)], f"merge {number}", lost)
        shutil.rmtree(place)
        if number == rounds // 3:
            early = resident()
    grown = resident() - early
    yield Outcome("soak", "memory", f"{rounds} merges", f"it grew by {grown} bytes" if grown > FLAT else "")


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
