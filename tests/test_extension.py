"""``hf merge``: the package as an extension of the ``hf`` command line, registered by hand and by hf's installer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import hub_merge
from hub_merge.methods import list_methods

ROOT = Path(__file__).parents[1]
DESCRIPTION = json.loads((ROOT / "manifest.json").read_text(encoding="utf-8"))["description"]
PACKAGE = Path(hub_merge.__file__).parent
WHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
    "wheel"
]
FORCED: dict[str, str] = WHEEL["force-include"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
KEPT = ("PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "SSL_CERT_FILE")


def environment(home: Path) -> dict[str, str]:
    """Variables of a process that sees nothing of the user's but how to reach a package registry."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(("PIP_", "UV_"))}
    return {
        **kept,
        "HOME": str(home),
        "USERPROFILE": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "COLUMNS": "200",
    }


def hf(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "huggingface_hub.cli.hf", *words]
    return subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the extension is registered by a manifest alone."""
    home = tmp_path_factory.mktemp("home")
    executable = shutil.which("hf-merge", path=str(Path(sys.executable).parent))
    assert executable, "the package is not installed: its console script hf-merge is missing"
    folder = home / ".local" / "share" / "hf" / "extensions" / "hf-merge"
    folder.mkdir(parents=True)
    manifest = {
        "owner": "acme",
        "repo": "hf-merge",
        "repo_id": "acme/hf-merge",
        "short_name": "merge",
        "executable_path": executable,
        "type": "python",
        "installed_at": "2026-01-01T00:00:00+00:00",
        "description": DESCRIPTION,
        "commit_sha": COMMIT,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return home


def assert_works(home: Path) -> None:
    """Assert what every installation of the extension owes its user."""
    done = hf(home, "merge", "methods", "--json")
    assert (done.returncode, done.stderr.count("Error")) == (0, 0), done.stderr
    assert [entry["name"] for entry in json.loads(done.stdout)] == [method.name for method in list_methods()]
    shown = hf(home, "merge", "--help")
    assert shown.stdout.startswith("Usage: hf merge [OPTIONS] COMMAND")
    assert "$ hf merge search " in shown.stdout
    assert "merge" in hf(home, "--help").stdout
    assert "[extension acme/hf-merge]" in hf(home, "--help").stdout
    (row,) = json.loads(hf(home, "extensions", "ls", "--format", "json").stdout)
    assert (row["command"], row["source"], row["description"]) == ("hf merge", "acme/hf-merge", DESCRIPTION)


def test_a_registered_extension_is_listed_and_passes_json_through(home: Path) -> None:
    assert_works(home)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["methods"], 0),
        (["methods", "legoo"], 1),
        (["check", "./nowhere", "--json"], 1),
        (["methods", "--nonsense"], 2),
        (["merge"], 2),
    ],
)
def test_exit_codes_come_through_hf(home: Path, words: list[str], code: int) -> None:
    done = hf(home, "merge", *words)
    assert done.returncode == code
    assert ("Error: " in done.stderr) is (code != 0)


def test_what_hf_merge_recommends_is_called_hf_merge(home: Path) -> None:
    done = hf(home, "merge", "methods", "sum", "-q")
    assert done.stdout == "sum\n"
    assert hf(home, "merge", "methods", "--json").stderr == "Hint: hf merge methods NAME explains one\n"


def test_no_file_at_the_root_makes_hf_take_the_package_for_a_shell_script() -> None:
    assert not (ROOT / "hf-merge").exists()


def test_the_name_of_the_extension_is_none_of_hfs_own_commands() -> None:
    from huggingface_hub.cli.hf import app

    names = {name.strip() for command in app.commands for name in command.split("|")}
    assert "download" in names
    assert "merge" not in names


INSTALL = """
import json, subprocess, sys, types
import huggingface_hub.cli.extensions as extensions

archive, description_file = sys.argv[1:]
real_run = subprocess.run

def request(method, url, **settings):
    if url.endswith("/HEAD/manifest.json"):
        text = open(description_file, encoding="utf-8").read()
    elif url.endswith(".git/info/refs"):
        text = "001e# service=git-upload-pack\\n0000" + "COMMIT HEAD\\0"
    elif url.endswith("/commits/HEAD"):
        text = "COMMIT"
    else:
        raise OSError(f"404: {url}")
    return types.SimpleNamespace(text=text, content=text.encode(), json=lambda: json.loads(text))

def run(command, **settings):
    command = [archive if word == "https://github.com/acme/hf-merge/archive/HEAD.zip" else word for word in command]
    return real_run(command, **settings)

extensions._github_request = request
extensions.subprocess = types.SimpleNamespace(**{**vars(subprocess), "run": run})
manifest = extensions._install_extension(owner="acme", repo_name="hf-merge", short_name="merge")
print("INSTALLED", manifest.executable_path, manifest.commit_sha)
"""


def assert_holds_the_package_alone(python: Path) -> None:
    """Assert that what was installed is the package with its data, the page and the samples, and nothing else."""
    script = "from importlib.metadata import files; print(*files('hub-merge'), sep='\\n')"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    found = {line for line in done.stdout.splitlines() if not line.endswith(".pyc")}
    metadata = {name for name in found if ".dist-info/" in name}
    assert {name.partition("/")[2] for name in metadata} >= {"METADATA", "entry_points.txt", "licenses/LICENSE"}
    added = {
        Path(place, *file.relative_to(ROOT / source).parts)
        for source, place in FORCED.items()
        for file in ((ROOT / source).rglob("*") if (ROOT / source).is_dir() else [ROOT / source])
        if file.is_file()
    }
    commands = {f"../../../bin/{name}" for name in ("hub-merge", "hf-merge")}
    expected = {path.as_posix() for path in (*package_files(), *added)}
    assert "hub_merge/py.typed" in expected
    assert found - metadata == expected | commands


def write_archive(path: Path) -> Path:
    """Write the package as GitHub archives a repository: everything below one folder."""
    names = ["pyproject.toml", "README.md", "LICENSE", "manifest.json"]
    others = [file for folder in ("spaces", "examples/zoo") for file in (ROOT / folder).rglob("*") if file.is_file()]
    sources = {file.relative_to(ROOT): file for file in [*(ROOT / name for name in names), *others]}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in (sources | package_files()).items():
            archive.write(file, Path("hf-merge-HEAD") / name)
    return path


def package_files() -> dict[Path, Path]:
    """Return the files of the package that is tested by their place in the repository, without what a wheel adds."""
    found = (file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    files = {file.relative_to(PACKAGE.parent): file for file in found}
    return {name: file for name, file in files.items() if not name.as_posix().startswith(tuple(FORCED.values()))}


@pytest.mark.slow
def test_hfs_own_installer_makes_a_working_extension_of_this_repository(tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "HEAD.zip")
    script = INSTALL.replace("COMMIT", COMMIT)
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, archive.as_uri(), str(ROOT / "manifest.json")],
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    _, executable, commit = done.stdout.splitlines()[-1].split()
    assert commit == COMMIT
    assert Path(executable).is_relative_to(home / ".local" / "share" / "hf" / "extensions" / "hf-merge" / "venv")
    assert_works(home)
    installed = subprocess.run(
        [Path(executable).parent / "python", "-m", "pip", "list", "--format=json"],
        env=environment(home),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert_holds_the_package_alone(Path(executable).parent / "python")
    names = {package["name"].lower() for package in json.loads(installed.stdout)}
    assert "hub-merge" in names or "hub_merge" in names
    assert not names & {"torch", "transformers", "peft", "gradio", "matplotlib"}
