"""With the core alone everything else works, and what needs an extra says which, in one error, before any work."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MATH, MEDICINE = (str(ROOT / "examples" / "zoo" / name) for name in ("math", "medicine"))
LIBRARIES = ("torch", "transformers", "peft", "gguf", "gradio", "matplotlib", "pyarrow", "ray")
RUN = f"import sys; sys.modules.update(dict.fromkeys({LIBRARIES})); from hub_merge.cli import main; main()"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in ``folder``, in a process that finds no library of an extra."""
    command = [sys.executable, "-c", RUN, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "2 + 2?", "answer": "4"}) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("ui", "space"),
        (f"eval {MATH} --data questions.jsonl", "eval"),
        (f"eval {MATH} --tasks arc_easy", "eval"),
        (f"merge {MATH} {MEDICINE} --rank 4 --tune a=questions.jsonl -o out", "eval"),
        ("zoo build openai-community/gpt2", "zoo"),
        (f"zoo add {MATH}", "zoo"),
        ("zoo update", "zoo"),
        ("zoo families --plot map.png", "plot"),
        ("score ./nowhere ./either --plot scores.png", "plot"),
        ("merge ./nowhere ./either --plot -o out", "plot"),
        ("eval ./nowhere --data questions.jsonl --plot figures.png", "plot"),
    ],
)
def test_what_needs_an_extra_says_so_and_leaves_nothing(folder: Path, words: str, extra: str) -> None:
    done = run(folder, *shlex.split(words))
    assert done.returncode == 1
    problem, remedy = done.stderr.splitlines()
    assert problem.startswith("Error: ")
    assert remedy == f"Try: pip install 'hub-merge[{extra}]'"
    assert done.stdout == ""
    assert [path.name for path in folder.iterdir()] == ["questions.jsonl"]


def test_a_picture_of_a_format_that_cannot_be_drawn_is_refused_before_the_work(folder: Path) -> None:
    done = run(folder, "score", "./nowhere", "./either", "--plot", "scores.jpg")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Error: Pictures cannot be written as scores.jpg.",
        "Try: End the name in .png, .svg or .pdf.",
    ]


def test_the_core_merges_proves_and_converts(folder: Path) -> None:
    for words in (
        f"check {MATH} {MEDICINE}",
        f"merge {MATH} {MEDICINE} -o out",
        f"verify out {MATH} {MEDICINE}",
        f"merge {MATH} {MEDICINE} --rank 4 -o small",
        "compress out --energy 0.9 -o smaller",
        "convert out --format mlx -o mlx",
    ):
        done = run(folder, *shlex.split(words))
        assert done.returncode == 0, done.stderr
