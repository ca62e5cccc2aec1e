"""Files of diffusers: ``pytorch_lora_weights.safetensors``, for one or several models of a pipeline.

A key is the model (``unet``, ``transformer``, ``text_encoder``, …), the layer, and one of the endings that there have
been: ``lora_A.weight`` as in PEFT, ``lora.down.weight``, ``lora_linear_layer.down.weight``, ``to_q_lora.down.weight``
with the layer's own name in it and ``processor`` before it. Files without a model's name are of the UNet.

The scaling is ``alpha / rank`` of the layer's ``alpha`` tensor or of the LoRA config that newer files carry in their
header (``lora_adapter_metadata``), and 1 where there is neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hub_merge.adapter import Adapter, LoraFactors, Origin
from hub_merge.errors import AdapterFormatError, MergeError
from hub_merge.findings import Finding
from hub_merge.formats.kohya import FOREIGN
from hub_merge.formats.lycoris import TENSORS, Named, module_part
from hub_merge.formats.names import COMPONENTS, is_flat, is_unet_name
from hub_merge.formats.pairs import Note, Part, adapter_of_parts, grouped, leftover_findings, notes_of
from hub_merge.formats.peft.config import MAX_CONFIG, Scalings, config_findings, read_scalings
from hub_merge.formats.strict_json import parse_json
from hub_merge.formats.tensors import TensorStore
from hub_merge.formats.writing import Layout, write_factors
from hub_merge.layout import DIFFUSERS_FILE

__all__ = ["adapter_from_diffusers", "is_diffusers", "require_diffusers", "write_diffusers"]

METADATA_KEY = "lora_adapter_metadata"

ENDING = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<peft>[AB])(?:\.default)?\.weight"
    r"|\.(?:lora|lora_linear_layer)\.(?P<way>down|up)\.weight"
    r"|\.(?:processor\.)?(?P<own>to_q|to_k|to_v|to_out)_lora\.(?P<old_way>down|up)\.weight"
    rf"|\.(?P<other>{TENSORS})"
    r")"
)
SIDES = {"A": "lora_down.weight", "B": "lora_up.weight", "down": "lora_down.weight", "up": "lora_up.weight"}
IN_UNET = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
IN_TEXT_ENCODER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def is_diffusers(keys: Iterable[str]) -> bool:
    """Whether tensors of these names are LoRA layers of a pipeline's models."""
    return any(_split(key) is not None for key in keys)


def _split(key: str) -> tuple[Named, str] | None:
    found = ENDING.fullmatch(key)
    if found is None:
        return None
    first, _, local = found["layer"].partition(".")
    component, local = (first, local) if first in COMPONENTS else ("unet", found["layer"])
    what = SIDES.get(found["peft"] or found["way"] or found["old_way"], found["other"])
    if found["own"]:
        names = IN_TEXT_ENCODER if component.startswith("text_encoder") else IN_UNET
        local = f"{local}.{names[found['own']]}"
    local = local.replace(".processor.", ".")
    if first not in COMPONENTS and not is_unet_name(local):
        return None
    return Named(component, f"{component}.{local}"), what


def adapter_from_diffusers(store: TensorStore, *, name: str, origin: Origin) -> Adapter:
    """Build an adapter from the tensors of such a file; what cannot be merged becomes findings.

    Raises:
        AdapterFormatError: Its tensors or its header contradict themselves.
    """
    note = notes_of(name)
    groups, others = grouped(store.infos, _split)
    configs = _configs(store.metadata)
    scalings = {
        component: read_scalings(config, f"{component[:40]!r} of {METADATA_KEY}")
        for component, config in configs.items()
    }
    for component, stated in scalings.items():
        stated.require_cheap([module.local_name for module in groups if module.component == component])
    parts = [
        _configured(part, scalings.get(module.component), "alpha" in keys, note)
        for module, keys in groups.items()
        for part in [module_part(module, keys, store, note)]
    ]
    findings = [
        *leftover_findings(others, FOREIGN, note),
        *(found for config in configs.values() for found in config_findings(config, note)),
    ]
    base = next((text for config in configs.values() if (text := config.get("base_model_name_or_path"))), None)
    base = base if isinstance(base, str) else None
    return adapter_of_parts(parts, findings, store, name=name, origin=origin, format="diffusers", base_model=base)


def _configs(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the LoRA config of each component that the header carries, as ``{"unet.r": 4, …}``."""
    if METADATA_KEY not in metadata:
        return {}
    content = parse_json(metadata[METADATA_KEY].encode(), METADATA_KEY, most=MAX_CONFIG)
    if not isinstance(content, dict):
        raise AdapterFormatError(f"{METADATA_KEY} is not a JSON object.", remedy="Ask its author to save it again.")
    pairs = [(*key.split(".", 1), value) for key, value in content.items() if "." in key]
    configs: dict[str, dict[str, Any]] = {}
    for component, key, value in pairs:
        configs.setdefault(component, {})[key] = value
    return configs


def _configured(part: Part | Finding, scalings: Scalings | None, has_alpha: bool, note: Note) -> Part | Finding:
    """Return the part with the scaling that the header's config gives it."""
    if isinstance(part, Finding) or scalings is None:
        return part
    if has_alpha:
        return note(
            "two_scalings",
            part.spec.name,
            "the file states the scaling twice, as alpha and in its header",
            "one of them",
        )
    rank, scaling = scalings.resolve(part.spec.local_name)
    if rank != part.spec.rank:
        return note(
            "rank_mismatch",
            part.spec.name,
            f"the header gives rank {rank}, the tensors have rank {part.spec.rank}, so the scaling is unknown",
            f"r or rank_pattern to say {part.spec.rank}",
        )

    def load() -> LoraFactors:
        return replace(part.load(), scaling=scaling)

    return Part(replace(part.spec, scaling=scaling), load)


def write_diffusers(
    adapter: Adapter,
    folder: Path,
    *,
    base_model: str | None,
    dtype: str,
    rank: int | None,
    progress: Callable[[str], None],
) -> None:
    """Write ``adapter`` to the existing, empty ``folder`` as diffusers does now: PEFT's endings behind the model.

    The scaling is in B: without alphas every version of diffusers reads that as a scaling of 1. The arguments are those
    of ``peft.write_folder``, but this format names no base; ``rank`` is a number, see ``FileFormat``.

    Raises:
        MergeError: A module belongs to no model of a pipeline.
        ProofFailed: A factor holds NaN or infinity, or does in ``dtype``.
    """
    require_diffusers(adapter)
    layout = Layout(lambda spec: (f"{spec.name}.lora_A.weight", f"{spec.name}.lora_B.weight"))
    write_factors(folder / DIFFUSERS_FILE, adapter, layout, dtype=dtype, rank=rank, progress=progress)


def require_diffusers(adapter: Adapter) -> None:
    """Raise ``MergeError`` unless every module belongs to a model of a pipeline."""
    first = next((module for module, spec in adapter.modules.items() if not spec.component), None)
    if first is not None:
        raise MergeError(
            f"{first} belongs to no model of a diffusers pipeline.",
            remedy="Write --format kohya." if is_flat(first) else "Write --format peft.",
        )
