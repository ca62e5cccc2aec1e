"""What the Space is made of, and that a wheel carries the page and its samples where they are looked for."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import hub_merge
from hub_merge.studio import page, samples

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "spaces" / "hub-merge"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FRONT = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def test_the_space_runs_the_gradio_that_is_tested_and_asks_for_least() -> None:
    pinned = re.search(r"^gradio==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and FRONT["sdk_version"] == pinned[1]
    assert FRONT["hf_oauth_scopes"] == ["contribute-repos", "gated-repos", "write-discussions"]
    assert (SPACE / FRONT["app_file"]).is_file() and (SPACE / FRONT["thumbnail"]).is_file()
    assert len(FRONT["short_description"]) <= 60


def test_the_deployment_pins_the_one_requirement_to_its_own_commit() -> None:
    assert (SPACE / "requirements.txt").read_text() == "hub-merge[space]\n"
    workflow = (ROOT / ".github" / "workflows" / "space.yml").read_text()
    assert (
        "s#^hub-merge.*#hub-merge[space] @ https://github.com/$GITHUB_REPOSITORY/archive/$GITHUB_SHA.zip#" in workflow
    )


def test_a_wheel_puts_the_page_and_the_samples_where_they_are_looked_for() -> None:
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    package = Path(hub_merge.__file__).parent.parent
    assert included == {
        "spaces/hub-merge/app.py": page.PLACES[0].relative_to(package).as_posix(),
        "examples/zoo": samples.PLACES[0].relative_to(package).as_posix(),
    }
    assert page.page_file().read_bytes() == (SPACE / "app.py").read_bytes()


def test_the_page_imports_gradio_and_names_of_ours_only() -> None:
    tree = ast.parse((SPACE / "app.py").read_text(encoding="utf-8"))
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in modules if name.startswith(("huggingface_hub", "numpy", "safetensors"))]


def test_the_thumbnail_is_as_large_as_the_hub_shows_it() -> None:
    image = pytest.importorskip("PIL.Image")
    assert image.open(SPACE / FRONT["thumbnail"]).size == (1200, 630)
