"""What a release changes in the files that it packs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
HOME = "https://github.com/acme/hub-merge"
LINK = re.compile(r"(!?)\[[^]]*\]\(([^)]*)\)")


def test_links_of_the_readme_lead_to_the_repository_and_the_project_names_it(tmp_path: Path) -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))["jobs"]["build"][
        "steps"
    ]
    (step,) = (step for step in steps if "README.md" in step.get("run", ""))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    known = {"GITHUB_REPOSITORY": "acme/hub-merge", "GITHUB_REF_NAME": "v1.0"}
    subprocess.run(["bash", "-euc", step["run"]], cwd=tmp_path, env={**os.environ, **known}, check=True)

    before = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    after = LINK.findall((tmp_path / "README.md").read_text(encoding="utf-8"))
    for (picture, old), (_, new) in zip(before, after, strict=True):
        kept = old.startswith("https://")
        assert new == (old if kept else f"{HOME}/{'raw' if picture else 'blob'}/v1.0/{old}")
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project.pop("urls") == {"Repository": HOME, "Changelog": f"{HOME}/blob/v1.0/CHANGELOG.md"}
    assert project == tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "pyproject.toml"}
