"""Merge methods of other packages: the example package, and packages that are broken."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from hub_merge.methods import list_methods, registry
from tests.helpers import Dense, relative_error

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "method-package"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = ["model.layers.0.self_attn.q_proj", "model.layers.17.self_attn.v_proj"]

KERNEL = '''
from hub_merge.methods import merge_method

@merge_method("{name}", formula="x = y")
def kernel({signature}):
    """Return the first part."""
    return parts[0]
'''
WHOLE = "parts, weights, *, rank=None, rng"

BROKEN = {
    "raises-at-import": ("raise RuntimeError('no reason')", "RuntimeError: no reason"),
    "takes-a-name": (KERNEL.format(name="sum", signature=WHOLE), "two merge methods are called sum"),
    "takes-an-alias": (KERNEL.format(name="cat", signature=WHOLE), "two merge methods are called cat"),
    "lacks-an-argument": (
        KERNEL.format(name="no_rng", signature="parts, weights, *, rank=None"),
        "a merge method takes parts, weights, rank and rng",
    ),
    "lacks-an-annotation": (
        KERNEL.format(name="bare", signature=f"{WHOLE}, density=0.5"),
        "option density needs a default and one of the kinds",
    ),
    "lacks-a-docstring": (
        KERNEL.format(name="mute", signature=WHOLE).replace('"""Return the first part."""', ""),
        "a merge method needs a docstring",
    ),
    "lacks-its-module": (None, "No module named 'lacks_its_module'"),
    "breaks-halfway": (
        KERNEL.format(name="half", signature=WHOLE) + "raise ImportError('too late')",
        "ImportError: too late",
    ),
}
"""Source of a package's module by the package's name, and what is to be told of it."""


def install(folder: Path, name: str, module: str, source: str | None) -> None:
    """Put into ``folder`` what an installer would: the module, and the metadata with its entry point."""
    metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[hub_merge.methods]\n{module} = {module}\n", encoding="utf-8")
    if source is not None:
        (folder / f"{module}.py").write_text(source, encoding="utf-8")


def install_example(folder: Path) -> None:
    (module,) = PROJECT["entry-points"]["hub_merge.methods"].values()
    install(folder, PROJECT["name"], module, (EXAMPLE / f"{module}.py").read_text(encoding="utf-8"))


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the packages in ``folder`` are installed too."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )


def hub_merge(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "-m", "hub_merge", *words)


def listed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)}


def delta(folder: Path, module: str) -> Dense:
    """Return the dense delta of a module as PEFT's format defines it, read without this package."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    key = f"base_model.model.{module}"
    A, B = (tensors[f"{key}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return np.asarray(config["lora_alpha"] / config["r"] * (B @ A))


def truncated(dense: Dense, rank: int) -> Dense:
    U, S, Vt = np.linalg.svd(dense, full_matrices=False)
    return np.asarray((U[:, :rank] * S[:rank]) @ Vt[:rank])


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example package is installed."""
    folder = tmp_path_factory.mktemp("example")
    install_example(folder)
    return folder


@pytest.fixture(scope="module")
def methods(example: Path) -> subprocess.CompletedProcess[str]:
    """What ``methods`` prints where the example alone is installed."""
    return hub_merge(example, "methods", "--json")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the example package and every broken one are installed."""
    folder = tmp_path_factory.mktemp("broken")
    install_example(folder)
    for name, (source, _) in BROKEN.items():
        install(folder, name, name.replace("-", "_"), source)
    return folder


@pytest.fixture(scope="module")
def told(broken: Path) -> subprocess.CompletedProcess[str]:
    """What ``methods`` prints beside the broken packages."""
    return hub_merge(broken, "methods", "--json")


# --- the example ------------------------------------------------------------------------------------------------------


def assert_lists_the_example(done: subprocess.CompletedProcess[str]) -> None:
    row = listed(done)["norm_balanced"]
    assert row["options"] == [
        {"name": "norm", "takes": "mean | median", "default": "mean"},
        {"name": "strength", "takes": "float from 0 to 1", "default": 1.0},
    ]
    assert row["summary"] == "the weighted sum of the deltas after scaling each to the mean norm of all."
    assert "Warning" not in done.stderr


def test_the_method_of_an_installed_package_is_listed_with_its_options(
    methods: subprocess.CompletedProcess[str],
) -> None:
    assert_lists_the_example(methods)


@pytest.mark.parametrize(
    ("parents", "asked", "common", "strength", "weights", "rank"),
    [
        (["math", "medicine"], [], np.mean, 1.0, [1.0, 1.0], None),
        (
            ["math", "medicine", "finance"],
            ["--weights=1,-0.5,2", "--option=norm=median", "--option=strength=0.5", "--rank=4"],
            np.median,
            0.5,
            [1.0, -0.5, 2.0],
            4,
        ),
    ],
    ids=["defaults", "all_options"],
)
def test_the_example_merges_and_proves_what_a_dense_reference_gives(
    example: Path,
    tmp_path: Path,
    parents: list[str],
    asked: list[str],
    common: Callable[[list[float]], float],
    strength: float,
    weights: list[float],
    rank: int | None,
) -> None:
    folders = [f"examples/zoo/{name}" for name in parents]
    done = hub_merge(example, "merge", *folders, "--method", "norm_balanced", *asked, "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "hub_merge.json").read_text(encoding="utf-8"))
    assert record["proof"]["passed"]
    for module in MODULES:
        deltas = [delta(ROOT / folder, module) for folder in folders]
        norms = [float(np.sqrt((dense * dense).sum())) for dense in deltas]
        scales = [(common(norms) / norm) ** strength for norm in norms]
        assert max(abs(scale - 1) for scale in scales) > 0.01  # else there would be nothing to balance
        wanted = sum(weight * scale * dense for weight, scale, dense in zip(weights, scales, deltas, strict=True))
        wanted = wanted if rank is None else truncated(wanted, rank)
        assert relative_error(delta(tmp_path / "out", module), wanted) < 1e-6


def test_the_example_keeps_every_promise_of_a_method(example: Path) -> None:
    words = ["-m", "pytest", "tests/test_methods.py", "-k", "norm_balanced", "-p", "no:cacheprovider"]
    done = python(example, *words)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.slow
def test_pip_installs_the_example_so_that_its_method_is_found(tmp_path: Path) -> None:
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    source = shutil.copytree(EXAMPLE, tmp_path / "source")
    command = ["-m", "pip", "install", "--quiet", "--no-deps", *isolation, "--target", str(tmp_path / "target")]
    done = python(tmp_path, *command, str(source))
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in (tmp_path / "target").iterdir()} <= {".py", ".dist-info", ""}
    assert_lists_the_example(hub_merge(tmp_path / "target", "methods", "--json"))


# --- broken packages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_left_out_with_one_warning_that_names_it(
    name: str, told: subprocess.CompletedProcess[str]
) -> None:
    lines = [line for line in told.stderr.splitlines() if name in line]
    assert len(lines) == 1, told.stderr
    assert lines[0].startswith(f"Warning: The merge methods of package {name} are left out: ")
    assert BROKEN[name][1] in lines[0]


def test_broken_packages_leave_all_other_methods_as_they_are(
    methods: subprocess.CompletedProcess[str], told: subprocess.CompletedProcess[str]
) -> None:
    assert listed(told) == listed(methods)
    assert "Traceback" not in told.stderr
    assert {method.name for method in list_methods()} <= listed(told).keys()


def test_a_merge_beside_broken_packages_works_and_the_name_of_a_missing_method_is_refused(
    broken: Path, tmp_path: Path
) -> None:
    done = hub_merge(broken, "merge", "examples/zoo/math", "examples/zoo/medicine", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr  # a method of ours runs nobody else's code
    asked = hub_merge(broken, "merge", "examples/zoo/math", "--method", "half", "-o", str(tmp_path / "none"))
    assert asked.returncode == 1
    assert asked.stderr.count("Warning: The merge methods of package") == len(BROKEN)
    refused = hub_merge(broken, "methods", "half")
    assert refused.returncode == 1
    assert "package breaks-halfway are left out" in refused.stderr
    assert "Error: There is no merge method 'half'" in refused.stderr


def test_python_is_told_of_a_broken_package_by_a_warning_and_keeps_its_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "breaks-halfway"
    install(tmp_path, name, "breaks_halfway", BROKEN[name][0])
    monkeypatch.syspath_prepend(tmp_path)
    known = {method.name for method in list_methods()}
    before = dict(registry._methods)
    registry._load_all.cache_clear()
    with pytest.warns(RuntimeWarning, match=f"package {name} are left out: .*ImportError: too late") as warned:
        assert {method.name for method in list_methods()} == known
    assert [warning.filename for warning in warned] == [__file__]  # the caller, not the registry
    assert registry._methods == before
