"""Nothing that a test made us write or send tells of this machine or holds a token."""

from __future__ import annotations

import getpass
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_double import HubDouble

__all__ = ["Witness", "leaks_in", "published_to", "secrets_of", "written_below"]

MADE_BY_US = "hub_merge.json"
"""Marks a folder whose content we wrote."""
OUTPUTS = ("README.md", "NOTICE", "LICENSES.md", "recipe.yaml", "*.json")
LARGEST = 2_000_000

TOKEN = re.compile(rb"\bhf_(?:alice|bob|reader|\w{20,})\b")
"""What the Hub double's tokens and real ones look like."""


def secrets_of(tmp_path: Path) -> list[bytes]:
    """Return the texts that no output may hold: folders of this machine, and the name of its user."""
    home, user = str(Path.home()), getpass.getuser()
    places = {str(tmp_path), tempfile.gettempdir() + "/", str(Path(__file__).parents[1])}
    named = {f"/home/{user}", f"/Users/{user}"} | ({home} if len(home) > len("/root") else set())
    return [text.encode() for text in places | named]


def leaks_in(content: bytes, secrets: Iterable[bytes]) -> Iterator[str]:
    """Yield what of ``secrets``, and which tokens, stand in ``content``."""
    yield from (secret.decode() for secret in secrets if secret in content)
    yield from (found[0].decode() for found in TOKEN.finditer(content))


def written_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the texts, and the headers of weights, of every folder below ``folder`` that holds one of our records."""
    for record in folder.rglob(MADE_BY_US):
        if any(part in ("blobs", "snapshots") for part in record.parts):
            continue  # a copy of what others published
        for path in {path for pattern in OUTPUTS for path in record.parent.glob(pattern)}:
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= LARGEST:
                yield path.name, path.read_bytes()
        for path in record.parent.glob("*.safetensors"):
            if path.is_file():
                with path.open("rb") as file:
                    yield path.name, file.read(min(int.from_bytes(file.read(8), "little"), LARGEST))


def published_to(hub: HubDouble, since: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yield what requests to the double carried, and the files of commits that hold one of our records.

    Args:
        hub: The double.
        since: How many requests were looked at already.
    """
    for request in hub.requests[since:]:
        yield f"{request.method} {request.path}", f"{request.path} {request.query}".encode() + request.body[:LARGEST]
    for repo in hub.repos():
        for commit in repo.commits.values():
            if MADE_BY_US in commit.files:
                yield from ((path, file.content) for path, file in commit.files.items() if file.content is not None)


class Witness:
    """Knows the doubles that run, whoever started them, and what tests captured of what was printed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.printed: list[bytes] = []
        self._looked_at: dict[HubDouble, int] = {}
        enter, read, run = HubDouble.__enter__, pytest.CaptureFixture.readouterr, subprocess.run

        def entered(hub: HubDouble) -> HubDouble:
            self._looked_at[hub] = 0
            return enter(hub)

        def taken(capture: pytest.CaptureFixture[Any]) -> Any:
            said = read(capture)
            self._keep(said)
            return said

        def ran(*arguments: Any, **settings: Any) -> Any:
            done = run(*arguments, **settings)
            self._keep((done.stdout, done.stderr))
            return done

        patch.setattr(HubDouble, "__enter__", entered)
        patch.setattr(pytest.CaptureFixture, "readouterr", taken)
        patch.setattr(subprocess, "run", ran)

    def _keep(self, printed: Iterable[str | bytes | None]) -> None:
        self.printed += [text if isinstance(text, bytes) else text.encode() for text in printed if text]

    def forget(self) -> None:
        """Let go of what was printed and of doubles that have stopped."""
        self.printed.clear()
        self._looked_at = {hub: count for hub, count in self._looked_at.items() if hub.folder.is_dir()}

    def sent(self) -> Iterator[tuple[str, bytes]]:
        """Yield what the doubles were sent since the last time, and what is published there."""
        for hub, count in list(self._looked_at.items()):
            self._looked_at[hub] = len(hub.requests)
            yield from published_to(hub, count)
