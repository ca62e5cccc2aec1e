"""What an index of adapters costs: building, asking, and how exact its estimates are."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hub_merge.adapter import Adapter, LoraFactors, ModuleSpec
from hub_merge.zoo import queries
from hub_merge.zoo.entries import Entry
from hub_merge.zoo.exact import exact_cosine
from hub_merge.zoo.fingerprint import Fingerprint, fingerprint
from hub_merge.zoo.index import Index
from hub_merge.zoo.loaded import Loaded
from hub_merge.zoo.sketch import SIZE, START_SIZE, bound

__all__ = ["main"]

BASE = "openai-community/gpt2"
SHAPES = {f"transformer.h.{layer}.attn.c_attn": (2304, 768) for layer in range(12)}
RANK = 4
SIZES = (1_000, 10_000, 100_000)
RUNS = 9
MOST_MEMORY, MOST_MILLISECONDS, MOST_BYTES = 2e9, 100, 10_000
"""What an index of 100,000 adapters may take: bytes of memory, milliseconds a question, bytes an adapter."""


@dataclass(frozen=True)
class Asked:
    """Figures of an index of one size."""

    adapters: int
    written: float
    bytes_each: float
    loaded: float
    near: float
    far: float
    memory: float


def main(folder: Path) -> None:
    """Measure, and write ``zoo.md``, ``zoo.json`` and ``zoo.png`` into ``folder``."""
    _build(1)  # imports and hashes are not what is measured
    rate = [_build(count) for count in (25, 50, 100, 200)]
    errors = _errors()
    asked = [_in_a_process(count) for count in SIZES]
    figures = {"build": rate, "errors": errors, "asked": [asdict(one) for one in asked]}
    (folder / "zoo.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / "zoo.md").write_text(_report(rate, errors, asked), encoding="utf-8")
    _draw(rate, asked, folder / "zoo.png")
    print((folder / "zoo.md").read_text(encoding="utf-8"))


def _adapter(seed: Any) -> Adapter:
    rng = np.random.default_rng(seed)
    parts = {
        name: LoraFactors(
            rng.standard_normal((RANK, shape[1]), np.float32), rng.standard_normal((shape[0], RANK), np.float32)
        )
        for name, shape in SHAPES.items()
    }
    return _of(parts)


def _of(parts: dict[str, LoraFactors]) -> Adapter:
    specs = {name: ModuleSpec(name, "linear", p.shape, p.rank, p.scaling, "float32") for name, p in parts.items()}
    return Adapter(name="adapter", modules=specs, load=parts.__getitem__, base_model=BASE)


def _mixed(one: Adapter, other: Adapter, share: float) -> Adapter:
    """Return an adapter that starts like ``one``, whose B is apart from it by a share of another's."""
    parts = {}
    for name in SHAPES:
        part = one.factors(name)
        parts[name] = LoraFactors(part.A, part.B + np.float32(share) * other.factors(name).B)
    return _of(parts)


def _build(count: int) -> dict[str, float]:
    """Return processor seconds for fingerprints of so many adapters that are in memory already, and for writing."""
    adapters = [_adapter(seed) for seed in range(min(count, 25))]
    fingerprint(adapters[0], BASE)
    with tempfile.TemporaryDirectory() as root:
        started = time.process_time()
        with Index.create(Path(root) / "zoo").writing() as writer:
            for number in range(count):
                found = fingerprint(adapters[number % len(adapters)], BASE)
                writer.put(_entry(number, found))
        return {"adapters": count, "seconds": time.process_time() - started}


def _errors() -> dict[str, Any]:
    """Return how far estimates are off, for independent adapters and for alike ones."""
    groups = {"independent": [_adapter(seed) for seed in range(24)]}
    one = _adapter((1, 0))
    groups["alike"] = [one, *(_mixed(one, _adapter((2, n)), share) for n, share in enumerate(np.linspace(0.1, 4, 23)))]
    rows = {}
    for name, adapters in groups.items():
        prints = [fingerprint(adapter, BASE) for adapter in adapters]
        pairs = [(i, j) for i in range(len(adapters)) for j in range(i)]
        exact = np.array([exact_cosine(adapters[i], adapters[j]) for i, j in pairs])
        estimate = np.array([prints[i].cosine(prints[j]) for i, j in pairs])
        within = np.array([abs(e - x) <= bound(x) for e, x in zip(estimate, exact, strict=True)])
        rows[name] = {
            "pairs": len(pairs),
            "cosines": [float(exact.min()), float(exact.max())],
            "rmse": float(np.sqrt(np.square(estimate - exact).mean())),
            "within": float(within.mean()),
        }
    return rows


def _entry(number: int, found: Fingerprint) -> Entry:
    return Entry(
        key=f"someone/adapter-with-a-usual-name-{number}",
        repo_id=f"someone/adapter-with-a-usual-name-{number}",
        commit=f"{number:040x}",
        base=BASE,
        license=("mit", "apache-2.0", None)[number % 3],
        task_type="CAUSAL_LM",
        tags=("peft", "safetensors", "lora", "text-generation", f"base_model:adapter:{BASE}", "region:us"),
        downloads=number % 997,
        weights_hash=f"{number * 7919:032x}",
        content=f"{number * 104729:032x}",
        fingerprint=found,
    )


def _synthetic(rng: np.random.Generator) -> Fingerprint:
    """Return a fingerprint with the distribution that those of independent adapters have."""
    sketch = (rng.standard_normal(SIZE, np.float32) / np.float32(SIZE**0.5)).astype(np.float16)
    start = (rng.standard_normal(START_SIZE, np.float32) / np.float32(START_SIZE**0.5)).astype(np.float16)
    norm = float(rng.lognormal(0, 1))
    groups = {"transformer.h.*.attn.c_attn": norm}
    return Fingerprint(BASE, sketch, start, norm, groups, RANK, 12, 147_456, "0123456789abcdef")


def _in_a_process(count: int) -> Asked:
    """Measure an index of so many adapters; it is asked in a process of its own, whose peak of memory is its own."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "zoo"
        rng = np.random.default_rng(count)
        started = time.process_time()
        with Index.create(folder).writing() as writer:
            for number in range(count):
                writer.put(_entry(number, _synthetic(rng)))
        written = time.process_time() - started
        command = [sys.executable, "-m", "benchmarks.zoo", str(folder)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        size = sum(path.stat().st_size for path in (folder / "data").iterdir())
        return Asked(adapters=count, written=written, bytes_each=size / count, **json.loads(done.stdout))


def _ask(folder: Path) -> dict[str, float]:
    """Return the medians of what loading and asking take, in seconds, and the peak of memory in bytes."""
    started = time.perf_counter()
    zoo = Loaded.read(Index(folder))
    loaded = time.perf_counter() - started
    took: dict[str, list[float]] = {"near": [], "far": []}
    for run in range(RUNS):
        asked = zoo.entry(run)
        for name, seconds in took.items():
            started = time.perf_counter()
            getattr(queries, name)(zoo, asked)
            seconds.append(time.perf_counter() - started)
    medians = {name: float(np.median(seconds)) for name, seconds in took.items()}
    return {"loaded": loaded, **medians, "memory": _peak()}


def _peak() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024.0


def _report(rate: Sequence[dict[str, float]], errors: dict[str, Any], asked: Sequence[Asked]) -> str:
    most = asked[-1]
    each = np.polyfit([row["adapters"] for row in rate], [row["seconds"] for row in rate], 1)[0]
    claims = [
        (f"a question, `near` or `far`, at {most.adapters:,}", f"{1e3 * max(most.near, most.far):.0f} ms",
         f"< {MOST_MILLISECONDS} ms", max(most.near, most.far) * 1e3 < MOST_MILLISECONDS),
        ("index, an adapter", f"{most.bytes_each:,.0f} B", f"< {MOST_BYTES:,} B", most.bytes_each < MOST_BYTES),
        ("peak of memory", f"{most.memory / 1e9:.2f} GB", "< 2 GB", most.memory < MOST_MEMORY),
        *((f"estimates within the bound, {name} pairs", f"{row['within']:.1%}", "≥ 95 %", row["within"] >= 0.95)
          for name, row in errors.items()),
    ]  # fmt: skip
    lines = [
        "# The zoo: fingerprints, index, questions",
        "",
        "`python -m benchmarks zoo` measures and writes this page. Adapters are random, of rank 4 on GPT-2's c_attn;",
        "indexes of the sizes below hold random numbers with the distribution of independent adapters' fingerprints.",
        "",
        "| claim | measured | threshold | holds |",
        "|---|--:|--:|---|",
        *(f"| {what} | {got} | {most} | {'yes' if holds else '**no**'} |" for what, got, most, holds in claims),
        "",
        f"Fingerprints: {1 / each:.0f} adapters a second and core ({1e3 * each:.1f} ms of processor time each, read "
        "from memory and written to the index).",
        "",
        "| adapters | processor s |",
        "|--:|--:|",
        *(f"| {row['adapters']:.0f} | {row['seconds']:.2f} |" for row in rate),
        "",
        "| adapters in the index | written, s | bytes an adapter | loaded, s | near, ms | far, ms | memory, MB |",
        "|--:|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {one.adapters:,} | {one.written:.1f} | {one.bytes_each:,.0f} | {one.loaded:.2f} | {1e3 * one.near:.1f} "
            f"| {1e3 * one.far:.1f} | {one.memory / 1e6:.0f} |"
            for one in asked
        ),
        "",
        "| pairs | exact cosines | root mean square error | within the bound |",
        "|---|---|--:|--:|",
        *(
            f"| {row['pairs']} {name} | {row['cosines'][0]:.4f} to {row['cosines'][1]:.4f} | {row['rmse']:.4f} "
            f"| {row['within']:.1%} |"
            for name, row in errors.items()
        ),
        "",
        "![Growth](zoo.png)",
        "",
        f"Python {platform.python_version()}, numpy {np.__version__}, {os.cpu_count()} cores.",
    ]
    return "\n".join(lines) + "\n"


def _draw(rate: Sequence[dict[str, float]], asked: Sequence[Asked], path: Path) -> None:
    from hub_merge.plots import draw_to

    def draw(figure: Any) -> None:
        figure.set_size_inches(9.2, 3.4)
        left, right = figure.subplots(1, 2)
        left.plot([row["adapters"] for row in rate], [row["seconds"] for row in rate], marker="o")
        left.set(title="Build: processor seconds", xlabel="adapters", xlim=(0, None), ylim=(0, None))
        sizes = [one.adapters for one in asked]
        right.loglog(sizes, [1e3 * one.near for one in asked], marker="o", label="near")
        right.loglog(sizes, [1e3 * one.far for one in asked], marker="s", label="far")
        right.axhline(MOST_MILLISECONDS, linestyle="--", linewidth=0.8, color="#6e7781")
        right.set(title="A question: milliseconds", xlabel="adapters in the index")
        right.legend(frameon=False)
        figure.tight_layout()

    draw_to(path, draw)


if __name__ == "__main__":
    print(json.dumps(_ask(Path(sys.argv[1]))))
