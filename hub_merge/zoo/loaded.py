"""An index in memory, ready to be asked.

The sketches are kept folded to ``COARSE`` numbers, at length one, as one matrix that a query multiplies with; the rows
that come out on top are judged again by their whole sketches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hub_merge.zoo.entries import Entry, arrow, entry_of
from hub_merge.zoo.fingerprint import Fingerprint
from hub_merge.zoo.index import Index
from hub_merge.zoo.sketch import SIZE, START_SIZE, fold

__all__ = ["COARSE", "Loaded"]

COARSE = 1024
"""Numbers that a sketch is folded to for the first look at all adapters."""

Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Loaded:
    """The adapters of an index that have a fingerprint.

    Attributes:
        folder: Folder of the index.
        rows: All columns but the sketches, a row an adapter, in the order of the keys.
        coarse: Folded sketches at length one, ``(n, COARSE)`` float32; zeros for a delta of zero.
        sketches: Whole sketches, ``(n, SIZE)`` float16.
        starts: Sketches of the rows of A, ``(n, START_SIZE)`` float16.
    """

    folder: Path
    rows: Any
    coarse: NDArray[np.float32]
    sketches: NDArray[np.float16]
    starts: NDArray[np.float16]

    @classmethod
    def read(cls, index: Index) -> Loaded:
        """Read an index, a group of rows at a time."""
        return index.reading(lambda files: cls._read(index, files))

    @classmethod
    def _read(cls, index: Index, files: Sequence[Path]) -> Loaded:
        import pyarrow.parquet as pq

        pa = arrow()
        table = index.table()
        rows = table.filter(pa.compute.is_null(table["reason"])) if len(table) else table
        rows = rows.combine_chunks()
        places = {
            pair: place
            for place, pair in enumerate(zip(rows["key"].to_pylist(), rows["indexed_at"].to_pylist(), strict=True))
        }
        sketches, starts = np.zeros((len(rows), SIZE), "<f2"), np.zeros((len(rows), START_SIZE), "<f2")
        coarse = np.zeros((len(rows), COARSE), np.float32)
        for path in files:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    batch = file.read_row_group(group, columns=["key", "indexed_at", "sketch", "start"])
                    _fill(batch, places, sketches, starts, coarse)
        return cls(index.folder, rows, coarse, sketches, starts)

    def __len__(self) -> int:
        """Return the number of adapters."""
        return len(self.coarse)

    def entry(self, place: int) -> Entry:
        """Return the adapter of a row."""
        row: Mapping[str, Any] = self.rows.slice(place, 1).to_pylist()[0]
        vectors = {"sketch": self.sketches[place].tobytes(), "start": self.starts[place].tobytes()}
        return entry_of({**row, **vectors})

    def place(self, key: str) -> int | None:
        """Return the row of a key, whatever its case."""
        return self._places.get(key.casefold())

    def column(self, name: str) -> NDArray[Any]:
        """Return a column as an array."""
        return self.rows[name].to_numpy()  # type: ignore[no-any-return]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key.casefold(): place for place, key in enumerate(self.rows["key"].to_pylist())}

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """Norms of the deltas, ``(n,)``."""
        return self.column("norm").astype(np.float64)

    def of_base(self, base: str) -> NDArray[np.bool_]:
        """Return which rows are of a base model, ``(n,)``."""
        codes, bases = self._bases
        wanted = [code for code, name in enumerate(bases) if name.casefold() == base.casefold()]
        return np.isin(codes, wanted)

    @cached_property
    def _bases(self) -> tuple[NDArray[Any], list[str]]:
        encoded = self.rows["base"].combine_chunks().dictionary_encode()
        return encoded.indices.to_numpy(zero_copy_only=False), encoded.dictionary.to_pylist()

    def glance(self, fingerprint: Fingerprint) -> NDArray[np.float32]:
        """Return estimates of the cosine to every adapter from the folded sketches, ``(n,)``."""
        query = _at_length_one(fold(fingerprint.sketch.astype(np.float32)[None], COARSE))[0]
        estimates: NDArray[np.float32] = self.coarse @ query
        return estimates

    def look(self, fingerprint: Fingerprint, places: Indices) -> NDArray[np.float32]:
        """Return estimates of the cosine to some adapters from the whole sketches."""
        return _cosines(self.sketches[places], fingerprint.sketch)

    def start_alike(self, fingerprint: Fingerprint, places: Indices) -> NDArray[np.float32]:
        """Return estimates of the mean cosine of the rows of A to those of some adapters."""
        return _cosines(self.starts[places], fingerprint.start)


def _fill(
    batch: Any,
    places: Mapping[tuple[str, int], int],
    sketches: NDArray[Any],
    starts: NDArray[Any],
    coarse: NDArray[np.float32],
) -> None:
    pairs = zip(batch["key"].to_pylist(), batch["indexed_at"].to_pylist(), strict=True)
    found = [(row, places[pair]) for row, pair in enumerate(pairs) if pair in places]
    if not found:
        return
    rows, goals = (np.array(side, np.intp) for side in zip(*found, strict=True))
    some = batch.take(rows)
    sketches[goals] = _numbers(some["sketch"], SIZE)
    starts[goals] = _numbers(some["start"], START_SIZE)
    coarse[goals] = _at_length_one(fold(sketches[goals].astype(np.float32), COARSE))


def _numbers(column: Any, width: int) -> NDArray[Any]:
    whole = column.combine_chunks()
    numbers = np.frombuffer(whole.buffers()[1], "<f2", len(whole) * width, offset=2 * width * whole.offset)
    return numbers.reshape(len(whole), width)


def _at_length_one(rows: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _cosines(rows: NDArray[Any], query: NDArray[Any]) -> NDArray[np.float32]:
    wide = _at_length_one(rows.astype(np.float32))
    cosines: NDArray[np.float32] = np.clip(wide @ _at_length_one(query.astype(np.float32)[None])[0], -1, 1)
    return cosines
