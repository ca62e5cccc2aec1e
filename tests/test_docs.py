"""Every block of the guides is run, every link leads somewhere, and the page shows every public name with its words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hub_merge
from docs.page import PAGES, documented, main, members, page, slug, target
from tests.hub_double import HubDouble
from tests.plain_files import write_tensors

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
RUN_ELSEWHERE = {"README.md": "tests/test_readme.py", "CONTRIBUTING.md": "the Makefile"}
"""Pages whose blocks are run by other tests."""
NEEDED = {"zoo": "pyarrow"}
"""Libraries that a guide tells its reader to install."""

in_a_clone = pytest.mark.skipif(not (ROOT / "hub_merge").is_dir(), reason="the pages link to files of a clone")


def kohya_file(path: Path, seed: int) -> None:
    """Write a LoRA of one layer of a UNet as kohya's scripts do."""
    rng, name = np.random.default_rng(seed), "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {
        f"{name}.lora_down.weight": rng.standard_normal((4, 32)),
        f"{name}.lora_up.weight": rng.standard_normal((48, 4)),
        f"{name}.alpha": np.array(2.0),
    }
    write_tensors(path, tensors, "float16")


@pytest.fixture
def reader(hub_lfs: HubDouble, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder in which a reader follows a guide, and the environment: two adapters and a base are on the Hub."""
    for name in ("someone", "other", "stabilityai", "HuggingFaceTB"):
        hub_lfs.add_user(name)
    for repo_id, adapter in (("someone/math-lora", "math"), ("other/medicine-lora", "medicine")):
        folder = ROOT / "examples" / "zoo" / adapter
        hub_lfs.add_repo(repo_id, {path.name: path.read_bytes() for path in folder.iterdir()})
    for base in (SDXL, "HuggingFaceTB/SmolLM2-135M-Instruct"):
        hub_lfs.add_repo(base, {"README.md": b"---\nlicense: apache-2.0\n---\n"})
    folder = tmp_path / "reader"
    folder.mkdir()
    kohya_file(folder / "style.safetensors", 1)
    kohya_file(folder / "character.safetensors", 2)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return folder, {**os.environ, "PYTHONPATH": str(ROOT), **hub_lfs.environment(tmp_path, "alice"), "PATH": path}


@pytest.mark.parametrize("guide", GUIDES, ids=[path.stem for path in GUIDES])
def test_every_block_of_a_guide_works_as_written(guide: Path, reader: tuple[Path, dict[str, str]]) -> None:
    if guide.stem in NEEDED:
        pytest.importorskip(NEEDED[guide.stem])
    folder, environment = reader
    for number, (language, block) in enumerate(BLOCK.findall(guide.read_text(encoding="utf-8"))):
        script = folder / f"block{number}"
        script.write_text(block, encoding="utf-8")
        command = {"bash": ["bash", "-eu"], "python": [sys.executable]}[language]
        done = subprocess.run(
            [*command, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"


def test_no_page_has_blocks_that_nobody_runs() -> None:
    run = {path.relative_to(ROOT).as_posix() for path in GUIDES} | RUN_ELSEWHERE.keys()
    with_blocks = {name for name in PAGES if BLOCK.search((ROOT / name).read_text(encoding="utf-8"))}
    assert with_blocks <= run and run - RUN_ELSEWHERE.keys() <= set(PAGES)


def test_the_makefile_has_what_contributing_names() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(targets) > 3 and all(f"\n{target}:" in makefile for target in targets)


# --- the page ---------------------------------------------------------------------------------------------------------


class Seen(HTMLParser):
    """Collects the places and the links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places += [given["id"] or ""] if "id" in given else []
        self.links += [given[name] or "" for name in ("href", "src") if name in given]


@in_a_clone
def test_no_link_of_the_page_is_dead(tmp_path: Path) -> None:
    main(tmp_path)
    seen = Seen()
    seen.feed((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert len(seen.places) == len(set(seen.places))
    for link in seen.links:
        if link.startswith("#"):
            assert link[1:] in seen.places, link
        elif not link.startswith("https://"):
            assert (tmp_path / link).is_file(), link


def test_a_dead_link_is_found_out() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        target("nowhere.md", "README.md")


NAMES: list[tuple[str, Any]] = [
    entry
    for name in hub_merge.__all__
    for entry in [
        (name, getattr(hub_merge, name)),
        *((f"{name}.{member}", inner) for member, inner in members(getattr(hub_merge, name))),
    ]
]


@pytest.mark.parametrize(("name", "value"), NAMES, ids=[name for name, _ in NAMES])
def test_every_public_name_has_words_and_the_page_shows_them(name: str, value: Any) -> None:
    words = getattr(value, "__doc__", None)
    assert words and len(words.split()) > 2, f"{name} has no docstring"
    assert documented(name, value, 2).count(slug(f"api {name}")) == 1


@in_a_clone
def test_the_page_holds_every_page_and_every_public_name() -> None:
    html = page()
    assert all(f'<section id="{slug(name)}">' in html for name in PAGES)
    assert all(f'id="{slug(f"api {name}")}"' in html for name, _ in NAMES)
