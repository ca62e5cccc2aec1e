"""Every hostile folder is refused for what it is, within a second and 300 MB, and nothing is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.formats import ATTACKS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of time and memory are set as Linux has them")


@pytest.fixture(scope="module")
def fights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """How every attack ended."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.attacks.arena", str(tmp_path_factory.mktemp("attacks"))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        input="\n".join(ATTACKS),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {fight["attack"]: fight for fight in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_folder_is_refused_at_once_and_for_what_it_is(name: str, fights: dict[str, dict[str, Any]]) -> None:
    fight, attack = fights[name], ATTACKS[name]
    assert (fight["error"], attack.says in fight["says"]) == (attack.error, True), fight
    assert fight["cpu"] < 1.0, fight
    assert not fight["wrote"], fight
    assert len(fight["says"]) < 2000
