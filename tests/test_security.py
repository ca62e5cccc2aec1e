"""Every claim of SECURITY.md names a test, and the test is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLAIM = re.compile(r"^\| (?P<claim>.+?) \| `(?P<file>tests/[\w/]+\.py)::(?P<test>test_\w+)` \|$", re.MULTILINE)
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
CLAIMS = [(found["claim"], found["file"], found["test"]) for found in CLAIM.finditer(TEXT)]


def test_every_row_of_the_table_is_a_claim_with_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("|")]
    assert len(CLAIMS) == len(rows) - 2 > 10


@pytest.mark.parametrize(("claim", "file", "test"), CLAIMS, ids=[test for _, _, test in CLAIMS])
def test_the_test_that_a_claim_names_is_there(claim: str, file: str, test: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, claim
