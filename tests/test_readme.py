"""Everything the README shows is run, and what is generated in it is up to date."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.hub_double import HubDouble
from tests.readme import README, TABLE, blocks, methods_table

ROOT = README.parent

draws = pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the examples, as a reader who just cloned the repository has it."""
    shutil.copytree(ROOT / "examples", tmp_path / "clone" / "examples")
    return tmp_path / "clone"


def run_shell(block: str, folder: Path, environment: Mapping[str, str]) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", block],
        cwd=folder,
        env={**os.environ, **environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_table_of_methods_is_what_the_registry_gives() -> None:
    found = TABLE.search(README.read_text(encoding="utf-8"))
    assert found and found[0] == methods_table(), "run `python -m tests.readme`"


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    commands = [line.split("#")[0].split() for line in blocks("bash")[0].splitlines()]
    assert commands == [["make", "demo"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\ndemo: $(VENV)/.plot\n\t$(BIN)/python examples/demo.py\n" in makefile
    assert "\ntest: $(VENV)/.dev\n\t$(BIN)/python -m pytest " in makefile


@draws
def test_the_demo_merges_and_proves_offline_and_draws_its_picture(clone: Path) -> None:
    told = run_shell(f"{sys.executable} examples/demo.py", clone, {"HF_ENDPOINT": "http://127.0.0.1:9"})
    for name in ("sum", "lego", "svd"):
        assert (clone / "demo" / name / "adapter_model.safetensors").is_file()
    assert told.count("Merged and proved") == 3
    assert (clone / "demo/orthogonality.png").read_bytes().startswith(b"\x89PNG")
    for line in told.partition("What you have now:")[2].splitlines():
        if line.startswith("  demo/"):
            assert (clone / line.split()[0]).exists()


@draws
def test_the_picture_of_the_readme_is_the_one_the_demo_draws(clone: Path) -> None:
    import matplotlib.image
    import numpy as np

    run_shell("hub-merge score examples/zoo/{math,medicine,finance} --plot scores.png", clone, {"HF_HUB_OFFLINE": "1"})
    drawn = matplotlib.image.imread(clone / "scores.png")
    shown = matplotlib.image.imread(ROOT / "docs" / "orthogonality.png")
    assert np.abs(np.subtract(drawn.shape, shown.shape)).max() <= 1  # older versions of matplotlib round down
    height, width, _ = np.minimum(drawn.shape, shown.shape)
    assert np.abs(drawn[:height, :width] - shown[:height, :width]).mean() < 0.02


@draws
def test_the_commands_on_local_adapters_work_as_written(clone: Path) -> None:
    run_shell(blocks("bash")[1], clone, {"HF_HUB_OFFLINE": "1"})
    assert (clone / "math-medicine" / "README.md").is_file()
    assert (clone / "scores.png").is_file()


def test_the_commands_on_the_hub_work_as_written(clone: Path, hub_lfs: HubDouble) -> None:
    for repo_id in ("someone/math-lora", "other/medicine-lora"):
        folder = clone / "examples" / "zoo" / repo_id.split("/")[1].removesuffix("-lora")
        hub_lfs.add_user(repo_id.split("/")[0])
        hub_lfs.add_repo(repo_id, {path.name: path.read_bytes() for path in folder.iterdir()})
    hub_lfs.add_user("HuggingFaceTB")
    hub_lfs.add_repo("HuggingFaceTB/SmolLM2-135M-Instruct", {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    hub_lfs.add_user("me")
    told = run_shell(blocks("bash")[2], clone, hub_lfs.environment(clone.parent, user="me"))
    assert "someone/math-lora" in told and "other/medicine-lora" in told
    assert (
        hub_lfs.file("me/math-medicine", "adapter_model.safetensors")
        == (clone / "composite" / "adapter_model.safetensors").read_bytes()
    )


def test_the_python_example_works_as_written(clone: Path) -> None:
    (clone / "example.py").write_text(blocks("python")[0], encoding="utf-8")
    told = run_shell(f"{sys.executable} example.py", clone, {"HF_HUB_OFFLINE": "1"})
    assert float(told.split()[0]) == pytest.approx(0.201, abs=0.001)
    assert (clone / "from-python" / "hub_merge.json").is_file()
