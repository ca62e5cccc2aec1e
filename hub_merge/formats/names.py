"""Names of modules in diffusion pipelines: from kohya's flat names to dotted ones, and back.

A flat name has underscores where a dotted one has dots, and dotted names contain underscores themselves, so a flat name
alone does not tell where the dots were. It is therefore compared with every name that a Stable Diffusion UNet or a CLIP
text encoder can have (``down_blocks.#.attentions.#.…``, # a number). One that matches is that module; one that matches
nothing stays as it is. Nothing is guessed.

Modules of the original Stable Diffusion layout (``input_blocks``, ``middle_block``, ``output_blocks``), which SDXL
adapters use, are the same modules of the UNet under other names. Each of its levels has two residual blocks and then
one change of size, in SD 1.x, 2.x and SDXL alike, which fixes the numbers: ``input_blocks.n`` is place ``(n - 1) % 3``
of level ``(n - 1) // 3``, ``output_blocks.n`` place ``n % 3`` of level ``n // 3``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

__all__ = ["COMPONENTS", "flat_name", "is_flat", "is_unet_name", "kernel_of", "split_flat"]

COMPONENTS = frozenset(
    "unet transformer transformer_2 text_encoder text_encoder_2 text_encoder_3 prior diffusion_model".split()
)
"""Models of a pipeline, as diffusers (and ComfyUI, ``diffusion_model``) call them."""

FLAT_PREFIXES: Mapping[str, str] = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
FLAT = re.compile(r"(?:lora_(?:unet|te[123]?)|lycoris)_[^.]+")

ATTENTION = (
    "proj_in",
    "proj_out",
    *(f"transformer_blocks.#.{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v", "to_out.0")),
    "transformer_blocks.#.ff.net.0.proj",
    "transformer_blocks.#.ff.net.2",
)
RESIDUAL = ("conv1", "conv2", "conv_shortcut", "time_emb_proj")
ORIGINAL_RESIDUAL = {
    "in_layers.2": "conv1",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "emb_layers.1": "time_emb_proj",
}

UNET = (
    *("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"),
    *("add_embedding.linear_1", "add_embedding.linear_2"),
    *(f"{level}.attentions.#.{end}" for level in ("down_blocks.#", "mid_block", "up_blocks.#") for end in ATTENTION),
    *(f"{level}.resnets.#.{end}" for level in ("down_blocks.#", "mid_block", "up_blocks.#") for end in RESIDUAL),
    "down_blocks.#.downsamplers.0.conv",
    "up_blocks.#.upsamplers.0.conv",
)
"""Every layer of a ``UNet2DConditionModel`` of Stable Diffusion that holds a matrix."""

ORIGINAL: Mapping[str, str] = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.#.0.op": "down_blocks.{level}.downsamplers.0.conv",
    "output_blocks.#.1.conv": "up_blocks.{level}.upsamplers.0.conv",
    "output_blocks.#.2.conv": "up_blocks.{level}.upsamplers.0.conv",
    **{f"input_blocks.#.1.{end}": f"down_blocks.{{level}}.attentions.{{place}}.{end}" for end in ATTENTION},
    **{f"output_blocks.#.1.{end}": f"up_blocks.{{level}}.attentions.{{place}}.{end}" for end in ATTENTION},
    **{f"middle_block.1.{end}": f"mid_block.attentions.0.{end}" for end in ATTENTION},
    **{
        f"{side}_blocks.#.0.{old}": f"{way}_blocks.{{level}}.resnets.{{place}}.{new}"
        for side, way in (("input", "down"), ("output", "up"))
        for old, new in ORIGINAL_RESIDUAL.items()
    },
    **{
        f"middle_block.{number}.{old}": f"mid_block.resnets.{number // 2}.{new}"
        for number in (0, 2)
        for old, new in ORIGINAL_RESIDUAL.items()
    },
}
"""The same in the original layout, and what each is called in diffusers."""

CLIP = (
    *(f"text_model.encoder.layers.#.self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
    *("text_model.encoder.layers.#.mlp.fc1", "text_model.encoder.layers.#.mlp.fc2", "text_projection"),
)

UNET_STARTS = frozenset(name.partition(".")[0] for name in UNET)

THREE_BY_THREE = re.compile(r"(?:.+\.)?(?:conv1|conv2|conv_in|conv_out|(?:down|up)samplers\.0\.conv)")
ONE_BY_ONE = re.compile(r".+\.conv_shortcut")


def _pattern(template: str, dot: str) -> str:
    return re.escape(template.replace(".", dot)).replace(r"\#", r"(\d{1,3})")


@cache
def _flat_patterns(component: str) -> tuple[tuple[re.Pattern[str], str, str], ...]:
    """Return ``(flat name, template, dotted name)`` of every layer that the component can have."""
    own = UNET if component == "unet" else CLIP
    original = ORIGINAL if component == "unet" else {}
    templates = {**{name: name for name in own}, **original}
    return tuple((re.compile(_pattern(name, "_")), name, dotted) for name, dotted in templates.items())


def _dotted(flat: str, component: str) -> str | None:
    """Return the dotted name of a layer inside ``component``, ``None`` if it is not known to have such a layer."""
    for pattern, template, dotted in _flat_patterns(component):
        if found := pattern.fullmatch(flat):
            return _filled(template, dotted, [int(number) for number in found.groups()])
    return None


def _filled(template: str, dotted: str, numbers: list[int]) -> str:
    if "{level}" in dotted:  # the original layout: one number says level and place
        first, *numbers = numbers
        position = first - 1 if template.startswith("input") else first
        dotted = dotted.format(level=position // 3, place=position % 3)
    for number in numbers:
        dotted = dotted.replace("#", str(number), 1)
    return dotted


def split_flat(flat: str) -> tuple[str, str]:
    """Return component and full dotted name of one of kohya's modules; ``("", flat)`` if its name is not known.

    A component that is named twice, as in ``lora_unet_unet_down_blocks_…``, counts once.
    """
    for prefix, component in FLAT_PREFIXES.items():
        if not flat.startswith(prefix):
            continue
        rest = flat.removeprefix(prefix)
        local = _dotted(rest, component) or _dotted(rest.removeprefix(f"{component}_"), component)
        return (component, f"{component}.{local}") if local else ("", flat)
    return "", flat


def is_flat(module: str) -> bool:
    """Whether ``module`` is one of kohya's flat names that was left as it is."""
    return FLAT.fullmatch(module) is not None


def flat_name(component: str, local_name: str, components: Iterable[str]) -> str | None:
    """Return kohya's name of a module, ``None`` if kohya has none for its component.

    Args:
        component: The module's component.
        local_name: Dotted name inside it.
        components: All components of the file: a second text encoder changes the first one's prefix.
    """
    prefixes = [prefix for prefix, named in FLAT_PREFIXES.items() if named == component]
    if not prefixes:
        return None
    numbered = not {"text_encoder_2", "text_encoder_3"}.isdisjoint(components)
    return prefixes[-1 if numbered else 0] + local_name.replace(".", "_")


@cache
def _unet_pattern() -> re.Pattern[str]:
    return re.compile("|".join(_pattern(name, ".") for name in UNET))


def is_unet_name(name: str) -> bool:
    """Whether ``name`` is that of a layer of Stable Diffusion's UNet in diffusers."""
    return name.partition(".")[0] in UNET_STARTS and _unet_pattern().fullmatch(name) is not None


def kernel_of(component: str, local_name: str) -> tuple[int, ...] | None:
    """Return the kernel of a UNet's layer where its name tells; ``None`` where it may be linear or of any size."""
    if component != "unet":
        return None
    if THREE_BY_THREE.fullmatch(local_name):
        return (3, 3)
    return (1, 1) if ONE_BY_ONE.fullmatch(local_name) else None
