"""Imports point down the layers, and heavy libraries stay out of the way of what does not need them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hub_merge

ROOT = Path(__file__).parents[1]
PACKAGE = Path(hub_merge.__file__).parent

LAYERS = """
errors forking layout privacy
measurements
bases budgets choice findings frontmatter mistyped patience ranks weights
adapter recipe parallel workspace
gram
clustering elementwise lowrank spectra formats hub staging
coordinates lineage materialize mixtures outliers scores
methods
compat licenses extras
advise composite sources base_weights
proof plots card conversion
verification
notices provenance publish reopening
pipeline
bulk fusion
extraction
evaluate
tune
zoo
studio
cli
__init__ __main__
""".strip().splitlines()
"""Lowest first; modules of one line do not know each other. A new module goes on the lowest line that works."""

LEVEL = {module: level for level, line in enumerate(LAYERS) for module in line.split()}

DOORS = {
    ("adapter", f"Adapter.{method}")
    for method in ("from_pretrained", "from_state_dict", "save_pretrained", "push_to_hub")
}
"""Functions of a value that lead up on purpose, so that users find them where they look."""

HEAVY = ("torch", "transformers", "peft", "gradio", "matplotlib", "diffusers", "gguf", "ray", "pyarrow")


def imports(tree: ast.AST, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield ``(place, imported module)`` but for TYPE_CHECKING; ``place`` is the dotted function, empty at the top."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((place, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module != "hub_merge" else [f"hub_merge.{alias.name}" for alias in node.names]
            yield from ((place, ("." * node.level) + (name or "")) for name in names)
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from imports(node, f"{place}.{node.name}".lstrip("."))
        else:
            yield from imports(node, place)


def top(path: Path) -> str:
    """Return the name of the layer's module that the file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted({*PACKAGE.rglob("*.py")} - {PACKAGE / "studio" / "app.py"})
"""The modules; the page, which a wheel puts beside those of the studio, is a program that needs gradio."""


@pytest.mark.parametrize("path", FILES, ids=[file.relative_to(PACKAGE).as_posix() for file in FILES])
def test_imports_point_down_the_layers(path: Path) -> None:
    module = top(path)
    assert module in LEVEL, f"{module} has no place in LAYERS yet"
    for place, imported in imports(ast.parse(path.read_text(encoding="utf-8"))):
        assert not imported.startswith("."), f"{path.name}: write {imported} in full"
        package, _, rest = imported.partition(".")
        target = rest.partition(".")[0]
        if package != "hub_merge" or target == module or (module, place) in DOORS:
            continue
        if target in LEVEL:
            assert LEVEL[target] < LEVEL[module], f"{module} may not import {target} ({place or 'top'} of {path.name})"
        else:  # a name of the package itself, such as its version
            assert LEVEL[module] > LEVEL["pipeline"], f"{module} imports {imported}"


STEPS = "progress opening merging references documents saving recipes verifying publishing __init__".split()
"""The files of the pipeline; each knows only those before it."""


@pytest.mark.parametrize("path", sorted((PACKAGE / "pipeline").glob("*.py")), ids=lambda path: path.stem)
def test_a_step_of_the_pipeline_imports_only_earlier_ones(path: Path) -> None:
    earlier = STEPS[: STEPS.index(path.stem)]
    imported = [name for _, name in imports(ast.parse(path.read_text(encoding="utf-8")))]
    steps = [name.removeprefix("hub_merge.pipeline.") for name in imported if name.startswith("hub_merge.pipeline")]
    assert set(steps) <= set(earlier)


@pytest.mark.parametrize("path", FILES, ids=[file.relative_to(PACKAGE).as_posix() for file in FILES])
def test_no_module_imports_a_heavy_library_when_it_is_imported(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_once = {name.partition(".")[0] for place, name in imports(tree) if not in_function(tree, place)}
    assert not at_once & set(HEAVY)


def test_only_the_workspace_makes_temporary_files() -> None:
    seen = [(top(path), name) for path in FILES for _, name in imports(ast.parse(path.read_text(encoding="utf-8")))]
    assert {module for module, name in seen if name == "tempfile"} == {"workspace"}


def test_findings_become_an_error_in_one_place() -> None:
    raising = [path for path in FILES if "raise IncompatibleAdapters" in path.read_text(encoding="utf-8")]
    assert raising == [PACKAGE / "pipeline" / "merging.py"]


def in_function(tree: ast.AST, place: str) -> bool:
    """Whether the dotted ``place`` is inside a function rather than a class body."""
    for name in filter(None, place.split(".")):
        tree = next(node for node in ast.walk(tree) if getattr(node, "name", None) == name)
        if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return True
    return False


def test_the_walk_sees_imports_wherever_they_stand() -> None:
    source = """
import torch
if TYPE_CHECKING:
    import hub_merge.cli
try:
    from hub_merge import cli, scores
except ImportError:
    pass
class C:
    import peft
    def f(self):
        with x:
            from hub_merge.hub.client import Hub
        from . import y
"""
    tree = ast.parse(source)
    assert list(imports(tree)) == [
        ("", "torch"),
        ("", "hub_merge.cli"),
        ("", "hub_merge.scores"),
        ("C", "peft"),
        ("C.f", "hub_merge.hub.client"),
        ("C.f", "."),
    ]
    assert [in_function(tree, place) for place in ("", "C", "C.f")] == [False, False, True]


def loaded_by(statement: str) -> set[str]:
    """Return the names in ``sys.modules``, and their packages, after ``statement`` in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}}, *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_command_line_starts_without_numpy_and_torch() -> None:
    assert not loaded_by("import hub_merge.cli") & {"numpy", *HEAVY}


def test_the_core_works_without_torch() -> None:
    loaded = loaded_by("import hub_merge.formats.peft, hub_merge.hub\nfrom hub_merge.pipeline import *")
    assert "numpy" in loaded
    assert not loaded & set(HEAVY)


def test_a_merge_of_local_folders_starts_no_client_of_the_hub_and_no_reader_of_other_formats(tmp_path: Path) -> None:
    arguments = ["merge", "examples/zoo/math", "examples/zoo/medicine", "-o", str(tmp_path / "out"), "--quiet"]
    loaded = loaded_by(f"from hub_merge.cli.app import cli\ncli({arguments}, standalone_mode=False)")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert not loaded & {"httpx", "httpx2", "pickletools", *HEAVY}


def test_a_merge_of_adapters_at_hand_imports_one_method_and_nothing_that_it_does_not_need() -> None:
    loaded = loaded_by(
        "from pathlib import Path\nfrom hub_merge import merge\nfrom hub_merge.adapter import Origin\n"
        "from hub_merge.formats.peft import open_folder\nfolder = Path('examples/zoo/math')\n"
        "composite = merge([open_folder(folder, name='math', origin=Origin(folder=folder))], 'svd', rank=2)\n"
        "assert composite.factors(next(iter(composite.modules))).rank == 2"
    )
    unneeded = ("hub", "card", "licenses", "proof", "publish", "scores", "recipe", "methods.lego", "methods.ties")
    assert "hub_merge.methods.svd" in loaded
    assert not loaded & {"importlib.metadata", *(f"hub_merge.{name}" for name in unneeded)}
