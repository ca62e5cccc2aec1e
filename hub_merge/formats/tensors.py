"""Tensors by name: safetensors files read as needed, headers alone, or arrays, behind one small interface.

The header of a safetensors file is checked before anything in it is believed: its length, that names are unique, that
dtype and shape account for every byte, and that the tensors fill the file without a gap or an overlap.
"""

from __future__ import annotations

import io
import json
import math
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from hub_merge.adapter import Array
from hub_merge.errors import AdapterFormatError
from hub_merge.formats.strict_json import unique

__all__ = [
    "FLOATS",
    "ArrayStore",
    "Header",
    "HeaderStore",
    "JoinedStore",
    "SafetensorsStore",
    "SafetensorsWriter",
    "TensorInfo",
    "TensorStore",
    "dtype_named",
    "encode_header",
    "is_finite",
    "widest",
]

MAX_HEADER = 25_000_000
"""Bytes; the Hub's own viewer reads no longer header."""
MAX_TENSORS = 100_000
"""An adapter of every expert of the largest mixtures of experts has 90,000."""
MAX_NAME = 512
MAX_DIMENSIONS = 8
MAX_NUMBERS = 16
"""Commas and brackets a tensor that a header may have; a sound one has fewer than ten."""
LENGTH_FIELD = 8

FOREIGN: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive, as torch.save writes it",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"GGUF": "a file for llama.cpp",
    b"<": "a web page",
    b"\x1f\x8b": "a gzip archive",
}
"""First bytes of what is found under the name of a safetensors file."""

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Names of safetensors and what they are in numpy."""

BY_NAME: Mapping[str, np.dtype[Any]] = {dtype.name: dtype for dtype in DTYPES.values()}

FLOATS = ("float64", "float32", "bfloat16", "float16", "float8_e5m2", "float8_e4m3fn")
"""Names of the floating dtypes that factors may have, widest range first."""

BFLOAT16_INFINITY = 0x7F80
"""Its bits, the sign apart; those of NaN are a larger number, all others a smaller one."""

WRITABLE = ("float32", "bfloat16", "float16")
"""Dtypes a composite may be written in: what PEFT and the serving engines load."""


def dtype_named(name: str) -> np.dtype[Any]:
    """Return the numpy dtype called ``name`` (``float32``, ``bfloat16``, ...)."""
    return BY_NAME[name]


def is_finite(tensor: NDArray[Any]) -> bool:
    """Whether a floating tensor holds neither NaN nor infinity."""
    if tensor.dtype == ml_dtypes.bfloat16:  # by its bits: numpy has no fast loop for this dtype
        positive, negative = tensor.view(np.int16).max(initial=0), tensor.view(np.uint16).max(initial=0)
        return bool(positive < BFLOAT16_INFINITY and negative < BFLOAT16_INFINITY + 2**15)
    return bool(np.isfinite(tensor).all())


def widest(names: Iterable[str]) -> str:
    """Return the writable dtype that loses least of all ``names``: float16 beside bfloat16 takes float32."""
    seen = set(names)
    if seen <= {"bfloat16"} and seen:
        return "bfloat16"
    if seen and seen <= {"float16", "float8_e5m2", "float8_e4m3fn"}:
        return "float16"
    return "float32"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Dtype name, shape and, inside a file, the byte range after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0

    @property
    def is_float(self) -> bool:
        """Whether the numbers are floating point of a kind that factors may have."""
        return self.dtype in FLOATS


class TensorStore(Protocol):
    """Named tensors: what they are at once, their numbers when asked."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Dtype and shape by name."""

    @property
    def has_values(self) -> bool:
        """Whether ``read`` can work."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Texts beside the tensors."""

    def read(self, name: str) -> Array:
        """Return one tensor."""


class Header(dict[str, TensorInfo]):
    """What a header says of each tensor, and the free texts beside them."""

    metadata: Mapping[str, str] = MappingProxyType({})


def parse_header(head: bytes, file: str, total: int) -> Header:
    """Return what a safetensors header says, after checking it against the file's size.

    Args:
        head: The file's first bytes: length field and the whole header.
        file: Name for messages.
        total: Size of the whole file in bytes.

    Raises:
        AdapterFormatError: The header is cut short, too long, ambiguous, or does not account for every byte.
    """
    length = header_length(head, file, total)
    try:
        text = head[LENGTH_FIELD : LENGTH_FIELD + length].decode()  # json.loads would guess UTF-16 and UTF-32 as well
        _require_sparse(text)
        entries = json.loads(text, object_pairs_hook=unique)
        metadata = entries.pop("__metadata__", None)
        infos = Header({name: _tensor_info(entry) for name, entry in entries.items()})
        "".join(infos).encode()  # refuses halves of surrogate pairs
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, f"its header does not parse ({repr(error)[:200]})") from error
    _check_layout(infos, file, total - LENGTH_FIELD - length)
    if isinstance(metadata, dict):
        infos.metadata = {key: text for key, text in metadata.items() if isinstance(text, str)}
    return infos


def _require_sparse(text: str) -> None:
    """Raise ``ValueError`` if ``text`` has more parts than a header may have, each many times as large once parsed."""
    if text.count("{") > MAX_TENSORS + 2 or text.count(",") + text.count("[") > MAX_NUMBERS * MAX_TENSORS:
        raise ValueError(f"it has more parts than {MAX_TENSORS} tensors have")


def header_length(head: bytes, file: str, total: int) -> int:
    """Return the length of the header in bytes, judged against the file's size.

    Raises:
        AdapterFormatError: ``head`` is no beginning of a safetensors file.
    """
    if head.startswith(b"version https://git-lfs"):
        raise AdapterFormatError(
            f"{file} is a git-lfs pointer, not weights.", remedy="Fetch the file itself: git lfs pull."
        )
    if len(head) < LENGTH_FIELD:
        raise _damaged(file, f"it has {len(head)} bytes")
    length = int.from_bytes(head[:LENGTH_FIELD], "little")
    if length > MAX_HEADER:
        if what := next((what for start, what in FOREIGN.items() if head.startswith(start)), None):
            raise _damaged(file, f"it is {what}")
        raise _damaged(file, f"its header claims {length} bytes, more than {MAX_HEADER}")
    if LENGTH_FIELD + length > total:
        raise _damaged(file, f"its header claims {length} bytes, but the file has {total}")
    return length


def _damaged(file: str, why: str) -> AdapterFormatError:
    return AdapterFormatError(
        f"{file} is not a sound safetensors file: {why}.", remedy="Download it again, or ask its author to upload it."
    )


def _tensor_info(entry: Mapping[str, Any]) -> TensorInfo:
    dtype = DTYPES.get(entry["dtype"])
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if dtype is None:
        raise ValueError(f"dtype {str(entry['dtype'])[:40]!r} is unknown")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
    if not all(type(value) is int and value >= 0 for value in (*shape, begin, end)):
        raise ValueError(f"shape {shape} or offsets {begin}, {end} are no sizes")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"shape {shape} of {dtype.name} does not take {end - begin} bytes")
    return TensorInfo(dtype.name, shape, begin, end)


def _check_layout(infos: Mapping[str, TensorInfo], file: str, size: int) -> None:
    if len(infos) > MAX_TENSORS:
        raise _damaged(file, f"it lists {len(infos)} tensors, more than {MAX_TENSORS}")
    if long := [name for name in infos if len(name) > MAX_NAME]:
        raise _damaged(file, f"a tensor's name has {len(long[0])} characters")
    position = 0
    for name, info in sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            raise _damaged(file, f"tensor {name} begins at byte {info.begin}, expected {position}")
        position = info.end
    if position != size:
        raise _damaged(file, f"its tensors take {position} bytes of {size}")


class SafetensorsStore:
    """A safetensors file that is kept open. Reading a tensor costs that tensor; several threads may read at once."""

    has_values = True

    def __init__(self, path: Path) -> None:
        """Open ``path`` and check its header.

        Raises:
            AdapterFormatError: The file is damaged.
        """
        total = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(LENGTH_FIELD + 64)
            length = header_length(head, path.name, total)
            head += file.read(max(0, LENGTH_FIELD + length - len(head)))
        header = parse_header(head, path.name, total)
        self.infos: Mapping[str, TensorInfo] = header
        self.metadata: Mapping[str, str] = header.metadata
        self._start = LENGTH_FIELD + length
        self._name = path.name
        self._file = path.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._turn = threading.Lock()

    def read(self, name: str) -> Array:
        """Return one tensor, read-only."""
        info = self.infos[name]
        tensor = self.read_bytes(name, 0, info.end - info.begin).view(dtype_named(info.dtype)).reshape(info.shape)
        tensor.setflags(write=False)
        return tensor

    def read_bytes(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Return a part of one tensor's bytes.

        The file is read, not mapped: what is mapped costs a page fault every few pages, and is shot down in every
        thread when it is given back.

        Raises:
            AdapterFormatError: The file has become shorter meanwhile.
        """
        content = np.empty(stop - start, np.uint8)
        left, position = content.data, self._start + self.infos[name].begin + start
        while left:
            count = self._read_at(position, left)
            if not count:
                raise _damaged(self._name, f"it ends inside of {name}, which it did not when it was opened")
            left, position = left[count:], position + count
        return content

    def _read_at(self, position: int, into: memoryview) -> int:
        """Read what stands at ``position``, wherever other threads read; return how many bytes that gave."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [into], position)
        with self._turn:
            self._file.seek(position)
            return self._file.readinto(into) or 0


class HeaderStore:
    """What a header says, without the numbers."""

    has_values = False

    def __init__(self, infos: Mapping[str, TensorInfo]) -> None:
        self.infos = infos
        self.metadata: Mapping[str, str] = infos.metadata if isinstance(infos, Header) else {}

    def read(self, name: str) -> Array:
        """Refuse: the numbers were not downloaded."""
        raise AdapterFormatError(f"Tensor {name} was not downloaded.", remedy="Pull the adapter to read its weights.")


class JoinedStore:
    """Several files as one, such as the shards of an adapter."""

    def __init__(self, stores: Iterable[TensorStore]) -> None:
        """Join ``stores``.

        Raises:
            AdapterFormatError: Two of them hold a tensor of the same name.
        """
        self._home: dict[str, TensorStore] = {}
        self.metadata: Mapping[str, str] = {}
        for store in stores:
            self.metadata = {**self.metadata, **store.metadata}
            if twice := self._home.keys() & store.infos.keys():
                raise AdapterFormatError(
                    f"Tensor {min(twice)} is in two shards.", remedy="Ask the author to upload the adapter again."
                )
            self._home.update(dict.fromkeys(store.infos, store))
        self.infos: Mapping[str, TensorInfo] = {name: store.infos[name] for name, store in self._home.items()}
        self.has_values = all(store.has_values for store in self._home.values())

    def read(self, name: str) -> Array:
        """Return one tensor from the file that holds it."""
        return self._home[name].read(name)


class ArrayStore:
    """Arrays or torch tensors that are in memory already."""

    has_values = True
    metadata: Mapping[str, str] = MappingProxyType({})

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._arrays = {name: _as_array(tensor) for name, tensor in tensors.items()}
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(array.dtype.name, array.shape) for name, array in self._arrays.items()
        }

    def read(self, name: str) -> Array:
        """Return one tensor."""
        return self._arrays[name]


def _as_array(tensor: Any) -> NDArray[Any]:
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    tensor = tensor.detach().cpu().contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        import torch  # numpy knows none of these dtypes, so the raw bytes go over

        return np.asarray(tensor.view(torch.uint8).numpy()).view(dtype_named(name)).reshape(tuple(tensor.shape))
    return np.asarray(tensor.numpy())


class SafetensorsWriter:
    """Write a safetensors file tensor by tensor, in any order, from any thread or forked process."""

    def __init__(
        self, file: io.FileIO, infos: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        """Write the header.

        Args:
            file: Open for writing, at its beginning, unbuffered.
            infos: Dtype name and shape of every tensor, in the order in which they will stand.
            metadata: Texts to put beside them.
        """
        self._file, self._turn = file, threading.Lock()
        self._infos, self._missing = infos, dict.fromkeys(infos)
        self._positions: dict[str, int] = {}
        header = encode_header(infos, metadata)
        position = len(header)
        for name, (dtype, shape) in infos.items():
            self._positions[name] = position
            position += math.prod(shape) * dtype_named(dtype).itemsize
        self._write_at(0, memoryview(header))

    def write(self, name: str, tensor: NDArray[Any]) -> None:
        """Write a tensor to its place.

        Raises:
            ValueError: It was not announced, or with another dtype or shape.
        """
        due = self._infos.get(name)
        if due != (tensor.dtype.name, tensor.shape):
            raise ValueError(f"tensor {name} {tensor.dtype.name} {tensor.shape} is not due; announced is {due}")
        self._write_at(self._positions[name], np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        self.written(name)

    def written(self, name: str) -> None:
        """Take note that a tensor was written, by this process or another."""
        self._missing.pop(name, None)

    def _write_at(self, position: int, content: memoryview) -> None:
        while content:
            if hasattr(os, "pwrite"):
                count = os.pwrite(self._file.fileno(), content, position)
            else:
                with self._turn:
                    self._file.seek(position)
                    count = self._file.write(content)
            content, position = content[count:], position + count

    def finish(self) -> None:
        """Check that nothing is missing.

        Raises:
            ValueError: Tensors were announced, but not written.
        """
        if self._missing:
            raise ValueError(f"tensor {next(iter(self._missing))} was not written")


@contextmanager
def safetensors_writer(
    path: Path, infos: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] = MappingProxyType({})
) -> Iterator[SafetensorsWriter]:
    """Open a ``SafetensorsWriter`` on a new file and see that it is complete."""
    with path.open("xb", buffering=0) as file:
        writer = SafetensorsWriter(file, infos, metadata)
        yield writer
        writer.finish()


def encode_header(
    infos: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """Return length field and header of a file that holds tensors of these dtypes and shapes, in this order."""
    names = {dtype.name: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    position = 0
    for name, (dtype, shape) in infos.items():
        end = position + math.prod(shape) * dtype_named(dtype).itemsize
        header[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_FIELD)
    return len(text).to_bytes(LENGTH_FIELD, "little") + text
