"""An index on disk: Parquet files in a folder, of which each appears whole or not at all.

The files are named by their content and their order means nothing: of the rows with one key the one that was indexed
last counts. So an index can be written in steps, stopped and continued, and two that grew apart are united by putting
their files into one folder. Small files are put together when a build ends.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hub_merge.errors import HubMergeError, OutputExists, RecipeError
from hub_merge.staging import staged
from hub_merge.workspace import entered, write_whole
from hub_merge.zoo.entries import VECTORS, Entry, arrow, entry_of, row_of, schema
from hub_merge.zoo.sketch import VERSION

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DATA", "MARK_FILE", "Index", "Writer"]

Indices = NDArray[np.intp]
Read = TypeVar("Read")

MARK_FILE = "zoo.json"
"""By which a folder or repository is known to be an index: its version, and the searches that fill it."""
DATA = "data"
WRITING = ".hub-merge-writing"
"""Folder in an index in which one process at a time prepares what it adds."""
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
            version = self._settings()["version"]
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
        try:
            with staged(folder, False, ()) as stage:
                (stage / DATA).mkdir()
                (stage / MARK_FILE).write_text(json.dumps({"version": VERSION, "searches": []}), encoding="utf-8")
        except OutputExists as error:
            if not (folder / MARK_FILE).is_file():
                raise OutputExists(f"{folder} is there and holds no index.", remedy="Choose another folder.") from error
        return cls(folder)

    @property
    def files(self) -> list[Path]:
        """The Parquet files."""
        return sorted((self.folder / DATA).glob("*.parquet"))

    @property
    def rows(self) -> int:
        """Rows of all files, those that others took the place of too."""
        import pyarrow.parquet as pq

        return self.reading(lambda files: sum(_rows(pq, path) for path in files))

    def reading(self, read: Callable[[Sequence[Path]], Read]) -> Read:
        """Return what ``read`` returns of the Parquet files; again if another process put files together meanwhile."""
        while True:
            files = self.files
            try:
                return read(files)
            except FileNotFoundError:
                if self.files == files:
                    raise

    @property
    def searches(self) -> list[dict[str, Any]]:
        """What was searched for to fill the index, for an update to repeat."""
        return list(self._settings()["searches"])

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads((self.folder / MARK_FILE).read_text(encoding="utf-8"))
        return settings

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
        tables = self.reading(lambda files: [_read(pq, path, read) for path in files])
        if not tables:
            return pa.table({field.name: pa.array([], field.type) for field in schema() if field.name in wanted})
        table = pa.concat_tables(tables)
        return table.take(pa.array(_latest(table))).sort_by("key").select(wanted)

    def entry(self, key: str) -> Entry | None:
        """Return what is indexed under ``key``, with its sketches."""
        import pyarrow.parquet as pq

        wanted = [("key", "=", key)]
        tables = self.reading(lambda files: [pq.read_table(path, filters=wanted) for path in files])
        rows = [row for table in tables for row in table.to_pylist()]
        return entry_of(max(rows, key=lambda row: row["indexed_at"])) if rows else None

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Let nobody else write meanwhile; what was put in is written at the end too when an error ends it.

        Raises:
            HubMergeError: Somebody else writes.
        """
        with ExitStack() as stack:
            try:
                place = stack.enter_context(entered(self.folder / WRITING, patience=0.0))
            except OutputExists as error:
                raise HubMergeError(
                    f"Another process writes to {self.folder}.", remedy="Wait for its end; a build can be repeated."
                ) from error
            writer = Writer(self, place)
            try:
                yield writer
            finally:
                writer.flush()
            self._compact(writer)

    def discard(self) -> None:
        """Remove the index if nothing is in it and nobody else writes to it."""
        with suppress(OSError, OutputExists):
            with entered(self.folder / WRITING, patience=0.0):
                if not self.files and not self.searches:
                    (self.folder / DATA).rmdir()
                    (self.folder / MARK_FILE).unlink()
            if not (self.folder / MARK_FILE).exists():
                self.folder.rmdir()

    def _compact(self, writer: Writer) -> None:
        """Put small files together, some at a time, and leave out rows that others took the place of."""
        import pyarrow.parquet as pq

        live = {row["key"]: row["indexed_at"] for row in self.table(("key", "indexed_at")).to_pylist()}
        some: list[Path] = []
        rows = 0
        for path in self.files:
            if (count := _rows(pq, path)) < FULL:
                some, rows = [*some, path], rows + count
            if rows >= FULL:
                self._unite(some, live, writer)
                some, rows = [], 0
        if len(some) > 1:
            self._unite(some, live, writer)

    def _unite(self, files: Sequence[Path], live: Mapping[str, int], writer: Writer) -> None:
        """Put the rows of ``files`` that are live into one file."""
        import pyarrow.parquet as pq

        pa = arrow()
        table = pa.concat_tables([pq.read_table(path, schema=schema()) for path in files])
        table = table.take(pa.array(_latest(table)))
        keys, times = table["key"].to_pylist(), table["indexed_at"].to_pylist()
        table = table.filter(pa.array([live[key] == moment for key, moment in zip(keys, times, strict=True)]))
        kept = writer.write(table)
        for path in files:
            if path != kept:
                path.unlink()


class Writer:
    """Writes to an index, many entries at once; every file appears whole or not at all.

    Args:
        index: The index.
        place: Folder on its disk for what is not finished.
    """

    def __init__(self, index: Index, place: Path) -> None:
        self._index = index
        self._place = place
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
            self.write(arrow().Table.from_pylist(self._rows, schema=schema()))
            self._rows = []

    def remember(self, search: Mapping[str, Any]) -> None:
        """Note a search for updates; one for the same base model takes its place."""
        settings = self._index._settings()
        kept = [known for known in settings["searches"] if known["base"] != search["base"]]
        settings["searches"] = [*kept, dict(search)]
        write_whole(self._index.folder / MARK_FILE, json.dumps(settings, indent=1))

    def copy(self, path: Path) -> None:
        """Take in a Parquet file of another index."""
        fresh = self._place / path.name
        shutil.copyfile(path, fresh)
        self._adopt(fresh, path.name)

    def write(self, table: pa.Table) -> Path:
        """Write ``table`` under a name that follows from its content; return its path."""
        import pyarrow.parquet as pq

        fresh = self._place / "rows.parquet"
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
        return self._adopt(fresh, f"{name}.parquet")

    def _adopt(self, fresh: Path, name: str) -> Path:
        folder = self._index.folder / DATA
        folder.mkdir(exist_ok=True)
        return fresh.replace(folder / name)


def _read(pq: Any, path: Path, columns: list[str]) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except FileNotFoundError:
        raise
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
