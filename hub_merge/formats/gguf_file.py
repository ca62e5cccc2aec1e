"""GGUF files: the fields and tensors of one that is small enough to be an adapter.

Layout (little-endian): magic, version, counts of tensors and fields; the fields, each a name, a type and a value; name,
dimensions, type and offset of each tensor; padding; the tensors. As for safetensors, nothing is believed before it is
checked: every length against what is left of the header, and that the tensors fill the file without an overlap.
Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hub_merge.adapter import Array
from hub_merge.errors import AdapterFormatError, HubMergeError
from hub_merge.formats.tensors import MAX_DIMENSIONS, MAX_NAME, MAX_TENSORS, TensorInfo, dtype_named

__all__ = ["MAGIC", "GgufStore"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_FIELDS = 10_000
MAX_FIELD_HEADER = 25_000_000
"""Bytes of the longest header that is read; an adapter has no vocabulary, so its own takes some thousands."""
MAX_ENTRIES = 100_000
"""Entries of the arrays of one file; an adapter has lists of tags and languages."""
ALIGNMENT = 32

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Formats of ``struct`` by the number of a field's type."""
STRING, ARRAY = 8, 9

PLAIN = {0: "float32", 1: "float16", 28: "float64", 30: "bfloat16"}
"""Dtypes by the number of a tensor's type. Others are quantised, and the ``gguf`` package knows how."""


class GgufStore:
    """The tensors and fields of a GGUF file, memory-mapped. Quantised tensors are read as float32."""

    has_values = True
    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path) -> None:
        """Open ``path`` and check its header.

        Raises:
            AdapterFormatError: It is damaged.
            HubMergeError: Its tensors are quantised, and the ``gguf`` package is not installed.
        """
        self._file = path.name
        total = path.stat().st_size
        try:
            with path.open("rb") as file:
                header = _Header(file.read(MAX_FIELD_HEADER))
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.fields, tensors = header.parse()
            start = _aligned(header.position, header.alignment)
            self._places = {name: (kind, start + offset) for name, (kind, _, offset) in tensors.items()}
            sizes = {name: _size(kind, shape, path.name) for name, (kind, shape, _) in tensors.items()}
            self._sizes = sizes
            _check_layout(self._places, sizes, header.alignment, start, total)
        except (ValueError, struct.error, OverflowError) as error:
            raise AdapterFormatError(
                f"{path.name} is no sound GGUF file: {str(error)[:200]}.",
                remedy="Download it again, or ask its author.",
            ) from error
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(PLAIN.get(kind, "float32"), shape) for name, (kind, shape, _) in tensors.items()
        }

    def read(self, name: str) -> Array:
        """Return one tensor, read-only."""
        (kind, begin), shape = self._places[name], self.infos[name].shape
        content = self._bytes[begin : begin + self._sizes[name]]
        if kind in PLAIN:
            array = np.frombuffer(content, dtype_named(PLAIN[kind]))
        else:
            from gguf.constants import GGMLQuantizationType
            from gguf.quants import dequantize

            rows = np.frombuffer(content, np.uint8).reshape(math.prod(shape[:-1]), -1)
            array = dequantize(rows, GGMLQuantizationType(kind))
        array = array.reshape(shape)
        array.setflags(write=False)
        return array


class _Header:
    """Reads the header from its start; what is read beyond the end raises ``ValueError`` or ``struct.error``."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._entries = 0
        self.position = 0
        self.alignment = ALIGNMENT

    def parse(self) -> tuple[dict[str, Any], dict[str, tuple[int, tuple[int, ...], int]]]:
        """Return the fields by name, and type, shape and offset of each tensor."""
        magic, version, tensor_count, field_count = self._take("<4sIQQ")
        if magic != MAGIC or version not in VERSIONS:
            raise ValueError(f"it begins with {magic!r} and version {version}")
        if tensor_count > MAX_TENSORS or field_count > MAX_FIELDS:
            raise ValueError(f"it announces {tensor_count} tensors and {field_count} fields")
        fields: dict[str, Any] = {}
        for _ in range(field_count):
            name = self._text(MAX_NAME)
            if name in fields:
                raise ValueError(f"field {name} occurs twice")
            (kind,) = self._take("<I")
            fields[name] = self._value(kind)
        tensors: dict[str, tuple[int, tuple[int, ...], int]] = {}
        for _ in range(tensor_count):
            name, entry = self._tensor()
            if name in tensors:
                raise ValueError(f"tensor {name} occurs twice")
            tensors[name] = entry
        alignment = fields.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {str(alignment)[:40]}, which is no power of two")
        self.alignment = alignment
        return fields, tensors

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._head, self.position)
        self.position += struct.calcsize(layout)
        return values

    def _text(self, most: int = MAX_FIELD_HEADER) -> str:
        (length,) = self._take("<Q")
        if length > min(most, len(self._head) - self.position):
            raise ValueError(f"a text claims {length} bytes")
        self.position += length
        return self._head[self.position - length : self.position].decode()

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind in SCALARS:
            return self._take(SCALARS[kind])[0]
        if kind != ARRAY:
            raise ValueError(f"a field has type {kind}")
        entry_kind, count = self._take("<IQ")
        self._entries += count
        if self._entries > MAX_ENTRIES or entry_kind == ARRAY:
            raise ValueError(f"a field lists {count} entries of type {entry_kind}, more than an adapter has")
        return [self._value(entry_kind) for _ in range(count)]

    def _tensor(self) -> tuple[str, tuple[int, tuple[int, ...], int]]:
        name = self._text(MAX_NAME)
        (dimensions,) = self._take("<I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        *shape, kind, offset = self._take(f"<{dimensions}QIQ")
        return name, (kind, tuple(reversed(shape)), offset)


def _size(kind: int, shape: tuple[int, ...], file: str) -> int:
    """Return the bytes of a tensor.

    Raises:
        ValueError: Its type is unknown, or its rows are no whole blocks.
        HubMergeError: It is quantised, and the ``gguf`` package is not installed.
    """
    if kind in PLAIN:
        return math.prod(shape) * dtype_named(PLAIN[kind]).itemsize
    try:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise HubMergeError(
            f"Reading the quantised tensors of {file} needs the gguf package.", remedy="Install it: pip install gguf"
        ) from error
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if not shape or shape[-1] % block:
        raise ValueError(f"rows of {shape[-1:]} numbers are no whole blocks of {block}")
    return math.prod(shape) // block * block_bytes


def _check_layout(
    places: Mapping[str, tuple[int, int]], sizes: Mapping[str, int], alignment: int, start: int, total: int
) -> None:
    """Raise ``ValueError`` unless the tensors follow each other, each at the next aligned place, inside the file."""
    position = start
    for name, (_, begin) in sorted(places.items(), key=lambda item: (item[1][1], sizes[item[0]])):
        if begin != _aligned(position, alignment):
            raise ValueError(f"tensor {name} begins at byte {begin}, expected {_aligned(position, alignment)}")
        position = begin + sizes[name]
    if position > total:
        raise ValueError(f"its tensors end at byte {position}, but it has {total}")


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
