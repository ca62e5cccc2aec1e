"""Files of kohya's scripts and of diffusers, against what diffusers makes of them in a small Stable Diffusion UNet."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from hub_merge.adapter import Adapter
from hub_merge.errors import AdapterFormatError, MergeError, UnsupportedAdapter
from hub_merge.formats.names import ORIGINAL, flat_name, is_unet_name, split_flat
from hub_merge.hub import Hub
from hub_merge.pipeline import merge, verify
from tests.helpers import Dense, peft_config, relative_error, write_adapter

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

Tensors = dict[str, NDArray[Any]]

SD1: Mapping[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "layers_per_block": 2,
}
SDXL: Mapping[str, Any] = {
    **SD1,
    "block_out_channels": (8, 8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 24,
}
SMALL: Mapping[str, Any] = {
    **SD1,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
LAYERS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": 2,
    "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k": 3,
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": 2,
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj": 4,
    "down_blocks.0.attentions.0.proj_in": 2,
    "down_blocks.0.resnets.0.conv1": 2,
    "up_blocks.0.resnets.2.conv_shortcut": 3,
    "down_blocks.0.downsamplers.0.conv": 2,
    "conv_out": 1,
    "mid_block.resnets.1.time_emb_proj": 2,
    "time_embedding.linear_1": 2,
}
"""Layers of the small UNet of every kind, with the rank that each gets."""


@cache
def weights(size: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of all linear and convolution layers of a UNet."""
    config = {"sd1": SD1, "sdxl": SDXL, "small": SMALL}[size]
    unet = diffusers.UNet2DConditionModel(**config)
    return {
        name: tuple(module.weight.shape)
        for name, module in unet.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }


def factors(rng: np.random.Generator, ranks: Mapping[str, int] = LAYERS) -> dict[str, tuple[Dense, Dense]]:
    """Return down and up of each layer, in the shapes in which they are stored."""
    found = {}
    for layer, rank in ranks.items():
        out, *inner = weights("small")[layer]
        down = rng.standard_normal((rank, *inner)).astype(np.float32)
        up = rng.standard_normal((out, rank, *(1 for _ in inner[1:]))).astype(np.float32)
        found[layer] = (down, up)
    return found


def deltas_in_diffusers(path: Path) -> dict[str, Dense]:
    """Load a file into the small UNet as a pipeline does, and return the delta of each layer by PEFT."""
    state, alphas = diffusers.StableDiffusionPipeline.lora_state_dict(
        str(path.parent), weight_name=path.name, return_lora_metadata=False
    )
    metadata = diffusers.StableDiffusionPipeline.lora_state_dict(
        str(path.parent), weight_name=path.name, return_lora_metadata=True
    )[2]
    unet = diffusers.UNet2DConditionModel(**SMALL)
    unet.load_lora_adapter(state, network_alphas=alphas, metadata=metadata, prefix="unet")
    return {
        name: module.get_delta_weight(next(iter(module.lora_A))).detach().double().numpy()
        for name, module in unet.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def assert_same(adapter: Adapter, wanted: Mapping[str, Dense], prefix: str = "unet.") -> None:
    assert not adapter.findings
    assert adapter.modules.keys() == {prefix + name for name in wanted}
    for name, delta in wanted.items():
        spec, part = adapter.modules[prefix + name], adapter.factors(prefix + name)
        assert spec.kernel == delta.shape[2:] and spec.shape == part.shape == (len(delta), delta[0].size)
        assert (spec.rank, spec.scaling) == (part.rank, part.scaling)
        assert relative_error(part.delta(), delta.reshape(len(delta), -1)) < 1e-6, name


def kohya_tensors(parts: Mapping[str, tuple[Dense, Dense]], *, alpha: float | None = 1.0, dot: str = ".") -> Tensors:
    tensors: Tensors = {}
    for layer, (down, up) in parts.items():
        flat = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {f"{flat}{dot}lora_down.weight": down, f"{flat}{dot}lora_up.weight": up}
        if alpha is not None:
            tensors[f"{flat}.alpha"] = np.asarray(alpha, np.float32)
    return tensors


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["sd1", "sdxl"])
def test_every_layer_of_the_unets_is_known_by_its_flat_name(size: str) -> None:
    for layer in weights(size):
        assert split_flat("lora_unet_" + layer.replace(".", "_")) == ("unet", f"unet.{layer}")
        assert split_flat("lora_unet_unet_" + layer.replace(".", "_")) == ("unet", f"unet.{layer}")
        assert flat_name("unet", layer, ["unet"]) == "lora_unet_" + layer.replace(".", "_")
        assert is_unet_name(layer)


def test_every_layer_of_clip_is_known_by_its_flat_name() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=13, vocab_size=20)
    model = transformers.CLIPTextModelWithProjection(config)
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(layers) == 13 * 6 + 1
    for layer in layers:
        for prefix, component in (("te", "text_encoder"), ("te1", "text_encoder"), ("te2", "text_encoder_2")):
            assert split_flat(f"lora_{prefix}_" + layer.replace(".", "_")) == (component, f"{component}.{layer}")
        assert flat_name("text_encoder", layer, ["unet"]) == "lora_te_" + layer.replace(".", "_")
        both = ["text_encoder", "text_encoder_2"]
        assert flat_name("text_encoder", layer, both) == "lora_te1_" + layer.replace(".", "_")
        assert flat_name("text_encoder_2", layer, both) == "lora_te2_" + layer.replace(".", "_")


def original_names() -> list[str]:
    """Return the layers of SDXL's UNet in the original layout, and of SD 1.x where it differs."""
    attention = [template.split(".1.", 1)[1] for template in ORIGINAL if template.startswith("input_blocks.#.1.")]
    residual = ["in_layers.2", "out_layers.3", "emb_layers.1", "skip_connection"]
    names = ["time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2", "input_blocks.0.0", "out.2"]
    for number in (1, 2, 4, 5, 7, 8):
        names += [f"input_blocks.{number}.0.{end}" for end in residual]
    names += [f"input_blocks.{number}.0.op" for number in (3, 6)]
    names += [f"input_blocks.{number}.1.{end}" for number in (4, 5, 7, 8) for end in attention]
    names += [f"middle_block.{number}.{end}" for number in (0, 2) for end in residual[:3]]
    names += [f"middle_block.1.{end}" for end in attention]
    names += [f"output_blocks.{number}.0.{end}" for number in range(9) for end in residual]
    names += [f"output_blocks.{number}.1.{end}" for number in range(6) for end in attention]
    names += ["output_blocks.2.2.conv", "output_blocks.5.2.conv"]
    return [re.sub("#", "3", name) for name in names]


def test_the_original_layout_gives_the_layers_that_diffusers_gives() -> None:
    from diffusers.loaders.lora_conversion_utils import (
        _convert_non_diffusers_lora_to_diffusers,
        _maybe_map_sgm_blocks_to_diffusers,
    )
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    unet_config = diffusers.UNet2DConditionModel(**SDXL).config
    for name in original_names():
        flat = "lora_unet_" + name.replace(".", "_")
        state = {f"{flat}.lora_down.weight": torch.zeros(1, 2), f"{flat}.lora_up.weight": torch.zeros(2, 1)}
        state = _maybe_map_sgm_blocks_to_diffusers(state, unet_config)
        converted, _ = _convert_non_diffusers_lora_to_diffusers(state)
        keys = {key.rpartition(".lora_")[0] for key in convert_unet_state_dict_to_peft(converted)}
        assert {split_flat(flat)[1]} == keys, name
    known = {split_flat("lora_unet_" + name.replace(".", "_"))[1].removeprefix("unet.") for name in original_names()}
    assert {name for name in weights("sdxl") if "transformer_blocks" not in name} <= known


def test_a_name_outside_the_vocabulary_stays_flat_and_is_told(tmp_path: Path, rng: np.random.Generator) -> None:
    flat = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{flat}.lora_down.weight": rng.standard_normal((2, 5)).astype(np.float32),
        f"{flat}.lora_up.weight": rng.standard_normal((6, 2)).astype(np.float32),
        f"{flat}.alpha": np.asarray(1.0, np.float32),
    }
    save_file(tensors, tmp_path / "flux.safetensors", {"ss_base_model_version": "flux1"})
    adapter = Adapter.from_pretrained(tmp_path / "flux.safetensors")
    assert list(adapter.modules) == [flat] and adapter.base_model == "flux1"
    assert [(found.code, found.severity) for found in adapter.findings] == [("flat_names", "caution")]
    for format, remedy in (("peft", "--format kohya"), ("diffusers", "--format kohya"), ("mlx", "--format kohya")):
        with pytest.raises(MergeError, match=flat) as refused:
            adapter.save_pretrained(tmp_path / "out", format=format)
        assert remedy in (refused.value.remedy or "")
    again = Adapter.from_pretrained(merge([adapter, adapter]).save_pretrained(tmp_path / "two", format="kohya"))
    assert relative_error(again.factors(flat).delta(), 2 * adapter.factors(flat).delta()) < 1e-6


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "scaling"), [(None, 1.0), (1.0, 0.5), (3.0, 1.5)])
def test_a_kohya_file_has_the_deltas_that_diffusers_loads(
    tmp_path: Path, rng: np.random.Generator, alpha: float | None, scaling: float
) -> None:
    path = tmp_path / "style.safetensors"
    save_file(kohya_tensors(factors(rng), alpha=alpha), path, {"ss_sd_model_name": "acme/sd"})
    adapter = Adapter.from_pretrained(path)
    assert (adapter.name, adapter.format, adapter.base_model) == ("style", "kohya", "acme/sd")
    assert adapter.modules["unet.down_blocks.0.resnets.0.conv1"].scaling == scaling  # of rank 2
    assert_same(adapter, deltas_in_diffusers(path))


def test_a_doubled_prefix_and_underscores_before_lora_are_the_same_file(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    tensors = kohya_tensors(factors(rng), alpha=None)
    save_file(tensors, tmp_path / "plain.safetensors")
    odd = {
        key.replace("lora_unet_", "lora_unet_unet_").replace(".lora_", "_lora_"): tensor
        for key, tensor in tensors.items()
    }
    save_file(odd, tmp_path / "odd.safetensors")
    plain, other = (Adapter.from_pretrained(tmp_path / f"{name}.safetensors") for name in ("plain", "odd"))
    assert plain.modules == other.modules
    for module in plain.modules:
        assert np.array_equal(plain.factors(module).delta(), other.factors(module).delta())


def endings(form: str, layer: str) -> tuple[str, str]:
    """Return the keys of down and up of a layer in one of the forms that diffusers has had."""
    if form == "peft":
        return f"unet.{layer}.lora_A.weight", f"unet.{layer}.lora_B.weight"
    if form == "lora.down":
        return f"unet.{layer}.lora.down.weight", f"unet.{layer}.lora.up.weight"
    parent, _, own = layer.removesuffix(".0").rpartition(".")
    start = "" if form == "processor without unet" else "unet."
    return tuple(f"{start}{parent}.processor.{own}_lora.{way}.weight" for way in ("down", "up"))  # type: ignore[return-value]


@pytest.mark.parametrize("form", ["peft", "lora.down", "processor", "processor without unet"])
def test_every_ending_of_diffusers_has_the_deltas_that_diffusers_loads(
    tmp_path: Path, rng: np.random.Generator, form: str
) -> None:
    layers = {layer: rank for layer, rank in LAYERS.items() if form in ("peft", "lora.down") or ".attn" in layer}
    parts = factors(rng, layers)
    tensors: Tensors = {}
    for layer, pair in parts.items():
        tensors |= dict(zip(endings(form, layer), pair, strict=True))
    path = tmp_path / "style" / "pytorch_lora_weights.safetensors"
    path.parent.mkdir()
    save_file(tensors, path)
    adapter = Adapter.from_pretrained(path.parent)
    assert (adapter.name, adapter.format) == ("style", "diffusers")
    wanted = {layer: np.tensordot(up[..., 0, 0] if up.ndim > 2 else up, down, 1) for layer, (down, up) in parts.items()}
    assert_same(adapter, wanted)
    if form != "processor without unet":  # which diffusers no longer loads into a model by prefix
        assert_same(adapter, deltas_in_diffusers(path))


def test_the_config_in_the_header_gives_the_scaling_that_diffusers_gives(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    parts = factors(rng)
    first, second = "conv_out", "down_blocks.0.attentions.0.proj_in"
    config = {
        "unet.r": 2,
        "unet.lora_alpha": 3,
        "unet.rank_pattern": {layer: rank for layer, rank in LAYERS.items() if rank != 2},
        "unet.alpha_pattern": {first: 5, second: 7.0},
        "unet.use_rslora": True,
        "unet.target_modules": list(LAYERS),
    }
    path = tmp_path / "pytorch_lora_weights.safetensors"
    tensors = {key: t for layer, pair in parts.items() for key, t in zip(endings("peft", layer), pair, strict=True)}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(config)})
    adapter = Adapter.from_pretrained(path)
    assert adapter.modules[f"unet.{first}"].scaling == 5.0
    assert adapter.modules[f"unet.{second}"].scaling == pytest.approx(7 / np.sqrt(2))
    assert_same(adapter, deltas_in_diffusers(path))
    config["unet.r"] = 9
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps({**config, "unet.use_dora": True})})
    assert {found.code for found in Adapter.from_pretrained(path).findings} == {"rank_mismatch", "dora"}
    save_file(tensors, path, {"lora_adapter_metadata": "{"})
    with pytest.raises(AdapterFormatError, match="lora_adapter_metadata"):
        Adapter.from_pretrained(path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"unet.r": "four"}, "r of 'unet' of lora_adapter_metadata is 'four'"),
        ({"unet.r": 0}, "'unet' of lora_adapter_metadata states rank 0"),
        ({"unet.lora_alpha": None}, "lora_alpha of 'unet' of lora_adapter_metadata is 'None'"),
        ({"unet.rank_pattern": [1]}, "rank_pattern of 'unet' of lora_adapter_metadata is '[1]'"),
        ({"unet.alpha_pattern": {"conv": "x"}}, "alpha_pattern['conv'] of 'unet' of lora_adapter_metadata is 'x'"),
        ({"unet.alpha_pattern": {"(a+)+": 1}}, "alpha_pattern of 'unet' of lora_adapter_metadata has the pattern"),
        (
            {"unet.rank_pattern": {"x" * 99_999 + ".*": 1}},
            "rank_pattern of 'unet' of lora_adapter_metadata has regular",
        ),
    ],
)
def test_a_wrong_config_in_the_header_is_told_of_the_header(
    tmp_path: Path, rng: np.random.Generator, changed: Mapping[str, Any], told: str
) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    tensors = dict(zip(endings("peft", "conv_out"), factors(rng, {"conv_out": 1})["conv_out"], strict=True))
    config = {"unet.r": 1, "unet.lora_alpha": 1, **changed}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(config)})
    with pytest.raises(AdapterFormatError) as raised:
        Adapter.from_pretrained(path)
    assert told in str(raised.value) and "adapter_config" not in str(raised.value)


def test_text_encoders_old_and_new_are_one_adapter_with_the_unet(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = "text_model.encoder.layers.0"
    A, B = rng.standard_normal((2, 8)).astype(np.float32), rng.standard_normal((8, 2)).astype(np.float32)
    conv = factors(rng, {"conv_out": 2})["conv_out"]
    old = {
        f"text_encoder.{layer}.self_attn.to_out_lora.down.weight": A,
        f"text_encoder.{layer}.self_attn.to_out_lora.up.weight": B,
        f"text_encoder.{layer}.mlp.fc1.lora_linear_layer.down.weight": A,
        f"text_encoder.{layer}.mlp.fc1.lora_linear_layer.up.weight": B,
        "unet.conv_out.lora.down.weight": conv[0],
        "unet.conv_out.lora.up.weight": conv[1],
    }
    kohya = {
        f"{flat}.{what}": tensor
        for flat, pair in (
            (f"lora_te_{layer.replace('.', '_')}_self_attn_out_proj", (A, B)),
            (f"lora_te_{layer.replace('.', '_')}_mlp_fc1", (A, B)),
            ("lora_unet_conv_out", conv),
        )
        for what, tensor in zip(("lora_down.weight", "lora_up.weight"), pair, strict=True)
    }
    save_file(old, tmp_path / "old.safetensors")
    save_file(kohya, tmp_path / "kohya.safetensors")
    first, second = (Adapter.from_pretrained(tmp_path / f"{name}.safetensors") for name in ("old", "kohya"))
    assert first.modules == second.modules
    assert list(first.modules) == [
        f"text_encoder.{layer}.mlp.fc1",
        f"text_encoder.{layer}.self_attn.out_proj",
        "unet.conv_out",
    ]
    composite = merge([first, second], weights=[1.0, 2.0], base="acme/sd")
    with pytest.raises(MergeError, match=r"several models \(text_encoder, unet\)") as refused:
        composite.save_pretrained(tmp_path / "peft")
    assert "--format diffusers" in (refused.value.remedy or "")
    for format in ("diffusers", "kohya"):
        again = Adapter.from_pretrained(composite.save_pretrained(tmp_path / format, format=format))
        for module, part in ((module, first.factors(module)) for module in first.modules):
            assert relative_error(again.factors(module).delta(), 3 * part.delta()) < 1e-6


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_what_is_written_is_loaded_by_diffusers_as_it_was_meant(
    tmp_path: Path, rng: np.random.Generator, format: str
) -> None:
    save_file(kohya_tensors(factors(rng), alpha=3.0), tmp_path / "a.safetensors")
    some = {layer: rank + 1 for layer, rank in list(LAYERS.items())[::2]}
    save_file(kohya_tensors(factors(rng, some), alpha=0.5), tmp_path / "b.safetensors")
    parents = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    first, second = map(Adapter.from_pretrained, parents)
    output = merge([first, second], weights=[1.0, -0.5], base="acme/sd").save_pretrained(
        tmp_path / "out", format=format
    )
    (written,) = output.glob("*.safetensors")
    loaded = deltas_in_diffusers(written)
    assert loaded.keys() == LAYERS.keys()
    for layer, delta in loaded.items():
        module = f"unet.{layer}"
        wanted = first.factors(module).delta()
        if layer in some:
            wanted = wanted - 0.5 * second.factors(module).delta()
        assert relative_error(delta.reshape(len(delta), -1), wanted) < 1e-6
    hub = Hub(token=False, endpoint="http://127.0.0.1:9", offline=True)
    assert verify(output, parents=parents, hub=hub).passed
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "library_name: diffusers" in card and f'weight_name="{written.name}"' in card
    assert f"recipe.yaml -o composite --format {format}" in card


def test_a_peft_folder_of_one_model_is_loaded_by_peft_into_that_model(tmp_path: Path, rng: np.random.Generator) -> None:
    peft = pytest.importorskip("peft")
    save_file(kohya_tensors(factors(rng), alpha=3.0), tmp_path / "a.safetensors")
    adapter = Adapter.from_pretrained(tmp_path / "a.safetensors")
    output = adapter.save_pretrained(tmp_path / "out")
    unet = peft.PeftModel.from_pretrained(diffusers.UNet2DConditionModel(**SMALL), output)
    found = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().double().numpy()
        for name, module in unet.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    again = Adapter.from_pretrained(output)
    assert_same(again, found)
    for module in adapter.modules:
        assert relative_error(again.factors(module).delta(), adapter.factors(module).delta()) < 1e-6
    assert "pipeline.unet = PeftModel.from_pretrained(pipeline.unet" in (output / "README.md").read_text()


def test_a_convolution_that_peft_trained_is_read_as_peft_applies_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["conv1", "conv_shortcut", "to_q"], init_lora_weights=False
    )
    model = peft.get_peft_model(diffusers.UNet2DConditionModel(**SMALL), config)
    model.save_pretrained(tmp_path)
    adapter = Adapter.from_pretrained(tmp_path)
    wanted = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().double().numpy()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert_same(adapter, wanted)
    assert {spec.kernel for spec in adapter.modules.values()} == {(3, 3), (1, 1), ()}


def test_a_peft_unet_merges_with_files_of_kohya_and_diffusers(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    (down, up) = factors(rng, {layer: 2})[layer]
    tensors = {f"base_model.model.{layer}.lora_A.weight": down, f"base_model.model.{layer}.lora_B.weight": up}
    folder = write_adapter(tmp_path / "peft", tensors, peft_config(target_modules=["to_q"]))
    save_file(kohya_tensors({layer: (down, up)}), tmp_path / "kohya.safetensors")
    pair = zip(endings("processor", layer), (down, up), strict=True)
    save_file(dict(pair), tmp_path / "pytorch_lora_weights.safetensors")
    adapters = [
        Adapter.from_pretrained(path)
        for path in (folder, tmp_path / "kohya.safetensors", tmp_path / "pytorch_lora_weights.safetensors")
    ]
    composite = merge(adapters, base="acme/sd")
    again = Adapter.from_pretrained(composite.save_pretrained(tmp_path / "out"))
    assert relative_error(again.factors(f"unet.{layer}").delta(), (2 + 0.5 + 1) * (up @ down)) < 1e-6


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "code"),
    [
        ("lora_unet_conv_out.dora_scale", "dora"),
        ("lora_unet_conv_in.diff", "full_weights"),
        ("lora_unet_conv_in.diff_b", "full_weights"),
        ("lora_unet_conv_in.on_input", "ia3"),
        ("lora_unet_conv_in.a1.weight", "glora"),
        ("lora_unet_conv_in.b2.weight", "glora"),
        ("lora_unet_conv_in.oft_blocks", "oft"),
        ("bundle_emb.cat.string_to_param.*", "trainable_tokens"),
        ("lora_unet_conv_in.something", "unknown_tensors"),
    ],
)
def test_what_is_no_low_rank_update_is_a_finding(tmp_path: Path, rng: np.random.Generator, key: str, code: str) -> None:
    tensors = {**kohya_tensors(factors(rng)), key: np.ones((2, 2), np.float32)}
    save_file(tensors, tmp_path / "it.safetensors")
    (found,) = Adapter.from_pretrained(tmp_path / "it.safetensors").findings
    assert (found.code, found.severity, found.where) == (code, "problem", key)


@pytest.mark.parametrize(
    ("what", "tensor", "code"),
    [
        ("alpha", np.asarray(0.0, np.float32), "alpha"),
        ("alpha", np.asarray(np.nan, np.float32), "alpha"),
        ("alpha", np.ones(3, np.float32), "alpha"),
        ("lora_up.weight", np.ones((4, 5), np.float32), "factor_shape"),
        ("lora_up.weight", np.ones((4, 1, 3, 3), np.float32), "factor_shape"),
        ("lora_up.weight", np.ones((4, 1, 1, 1), np.int32), "factor_dtype"),
        ("lora_mid.weight", np.ones((1, 2, 3, 3), np.float32), "factor_shape"),
    ],
)
def test_a_module_that_does_not_add_up_is_a_finding(
    tmp_path: Path, rng: np.random.Generator, what: str, tensor: NDArray[Any], code: str
) -> None:
    tensors = {**kohya_tensors(factors(rng)), f"lora_unet_conv_out.{what}": tensor}
    save_file(tensors, tmp_path / "it.safetensors")
    adapter = Adapter.from_pretrained(tmp_path / "it.safetensors")
    (found,) = adapter.findings
    assert (found.code, found.severity, found.where) == (code, "problem", "unet.conv_out")
    assert len(adapter.modules) == len(LAYERS) - 1


def test_a_missing_factor_and_two_of_one_kind_are_told(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = kohya_tensors(factors(rng))
    lost = {key: tensor for key, tensor in tensors.items() if key != "lora_unet_conv_out.lora_up.weight"}
    save_file(lost, tmp_path / "lost.safetensors")
    (found,) = Adapter.from_pretrained(tmp_path / "lost.safetensors").findings
    assert (found.code, found.where) == ("missing_factor", "unet.conv_out")
    twice = {**tensors, "lora_unet_unet_conv_out.lora_up.weight": tensors["lora_unet_conv_out.lora_up.weight"]}
    save_file(twice, tmp_path / "twice.safetensors")
    with pytest.raises(AdapterFormatError, match="adapt the same module"):
        Adapter.from_pretrained(tmp_path / "twice.safetensors")


def test_files_of_other_things_are_refused_for_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "it.safetensors"
    save_file({"model.embed.weight": np.ones((2, 2), np.float32)}, path)
    with pytest.raises(UnsupportedAdapter, match=r"1 tensors \(model\.embed\.weight\)"):
        Adapter.from_pretrained(path)
    save_file({"base_model.model.q.lora_A.weight": np.ones((2, 2), np.float32)}, path)
    with pytest.raises(AdapterFormatError, match=r"adapter_config\.json that states their scaling"):
        Adapter.from_pretrained(path)
    path.write_bytes(b"PK\x03\x04 no safetensors")
    with pytest.raises(UnsupportedAdapter, match="a pickle"):
        Adapter.from_pretrained(path)
