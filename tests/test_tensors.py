"""The safetensors reader and writer, judged by the ``safetensors`` library in both directions."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hub_merge.errors import AdapterFormatError
from hub_merge.formats.tensors import (
    ArrayStore,
    HeaderStore,
    JoinedStore,
    SafetensorsStore,
    TensorInfo,
    dtype_named,
    is_finite,
    parse_header,
    safetensors_writer,
    widest,
)

DTYPES = [
    "float64",
    "float32",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = st.sampled_from(DTYPES).flatmap(lambda name: hnp.arrays(name, SHAPES))
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")


def file_of(header: Any, data: bytes = b"") -> bytes:
    """Return a safetensors file with that header, text or object, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int = 0, end: int = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write(path: Path, arrays: dict[str, Any]) -> Path:
    with safetensors_writer(path, {name: (a.dtype.name, a.shape) for name, a in arrays.items()}) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    return path


def same(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    return got.dtype == wanted.dtype and got.shape == wanted.shape and got.tobytes() == wanted.tobytes()


# --- what the library writes, we read; what we write, it reads --------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=4))
def test_reads_bit_for_bit_what_the_library_wrote(
    arrays: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("theirs") / "x.safetensors"
    safetensors.numpy.save_file(arrays, path)
    store = SafetensorsStore(path)
    assert store.infos.keys() == arrays.keys()
    for name, array in arrays.items():
        assert store.infos[name].shape == array.shape
        assert same(store.read(name), array)


@settings(max_examples=60, deadline=None)
@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=4))
def test_the_library_reads_bit_for_bit_what_was_written(
    arrays: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("ours") / "x.safetensors", arrays)
    loaded = safetensors.numpy.load_file(path)
    assert loaded.keys() == arrays.keys()
    assert all(same(loaded[name], array) for name, array in arrays.items())


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16"])
def test_dtypes_that_numpy_lacks_agree_with_torch_both_ways(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    torch = pytest.importorskip("torch")
    import safetensors.torch

    values = rng.standard_normal((3, 5)).astype(np.float32)
    tensor = torch.from_numpy(values).to(getattr(torch, name))
    wanted = tensor.to(torch.float32).numpy()
    safetensors.torch.save_file({"x": tensor}, tmp_path / "theirs.safetensors")
    got = SafetensorsStore(tmp_path / "theirs.safetensors").read("x")
    assert got.dtype.name == name
    assert np.array_equal(got.astype(np.float32), wanted)

    write(tmp_path / "ours.safetensors", {"x": got})
    back = safetensors.torch.load_file(tmp_path / "ours.safetensors")["x"]
    assert back.dtype == tensor.dtype
    assert np.array_equal(back.to(torch.float32).numpy(), wanted)


def test_the_written_file_says_its_format_and_is_aligned_as_the_format_asks(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float16)})
    with safetensors.safe_open(path, "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_tensors_that_are_not_contiguous_are_written_in_row_order(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    loaded = safetensors.numpy.load_file(write(tmp_path / "x.safetensors", {"x": array}))
    assert np.array_equal(loaded["x"], array)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_tensor_is_read_only_and_outlives_the_store(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"x": np.arange(6.0).reshape(2, 3)}, tmp_path / "x.safetensors")
    tensor = SafetensorsStore(tmp_path / "x.safetensors").read("x")
    assert np.array_equal(tensor, [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match="read-only"):
        tensor[0, 0] = 1.0


def test_a_file_that_was_cut_short_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"x": np.arange(6.0), "y": np.arange(6.0)}, path)
    store = SafetensorsStore(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)
    assert np.array_equal(store.read("x"), np.arange(6.0))
    with pytest.raises(AdapterFormatError, match="ends inside of y"):
        store.read("y")


@pytest.mark.parametrize("positioned", [True, False], ids=["preadv", "seek and read"])
def test_threads_read_one_file_at_once(positioned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {f"x{i}": np.full(100_000, i, np.int32) for i in range(40)}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    if not positioned:
        monkeypatch.delattr("os.preadv", raising=False)
    store = SafetensorsStore(tmp_path / "x.safetensors")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(store.read, [*tensors] * 5))
    assert all(np.array_equal(*pair) for pair in zip(found, [*tensors.values()] * 5, strict=True))


def test_tensors_that_were_read_do_not_stay_in_memory(tmp_path: Path) -> None:
    """Reading a file of 128 MB tensor by tensor keeps the peak of all resident memory, mapped pages too, below that."""
    chunk = np.ones((1024, 1024), np.float32)
    safetensors.numpy.save_file({f"x{i}": chunk for i in range(32)}, tmp_path / "x.safetensors")
    code = (
        "import resource, sys; from pathlib import Path; from hub_merge.formats.tensors import SafetensorsStore\n"
        "store = SafetensorsStore(Path(sys.argv[1])); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "total = sum(float(store.read(name).sum()) for name in store.infos)\n"
        "print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.safetensors")]
    total, grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert float(total) == 32 * 1024 * 1024
    assert int(grown) < 40_000, "kilobytes"


# --- the writer's own rules -------------------------------------------------------------------------------------------


def test_the_writer_refuses_a_tensor_that_is_not_due(tmp_path: Path) -> None:
    infos = {"a": ("float32", (2,)), "b": ("float32", (2,))}
    for name, array in [
        ("c", np.ones(2, np.float32)),
        ("a", np.ones(3, np.float32)),
        ("a", np.ones(2, np.float64)),
    ]:
        path = tmp_path / f"{name}{array.size}{array.dtype}.safetensors"
        with pytest.raises(ValueError, match="is not due"), safetensors_writer(path, infos) as writer:
            writer.write(name, array)


def test_the_writer_refuses_to_finish_with_a_tensor_missing_or_one_too_many(tmp_path: Path) -> None:
    infos = {"a": ("float32", (1,)), "b": ("float32", (1,))}
    with pytest.raises(ValueError, match="b was not written"), safetensors_writer(tmp_path / "1", infos) as writer:
        writer.write("a", np.ones(1, np.float32))
    with pytest.raises(ValueError, match="is not due"), safetensors_writer(tmp_path / "2", {}) as writer:
        writer.write("a", np.ones(1, np.float32))


def test_the_order_in_which_tensors_are_written_changes_no_byte(tmp_path: Path) -> None:
    arrays = {name: np.arange(size, dtype=np.float32) for name, size in (("a", 3), ("b", 0), ("c", 5))}
    infos = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    for order in ("abc", "cab"):
        with safetensors_writer(tmp_path / order, infos) as writer:
            for name in order:
                writer.write(name, arrays[name])
    assert (tmp_path / "abc").read_bytes() == (tmp_path / "cab").read_bytes()
    assert all(np.array_equal(safetensors.numpy.load_file(tmp_path / "cab")[name], arrays[name]) for name in arrays)


def test_the_writer_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"precious")
    with pytest.raises(FileExistsError), safetensors_writer(tmp_path / "x", {}):
        pass
    assert (tmp_path / "x").read_bytes() == b"precious"


# --- malformed files --------------------------------------------------------------------------------------------------

GOOD = file_of({"x": entry()}, bytes(8))

MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "0 bytes"),
    "two bytes": (b"{}", "2 bytes"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git-lfs pointer"),
    "header of a gigabyte": ((10**9).to_bytes(8, "little") + b"{}", "more than"),
    "header of 2**64 - 1 bytes": (b"\xff" * 8 + b"{}", "more than"),
    "header longer than the file": ((100).to_bytes(8, "little") + b"{}", "claims 100 bytes"),
    "header cut short": (GOOD[:-20], "claims"),
    "data cut short": (GOOD[:-1], "8 bytes of 7"),
    "bytes after the data": (GOOD + b"!", "8 bytes of 9"),
    "not JSON": (file_of(b"{nonsense"), "does not parse"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "does not parse"),
    "UTF-16": (file_of(json.dumps({"x": entry()}).encode("utf-16-le"), bytes(8)), "does not parse"),
    "UTF-32": (file_of(json.dumps({"x": entry()}).encode("utf-32-le"), bytes(8)), "does not parse"),
    "a list": (file_of([]), "does not parse"),
    "a number": (file_of(3), "does not parse"),
    "nothing": (file_of(b""), "does not parse"),
    "nested without end": (file_of(b"[" * 200_000), "does not parse"),
    "number of ten thousand digits": (file_of(b'{"x":' + b"9" * 10_000 + b"}"), "does not parse"),
    "a name twice": (
        file_of(
            b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"1",
        ),
        "twice",
    ),
    "half of a surrogate pair in a name": (file_of({"\ud800": entry()}, bytes(8)), "does not parse"),
    "entry is null": (file_of({"x": None}), "does not parse"),
    "entry is a list": (file_of({"x": [1]}), "does not parse"),
    "dtype missing": (file_of({"x": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "dtype"),
    "shape missing": (file_of({"x": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)), "shape"),
    "offsets missing": (file_of({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)), "data_offsets"),
    "three offsets": (file_of({"x": {**entry(), "data_offsets": [0, 4, 8]}}, bytes(8)), "does not parse"),
    "unknown dtype": (file_of({"x": entry(dtype="F12")}, bytes(8)), "F12"),
    "dtype is a list": (file_of({"x": entry(dtype=["F32"])}, bytes(8)), "does not parse"),
    "negative size": (file_of({"x": entry(shape=(-2,))}, bytes(8)), "no sizes"),
    "two negative sizes": (file_of({"x": entry(shape=(-1, -2))}, bytes(8)), "no sizes"),
    "size is a float": (file_of({"x": entry(shape=(2.0,))}, bytes(8)), "no sizes"),
    "size is true": (file_of({"x": entry(shape=(True, 2))}, bytes(8)), "no sizes"),
    "shape is text": (file_of({"x": {**entry(), "shape": "2"}}, bytes(8)), "no sizes"),
    "offset is a float": (file_of({"x": entry(0.0, 8)}, bytes(8)), "no sizes"),
    "offset is negative": (file_of({"x": entry(-8, 0)}, b""), "no sizes"),
    "offsets reversed": (file_of({"x": entry(8, 0)}, bytes(8)), "does not take"),
    "shape larger than the range": (file_of({"x": entry(shape=(3,))}, bytes(8)), "does not take 8"),
    "shape smaller than the range": (file_of({"x": entry(shape=(1,))}, bytes(8)), "does not take 8"),
    "product that would overflow 64 bits": (file_of({"x": entry(shape=(2**62, 2**62))}, bytes(8)), "does not take 8"),
    "tensors overlap": (file_of({"x": entry(0, 8), "y": entry(4, 12)}, bytes(12)), "expected 8"),
    "two names for one range": (file_of({"x": entry(0, 8), "y": entry(0, 8)}, bytes(8)), "expected 8"),
    "a gap between tensors": (file_of({"x": entry(0, 8), "y": entry(12, 20)}, bytes(20)), "expected 8"),
    "a gap before the first": (file_of({"x": entry(8, 16)}, bytes(16)), "expected 0"),
    "range beyond the file": (file_of({"x": entry(0, 8), "y": entry(8, 16)}, bytes(8)), "16 bytes of 8"),
    "name of 513 characters": (file_of({"n" * 513: entry()}, bytes(8)), "513 characters"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_with_its_name_and_the_reason(case: str, tmp_path: Path) -> None:
    content, reason = MALFORMED[case]
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(AdapterFormatError) as refusal:
        SafetensorsStore(tmp_path / "bad.safetensors")
    assert "bad.safetensors" in refusal.value.problem
    assert reason in refusal.value.problem
    assert refusal.value.remedy


def test_a_header_that_lists_more_tensors_than_allowed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub_merge.formats.tensors.MAX_TENSORS", 3)
    three, four = (file_of({f"{i}": entry(0, 0, (0,)) for i in range(count)}) for count in (3, 4))
    assert len(parse_header(three, "x", len(three))) == 3
    with pytest.raises(AdapterFormatError, match="lists 4 tensors, more than 3"):
        parse_header(four, "x", len(four))


def test_the_sound_file_that_the_malformed_ones_were_made_from_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "good.safetensors").write_bytes(GOOD)
    assert np.array_equal(SafetensorsStore(tmp_path / "good.safetensors").read("x"), np.zeros(2, np.float32))


@settings(max_examples=400, deadline=None)
@given(
    position=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255), cut=st.integers(0, 3), more=st.binary(max_size=2)
)
def test_nothing_that_the_library_refuses_is_accepted(position: int, byte: int, cut: int, more: bytes) -> None:
    changed = bytearray(GOOD)
    changed[position] = byte
    content = bytes(changed[: len(changed) - cut]) + more
    try:
        infos = parse_header(content, "x", len(content))
    except AdapterFormatError:
        return
    theirs = dict(safetensors.deserialize(content))  # raises if the library refuses
    assert {name: list(info.shape) for name, info in infos.items()} == {n: t["shape"] for n, t in theirs.items()}


def test_a_header_alone_says_the_same_as_the_whole_file(tmp_path: Path) -> None:
    arrays = {f"layer.{i}": np.zeros((i, 3), np.float32) for i in range(20)}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    content = (tmp_path / "x.safetensors").read_bytes()
    head = content[: 8 + int.from_bytes(content[:8], "little")]
    assert parse_header(head, "x", len(content)) == SafetensorsStore(tmp_path / "x.safetensors").infos
    with pytest.raises(AdapterFormatError, match="does not parse"):
        parse_header(head[:-1], "x", len(content))


# --- other stores -----------------------------------------------------------------------------------------------------


def test_joined_files_read_as_one_and_a_tensor_in_two_of_them_is_refused() -> None:
    first, second = ArrayStore({"a": np.ones(2)}), ArrayStore({"b": np.zeros((1, 3), np.float16)})
    joined = JoinedStore([first, second])
    assert {name: (i.dtype, i.shape) for name, i in joined.infos.items()} == {
        "a": ("float64", (2,)),
        "b": ("float16", (1, 3)),
    }
    assert np.array_equal(joined.read("a"), np.ones(2))
    assert np.array_equal(joined.read("b"), np.zeros((1, 3)))
    with pytest.raises(AdapterFormatError, match="Tensor a is in two shards"):
        JoinedStore([first, ArrayStore({"a": np.ones(2)})])


def test_a_joined_store_has_values_only_if_every_part_has() -> None:
    arrays, header = ArrayStore({"a": np.ones(2)}), HeaderStore({"b": TensorInfo("float32", (1,))})
    assert JoinedStore([arrays]).has_values
    assert not JoinedStore([arrays, header]).has_values


def test_a_header_store_refuses_to_invent_numbers() -> None:
    with pytest.raises(AdapterFormatError, match="Tensor a was not downloaded"):
        HeaderStore({}).read("a")


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_torch_tensors_in_memory_keep_every_bit(name: str) -> None:
    torch = pytest.importorskip("torch")
    values = torch.arange(-6, 6, dtype=torch.float32).reshape(3, 4)
    tensor = torch.nn.Parameter(values.to(getattr(torch, name)).T, requires_grad=name.startswith("float3"))
    store = ArrayStore({"x": tensor})
    assert (store.infos["x"].dtype, store.infos["x"].shape) == (name, (4, 3))
    assert store.read("x").dtype == dtype_named(name)
    assert np.array_equal(store.read("x").astype(np.float32), values.numpy().T)


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["float32"], "float32"),
        (["bfloat16", "bfloat16"], "bfloat16"),
        (["float16"], "float16"),
        (["float16", "bfloat16"], "float32"),
        (["float16", "float32"], "float32"),
        (["float64"], "float32"),
        (["float8_e4m3fn"], "float16"),
        (["float8_e5m2", "float16"], "float16"),
        ([], "float32"),
    ],
)
def test_the_widest_dtype_holds_every_source(names: list[str], wanted: str) -> None:
    assert widest(names) == wanted
    written, exact = dtype_named(wanted), [name for name in names if name != "float64"]
    assert all(ml_dtypes.finfo(dtype_named(name)).nmant <= ml_dtypes.finfo(written).nmant for name in exact)
    assert all(float(ml_dtypes.finfo(dtype_named(name)).max) <= float(ml_dtypes.finfo(written).max) for name in exact)


def test_every_bfloat16_is_known_to_be_finite_or_not() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    for number, finite in zip(every, np.isfinite(every.astype(np.float32)), strict=True):
        assert is_finite(np.array([1.0, number, -1.0], ml_dtypes.bfloat16)) == finite
    assert is_finite(np.zeros((0, 3), ml_dtypes.bfloat16))
