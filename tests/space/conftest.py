"""A page, a browser and visitors. Where one of them is missing the tests are skipped, but never where all is promised.

``HUB_MERGE_BROWSER=required`` promises it. ``HUB_MERGE_SCREENS`` names a folder for pictures of every step.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_double import HubDouble
from tests.space.serving import Space, fill, serve
from tests.space.visitors import Visitor

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
AXE = "axe-core@4.10.3"


def missing(what: str, remedy: str) -> None:
    """Skip the test, or fail it where nothing may be missing."""
    reason = f"{what} is not there: {remedy}"
    if os.environ.get("HUB_MERGE_BROWSER") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        missing(module, "make test installs it")


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """The page, served by ``hub-merge ui`` on alice's machine, in front of a Hub double."""
    need("gradio")
    with HubDouble(xet=False) as hub:
        fill(hub)
        running = serve(hub, tmp_path_factory.mktemp("space"))
        try:
            yield running
        finally:
            running.stop()
        assert not hub.crashes, "\n".join(hub.crashes)
        assert not hub.leaked_tokens
        assert "hf_" not in running.log.read_text(errors="replace")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    need("playwright")
    found = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if found is None:
        missing("chromium", "apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture
def arrive(space: Space, browser: Any) -> Iterator[Any]:
    """Return what opens the page for one more visitor, in a context of their own."""
    visitors: list[Visitor] = []

    def come(path: str = "/", *, as_user: str | None = None, **settings: Any) -> Visitor:
        visitors.append(Visitor(space, browser, as_user=as_user, **settings))
        visitors[-1].open(path)
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.leave()
        assert not visitor.foreign, f"asked of other hosts: {visitor.foreign[:5]}"
        assert not visitor.complaints, visitor.complaints[:5]


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, from npm."""
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    if npm is None:
        missing("npm", "apt-get install npm")
    command = [str(npm), "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), AXE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    if done.returncode:
        missing(AXE, f"npm install failed: {done.stderr[-300:]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go."""
    named = os.environ.get("HUB_MERGE_SCREENS")
    folder = Path(named).absolute() if named else tmp_path_factory.mktemp("screens")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
