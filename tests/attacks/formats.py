"""Hostile files of the other formats, pickles among them; each is alone in its folder, or beside its config."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.attacks.files import CONFIG, config_of, grow, put, safetensors_of
from tests.attacks.folders import ATTACKS, attack

__all__ = ["ATTACKS"]

KOHYA, DIFFUSERS, MLX = "lora.safetensors", "pytorch_lora_weights.safetensors", "adapters.safetensors"
PICKLE = "adapter_model.bin"
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def tensors_of(shapes: Mapping[str, tuple[int, ...]], texts: Mapping[str, str] = {}, *, empty: bool = False) -> bytes:
    """Return a safetensors file of float32 zeros, or, ``empty``, its header alone."""
    header: dict[str, Any] = {"__metadata__": dict(texts)}
    position = 0
    for name, shape in shapes.items():
        end = position + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    return safetensors_of(header, b"" if empty else b"\0" * position)


def alone(folder: Path, name: str, content: bytes) -> None:
    """Write one file."""
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)


# --- kohya, LyCORIS, diffusers, MLX -----------------------------------------------------------------------------------


@attack("BudgetExceeded", "rank 100000")
def kohya_rank_of_a_hundred_thousand(folder: Path) -> None:
    shapes = {f"{FLAT}.lora_down.weight": (100_000, 1), f"{FLAT}.lora_up.weight": (1, 100_000)}
    alone(folder, KOHYA, tensors_of(shapes))


@attack("BudgetExceeded", "bytes")
def kohya_file_of_a_terabyte(folder: Path) -> None:
    content = tensors_of({f"{FLAT}.lora_down.weight": (1, 10**12 // 4)}, empty=True)
    alone(folder, KOHYA, content)
    grow(folder / KOHYA, len(content) + 10**12)


@attack("AdapterFormatError", "leads out of its folder")
def kohya_file_that_is_a_link_to_elsewhere(folder: Path) -> None:
    alone(folder / "elsewhere", KOHYA, tensors_of({f"{FLAT}.lora_down.weight": (2, 5)}))
    (folder / "adapter").mkdir()
    (folder / "adapter" / KOHYA).symlink_to(folder / "elsewhere" / KOHYA)


@attack("finding", "module_name")
def kohya_module_that_turns_the_text_around(folder: Path) -> None:
    name = "lora_unet_\u202eq <script>"
    alone(folder, KOHYA, tensors_of({f"{name}.lora_down.weight": (2, 5), f"{name}.lora_up.weight": (6, 2)}))


@attack("finding", "module_name")
def lokr_module_called_like_a_path(folder: Path) -> None:
    name = "lora_unet_/etc/passwd"
    alone(folder, KOHYA, tensors_of({f"{name}.lokr_w1": (2, 2), f"{name}.lokr_w2": (2, 2)}))


@attack("finding", "expanded_size")
def lokr_of_small_halves_and_endless_factors(folder: Path) -> None:
    """Four vectors of half a megabyte, whose Kronecker product has ten billion rows."""
    ends = {"w1_a": (100_000, 1), "w1_b": (1, 100_000), "w2_a": (100_000, 1), "w2_b": (1, 100_000)}
    alone(folder, KOHYA, tensors_of({f"{FLAT}.lokr_{end}": shape for end, shape in ends.items()}))


@attack("BudgetExceeded", "rank 10000")
def lokr_whose_ranks_multiply(folder: Path) -> None:
    alone(folder, KOHYA, tensors_of({f"{FLAT}.lokr_{end}": (100, 100) for end in ("w1", "w2")}))


@attack("AdapterFormatError", "no safe regular expression")
def diffusers_header_with_a_regex_that_takes_for_ever(folder: Path) -> None:
    config = {"unet.r": 2, "unet.lora_alpha": 2, "unet.rank_pattern": {"(a+)+" * 20 + "x": 2}}
    shapes = {f"unet.{LAYER}.lora_A.weight": (2, 5), f"unet.{LAYER}.lora_B.weight": (6, 2)}
    alone(folder, DIFFUSERS, tensors_of(shapes, {"lora_adapter_metadata": json.dumps(config)}))


@attack("AdapterFormatError", "nested deeper")
def diffusers_header_nested_without_end(folder: Path) -> None:
    text = '{"unet.r":' + "[" * 900 + "]" * 900 + "}"
    shapes = {f"unet.{LAYER}.lora_A.weight": (2, 5), f"unet.{LAYER}.lora_B.weight": (6, 2)}
    alone(folder, DIFFUSERS, tensors_of(shapes, {"lora_adapter_metadata": text}))


@attack("AdapterFormatError", "expected at most")
def mlx_config_of_a_hundred_megabytes(folder: Path) -> None:
    alone(folder, MLX, tensors_of({"q.lora_a": (5, 2), "q.lora_b": (2, 6)}))
    grow(folder / CONFIG, 100_000_000)


@attack("AdapterFormatError", "leads out of its folder")
def mlx_config_that_is_a_link_to_elsewhere(folder: Path) -> None:
    alone(folder / "adapter", MLX, tensors_of({"q.lora_a": (5, 2), "q.lora_b": (2, 6)}))
    (folder / "secret.json").write_text('{"lora_parameters": {"scale": 1.0}}')
    (folder / "adapter" / CONFIG).symlink_to("../secret.json")


@attack("AdapterFormatError", "lora_parameters.scale")
def mlx_scale_beyond_every_float(folder: Path) -> None:
    alone(folder, MLX, tensors_of({"q.lora_a": (5, 2), "q.lora_b": (2, 6)}))
    (folder / CONFIG).write_text(json.dumps({"lora_parameters": {"scale": 10**400}}))


# --- GGUF -------------------------------------------------------------------------------------------------------------


def gguf_of(tensors: int, fields: int, body: bytes = b"") -> bytes:
    """Return a GGUF file that announces so many tensors and fields, padded to where the tensors begin."""
    content = struct.pack("<4sIQQ", b"GGUF", 3, tensors, fields) + body
    return content + b"\0" * (-len(content) % 32)


def gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


ADAPTER_FIELDS = b"".join(
    gguf_text(name) + struct.pack("<I", 8) + gguf_text(value)
    for name, value in (
        (b"general.type", b"adapter"),
        (b"adapter.type", b"lora"),
        (b"general.architecture", b"qwen2"),
    )
)


def gguf_tensor(name: bytes, shape: tuple[int, ...], offset: int, kind: int = 0) -> bytes:
    return gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


@attack("AdapterFormatError", "announces 4611686018427387904 tensors")
def gguf_of_endless_tensors(folder: Path) -> None:
    alone(folder, "it.gguf", gguf_of(1 << 62, 0, b"\0" * 1000))


@attack("AdapterFormatError", "and 4611686018427387904 fields")
def gguf_of_endless_fields(folder: Path) -> None:
    alone(folder, "it.gguf", gguf_of(0, 1 << 62, b"\0" * 1000))


@attack("AdapterFormatError", "a field lists 1152921504606846976 entries")
def gguf_of_an_endless_list(folder: Path) -> None:
    alone(folder, "it.gguf", gguf_of(0, 1, gguf_text(b"x") + struct.pack("<IIQ", 9, 0, 1 << 60) + b"\0" * 1000))


@attack("AdapterFormatError", "entries of type 9")
def gguf_of_lists_of_lists(folder: Path) -> None:
    lists = struct.pack("<IQ", 9, 1) * 100_000
    alone(folder, "it.gguf", gguf_of(0, 1, gguf_text(b"x") + struct.pack("<I", 9) + lists))


@attack("AdapterFormatError", "claims 1152921504606846976 bytes")
def gguf_of_an_endless_text(folder: Path) -> None:
    alone(folder, "it.gguf", gguf_of(0, 1, gguf_text(b"x") + struct.pack("<IQ", 8, 1 << 60) + b"\0" * 1000))


@attack("AdapterFormatError", "2147483648 dimensions")
def gguf_of_endless_dimensions(folder: Path) -> None:
    alone(folder, "it.gguf", gguf_of(1, 0, gguf_text(b"x") + struct.pack("<I", 1 << 31) + b"\0" * 1000))


@attack("AdapterFormatError", "but it has")
def gguf_tensor_larger_than_the_world(folder: Path) -> None:
    name = b"blk.0.attn_q.weight.lora_a"
    body = ADAPTER_FIELDS + gguf_tensor(name, (2, 1 << 60), 0)
    alone(folder, "it.gguf", gguf_of(1, 3, body))


@attack("AdapterFormatError", "expected")
def gguf_tensors_that_overlap(folder: Path) -> None:
    names = (b"blk.0.attn_q.weight.lora_a", b"blk.0.attn_q.weight.lora_b")
    body = ADAPTER_FIELDS + b"".join(gguf_tensor(name, (32, 32), 0) for name in names)
    alone(folder, "it.gguf", gguf_of(2, 3, body) + b"\0" * 10_000)


@attack("BudgetExceeded", "rank 100000")
def gguf_rank_of_a_hundred_thousand(folder: Path) -> None:
    a, b = b"blk.0.attn_q.weight.lora_a", b"blk.0.attn_q.weight.lora_b"
    body = ADAPTER_FIELDS + gguf_tensor(a, (100_000, 1), 0) + gguf_tensor(b, (1, 100_000), 400_000)
    alone(folder, "it.gguf", gguf_of(2, 3, body) + b"\0" * 900_000)


@attack("AdapterFormatError", "leads out of its folder")
def gguf_that_is_a_link_to_elsewhere(folder: Path) -> None:
    alone(folder / "elsewhere", "it.gguf", gguf_of(0, 3, ADAPTER_FIELDS))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "it.gguf").symlink_to("../elsewhere/it.gguf")


# --- pickles that were let in -----------------------------------------------------------------------------------------


class _Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def torch_file(folder: Path, program: bytes, storages: Mapping[str, bytes] = {}, *, packed: bool = False) -> None:
    """Write what ``torch.save`` would: a program and its storages in an archive, ``packed`` as torch never does."""
    put(folder, weights=None)
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(folder / PICKLE, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, content in storages.items():
            archive.writestr(f"archive/data/{name}", content)


def rebuild(shape: bytes, strides: bytes = b"K\x01\x85", count: bytes = b"K\x01") -> bytes:
    """Return the instructions that make a tensor of storage 0, which has ``count`` numbers."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0\x30X\x03\0\0\0cpu" + count + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + shape + strides + b"\x89)tR"


def named(*tensors: bytes) -> bytes:
    """Return the program of a mapping of tensors."""
    entries = (b"X\x04\0\0\0%04x" % number + tensor for number, tensor in enumerate(tensors))
    return b"\x80\x02}(" + b"".join(entries) + b"u."


@attack("UnsupportedAdapter", "calls posix.system", allow_pickle=True)
def pickle_that_runs_a_command(folder: Path) -> None:
    torch_file(folder, pickle.dumps({"x": _Command()}, protocol=2))


@attack("UnsupportedAdapter", "before 1.6", allow_pickle=True)
def pickle_without_an_archive(folder: Path) -> None:
    put(folder, weights=None, adapter_model__bin=pickle.dumps({"x": _Command()}, protocol=2))


@attack("AdapterFormatError", "a size, stride or offset that is none", allow_pickle=True)
def pickle_whose_shape_unfolds_without_end(folder: Path) -> None:
    """A tuple of two of a tuple of two, sixty deep: short to write, endless to print."""
    shape = b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60))
    torch_file(folder, named(rebuild(shape)), {"0": b"\0" * 4})


@attack("AdapterFormatError", "is compressed", allow_pickle=True)
def zip_bomb_in_a_storage(folder: Path) -> None:
    """Four hundred megabytes of zeros in four hundred kilobytes."""
    size = 100_000_000
    count = b"J" + struct.pack("<i", size)
    torch_file(folder, named(rebuild(b"K\x01\x85", count=count)))
    with (
        zipfile.ZipFile(folder / PICKLE, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data/0", "w") as storage,
    ):
        for _ in range(4):
            storage.write(b"\0" * size)


@attack("AdapterFormatError", "or is compressed", allow_pickle=True)
def zip_bomb_in_the_program(folder: Path) -> None:
    torch_file(folder, b"\x80\x02" + b"N0" * 50_000_000, packed=True)


@attack("AdapterFormatError", "more than the file has", allow_pickle=True)
def one_storage_as_a_thousand_tensors(folder: Path) -> None:
    tensor = rebuild(b"M\xe8\x03\x85", count=b"M\xe8\x03")
    torch_file(folder, named(*[tensor] * 1000), {"0": b"\0" * 4000})


@attack("AdapterFormatError", "its list of files takes more than", allow_pickle=True)
def archive_of_a_million_files(folder: Path) -> None:
    """The list names one file over and over."""
    put(folder, weights=None)
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0) + b"a/bc"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(entry) * 1_000_000, 0, 0)
    (folder / PICKLE).write_bytes(entry * 1_000_000 + end)


@attack("AdapterFormatError", "does not lie in its storage", allow_pickle=True)
def tensor_beyond_its_storage(folder: Path) -> None:
    torch_file(folder, named(rebuild(b"J\0\0\0\x40\x85")), {"0": b"\0" * 4})


@attack("BudgetExceeded", "bytes", allow_pickle=True)
def pickle_of_a_terabyte(folder: Path) -> None:
    put(folder, weights=None, adapter_model__bin=b"PK\3\4")
    grow(folder / PICKLE, 10**12)


@attack("AdapterFormatError", "leads out of its folder", allow_pickle=True)
def pickle_that_is_a_link_to_elsewhere(folder: Path) -> None:
    torch_file(folder / "elsewhere", named(rebuild(b"K\x01\x85")), {"0": b"\0" * 4})
    put(folder / "adapter", config=config_of(), weights=None)
    (folder / "adapter" / PICKLE).symlink_to(folder / "elsewhere" / PICKLE)
