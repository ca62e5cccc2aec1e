"""hf_xet's content-addressed store on local disk, seen from the server's side."""

from __future__ import annotations

import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import hf_xet

T = TypeVar("T")
RECORD = 48
HAS_VERIFICATION = 1 << 31
HAS_SHA256 = 1 << 30
END_OF_FILES = b"\xff" * 32
INDEX = "global_dedup_lookup.redb"


@dataclass(frozen=True)
class UploadedFile:
    xet_hash: str
    sha256: str
    size: int


class LocalCas:
    """A folder that hf_xet clients read and write through ``local://`` addresses.

    Its index lets in one process at a time. The server therefore reads from a private copy of the index and never
    stands in a client's way.
    """

    def __init__(self, folder: Path) -> None:
        self.address = f"local://{folder}"
        self._xorbs = folder / "xet" / "xorbs"
        self._session = hf_xet.XetSession()
        self._parsed: set[Path] = set()
        folder.mkdir(parents=True)

    def add(self, content: bytes, sha256: str) -> str:
        """Store content as an uploading client would; returns its Xet hash."""

        def upload() -> str:
            with self._session.new_upload_commit(endpoint=self.address) as commit:
                handle = commit.start_upload_bytes(content, sha256=sha256)
            return str(handle.result().xet_info.hash)

        return _retry(upload)

    def read(self, xet_hash: str, size: int) -> bytes:
        return _retry(lambda: self._read(xet_hash, size))

    def _read(self, xet_hash: str, size: int) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            xorbs = Path(folder) / "xet" / "xorbs"
            xorbs.mkdir(parents=True)
            for name in ("xorbs", "shards"):
                (xorbs / name).symlink_to(self._xorbs / name)
            shutil.copyfile(self._xorbs / INDEX, xorbs / INDEX)
            group = self._session.new_download_stream_group(endpoint=f"local://{folder}")
            content = b"".join(group.download_stream(hf_xet.XetFileInfo(xet_hash, size)))
        if len(content) != size:
            raise RuntimeError(f"Xet gave {len(content)} bytes of {size}")
        return content

    def uploaded_files(self) -> Iterator[UploadedFile]:
        """Files described by shards that were not parsed before."""
        for shard in sorted(set(self._xorbs.glob("shards/*.mdb")) - self._parsed):
            self._parsed.add(shard)
            yield from parse_shard(shard.read_bytes())


def parse_shard(shard: bytes) -> Iterator[UploadedFile]:
    """Read the file section of a shard: a header, then per file its entries, verifications and metadata."""
    position = RECORD
    while shard[position : position + 32] != END_OF_FILES:
        xet_hash = _hash_text(shard[position : position + 32])
        flags, entries = struct.unpack_from("<II", shard, position + 32)
        position += RECORD
        size = sum(struct.unpack_from("<I", shard, position + index * RECORD + 36)[0] for index in range(entries))
        position += RECORD * entries * (2 if flags & HAS_VERIFICATION else 1)
        if flags & HAS_SHA256:
            yield UploadedFile(xet_hash, _hash_text(shard[position : position + 32]), size)
            position += RECORD


def _hash_text(raw: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def _retry(action: Callable[[], T], attempts: int = 30) -> T:
    """Try again while another process holds the index, or is just writing it."""
    for _ in range(attempts - 1):
        try:
            return action()
        except RuntimeError:
            time.sleep(0.1)
    return action()
