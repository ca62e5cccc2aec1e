"""Pytest fixtures; load them with ``pytest_plugins = ["tests.hub_double.fixtures"]``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import HubDouble

SMALL_PAGE = 3


def _serve(monkeypatch: pytest.MonkeyPatch, folder: Path, xet: bool) -> Iterator[HubDouble]:
    from huggingface_hub import constants
    from huggingface_hub.utils import _xet

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    monkeypatch.setenv("HF_XET_CACHE", str(folder / "xet"))
    monkeypatch.setattr(_xet, "XET_CONNECTION_INFO_CACHE", {})
    with HubDouble(xet=xet, page_size=SMALL_PAGE) as hub:
        yield hub
    assert not hub.crashes, "\n".join(hub.crashes)
    assert not hub.leaked_tokens


@pytest.fixture(params=["lfs", "xet"])
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubDouble]:
    """A Hub double, once with large files by git LFS and once by Xet; no token ever reached its storage."""
    yield from _serve(monkeypatch, tmp_path, xet=request.param == "xet")


@pytest.fixture
def hub_lfs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubDouble]:
    """A Hub double with git LFS only, for tests in which the way of large files does not matter."""
    yield from _serve(monkeypatch, tmp_path, xet=False)
