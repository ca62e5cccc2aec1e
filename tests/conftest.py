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

from tests.leaks import Witness, leaks_in, secrets_of, written_below  # noqa: E402

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


@pytest.fixture(autouse=True, scope="session")
def witnessed() -> Iterator[Witness]:
    """Every double that starts and every text that a test took from its captured output."""
    with pytest.MonkeyPatch.context() as patch:
        yield Witness(patch)


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest, witnessed: Witness) -> Iterator[None]:
    """Look at what each test made us write below ``tmp_path``, send to a double and print: no token, no local path."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    witnessed.forget()
    yield
    if request.node.get_closest_marker("leaks_on_purpose"):
        return
    secrets = secrets_of(folder or Path(tempfile.gettempdir()))
    seen = [*(written_below(folder) if folder else ()), *witnessed.sent()]
    leaks = [f"{leak} in {place}" for place, content in seen for leak in leaks_in(content, secrets)]
    leaks += [f"{token} in what was printed" for text in witnessed.printed for token in leaks_in(text, ())]
    assert not leaks, leaks
