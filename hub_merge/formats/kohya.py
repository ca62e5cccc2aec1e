"""Files of kohya's sd-scripts, and of LyCORIS in the same manner: one safetensors file without a config.

Keys are ``lora_unet_<name with underscores>.lora_down.weight``, ``….lora_up.weight`` and ``….alpha`` (``lora_te_`` and
``lora_te1_``/``lora_te2_`` for text encoders; ``lycoris_`` for LyCORIS alone). Some programs write ``_lora_down`` for
``.lora_down``. The scaling is ``alpha / rank``, and 1 without alpha.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hub_merge.adapter import Adapter, Origin
from hub_merge.errors import MergeError
from hub_merge.findings import Finding
from hub_merge.formats.lycoris import TENSORS, Named, module_part
from hub_merge.formats.names import flat_name, is_flat, split_flat
from hub_merge.formats.pairs import adapter_of_parts, grouped, leftover_findings, notes_of
from hub_merge.formats.tensors import TensorStore
from hub_merge.formats.writing import Layout, write_factors
from hub_merge.layout import KOHYA_FILE

__all__ = ["FOREIGN", "adapter_from_kohya", "is_kohya", "require_kohya", "write_kohya"]

PREFIX = re.compile(r"(?:lora_(?:unet|te[123]?)|lycoris)_")
KEY = re.compile(rf"(?P<module>(?:lora_(?:unet|te[123]?)|lycoris)_[^.]+?)[._](?P<what>{TENSORS})")

FOREIGN = (
    (re.compile(r"dora_scale|lora_magnitude_vector"), "dora", "DoRA magnitudes"),
    (re.compile(r"\.(?:diff|diff_b|w_norm|b_norm)$|set_weight"), "full_weights", "whole weights or norms, not factors"),
    (re.compile(r"\.(?:[abc][12](?:\.weight)?|bm[12]\.weight)$"), "glora", "GLoRA"),
    (re.compile(r"\.on_input$|\.weight$"), "ia3", "(IA)³ scales or other trained weights"),
    (re.compile(r"oft_(?:blocks|diag)|\.rescale$"), "oft", "OFT rotations"),
    (re.compile(r"bundle_emb|emb_params|string_to_param"), "trainable_tokens", "trained tokens"),
    (re.compile(r"\.bias"), "trained_weights", "trained biases"),
    (re.compile(r""), "unknown_tensors", "tensors of an unknown kind"),
)
"""What a tensor of these files that is no factor may be; the first pattern found in its name counts."""

HEADER_TEXTS = ("ss_base_model_version", "ss_sd_model_name")


def is_kohya(keys: Iterable[str]) -> bool:
    """Whether tensors of these names are a file of kohya's scripts or of LyCORIS."""
    return any(PREFIX.match(key) for key in keys)


def _split(key: str) -> tuple[Named, str] | None:
    found = KEY.fullmatch(key)
    return (Named(*split_flat(found["module"])), found["what"]) if found else None


def adapter_from_kohya(store: TensorStore, *, name: str, origin: Origin) -> Adapter:
    """Build an adapter from the tensors of such a file; what cannot be merged becomes findings.

    Raises:
        AdapterFormatError: Its tensors contradict each other.
    """
    note = notes_of(name)
    groups, others = grouped(store.infos, _split)
    parts = [module_part(module, keys, store, note) for module, keys in groups.items()]
    findings = [*leftover_findings(others, FOREIGN, note), *_name_findings(groups, name)]
    base = next((text for key in HEADER_TEXTS if (text := store.metadata.get(key))), None)
    return adapter_of_parts(parts, findings, store, name=name, origin=origin, format="kohya", base_model=base)


def _name_findings(modules: Iterable[Named], name: str) -> Iterator[Finding]:
    """Tell of names that stayed flat: they merge with their like, but only this format can hold the result."""
    if flat := [module.name for module in modules if is_flat(module.name)]:
        yield Finding(
            "caution",
            "flat_names",
            name,
            flat[0],
            f"{len(flat)} modules are not in the vocabulary of Stable Diffusion, so where the dots were is unknown",
            "",
            "They merge with adapters of the same names; write the result with --format kohya.",
        )


def write_kohya(
    adapter: Adapter,
    folder: Path,
    *,
    base_model: str | None,
    dtype: str,
    rank: int | None,
    progress: Callable[[str], None],
) -> None:
    """Write ``adapter`` to the existing, empty ``folder`` as kohya's scripts do, with alpha equal to the rank.

    The arguments are those of ``peft.write_folder``; ``rank`` is a number, see ``FileFormat``.

    Raises:
        MergeError: A module has no name in this format.
        ProofFailed: A factor holds NaN or infinity, or does in ``dtype``.
    """
    flat = require_kohya(adapter)
    layout = Layout(
        lambda spec: (f"{flat[spec.name]}.lora_down.weight", f"{flat[spec.name]}.lora_up.weight"),
        alpha=lambda spec: f"{flat[spec.name]}.alpha",
    )
    texts = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    metadata = {**texts, "ss_sd_model_name": base_model} if base_model else texts
    path = folder / KOHYA_FILE
    write_factors(path, adapter, layout, dtype=dtype, rank=rank, progress=progress, metadata=metadata)


def require_kohya(adapter: Adapter) -> dict[str, str]:
    """Return kohya's name of each module.

    Raises:
        MergeError: A module has none from which its own could be told again.
    """
    components = {spec.component for spec in adapter.modules.values()}
    names = {}
    for module, spec in adapter.modules.items():
        flat = module if is_flat(module) else flat_name(spec.component, spec.local_name, components)
        if flat is None or split_flat(flat)[1] != module:
            raise MergeError(
                f"{module} has no name in kohya's format from which it could be told again.",
                remedy="Write --format diffusers." if spec.component else "Write --format peft.",
            )
        names[module] = flat
    return names
