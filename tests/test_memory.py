"""Merging needs memory for a few modules, however many there are, and never for a dense delta."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from hub_merge.methods import list_methods
from hub_merge.pipeline import merge
from tests.helpers import adapter_of, peft_config, random_factors, write_adapter

RANK, WIDTH = 32, 4096
MODULE_BYTES = 2 * RANK * WIDTH * 4
"""Bytes of one module's factors, A and B, in one adapter."""

ROOT = Path(__file__).parent.parent

MEASURE = dedent(
    """
    import json, sys, threading, time
    from hub_merge.adapter import Adapter
    from hub_merge.pipeline import merge

    def anonymous():
        # Bytes that the process holds itself. Pages of mapped files count to no process: the kernel takes them back.
        with open("/proc/self/status") as status:
            return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.002)

    method, output, *folders = sys.argv[1:]
    adapters = [Adapter.from_pretrained(folder) for folder in folders]
    merge([adapters[0]], method).factors("h.0.q_proj")  # what is imported or allocated once does not count
    done, start = threading.Event(), anonymous()
    peak = [start]
    watcher = threading.Thread(target=watch)
    watcher.start()
    merge(adapters, method).save_pretrained(output)
    done.set()
    watcher.join()
    print(json.dumps(peak[0] - start))
    """
)


def write(folder: Path, modules: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(modules):
        key = f"base_model.model.h.{layer}.q_proj"
        tensors[f"{key}.lora_A.weight"] = rng.standard_normal((RANK, WIDTH), np.float32)
        tensors[f"{key}.lora_B.weight"] = rng.standard_normal((WIDTH, RANK), np.float32)
    config = peft_config(r=RANK, target_modules=["q_proj"], base_model_name_or_path="acme/base")
    return write_adapter(folder, tensors, config)


def growth(tmp_path: Path, modules: int, method: str) -> int:
    """Return by how many bytes a merge of two adapters makes a process grow at most."""
    folders = [tmp_path / f"{modules}_{name}" for name in "ab"]
    for seed, folder in enumerate(folders):
        if not folder.is_dir():
            write(folder, modules, seed)
    output = tmp_path / f"{modules}_{method}"
    command = [sys.executable, "-c", MEASURE, method, str(output), *map(str, folders)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=120)
    return int(json.loads(done.stdout))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.parametrize("method", ["sum", "svd"])
def test_memory_does_not_grow_with_the_number_of_modules(method: str, tmp_path: Path) -> None:
    """Four times as many modules may cost a quarter of what the further ones would need if they were all held."""
    few, many = 6, 24
    small, large = growth(tmp_path, few, method), growth(tmp_path, many, method)
    held = 2 * (many - few) * MODULE_BYTES  # not counting their copies in float64
    assert large - small < held / 4, f"{small / 1e6:.0f} MB for {few} modules, {large / 1e6:.0f} MB for {many}"


@pytest.mark.parametrize("method", [method.name for method in list_methods()])
def test_a_module_whose_dense_delta_would_fill_any_machine_is_merged_and_proved(
    method: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    """100,000 x 100,000 numbers are 40 GB in float32; the factors of rank 4 are 3 MB an adapter."""
    size = 100_000
    adapters = [
        adapter_of(
            name,
            {"h.0.q_proj": random_factors(rng, (size, size), 4, dtype=np.float32)},
            base_model="acme/base",
            target_modules=("q_proj",),
        )
        for name in ("a", "b")
    ]
    merge(adapters, method, dtype="bfloat16").save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "hub_merge.json").read_text())["proof"]["passed"]
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size < 50e6
