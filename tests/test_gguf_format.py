"""Adapters of llama.cpp, written by the gguf package as ``convert_lora_to_gguf.py`` writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hub_merge.adapter import Adapter
from hub_merge.errors import AdapterError, AdapterFormatError, UnsupportedAdapter
from hub_merge.formats.gguf import NAMES, PLAIN, WHOLE
from hub_merge.pipeline import merge
from tests.helpers import relative_error

gguf = pytest.importorskip("gguf")

Q, K, DOWN = "model.layers.3.self_attn.q_proj", "model.layers.3.self_attn.k_proj", "model.layers.0.mlp.down_proj"
IN_GGUF = {Q: "blk.3.attn_q", K: "blk.3.attn_k", DOWN: "blk.0.ffn_down"}


def permuted(weight: NDArray[Any], heads: int, heads_kv: int | None) -> NDArray[Any]:
    """Return the rows as llama.cpp's ``LlamaModel.permute`` orders them."""
    if heads_kv is not None and heads != heads_kv:
        heads = heads_kv
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def written(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    *,
    architecture: str = "qwen2",
    alpha: float | None = 4.0,
    kind: str = "adapter",
    fields: Mapping[str, int] = {},
    quantised: Any = None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(kind)
    if kind == "adapter":
        writer.add_string("adapter.type", "lora")
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for name, value in fields.items():
        writer.add_uint32(name, value)
    writer.add_string("general.base_model.0.repo_url", "https://huggingface.co/Qwen/Qwen2.5-0.5B")
    for name, tensor in tensors.items():
        if quantised is None:
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def parts(rng: np.random.Generator) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """A (rank, in) and B (out, rank) of three layers."""
    shapes = {Q: (2, 5, 16), K: (2, 5, 8), DOWN: (3, 7, 6)}
    return {
        name: (
            rng.standard_normal((rank, inner)).astype(np.float32),
            rng.standard_normal((out, rank)).astype(np.float32),
        )
        for name, (rank, inner, out) in shapes.items()
    }


def tensors_of(parts: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {
        f"{IN_GGUF[name]}.weight.lora_{side}": tensor
        for name, pair in parts.items()
        for side, tensor in zip("ab", pair, strict=True)
    }


Parts = Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


@pytest.mark.parametrize(("alpha", "scaling"), [(4.0, 2.0), (0.0, 1.0), (None, 1.0)])
def test_factors_scaling_and_names_are_those_of_the_adapter_it_was_made_from(
    tmp_path: Path, parts: Parts, alpha: float | None, scaling: float
) -> None:
    adapter = Adapter.from_pretrained(written(tmp_path / "math.gguf", tensors_of(parts), alpha=alpha))
    assert (adapter.name, adapter.format, adapter.base_model) == ("math", "gguf", "Qwen/Qwen2.5-0.5B")
    assert set(adapter.modules) == set(parts) and not adapter.findings
    assert adapter.modules[Q].scaling == scaling  # of rank 2
    for name, (A, B) in parts.items():
        wanted = (alpha / len(A) if alpha else 1.0) * B.astype(np.float64) @ A
        assert relative_error(adapter.factors(name).delta(), wanted) < 1e-12
    output = merge([adapter], weights=[2.0]).save_pretrained(tmp_path / "peft")
    again = Adapter.from_pretrained(output)
    assert relative_error(again.factors(Q).delta(), 2 * adapter.factors(Q).delta()) < 1e-6


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0"])
def test_half_precision_and_quantised_factors_are_what_gguf_makes_of_them(
    tmp_path: Path, rng: np.random.Generator, dtype: str
) -> None:
    A, B = rng.standard_normal((32, 64)).astype(np.float32), rng.standard_normal((32, 32)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[dtype]
    path = written(tmp_path / "it.gguf", tensors_of({DOWN: (A, B)}), quantised=kind)
    part = Adapter.from_pretrained(path).factors(DOWN)
    for got, wanted in ((part.A, A), (part.B, B)):
        assert np.array_equal(got.astype(np.float32), gguf.quants.dequantize(gguf.quants.quantize(wanted, kind), kind))


def test_the_embedding_has_its_a_transposed(tmp_path: Path, rng: np.random.Generator) -> None:
    A, B = rng.standard_normal((2, 9)).astype(np.float32), rng.standard_normal((4, 2)).astype(np.float32)
    tensors = {"token_embd.weight.lora_a": np.ascontiguousarray(A.T), "token_embd.weight.lora_b": B}
    adapter = Adapter.from_pretrained(written(tmp_path / "it.gguf", tensors))
    spec = adapter.modules["model.embed_tokens"]
    assert (spec.kind, spec.shape) == ("embedding", (4, 9))
    assert relative_error(adapter.factors("model.embed_tokens").delta(), 2 * B.astype(np.float64) @ A) < 1e-12


def test_names_are_the_inverse_of_the_ones_that_gguf_gives() -> None:
    for architecture in (*PLAIN, "llama"):
        number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
        forward = gguf.get_tensor_name_map(number, 8)
        for short, name in NAMES.items():
            assert forward.get_name(f"model.layers.5.{name}.weight", (".weight",)) == f"blk.5.{short}.weight"
        for short, name in WHOLE.items():
            assert forward.get_name(f"{name}.weight", (".weight",)) in (f"{short}.weight", None)


def test_rows_of_llama_are_put_back_where_the_heads_are_known(tmp_path: Path, parts: Parts) -> None:
    tensors = tensors_of(parts)
    tensors["blk.3.attn_q.weight.lora_b"] = permuted(parts[Q][1], 4, 4)
    tensors["blk.3.attn_k.weight.lora_b"] = permuted(parts[K][1], 4, 2)
    heads = {"llama.attention.head_count": 4, "llama.attention.head_count_kv": 2}
    path = written(tmp_path / "known.gguf", tensors, architecture="llama", fields=heads)
    adapter = Adapter.from_pretrained(path)
    for name, (A, B) in parts.items():
        wanted = 4.0 / len(A) * B.astype(np.float64) @ A
        assert relative_error(adapter.factors(name).delta(), wanted) < 1e-12
    unknown = Adapter.from_pretrained(written(tmp_path / "unknown.gguf", tensors, architecture="llama"))
    assert list(unknown.modules) == [DOWN]
    assert [(found.code, found.where) for found in unknown.findings] == [("permuted_heads", Q), ("permuted_heads", K)]


def test_other_tensors_and_unknown_layers_are_findings(tmp_path: Path, parts: Parts) -> None:
    extra = {
        "blk.0.attn_norm.weight": np.ones(4, np.float32),
        "blk.0.ssm_in.weight.lora_a": np.ones((2, 3), np.float32),
        "blk.0.ssm_in.weight.lora_b": np.ones((3, 2), np.float32),
    }
    adapter = Adapter.from_pretrained(written(tmp_path / "it.gguf", {**tensors_of(parts), **extra}))
    assert [found.code for found in adapter.findings] == ["unknown_layer", "trained_weights"]


def test_models_and_unknown_architectures_are_refused(tmp_path: Path, parts: Parts) -> None:
    model = written(tmp_path / "m.gguf", {"output.weight": np.ones((2, 2), np.float32)}, kind="model", alpha=None)
    with pytest.raises(UnsupportedAdapter, match="is a model, not a LoRA"):
        Adapter.from_pretrained(model)
    with pytest.raises(UnsupportedAdapter, match="architecture mamba"):
        Adapter.from_pretrained(written(tmp_path / "a.gguf", tensors_of(parts), architecture="mamba"))


def test_damaged_files_are_refused_by_a_typed_error(tmp_path: Path, parts: Parts) -> None:
    content = written(tmp_path / "it.gguf", tensors_of(parts)).read_bytes()
    path = tmp_path / "damaged.gguf"
    huge = (1 << 62).to_bytes(8, "little")
    for damaged in (content[:4], content[:20], content[:100], content[:8] + huge + content[16:], content[:-50]):
        path.write_bytes(damaged)
        with pytest.raises(AdapterFormatError) as refused:
            Adapter.from_pretrained(path)
        assert refused.value.remedy


def test_any_changed_byte_of_the_header_is_read_or_refused_by_a_typed_error(tmp_path: Path, parts: Parts) -> None:
    content = written(tmp_path / "it.gguf", tensors_of(parts)).read_bytes()
    path = tmp_path / "changed.gguf"
    rng = np.random.default_rng(0)
    refused = 0
    for place in range(8, 700, 2):
        changed = bytearray(content)
        changed[place] = int(rng.integers(256))
        path.write_bytes(changed)
        try:
            adapter = Adapter.from_pretrained(path)
            for module in adapter.modules:
                adapter.factors(module)
        except AdapterError:
            refused += 1
    assert refused > 50
