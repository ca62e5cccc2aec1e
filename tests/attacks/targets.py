"""What reads bytes from strangers. Each either returns or raises one of the package's own errors; nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hub_merge.adapter import Origin
from hub_merge.bases import read_base
from hub_merge.card import update_card
from hub_merge.compat import check
from hub_merge.errors import HubMergeError
from hub_merge.formats.peft import adapter_from_headers, parse_config, read_tokens, weight_files
from hub_merge.formats.tensors import parse_header
from hub_merge.hub import parse_reference
from hub_merge.recipe import MergeRecord, Recipe
from tests.attacks.files import SOUND, WEIGHTS, config_of

HEAD = SOUND[: 8 + int.from_bytes(SOUND[:8], "little")]

SEEDS = {
    "header": HEAD,
    "header_text": HEAD[8:],
    "weights": SOUND,
    "config": config_of(),
    "config_alone": config_of(),
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
