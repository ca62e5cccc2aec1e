"""From config and tensors to an adapter; what is not ``scaling * B @ A`` becomes findings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hub_merge.adapter import Adapter, LoraFactors, ModuleKind, ModuleSpec, Origin
from hub_merge.errors import AdapterFormatError
from hub_merge.findings import Finding
from hub_merge.formats.names import COMPONENTS, is_unet_name
from hub_merge.formats.pairs import Note, factors_of, leftover_findings, notes_of, pair_spec
from hub_merge.formats.peft.config import MAX_CONFIG, Scalings, config_findings, parse_config, read_scalings
from hub_merge.formats.peft.files import PICKLES, adapter_files
from hub_merge.formats.peft.targets import safe_targets, target_findings
from hub_merge.formats.pickles import TorchZipStore
from hub_merge.formats.tensors import (
    HeaderStore,
    JoinedStore,
    SafetensorsStore,
    TensorInfo,
    TensorStore,
    parse_header,
)
from hub_merge.layout import COMPONENT_KEY, CONFIG_FILE

__all__ = ["adapter_from_headers", "adapter_from_tensors", "open_folder"]

WRAPPERS = re.compile(r"(?:module\.)?(?:base_model\.(?:model\.)?)?(?:module\.)?")
"""PEFT's prefix, with that of DistributedDataParallel around or inside it."""

FACTOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<side>[AB])(?:\.[^.]+)?\.weight|lora_embedding_(?P<embedding_side>[AB])(?:\.[^.]+)?)"
)
"""``….lora_A.weight``, also with the adapter's name inside, and ``….lora_embedding_A``."""

LEFTOVERS: Sequence[tuple[re.Pattern[str], str, str]] = (
    (re.compile(r"\.lora_magnitude_vector"), "dora", "DoRA magnitudes"),
    (re.compile(r"\.lora_B\.(?:[^.]+\.)?bias$"), "lora_bias", "biases of lora_B"),
    (re.compile(r"trainable_tokens|token_adapter"), "trainable_tokens", "trained token rows"),
    (
        re.compile(r"(?:^|\.)(?:embed_tokens|wte|wpe|lm_head|embed_in|shared)\.base_layer\."),
        "base_copy",
        "base weights",
    ),
    (re.compile(r"\.bias$"), "trained_weights", "trained biases"),
    (re.compile(r"\.weight$"), "trained_weights", "trained weights outside LoRA (heads, modules_to_save)"),
    (re.compile(r""), "unknown_tensors", "tensors of an unknown kind"),
)
"""What a tensor that is no factor may be; the first pattern found in its name counts."""


@dataclass(slots=True)
class Pair:
    """The tensors of one module while its key names are being sorted."""

    kind: ModuleKind
    keys: dict[str, str] = field(default_factory=dict)


def _module_name(path: str) -> str:
    """Return the module's name in the base model: without PEFT's prefix and without wrappers of compile and DDP."""
    return WRAPPERS.sub("", path.replace("_orig_mod.", ""), count=1)


def _sort_keys(keys: Iterable[str]) -> tuple[dict[str, Pair], list[str]]:
    """Return the factor keys by module, and the keys of everything else.

    Raises:
        AdapterFormatError: Two tensors claim to be the same factor.
    """
    pairs: dict[str, Pair] = {}
    others: list[str] = []
    for key in keys:
        found = FACTOR.fullmatch(key)
        if not found:
            others.append(key)
            continue
        kind: ModuleKind = "linear" if found["side"] else "embedding"
        pair = pairs.setdefault(_module_name(found["module"]), Pair(kind))
        side = found["side"] or found["embedding_side"]
        if side in pair.keys or pair.kind != kind:
            raise AdapterFormatError(
                f"Tensors {pair.keys.get(side, next(iter(pair.keys.values())))} and {key} adapt the same module.",
                remedy="Keep one adapter in a file.",
            )
        pair.keys[side] = key
    return pairs, others


def _spec(
    module: str, pair: Pair, infos: Mapping[str, TensorInfo], scalings: Scalings, note: Note
) -> ModuleSpec | Finding:
    """Return what the module is, or why it cannot be used."""
    a, b = (infos.get(pair.keys.get(side, "")) for side in "AB")
    spec = pair_spec(module, pair.kind, a, b, note)
    if isinstance(spec, Finding):
        return spec
    rank, scaling = scalings.resolve(module)
    if rank != spec.rank:
        return note(
            "rank_mismatch",
            module,
            f"the config gives rank {rank}, the tensors have rank {spec.rank}, so the scaling is unknown",
            f"r or rank_pattern to say {spec.rank}",
            "Correct the config; PEFT cannot load this adapter either.",
        )
    return replace(spec, scaling=scaling)


def adapter_from_tensors(
    config: dict[str, Any],
    store: TensorStore,
    *,
    name: str,
    origin: Origin | None = None,
    added_tokens: Mapping[int, str] | None = None,
) -> Adapter:
    """Build an adapter from its config and its tensors; what cannot be merged becomes findings.

    Raises:
        AdapterFormatError: Config or tensors contradict themselves.
    """
    note = notes_of(name)
    pairs, others = _sort_keys(store.infos)
    scalings = read_scalings(config)
    sorted_out = {module: _spec(module, pairs[module], store.infos, scalings, note) for module in sorted(pairs)}
    specs = {module: spec for module, spec in sorted_out.items() if isinstance(spec, ModuleSpec)}
    findings = [
        *config_findings(config, note),
        *(spec for spec in sorted_out.values() if isinstance(spec, Finding)),
        *leftover_findings(others, LEFTOVERS, note),
        *target_findings(config, scalings, specs, name),
    ]
    if not pairs:
        findings.append(note("no_factors", "", "the file holds no LoRA factors", "lora_A and lora_B tensors"))

    component = _component(config, store.metadata, specs)
    modules = _inside(component, specs) if component else specs

    def load(module: str) -> LoraFactors:
        spec = modules[module]
        keys = pairs[spec.local_name].keys
        return factors_of(store.read(keys["A"]), store.read(keys["B"]), spec.scaling)

    return Adapter(
        name=name,
        modules=modules,
        load=load,
        base_model=_text(config.get("base_model_name_or_path")) or None,
        base_revision=_text(config.get("revision")),
        task_type=_text(config.get("task_type")),
        target_modules=safe_targets(config, specs),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        findings=tuple(findings),
        has_values=store.has_values,
        added_tokens=added_tokens or {},
        origin=origin or Origin(),
    )


def _component(config: Mapping[str, Any], metadata: Mapping[str, str], modules: Iterable[str]) -> str:
    """Return the model of a pipeline that the modules belong to, empty for a model of its own.

    A file of ours says it; Stable Diffusion's UNet is known by its class or by the names of its layers.
    """
    if metadata.get(COMPONENT_KEY) in COMPONENTS:
        return metadata[COMPONENT_KEY]
    mapping = config.get("auto_mapping")
    is_unet = isinstance(mapping, dict) and mapping.get("base_model_class") == "UNet2DConditionModel"
    names = list(modules)
    return "unet" if is_unet or (names and all(map(is_unet_name, names))) else ""


def _inside(component: str, specs: Mapping[str, ModuleSpec]) -> dict[str, ModuleSpec]:
    """Return the specs of modules of ``component`` by their full names."""
    return {
        f"{component}.{module}": replace(spec, name=f"{component}.{module}", component=component)
        for module, spec in specs.items()
    }


def _text(value: object) -> str | None:
    """Return plain text, also for the text enumerations of PEFT, or ``None`` for anything else."""
    return str.__str__(value) if isinstance(value, str) else None


def open_folder(folder: Path, *, name: str, origin: Origin, allow_pickle: bool = False) -> Adapter:
    """Open the adapter in ``folder``; its files are mapped, not read.

    Args:
        folder: Folder with the config and the weights.
        name: Short name.
        origin: Where it came from.
        allow_pickle: Also open weights that are only there as a pickle.

    Raises:
        AdapterFormatError: A file is missing or damaged.
        UnsupportedAdapter: It is not a LoRA adapter with safetensors weights.
    """
    config = parse_config((folder / CONFIG_FILE).read_bytes())
    files = adapter_files(folder, allow_pickle=allow_pickle)
    store = JoinedStore(_store(folder / file) for file in files[1:])
    origin = replace(origin, files=files)
    return adapter_from_tensors(config, store, name=name, origin=origin, added_tokens=_added_tokens(folder))


def _store(path: Path) -> TensorStore:
    return TorchZipStore(path) if path.suffix in PICKLES else SafetensorsStore(path)


def adapter_from_headers(
    config: bytes, headers: Mapping[str, bytes], sizes: Mapping[str, int], *, name: str, origin: Origin
) -> Adapter:
    """Build an adapter from its config and the headers of its weight files; its numbers cannot be read.

    Args:
        config: Content of ``adapter_config.json``.
        headers: First bytes of each weight file: length field and header.
        sizes: Size of each weight file in bytes.
        name: Short name.
        origin: Where it came from.
    """
    stores = [HeaderStore(parse_header(head, file, sizes[file])) for file, head in headers.items()]
    return adapter_from_tensors(parse_config(config), JoinedStore(stores), name=name, origin=origin)


def _added_tokens(folder: Path) -> dict[int, str]:
    """Return the tokens that the adapter's tokenizer files add to or mark in the vocabulary, by id."""
    tokens: dict[int, str] = {}
    for file in ("tokenizer_config.json", "added_tokens.json"):
        path = folder / file
        if not path.is_file() or path.stat().st_size > 20 * MAX_CONFIG:
            continue
        try:
            content = json.loads(path.read_bytes().decode("utf-8-sig"))
            if file == "added_tokens.json":
                tokens |= {int(number): str(token) for token, number in content.items()}
            else:
                decoder = content.get("added_tokens_decoder") or {}
                tokens |= {int(number): str(token["content"]) for number, token in decoder.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AdapterFormatError(
                f"{file} of the adapter does not parse: {error!r}.", remedy="Remove or repair that file."
            ) from error
    return tokens
