"""Weights that torch pickled: read as torch reads them, without running anything that is in them."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub_merge.adapter import Adapter
from hub_merge.errors import AdapterError, AdapterFormatError, HubMergeError, UnsupportedAdapter
from hub_merge.formats.pickles import MAX_PROGRAM, TorchZipStore
from tests.helpers import peft_config, peft_tensors, write_adapter

torch = pytest.importorskip("torch")


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    """Return the archive with other content; ``None`` leaves an entry out."""
    out = path.with_name("changed.bin")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", compression) as new:
        for entry in old.infolist():
            content = change(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
    return out


def with_program(path: Path, program: bytes) -> Path:
    return rewritten(path, lambda name, content: program if name.endswith("data.pkl") else content)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return saved(tmp_path / "plain.bin", {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.int64)})


# --- what torch reads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_tensor_is_the_one_that_torch_reads(tmp_path: Path, protocol: int) -> None:
    torch.manual_seed(0)
    base = torch.randn(5, 7)
    content = OrderedDict(
        float32=base,
        transposed=base.T,
        part=base[1:4, 2:],
        strided=base[::2, ::3],
        row=base[2],
        number=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
        parameter=torch.nn.Parameter(torch.randn(3)),
        float64=torch.randn(3, dtype=torch.float64),
        float16=torch.randn(3).half(),
        bfloat16=torch.randn(3).bfloat16(),
        int64=torch.arange(4),
        int32=torch.arange(4, dtype=torch.int32),
        int16=torch.arange(4, dtype=torch.int16),
        int8=torch.arange(4, dtype=torch.int8),
        uint8=torch.arange(4, dtype=torch.uint8),
        bool=torch.tensor([True, False]),
    )
    path = saved(tmp_path / "it.bin", content, pickle_protocol=protocol)
    store = TorchZipStore(path)
    wanted = torch.load(path, map_location="cpu", weights_only=False)  # our own; protocol 4 is none of weights_only
    assert list(store.infos) == list(wanted)
    for name, tensor in wanted.items():
        got = store.read(name)
        assert (store.infos[name].dtype, got.shape) == (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        assert got.dtype.name == store.infos[name].dtype
        assert np.array_equal(got.astype(np.float64), tensor.detach().double().numpy()), name


def test_a_real_state_dict_with_its_metadata_is_read(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    store = TorchZipStore(saved(tmp_path / "it.bin", model.state_dict()))
    assert np.array_equal(store.read("0.weight"), model[0].weight.detach().numpy())


def test_a_pickled_peft_adapter_is_its_safetensors_twin_where_it_is_allowed(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    tensors = peft_tensors(rng, {"h.0.c_attn": 2})
    twin = Adapter.from_pretrained(write_adapter(tmp_path / "twin", tensors))
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(peft_config()))
    saved(folder / "adapter_model.bin", {name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    with pytest.raises(UnsupportedAdapter, match=r"a pickle.*--allow-pickle"):
        Adapter.from_pretrained(folder)
    adapter = Adapter.from_pretrained(folder, allow_pickle=True)
    assert adapter.modules == twin.modules and adapter.findings == twin.findings
    assert np.array_equal(adapter.factors("h.0.c_attn").delta(), twin.factors("h.0.c_attn").delta())
    assert adapter.origin.files == ("adapter_config.json", "adapter_model.bin")


# --- what would do harm -----------------------------------------------------------------------------------------------


class Evil:
    """What an attacker's tensor looks like: unpickling it runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["a value", "all of it", "inside a tuple", "an attribute"])
def test_code_in_a_pickle_is_named_and_never_run(tmp_path: Path, place: str, protocol: int) -> None:
    mark = tmp_path / "was run"
    evil = Evil(mark)
    state = OrderedDict(a=torch.ones(2))
    if place == "an attribute":
        state.note = evil  # type: ignore[attr-defined]
    content = {"a value": {"a": evil}, "all of it": evil, "inside a tuple": (1, evil), "an attribute": state}[place]
    path = saved(tmp_path / "evil.bin", content, pickle_protocol=protocol)
    with pytest.raises(UnsupportedAdapter, match=r"calls (posix|nt|os)\.system") as refused:
        TorchZipStore(path)
    assert "do not open this file" in (refused.value.remedy or "")
    assert not mark.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.", "calls builtins.eval"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x00\x85R.", "calls builtins.exec"),
        (b"\x80\x02(X\x02\x00\x00\x00lsios\nsystem\n.", "has the instruction INST"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "has the instruction NEWOBJ"),
        (b"\x80\x02]X\x01\x00\x00\x00aa.", "has the instruction EMPTY_LIST"),
        (b"\x80\x02}K\x01K\x02s.", "keys that are no names"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x02s.", "something else than tensors"),
        (b"\x80\x02K\x01.", "something else than tensors"),
    ],
)
def test_programs_that_do_anything_else_are_refused(plain: Path, program: bytes, says: str) -> None:
    with pytest.raises(UnsupportedAdapter, match=says):
        TorchZipStore(with_program(plain, program))


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02",
        b".",
        b"\x80\x02t.",
        b"\x80\x02R.",
        b"\x80\x02h\x05.",
        b"\x80\x02X\xff\xff\xff\xff.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02q\xff.",
    ],
)
def test_malformed_programs_are_damage(plain: Path, program: bytes) -> None:
    with pytest.raises(AdapterFormatError, match="no sound file of torch"):
        TorchZipStore(with_program(plain, program))


def test_nested_memo_bombs_cost_nothing(plain: Path) -> None:
    """Thirty tuples, each holding the one before twice: hashing or copying the last would take 2**30 steps."""
    bomb = b"\x80\x02)" + b"".join(b"q%c0h%ch%c\x86" % (n, n, n) for n in range(30))
    with pytest.raises(AdapterError):
        TorchZipStore(with_program(plain, bomb + b"X\x01\x00\x00\x00a\x86."))


@given(st.data())
@settings(max_examples=150)
def test_any_change_of_the_program_is_read_or_refused_by_a_typed_error(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    program = bytearray(entries[name])
    for place in data.draw(st.lists(st.integers(0, len(program) - 1), min_size=1, max_size=6)):
        program[place] = data.draw(st.integers(0, 255))
    entries[name] = bytes(program)
    path = Path(os.environ["PYTEST_SCRATCH"]) / "fuzzed.bin"
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    try:
        store = TorchZipStore(path)
        assert all(store.read(name).shape == info.shape for name, info in store.infos.items())
    except HubMergeError as refused:
        assert refused.remedy


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_SCRATCH", str(tmp_path))


# --- what is damaged --------------------------------------------------------------------------------------------------


def test_files_of_torch_before_archives_are_refused_with_a_way_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.bin", {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedAdapter, match=r"before 1\.6") as refused:
        TorchZipStore(path)
    assert "weights_only=True" in (refused.value.remedy or "")


def test_a_pointer_a_text_and_a_cut_file_are_refused_for_what_they_are(plain: Path) -> None:
    content = plain.read_bytes()
    for changed, says in (
        (b"version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
        (b"hello", "no sound file"),
        (content[: len(content) // 2], "no sound file"),
    ):
        plain.write_bytes(changed)
        with pytest.raises(AdapterFormatError, match=says):
            TorchZipStore(plain)


def test_archives_that_are_not_as_torch_writes_them_are_refused(plain: Path) -> None:
    keep: Callable[[str, bytes], bytes | None] = lambda name, content: content
    cases: list[tuple[Path, str]] = []
    cases.append((rewritten(plain, keep, zipfile.ZIP_DEFLATED), "compressed"))
    with pytest.raises(AdapterFormatError, match=cases[0][1]):
        TorchZipStore(cases[0][0])
    for change, says in (
        (lambda name, content: None if name.endswith("data/0") else content, "missing or has another size"),
        (lambda name, content: content[:-1] if name.endswith("data/0") else content, "missing or has another size"),
        (lambda name, content: None if name.endswith("data.pkl") else content, "no data.pkl"),
        (lambda name, content: b"big" if name.endswith("byteorder") else content, "endian"),
        (lambda name, content: b"x" * (MAX_PROGRAM + 1) if name.endswith("data.pkl") else content, "data.pkl has"),
    ):
        with pytest.raises(AdapterFormatError, match=says):
            TorchZipStore(rewritten(plain, change))


def test_numbers_that_changed_on_disk_are_noticed(plain: Path) -> None:
    content = bytearray(plain.read_bytes())
    place = content.index(np.arange(6.0, dtype=np.float32).tobytes())
    content[place] ^= 1
    plain.write_bytes(content)
    with pytest.raises(AdapterFormatError, match="a cannot be read"):
        TorchZipStore(plain).read("a")


@pytest.mark.parametrize("forks", [False, True], ids=["threads", "processes"])
def test_many_read_one_file_at_once(tmp_path: Path, forks: bool) -> None:
    path = saved(tmp_path / "it.bin", {str(place): torch.full((4096,), float(place)) for place in range(16)})
    script = f"""
        from pathlib import Path
        from hub_merge.formats.pickles import TorchZipStore
        from hub_merge.parallel import map_modules
        store = TorchZipStore(Path({str(path)!r}))
        right = lambda turn: bool((store.read(str(turn % 16)) == turn % 16).all())
        print(all(map_modules(right, range(2000), 4, forks={forks})))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (5, (2,), (1,)),
        (0, (7,), (1,)),
        (0, (1000, 1000), (0, 0)),
        (0, (2, 3), (3,)),
        (0, (-1,), (1,)),
        (0, (2,), (-1,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    plain: Path, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    class Storage:
        pass

    class Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", 6) if isinstance(value, Storage) else None

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, strides, False, OrderedDict())

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"a": Tensor()})
    with pytest.raises(AdapterFormatError, match="a "):
        TorchZipStore(with_program(plain, buffer.getvalue()))
