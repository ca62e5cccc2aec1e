"""What reads bytes from strangers. Each either returns or raises one of the package's own errors; nothing else."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hub_merge.adapter import Origin
from hub_merge.bases import read_base
from hub_merge.card import update_card
from hub_merge.choice import choose
from hub_merge.compat import check
from hub_merge.errors import HubMergeError
from hub_merge.formats.opening import adapter_from_headers as adapter_from_any_headers
from hub_merge.formats.opening import open_adapter_files
from hub_merge.formats.peft import adapter_from_headers, parse_config, read_tokens, weight_files
from hub_merge.formats.pickles import TorchZipStore
from hub_merge.formats.tensors import parse_header
from hub_merge.hub import parse_reference
from hub_merge.recipe import MergeRecord, Recipe
from tests.attacks.files import SOUND, WEIGHTS, config_of
from tests.attacks.formats import (
    ADAPTER_FIELDS,
    FLAT,
    LAYER,
    MLX,
    PICKLE,
    gguf_of,
    gguf_tensor,
    named,
    rebuild,
    tensors_of,
    torch_file,
)

HEAD = SOUND[: 8 + int.from_bytes(SOUND[:8], "little")]

GGUF_TENSORS = gguf_tensor(b"blk.0.attn_q.weight.lora_a", (2, 8), 0) + gguf_tensor(
    b"blk.0.attn_q.weight.lora_b", (8, 2), 64
)

SEEDS = {
    "header": HEAD,
    "header_text": HEAD[8:],
    "weights": SOUND,
    "config": config_of(),
    "config_alone": config_of(),
    "kohya": tensors_of({f"{FLAT}.lora_down.weight": (2, 5), f"{FLAT}.lora_up.weight": (6, 2), f"{FLAT}.alpha": ()}),
    "lokr": tensors_of({f"{FLAT}.lokr_w1": (2, 2), f"{FLAT}.lokr_w2_a": (3, 2), f"{FLAT}.lokr_w2_b": (2, 5)}),
    "diffusers": tensors_of({f"unet.{LAYER}.lora_A.weight": (2, 5), f"unet.{LAYER}.lora_B.weight": (6, 2)}),
    "diffusers_config": b'{"unet.r": 2, "unet.lora_alpha": 4, "unet.rank_pattern": {"to_q": 2}}',
    "mlx_config": b'{"lora_parameters": {"scale": 2.0}, "model": "a/b"}',
    "gguf": gguf_of(2, 3, ADAPTER_FIELDS + GGUF_TENSORS) + b"\0" * 128,
    "pickled": named(rebuild(b"K\x02K\x05\x86", b"K\x05K\x01\x86", b"K\x0a")),
    "index": b'{"weight_map": {"x": "a.safetensors"}}',
    "added_tokens": b'{"<a>": 5}',
    "tokenizer_config": b'{"added_tokens_decoder": {"5": {"content": "<a>"}}}',
    "recipe": b"merge_method: sum\nmodels:\n- model: a/b\n  parameters: {weight: 1.0}\n",
    "record": b'{"schema_version": 1, "recipe": {"models": ["a/b"]}, "parents": [], "output": {"files": []}}',
    "reference": b"hf://a/b@main:sub",
    "base": b"/home/ann/models--a--b/snapshots/" + b"0" * 40,
    "card": b"---\nlicense: mit\n---\n# x\n",
}
"""Something sound of each kind, to begin from."""

TARGETS: dict[str, Callable[[bytes], Any]] = {}


def target(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Register a reader whose own errors are let through."""

    def guarded(data: bytes) -> Any:
        with suppress(HubMergeError):
            return read(data)
        return None

    TARGETS[read.__name__] = guarded
    return guarded


@target
def header(data: bytes) -> Any:
    return parse_header(data, "x", len(data))


@target
def header_text(data: bytes) -> Any:
    """The same behind a length that fits, so that the JSON itself is reached."""
    whole = len(data).to_bytes(8, "little") + data
    return parse_header(whole, "x", len(whole))


@target
def config(data: bytes) -> Any:
    """A config beside sound weights, judged as far as headers go, and told as JSON."""
    adapter = adapter_from_headers(data, {WEIGHTS: HEAD}, {WEIGHTS: len(SOUND)}, name="it", origin=Origin())
    told = json.dumps(check([adapter]).to_dict(), ensure_ascii=False).encode()
    assert len(told) < 100_000
    return adapter


@target
def weights(data: bytes) -> Any:
    """Weights beside a sound config."""
    adapter = adapter_from_headers(config_of(), {WEIGHTS: data}, {WEIGHTS: len(data)}, name="it", origin=Origin())
    return check([adapter]).to_dict()


def foreign(data: bytes, file: str = "it.safetensors", config: bytes | None = None) -> Any:
    """A file of another format by its header, judged as far as that goes."""
    adapter = adapter_from_any_headers(config, {file: data}, {file: len(data)}, name="it", origin=Origin())
    return check([adapter]).to_dict()


@target
def kohya(data: bytes) -> Any:
    return foreign(data)


@target
def lokr(data: bytes) -> Any:
    return foreign(data)


@target
def diffusers(data: bytes) -> Any:
    return foreign(data)


@target
def diffusers_config(data: bytes) -> Any:
    """The config in the header of a sound file."""
    shapes = {f"unet.{LAYER}.lora_A.weight": (2, 5), f"unet.{LAYER}.lora_B.weight": (6, 2)}
    return foreign(tensors_of(shapes, {"lora_adapter_metadata": data.decode(errors="replace")}))


@target
def mlx_config(data: bytes) -> Any:
    return foreign(tensors_of({"q.lora_a": (5, 2), "q.lora_b": (2, 6)}), MLX, data)


@target
def gguf(data: bytes) -> Any:
    """A whole file, its numbers too."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "it.gguf").write_bytes(b"GGUF" + data[4:])
        adapter = open_adapter_files(Path(folder), choose(["it.gguf"]), name="it", origin=Origin())
        return check([adapter]).to_dict()


@target
def pickled(data: bytes) -> Any:
    """The program of an archive of torch, and the tensors that it names."""
    with tempfile.TemporaryDirectory() as folder:
        torch_file(Path(folder), data, {"0": b"\0" * 40})
        store = TorchZipStore(Path(folder) / PICKLE)
        return [store.read(name) for name in store.infos]


@target
def config_alone(data: bytes) -> Any:
    return parse_config(data)


@target
def index(data: bytes) -> Any:
    return weight_files(["a.safetensors"], data)


@target
def added_tokens(data: bytes) -> Any:
    return read_tokens({"added_tokens.json": data})


@target
def tokenizer_config(data: bytes) -> Any:
    return read_tokens({"tokenizer_config.json": data})


@target
def recipe(data: bytes) -> Any:
    return Recipe.from_yaml(data.decode(errors="replace"))


@target
def record(data: bytes) -> Any:
    return MergeRecord.from_json(data)


@target
def reference(data: bytes) -> Any:
    return parse_reference(data.decode(errors="surrogateescape"))


@target
def base(data: bytes) -> Any:
    return read_base(data.decode(errors="surrogateescape"))


@target
def card(data: bytes) -> Any:
    return update_card(data.decode(errors="replace"), "---\ntags: [a]\n---\n\nbody\n")
