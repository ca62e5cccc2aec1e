"""What users may import, and what importing costs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import hub_merge

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_public_name_can_be_imported_and_has_a_docstring() -> None:
    for name in hub_merge.__all__:
        assert getattr(hub_merge, name).__doc__, name


def test_the_public_names_are_the_ones_that_are_mapped_and_shown() -> None:
    assert list(hub_merge._HOME) == sorted(hub_merge.__all__) == sorted(dir(hub_merge))


def test_an_unknown_name_is_an_attribute_error() -> None:
    try:
        hub_merge.does_not_exist  # noqa: B018
    except AttributeError as error:
        assert "does_not_exist" in str(error)
    else:
        raise AssertionError("no AttributeError")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, hub_merge; print([m for m in ('numpy', 'huggingface_hub', 'torch', 'click') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_both_console_scripts_run_the_same_function() -> None:
    assert PROJECT["scripts"] == {"hub-merge": "hub_merge.cli:main", "hf-merge": "hub_merge.cli:main"}


def test_no_file_at_the_root_turns_the_extension_into_a_shell_script() -> None:
    assert not (ROOT / "hf-merge").exists()


def test_the_description_is_on_one_line_that_hf_can_find() -> None:
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("description")] == [f'description = "{PROJECT["description"]}"']


def test_the_core_needs_no_heavy_package() -> None:
    names = {dependency.split(">")[0].split("=")[0].lower() for dependency in PROJECT["dependencies"]}
    assert not names & {"torch", "transformers", "peft", "gradio", "matplotlib", "ray", "scipy"}
