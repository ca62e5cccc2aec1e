"""Where commands are tried: a Hub with two adapters and a base, and homes in which nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.helpers import peft_config
from tests.hub_double import HubDouble

ROOT = Path(__file__).parents[2]
BASE = "acme/base"
MATH, MEDICINE, PUBLISHED = "alice/math", "bob/medicine", "alice/both"
MODULES = tuple(f"model.layers.{layer}.self_attn.q_proj" for layer in range(3))
SHAPE, RANK = (96, 64), 4
CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
TERMS = b"---\nlicense: mit\n---\n"
ADAPTER_TERMS = f"---\nlicense: mit\nbase_model: {BASE}\n---\n".encode()


@dataclass(frozen=True)
class Ended:
    """How a command ended; ``code`` is minus the signal for one that was killed."""

    code: int
    out: str
    err: str
    steps: int | None


@dataclass
class World:
    """A Hub, a process in which commands are run, and a folder for homes."""

    hub: HubDouble
    stand: subprocess.Popen[str]
    folder: Path
    homes: int = field(default=0)

    def home(self) -> Path:
        """Return a new empty home."""
        self.homes += 1
        home = self.folder / f"home{self.homes}"
        (home / "tmp").mkdir(parents=True)
        return home

    def environment(self, home: Path) -> dict[str, str]:
        variables = self.hub.environment(home, "alice")
        return {
            **variables,
            "TMPDIR": str(home / "tmp"),
            "HUB_MERGE_MIN_FREE_DISK": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, home: Path, *words: str, **fate: Any) -> Ended:
        """Run one command line; ``fate`` is ``kill_at`` a step, ``kill_after`` seconds or ``largest_file`` of bytes."""
        return self.run_together([(home, words)], **fate)[0]

    def run_together(self, commands: Sequence[tuple[Path, Sequence[str]]], **fate: Any) -> list[Ended]:
        """Run several command lines at the same time."""
        jobs = [
            {"home": str(home), "words": list(words), "environment": self.environment(home), **fate}
            for home, words in commands
        ]
        assert self.stand.stdin and self.stand.stdout
        self.stand.stdin.write(json.dumps(jobs) + "\n")
        self.stand.stdin.flush()
        return [Ended(**entry) for entry in json.loads(self.stand.stdout.readline())]


@contextmanager
def opened(folder: Path, *, xet: bool = False) -> Iterator[World]:
    """Yield a world whose homes are in ``folder``."""
    with HubDouble(xet=xet) as hub:
        furnish(hub)
        home = folder / "stand"
        home.mkdir()
        command = [sys.executable, "-m", "tests.torture.stand"]
        variables = {**clean_environment(), **hub.environment(home)}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=variables
        ) as stand:
            try:
                yield World(hub, stand, folder)
            finally:
                assert stand.stdin
                stand.stdin.close()
                stand.wait(timeout=60)
        assert not hub.crashes, "\n".join(hub.crashes)
        assert not hub.leaked_tokens


def clean_environment() -> dict[str, str]:
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
    return {"PYTHONPATH": str(ROOT), **{name: os.environ[name] for name in kept if name in os.environ}}


def furnish(hub: HubDouble) -> None:
    """Publish a base and two adapters of it."""
    hub.add_repo(BASE, base_files(), owner="alice")
    hub.add_repo(MATH, adapter_files(1))
    hub.add_repo(MEDICINE, adapter_files(2))


def base_files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    tensors = {f"{module}.weight": rng.standard_normal(SHAPE).astype(np.float32) for module in MODULES}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
    return {"config.json": json.dumps(config).encode(), "model.safetensors": save(tensors), CARD: TERMS}


def adapter_files(seed: int) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    tensors = {}
    for module in MODULES:
        for factor, shape in (("A", (RANK, SHAPE[1])), ("B", (SHAPE[0], RANK))):
            name = f"base_model.model.{module}.lora_{factor}.weight"
            tensors[name] = rng.standard_normal(shape).astype(np.float32)
    config = peft_config(
        r=RANK, lora_alpha=8, target_modules=["q_proj"], base_model_name_or_path=BASE, task_type="CAUSAL_LM"
    )
    return {CONFIG: json.dumps(config).encode(), WEIGHTS: save(tensors), CARD: ADAPTER_TERMS}


def files_of(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder, by path; empty if there is none."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def copy(folder: Path, target: Path) -> None:
    shutil.copytree(folder, target, symlinks=True, dirs_exist_ok=True)
