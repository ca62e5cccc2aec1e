"""Settings and fixtures of all tests. Nothing here may reach the real Hub or the home folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_HOME = tempfile.TemporaryDirectory(prefix="hub_merge_tests_")
os.environ["HF_HOME"] = _HOME.name  # before anything imports huggingface_hub, which reads it once
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.leaks import leaks_in, published_to, secrets_of, written_below  # noqa: E402

HERE = Path(__file__).parent
SEED = 20251122

pytest_plugins = ["tests.hub_double.fixtures"]

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.fixture
def rng() -> np.random.Generator:
    """A random generator that starts alike in every test."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def wild() -> Path:
    """The folder of real adapters; tests that need it are skipped where it is absent."""
    named = os.environ.get("HUB_MERGE_WILD")
    folder = Path(named) if named else HERE.parents[1] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder of real adapters at {folder}: set HUB_MERGE_WILD to one")
    return folder


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Look at what each test made us write below ``tmp_path`` and send to the double: no token, local path, user."""
    names = [name for name in ("tmp_path", "hub", "hub_lfs") if name in request.fixturenames]
    given = {name: request.getfixturevalue(name) for name in names}
    yield
    if "tmp_path" not in given or request.node.get_closest_marker("leaks_on_purpose"):
        return
    secrets = secrets_of(given["tmp_path"])
    seen = list(written_below(given["tmp_path"]))
    for hub in (given.get("hub"), given.get("hub_lfs")):
        seen += published_to(hub) if hasattr(hub, "leaked_tokens") else []
    leaks = [f"{leak} in {place}" for place, content in seen for leak in leaks_in(content, secrets)]
    assert not leaks, leaks
