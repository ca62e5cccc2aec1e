"""Words from strangers stay words: in cards, records, tables and on the terminal, and no path or token gets out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt

from tests.helpers import peft_config, peft_tensors, write_adapter

ROOT = Path(__file__).parents[2]
SECRET = "hf_" + "S" * 30
HOME = "/home/ann/secret-project"
EVIL = (
    "\u202e\x1b[31m</td><script>alert(1)</script>\n---\nlicense: mit\n# owned\n"
    "[x](http://evil.example) ![y](http://evil.example) | {{ 7*7 }} `"
)
MODULES = {"h.0.attn.c_attn": 2, "h.1.attn.c_attn": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two adapters whose every text is hostile."""
    for seed, name in enumerate(("math", "<script>*[evil](http:x)")):
        config = peft_config(
            base_model_name_or_path=f"{HOME}/llama",
            revision=f"{HOME}{EVIL}",
            task_type=f"{HOME}{EVIL}",
            target_modules=["c_attn", f"{HOME}/c_proj", EVIL],
            auto_mapping={"parent_library": f"{HOME}{EVIL}"},
        )
        adapter = write_adapter(tmp_path / name, peft_tensors(np.random.default_rng(seed), MODULES), config)
        card = yaml.safe_dump({"license": EVIL, "tags": [EVIL], "base_model": EVIL})
        (adapter / "README.md").write_text(f"---\n{card}---\n{EVIL}\n")
        (adapter / "added_tokens.json").write_text(json.dumps({EVIL: 50257, HOME: 50258}))
    return tmp_path


def run(folder: Path, *words: str) -> str:
    """Return everything that the command line says."""
    environment = {**os.environ, "HF_TOKEN": SECRET, "HF_HUB_OFFLINE": "1", "COLUMNS": "500", "AI_AGENT": ""}
    done = subprocess.run(
        [sys.executable, "-m", "hub_merge", *words],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr and "bug" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def assert_harmless(text: str) -> None:
    assert HOME not in text and "secret-project" not in text
    assert SECRET not in text
    assert not re.search("[\u202e\x1b]", text)


def adapters(folder: Path) -> list[str]:
    return [f"./{path.name}" for path in sorted(folder.iterdir()) if path.name != "out"]


@pytest.mark.parametrize("mode", ["human", "agent", "json", "quiet"])
def test_no_command_prints_what_steers_a_terminal_or_tells_of_a_machine(mode: str, folder: Path) -> None:
    names = adapters(folder)
    said = run(folder, "inspect", names[0], "--format", mode) + run(folder, "check", *names, "--format", mode)
    said += run(folder, "score", *names, "--format", mode)
    assert_harmless(said)


def test_a_composite_of_hostile_words_tells_of_no_machine_and_breaks_no_card(folder: Path) -> None:
    names = adapters(folder)
    said = run(folder, "merge", *names, "--base", "acme/base", "-o", "out")
    assert_harmless(said)
    out = folder / "out"
    assert out.is_dir(), said
    for path in out.iterdir():
        if path.suffix != ".safetensors":
            assert_harmless(path.read_text(encoding="utf-8"))
    assert SECRET.encode() not in (out / "adapter_model.safetensors").read_bytes()
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "acme/base" and config["task_type"] is None
    card = (out / "README.md").read_text(encoding="utf-8")
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front)["base_model"] == "acme/base" and yaml.safe_load(front).get("license") != "mit"
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    inside = [child for token in tokens for child in [token, *(token.children or [])]]
    links = [child.attrGet("href") or child.attrGet("src") for child in inside if child.type in ("link_open", "image")]
    assert not [link for link in links if "evil" in str(link)]
    html = [child.content for child in inside if child.type.startswith("html_")]
    assert all(text.strip().startswith("<!-- hub-merge:") for text in html)
    headings = [tokens[place + 1].content for place, token in enumerate(tokens) if token.type == "heading_open"]
    assert not any("owned" in heading for heading in headings)
