"""Adapters of llama.cpp: one GGUF file.

Tensors are ``<name>.weight.lora_a``, ``(rank, in)``, and ``….lora_b``, ``(out, rank)``; ``token_embd`` has ``lora_a``
transposed. The scaling is ``adapter.lora.alpha / rank``, and 1 for an alpha of 0 (``llama-adapter.h``,
``convert_lora_to_gguf.py``).

GGUF has names of its own. They are turned into those of transformers for the architectures below, whose layers the
converter leaves as they are. It does not for llama: there it reorders the rows of q and k by attention head, which is
undone where the file states the number of heads, and is a finding where it does not. Other architectures are refused:
a name alone does not tell what their converter does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hub_merge.adapter import Adapter, LoraFactors, Origin
from hub_merge.errors import UnsupportedAdapter
from hub_merge.findings import Finding
from hub_merge.formats.gguf_file import GgufStore
from hub_merge.formats.pairs import (
    Note,
    Part,
    adapter_of_parts,
    factors_of,
    grouped,
    leftover_findings,
    notes_of,
    pair_spec,
)
from hub_merge.formats.tensors import TensorInfo

__all__ = ["adapter_from_gguf"]

PLAIN = ("qwen2", "qwen3", "gemma", "gemma2", "gemma3")
"""Architectures whose linear layers the converter writes as they are."""

NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd": "model.embed_tokens", "output": "lm_head"}
HEADS = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}

KEY = re.compile(r"(?P<module>.+)\.weight\.lora_(?P<side>[ab])")
BLOCK = re.compile(r"blk\.(?P<number>[0-9]+)\.(?P<layer>\w+)")
LEFTOVERS = (
    (re.compile(r"_norm"), "trained_weights", "trained norms"),
    (re.compile(r""), "unknown_tensors", "tensors of an unknown kind"),
)


def adapter_from_gguf(store: GgufStore, *, name: str, origin: Origin) -> Adapter:
    """Build an adapter from an opened file; what cannot be merged becomes findings.

    Raises:
        UnsupportedAdapter: It holds a model, or another kind of adapter, or one of an unknown architecture.
    """
    note = notes_of(name)
    fields = store.fields
    if fields.get("general.type") != "adapter" or fields.get("adapter.type") != "lora":
        kind = str(fields.get("adapter.type") or fields.get("general.type") or "model")[:40]
        raise UnsupportedAdapter(f"This GGUF file is a {kind}, not a LoRA.", remedy="Only LoRA adapters can be merged.")
    architecture = str(fields.get("general.architecture"))
    if architecture not in (*PLAIN, "llama"):
        raise UnsupportedAdapter(
            f"This GGUF adapter is for the architecture {architecture[:40]}, whose layers are not known here.",
            remedy=f"Known: llama, {', '.join(PLAIN)}. Take the adapter it was converted from.",
        )
    groups, others = grouped(store.infos, _split)
    parts = [_part(module, keys, store, note) for module, keys in groups.items()]
    findings = leftover_findings(others, LEFTOVERS, note)
    base = fields.get("general.base_model.0.repo_url")
    base_model = base.removeprefix("https://huggingface.co/") if isinstance(base, str) and base else None
    return adapter_of_parts(parts, findings, store, name=name, origin=origin, format="gguf", base_model=base_model)


def _split(key: str) -> tuple[str, str] | None:
    found = KEY.fullmatch(key)
    return (found["module"], found["side"]) if found else None


def _part(key_name: str, keys: Mapping[str, str], store: GgufStore, note: Note) -> Part | Finding:
    found = BLOCK.fullmatch(key_name)
    layer = found["layer"] if found else key_name
    if layer not in (NAMES if found else WHOLE):
        return note("unknown_layer", key_name, f"{key_name} is no layer that is known here", "")
    module = f"model.layers.{found['number']}.{NAMES[layer]}" if found else WHOLE[layer]
    embedding = key_name == "token_embd"
    a, b = (store.infos.get(keys.get(side, "")) for side in "ab")
    if embedding and a is not None:
        a = TensorInfo(a.dtype, a.shape[::-1])
    spec = pair_spec(module, "embedding" if embedding else "linear", a, b, note)
    if isinstance(spec, Finding):
        return spec
    order = _row_order(layer, spec.shape[0], store.fields, note, module)
    if isinstance(order, Finding):
        return order
    scaling = _scaling(store.fields, spec.rank)
    if not math.isfinite(scaling):
        return note("alpha", module, "adapter.lora.alpha is no finite number", "a finite number")

    def load() -> LoraFactors:
        A, B = store.read(keys["a"]), store.read(keys["b"])
        return factors_of(A.T if embedding else A, B if order is None else B[order], scaling)

    return Part(replace(spec, scaling=scaling), load)


def _scaling(fields: Mapping[str, Any], rank: int) -> float:
    alpha = fields.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float):
        return math.nan
    return alpha / rank if alpha else 1.0


def _row_order(
    layer: str, rows: int, fields: Mapping[str, Any], note: Callable[..., Finding], module: str
) -> np.ndarray[Any, Any] | Finding | None:
    """Return in which order the rows of B stand in the file, ``None`` for their own.

    The converter makes ``(heads, 2, half, …)`` out of ``(heads, half, 2, …)`` the other way round: row
    ``(head, half, pair)`` of the file is row ``(head, pair, half)`` of transformers.
    """
    if fields.get("general.architecture") != "llama" or layer not in HEADS:
        return None
    heads = fields.get(f"llama.{HEADS[layer]}") or fields.get("llama.attention.head_count")
    if not isinstance(heads, int) or heads < 1 or rows % (2 * heads):
        return note(
            "permuted_heads",
            module,
            "llama.cpp reorders the rows of this layer by attention head, and the file does not state their number",
            "llama.attention.head_count",
            "Take the adapter it was converted from.",
        )
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
