"""The lowest versions that are tested are the lowest that are allowed."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
IN_FIRST_RUN = ("plot", "space", "test", "zoo")


def lowest(requirements: Iterable[str]) -> dict[str, Version]:
    """Return the lowest version that each requirement allows."""
    found = [Requirement(text) for text in requirements]
    bounds = {entry.name: {part.operator: part.version for part in entry.specifier} for entry in found}
    return {name: Version(bound[">="]) for name, bound in bounds.items() if name != "hub-merge"}


def pinned(path: str) -> dict[str, Version]:
    """Return the one version of each package that a file of constraints allows."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    pins = (line.split("==") for line in lines if not line.startswith("#"))
    return {name: Version(version) for name, version in pins}


def test_the_lowest_versions_are_those_of_the_project() -> None:
    allowed = [*PROJECT["dependencies"], *(entry for extra in IN_FIRST_RUN for entry in EXTRAS[extra])]
    assert pinned("constraints/lowest.txt") == lowest(allowed)


def test_those_of_evaluation_too_but_for_torch_and_what_transformers_asks_for() -> None:
    tested, allowed = pinned("constraints/lowest-eval.txt"), lowest(EXTRAS["eval"])
    assert tested.keys() == {*allowed, "safetensors"}
    assert tested.pop("torch") == pinned("constraints.txt")["torch"] >= allowed.pop("torch")
    assert tested.pop("safetensors") >= lowest(PROJECT["dependencies"])["safetensors"]
    assert tested == allowed


def test_the_lanes_install_every_extra_but_those_of_developers_and_of_standard_tasks() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lane = re.search(r"^lowest:\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert lane
    installed = [set(extras.split(",")) for extras in re.findall(r"--editable '\.\[(.*?)\]'", lane[1])]
    assert installed == [set(IN_FIRST_RUN), {"eval"}]
    assert EXTRAS.keys() == {*IN_FIRST_RUN, "eval", "tasks", "dev", "all"}
