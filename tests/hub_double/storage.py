"""Large files by sha256: in a folder, and in a local Xet store when Xet is on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cas import LocalCas


@dataclass(frozen=True)
class StoredObject:
    sha256: str
    size: int
    xet_hash: str | None = None


class Storage:
    def __init__(self, folder: Path, xet: bool) -> None:
        self._folder = folder / "objects"
        self._folder.mkdir(parents=True)
        self._known: dict[str, StoredObject] = {}
        self.cas = _local_cas(folder / "cas") if xet else None

    def add(self, content: bytes) -> StoredObject:
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 not in self._known:
            (self._folder / sha256).write_bytes(content)
            xet_hash = self.cas.add(content, sha256) if self.cas else None
            self._known[sha256] = StoredObject(sha256, len(content), xet_hash)
        return self._known[sha256]

    def find(self, sha256: str) -> StoredObject | None:
        """Look an object up; what clients wrote straight into the Xet store is found by its shard."""
        if sha256 not in self._known and self.cas:
            for found in self.cas.uploaded_files():
                self._known.setdefault(found.sha256, StoredObject(found.sha256, found.size, found.xet_hash))
        return self._known.get(sha256)

    def forget(self, content: bytes) -> None:
        sha256 = hashlib.sha256(content).hexdigest()
        self._known.pop(sha256, None)
        (self._folder / sha256).unlink(missing_ok=True)

    def read(self, sha256: str) -> bytes:
        path = self._folder / sha256
        stored = self._known[sha256]
        if not path.exists() and self.cas and stored.xet_hash:
            path.write_bytes(self.cas.read(stored.xet_hash, stored.size))
        return path.read_bytes()


def _local_cas(folder: Path) -> LocalCas:
    from .cas import LocalCas  # importing hf_xet settles where its logs go: not before Xet is used

    return LocalCas(folder)
