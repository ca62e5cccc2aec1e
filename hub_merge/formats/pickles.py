"""Weights that torch saved as a pickle, read without unpickling.

``torch.save`` writes a zip archive: ``data.pkl`` says which tensors there are, and each storage lies beside it, byte
for byte. A pickle is a program, and running one can do anything. So this module never gives it to ``pickle``: it reads
the instructions with ``pickletools`` and carries out the few that a mapping of names to tensors consists of, on plain
tuples and dicts. A name that the program mentions (``GLOBAL``) is only ever compared with the names below, never
imported, and the only "calls" are ``OrderedDict()`` and the building of a tensor's description. Anything else is
refused.

torch's own ``weights_only`` reader works alike; see ``torch/_weights_only_unpickler.py``.
"""

from __future__ import annotations

import math
import os
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hub_merge.adapter import Array
from hub_merge.errors import AdapterFormatError, UnsupportedAdapter
from hub_merge.formats.tensors import MAX_DIMENSIONS, MAX_NAME, MAX_TENSORS, TensorInfo, dtype_named

__all__ = ["TorchZipStore"]

STORAGES: Mapping[str, str] = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""Classes of ``torch`` that stand for a dtype, and the dtype."""

MAX_PROGRAM = 4_000_000
"""Bytes of the longest pickle that is read: 20 000 tensors take less."""

MAX_DIRECTORY = 4_000_000
"""Bytes of the longest list of an archive's files that is read: 20 000 storages take less."""

LOCAL = struct.Struct("<4s5H3L2H")
"""What stands before each file of a zip archive; then its name and something else, whose lengths come last."""

END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR_64 = 20
"""Bytes between the two records at the end of a zip archive."""

DAMAGE = (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, struct.error)
"""What is raised for archives that are damaged, encrypted or of a kind that ``zipfile`` does not know."""


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that the pickle mentions, such as ``torch FloatStorage``."""

    text: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchZipStore:
    """The tensors of a file that ``torch.save`` wrote, read from the archive one at a time."""

    has_values = True
    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path) -> None:
        """Open ``path`` and read which tensors it has.

        Raises:
            UnsupportedAdapter: It is a pickle of the old kind, without an archive, or holds more than tensors.
            AdapterFormatError: It is damaged.
        """
        self._path = path
        with _open_archive(path) as archive:
            self._entries = dict(archive.NameToInfo)
            self._folder, program = _program(archive, path.name)
        try:
            self._tensors = _tensors(program, path.name)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(path.name, repr(error)[:200]) from error
        for name, tensor in self._tensors.items():
            self._check(name, tensor)
        if (size := sum(map(_size, self._tensors.values()))) > path.stat().st_size:
            raise _damaged(path.name, f"its tensors take {size} bytes, more than the file has")
        self.infos: Mapping[str, TensorInfo] = {
            name: TensorInfo(tensor.storage.dtype, tensor.shape) for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> Array:
        """Return one tensor, read-only.

        Raises:
            AdapterFormatError: Its bytes are not those that were written.
        """
        tensor = self._tensors[name]
        dtype = dtype_named(tensor.storage.dtype)
        try:
            content = _content(self._path, self._entries[self._entry(tensor.storage)])
            flat = np.frombuffer(content, dtype, tensor.storage.count)[tensor.offset :]
            strides = [stride * dtype.itemsize for stride in tensor.strides]
            array = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides).copy()
        except (*DAMAGE, OverflowError) as error:
            raise _damaged(self._path.name, f"{name} cannot be read ({error})") from error
        array.setflags(write=False)
        return array

    def _entry(self, storage: _Storage) -> str:
        return f"{self._folder}/data/{storage.key}"

    def _check(self, name: str, tensor: _Tensor) -> None:
        """Raise ``AdapterFormatError`` unless the tensor lies inside its storage and its storage inside the file."""
        storage = tensor.storage
        last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
        empty = math.prod(tensor.shape) == 0
        if math.prod(tensor.shape) > storage.count or (last >= storage.count and not empty):
            raise _damaged(self._path.name, f"{name} does not lie in its storage of {storage.count} numbers")
        entry = self._entries.get(self._entry(storage))
        if entry is None or entry.file_size != storage.count * dtype_named(storage.dtype).itemsize:
            raise _damaged(self._path.name, f"the storage of {name} is missing or has another size")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _damaged(self._path.name, f"the storage of {name} is compressed, which torch never does")


def _size(tensor: _Tensor) -> int:
    return math.prod(tensor.shape) * dtype_named(tensor.storage.dtype).itemsize


def _damaged(file: str, why: str) -> AdapterFormatError:
    return AdapterFormatError(f"{file} is no sound file of torch: {why}.", remedy="Ask its author for safetensors.")


def _refused(file: str, what: str) -> UnsupportedAdapter:
    return UnsupportedAdapter(
        f"{file} is a pickle that {what}, so it is not read.",
        remedy="Ask its author for safetensors; do not open this file with anything that unpickles it.",
    )


def _open_archive(path: Path) -> zipfile.ZipFile:
    with path.open("rb") as file:
        start = file.read(32)
    if start.startswith(b"version https://git-lfs"):
        raise AdapterFormatError(
            f"{path.name} is a git-lfs pointer, not weights.", remedy="Fetch the file itself: git lfs pull."
        )
    if start.startswith(b"\x80"):
        raise UnsupportedAdapter(
            f"{path.name} is a pickle of torch before 1.6, without an archive around it.",
            remedy="Where you trust it, load it with torch.load(…, weights_only=True) and save it with safetensors.",
        )
    if _directory_size(path) > MAX_DIRECTORY:
        raise _damaged(path.name, f"its list of files takes more than {MAX_DIRECTORY} bytes")
    try:
        return zipfile.ZipFile(path)
    except DAMAGE as error:
        raise _damaged(path.name, str(error) or repr(error)) from error


def _content(path: Path, entry: zipfile.ZipInfo) -> bytes:
    """Return the bytes of one file of an archive, which is opened anew: threads and processes read it side by side.

    Raises:
        BadZipFile: They are not those that were written.
    """
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = LOCAL.unpack(file.read(LOCAL.size))
        start = file.seek(header[9] + header[10], os.SEEK_CUR)
        content = file.read(min(entry.file_size, path.stat().st_size - start))
    if header[0] != b"PK\3\4" or zlib.crc32(content) != entry.CRC:
        raise zipfile.BadZipFile("its bytes are not those that were written")
    return content


def _directory_size(path: Path) -> int:
    """Return how long the archive's list of files claims to be, which ``zipfile`` reads as a whole.

    Raises:
        AdapterFormatError: The file does not end as an archive without a comment does.
    """
    tail = END_64.size + LOCATOR_64 + END.size
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - tail))
        end = file.read(tail)
    if len(end) < END.size or end[-END.size :][:4] != b"PK\5\6":
        raise _damaged(path.name, "it does not end as a zip archive does")
    size: int = END.unpack(end[-END.size :])[5]
    if len(end) == tail and end[:4] == b"PK\6\6":
        size = max(END_64.unpack_from(end)[8], 0 if size == 0xFFFFFFFF else size)
    return size


def _program(archive: zipfile.ZipFile, file: str) -> tuple[str, bytes]:
    """Return the archive's folder and the pickle in it."""
    found = [entry for entry in archive.infolist() if entry.filename.count("/") == 1]
    programs = [entry for entry in found if entry.filename.endswith("/data.pkl")]
    if len(programs) != 1:
        raise _damaged(file, "it has no data.pkl")
    folder = programs[0].filename.removesuffix("/data.pkl")
    if programs[0].file_size > MAX_PROGRAM or programs[0].compress_type != zipfile.ZIP_STORED:
        raise _damaged(file, f"its data.pkl has {programs[0].file_size} bytes or is compressed")
    try:
        order = archive.read(f"{folder}/byteorder") if f"{folder}/byteorder" in archive.NameToInfo else b"little"
        content = archive.read(programs[0])
    except DAMAGE as error:
        raise _damaged(file, str(error)) from error
    if order != b"little":
        raise _damaged(file, f"its numbers are {order[:20]!r}-endian")
    return folder, content


# --- the machine ------------------------------------------------------------------------------------------------------


def _tensors(program: bytes, file: str) -> dict[str, _Tensor]:
    """Return the tensors by name that the program describes.

    Raises:
        UnsupportedAdapter: It does anything else, or describes anything else.
        ValueError, IndexError, KeyError, TypeError, AttributeError: It is malformed.
    """
    content = _Machine(file).run(program)
    if not isinstance(content, dict) or not all(isinstance(tensor, _Tensor) for tensor in content.values()):
        raise _refused(file, "holds something else than tensors by name")
    if len(content) > MAX_TENSORS:
        raise _refused(file, f"lists {len(content)} tensors")
    return content


class _Machine:
    """A stack machine for the instructions of which mappings of tensors consist. It imports and calls nothing."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        """Return what the program leaves."""
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return self._stack.pop()
            step = INSTRUCTIONS.get(opcode.name)
            if step is None:
                raise _refused(self._file, f"has the instruction {opcode.name}")
            step(self, argument)
        raise ValueError("the pickle has no end")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def pop_mark(self) -> list[Any]:
        return self.pop(len(self._stack) - self._marks.pop())

    def pop(self, count: int) -> list[Any]:
        if not 0 <= count <= len(self._stack):
            raise IndexError("the stack is empty")
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def put(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def memoize(self) -> None:
        self.put(len(self._memo))

    def get(self, place: int) -> None:
        self.push(self._memo[place])

    def name(self, text: str) -> None:
        self.push(_Name(text))

    def stack_name(self) -> None:
        module, name = self.pop(2)
        self.push(_Name(f"{module} {name}"))

    def set_items(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict):
            raise TypeError("items are set on what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str) or len(key) > MAX_NAME:
                raise _refused(self._file, "has keys that are no names of tensors")
            target[key] = value

    def build(self) -> None:
        """Drop the attributes of a mapping, such as ``_metadata`` of a state dict."""
        target, _ = self.pop(2)
        if not isinstance(target, dict):
            raise _refused(self._file, f"sets attributes of {type(target).__name__}")
        self.push(target)

    def storage(self) -> None:
        """Turn the persistent id of a storage into its description: ``("storage", class, key, device, count)``."""
        (entry,) = self.pop(1)
        kind, name, key, _, count = entry
        dtype = STORAGES.get(name.text.removeprefix("torch ")) if name.text.startswith("torch ") else None
        if kind != "storage" or not isinstance(key, str) or dtype is None:
            raise _refused(self._file, f"has a storage of {name.text[:120]}")
        _require_sizes((count,))
        self.push(_Storage(key, dtype, count))

    def call(self) -> None:
        function, arguments = self.pop(2)
        known = CALLS.get(function.text) if isinstance(function, _Name) else None
        if known is None:
            called = function.text if isinstance(function, _Name) else type(function).__name__
            raise _refused(self._file, f"calls {called.replace(' ', '.')[:120]}")
        self.push(known(*arguments))


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor has no storage")
    _require_sizes((offset, *shape, *strides))
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a tensor has {len(shape)} dimensions and {len(strides)} strides")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _require_sizes(numbers: Iterable[Any]) -> None:
    """Raise ``ValueError`` unless all are whole numbers from 0; what they are instead may be too long to be told."""
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError("a tensor has a size, stride or offset that is none")


def _parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise TypeError("a parameter has no tensor")
    return tensor


CALLS: Mapping[str, Callable[..., Any]] = {
    "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
}
"""What a name may stand for when it is called: functions of this module that build plain descriptions."""

INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, argument: None),
    **dict.fromkeys(
        (
            *("BININT", "BININT1", "BININT2", "LONG1", "INT", "BINFLOAT"),
            *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
        ),
        _Machine.push,
    ),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.mark(),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "PUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET", "GET"), _Machine.get),
    "MEMOIZE": lambda machine, _: machine.memoize(),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda machine, _: machine.stack_name(),
    "BINPERSID": lambda machine, _: machine.storage(),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}
"""The instructions that are carried out, and how."""
