"""An index on disk: Parquet files in a folder, of which each appears whole or not at all.

The files are named by their content and their order means nothing: of the rows with one key the one that was indexed
last counts. So an index can be written in steps, stopped and continued, and two that grew apart are united by putting
their files into one folder. Small files are put together when a build ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hub_merge.errors import HubMergeError, OutputExists, RecipeError
from hub_merge.zoo.entries import VECTORS, Entry, arrow, entry_of, row_of, schema
from hub_merge.zoo.sketch import VERSION

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DATA", "MARK_FILE", "Index", "Writer"]

Indices = NDArray[np.intp]

MARK_FILE = "zoo.json"
"""By which a folder or repository is known to be an index: its version, and the searches that fill it."""
DATA = "data"
FULL = 8192
"""Rows of a file that is not put together with others any more, about 70 MB."""
WRITTEN_AT_ONCE = 256
"""Rows that are kept before they are written; so many are lost at most when a build is stopped."""
LIGHT = ("key", "commit", "indexed_at", "version", "reason", "content")


class Index:
    """An index of adapters in a folder.

    Args:
        folder: The folder. It is created by ``Index.create`` alone.

    Raises:
        RecipeError: ``folder`` holds no index, or one of another version.
    """

    def __init__(self, folder: Path) -> None:
        arrow()
        self.folder = folder
        try:
            self.settings: dict[str, Any] = json.loads((folder / MARK_FILE).read_text(encoding="utf-8"))
            version = self.settings["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"{folder} is no index of adapters.", remedy="Name a folder that `hub-merge zoo build` wrote."
            ) from error
        if version != VERSION:
            raise RecipeError(
                f"{folder} has fingerprints of version {version}, and this is version {VERSION}.",
                remedy="Build the index anew in another folder, or use the version of hub-merge that wrote it.",
            )

    @classmethod
    def create(cls, folder: Path) -> Index:
        """Return the index in ``folder``, a new one if there is none.

        Raises:
            OutputExists: The folder holds something else.
        """
        arrow()
        if not (folder / MARK_FILE).is_file():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise OutputExists(f"{folder} is there and holds no index.", remedy="Choose another folder.")
            (folder / DATA).mkdir(parents=True, exist_ok=True)
            _write(folder / MARK_FILE, json.dumps({"version": VERSION, "searches": []}).encode())
        return cls(folder)

    @property
    def files(self) -> list[Path]:
        """The Parquet files."""
        return sorted((self.folder / DATA).glob("*.parquet"))

    @property
    def rows(self) -> int:
        """Rows of all files, those that others took the place of too."""
        import pyarrow.parquet as pq

        return sum(_rows(pq, path) for path in self.files)

    @property
    def searches(self) -> list[dict[str, Any]]:
        """What was searched for to fill the index, for an update to repeat."""
        return list(self.settings["searches"])

    def remember(self, search: dict[str, Any]) -> None:
        """Note a search for updates; one for the same base model takes its place."""
        kept = [known for known in self.searches if known["base"] != search["base"]]
        self.settings["searches"] = [*kept, search]
        _write(self.folder / MARK_FILE, json.dumps(self.settings, indent=1).encode())

    def known(self) -> dict[str, dict[str, Any]]:
        """Return commit, content and reason by key of what is indexed."""
        table = self.table(LIGHT)
        return {row["key"]: row for row in table.to_pylist()}

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows that count, by key, without the sketches unless ``columns`` names them."""
        import pyarrow.parquet as pq

        pa = arrow()
        wanted = [name for name in schema().names if name not in VECTORS] if columns is None else list(columns)
        read = list(dict.fromkeys([*wanted, "key", "indexed_at"]))
        tables = [_read(pq, path, read) for path in self.files]
        if not tables:
            return pa.table({field.name: pa.array([], field.type) for field in schema() if field.name in wanted})
        table = pa.concat_tables(tables)
        return table.take(pa.array(_latest(table))).sort_by("key").select(wanted)

    def entry(self, key: str) -> Entry | None:
        """Return what is indexed under ``key``, with its sketches."""
        import pyarrow.parquet as pq

        rows = [row for path in self.files for row in pq.read_table(path, filters=[("key", "=", key)]).to_pylist()]
        return entry_of(max(rows, key=lambda row: row["indexed_at"])) if rows else None

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Let nobody else write meanwhile; what was put in is written at the end too when an error ends it.

        Raises:
            HubMergeError: Somebody else writes.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise HubMergeError(
                f"Another process writes to {self.folder}.", remedy="Wait for its end; a build can be repeated."
            ) from error
        try:
            writer = Writer(self)
            try:
                yield writer
            finally:
                writer.flush()
            self._compact()
        finally:
            lock.release()
            with suppress(OSError):
                (self.folder / ".lock").unlink()

    def _compact(self) -> None:
        """Put small files together, and leave out rows that others took the place of."""
        import pyarrow.parquet as pq

        pa = arrow()
        small = [path for path in self.files if _rows(pq, path) < FULL]
        if len(small) < 2:
            return
        live = {row["key"]: row["indexed_at"] for row in self.table(("key", "indexed_at")).to_pylist()}
        table = pa.concat_tables([pq.read_table(path, schema=schema()) for path in small])
        table = table.take(pa.array(_latest(table)))
        keys, times = table["key"].to_pylist(), table["indexed_at"].to_pylist()
        table = table.filter(pa.array([live[key] == moment for key, moment in zip(keys, times, strict=True)]))
        for first in range(0, len(table), FULL):
            kept = _put(self.folder / DATA, table.slice(first, FULL))
            small = [path for path in small if path != kept]
        for path in small:
            path.unlink()


class Writer:
    """Writes entries to an index, many at once."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._rows: list[dict[str, Any]] = []
        self._last = 0
        self.written = 0

    def put(self, entry: Entry) -> None:
        """Take an entry in; it is in the index after the next ``flush`` at the latest."""
        self._last = max(self._last + 1, time.time_ns() // 1000)
        self._rows.append(row_of(entry) | {"indexed_at": self._last})
        self.written += 1
        if len(self._rows) == WRITTEN_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write what was taken in."""
        if self._rows:
            _put(self._index.folder / DATA, arrow().Table.from_pylist(self._rows, schema=schema()))
            self._rows = []


def _put(folder: Path, table: pa.Table) -> Path:
    """Write ``table`` under a name that follows from its content; return its path."""
    import pyarrow.parquet as pq

    folder.mkdir(exist_ok=True)
    fresh = folder / f".{os.getpid()}.tmp"
    packed = [name for name in table.schema.names if name not in VECTORS]
    pq.write_table(
        table,
        fresh,
        compression={name: "zstd" if name in packed else "none" for name in schema().names},
        use_dictionary=packed,
        row_group_size=1024,
        write_statistics=["key"],
    )
    with fresh.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()[:24]
        os.fsync(file.fileno())
    path = folder / f"{name}.parquet"
    fresh.replace(path)
    return path


def _write(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fresh.write_bytes(content)
    fresh.replace(path)


def _read(pq: Any, path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            f"{path.name} of the index cannot be read: {str(error).splitlines()[0]}",
            remedy="Remove the file and run `hub-merge zoo update`, which fills in what it held.",
        ) from error


def _rows(pq: Any, path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)


def _latest(table: pa.Table) -> Indices:
    """Return the places of the rows that were indexed last of each key."""
    keys = table["key"].combine_chunks().dictionary_encode()
    codes = keys.indices.to_numpy(zero_copy_only=False)
    moments = table["indexed_at"].to_numpy()
    order = np.lexsort((moments, codes))
    last = np.append(codes[order][1:] != codes[order][:-1], True) if len(order) else np.zeros(0, bool)
    latest: Indices = order[last]
    return latest
