"""From config and tensors to an adapter; what is not ``scaling * B @ A`` becomes findings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hub_merge.adapter import Adapter, Array, ExtraSpec, LoraFactors, ModuleKind, ModuleSpec, Origin
from hub_merge.budgets import budget
from hub_merge.choice import PICKLES
from hub_merge.errors import AdapterFormatError
from hub_merge.findings import Finding
from hub_merge.formats.names import COMPONENTS, is_unet_name
from hub_merge.formats.pairs import Note, factors_of, leftover_findings, notes_of, pair_spec
from hub_merge.formats.peft.config import MAX_CONFIG, Scalings, brief, config_findings, parse_config, read_scalings
from hub_merge.formats.peft.experts import (
    expert,
    expert_name,
    expert_number,
    of_parameters,
    path_of,
    target_parameters,
)
from hub_merge.formats.peft.extras import extra_findings, read_extra
from hub_merge.formats.peft.files import adapter_files, contained
from hub_merge.formats.peft.targets import safe_targets, target_findings
from hub_merge.formats.strict_json import parse_json, read_bounded
from hub_merge.formats.tensors import (
    MAX_TENSORS,
    HeaderStore,
    JoinedStore,
    SafetensorsStore,
    TensorInfo,
    TensorStore,
    parse_header,
)
from hub_merge.layout import COMPONENT_KEY, CONFIG_FILE, TOKENIZER_FILES
from hub_merge.parallel import default_workers

__all__ = ["adapter_from_headers", "adapter_from_tensors", "open_folder", "read_tokens"]

MAX_TOKENS = 4_000_000
"""Bytes of the longest file of a tokenizer that is read; Gemma's has 1.2 million."""

WRAPPERS = re.compile(r"(?:module\.)?(?:base_model\.(?:model\.)?)?(?:module\.)?")
"""PEFT's prefix, with that of DistributedDataParallel around or inside it."""

HEADS = ("lm_head", "embed_out")
VOCABULARY = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|embed_in|word_embeddings|shared|lm_head|embed_out)"
    r"(?:\.base_layer|\.modules_to_save(?:\.\w+)?)?\.weight$"
)
"""Whole tensors with a row for each token."""

TASK_TYPE = re.compile(r"[A-Z][A-Z0-9_]{0,39}")
REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,99}(?:/[\w.-]{1,99}){0,3}")

FACTOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<side>[AB])(?:\.[^.]+)?\.weight|lora_embedding_(?P<embedding_side>[AB])(?:\.[^.]+)?)"
)
"""``….lora_A.weight``, also with the adapter's name inside, and ``….lora_embedding_A``."""

MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(?:\.[^.]+)*")

BASE_COPY = re.compile(r"(?:^|\.)(?:embed_tokens|wte|wpe|lm_head|embed_in|shared)\.base_layer\.")
"""What ``save_embedding_layers`` puts beside factors of an embedding."""

LEFTOVERS: Sequence[tuple[re.Pattern[str], str, str]] = (
    (re.compile(r"\.lora_magnitude_vector"), "dora", "DoRA magnitudes"),
    (re.compile(r"\.lora_B\.(?:[^.]+\.)?bias$"), "lora_bias", "biases of lora_B"),
    (re.compile(r"trainable_tokens|token_adapter"), "trainable_tokens", "trained token rows"),
    (BASE_COPY, "base_copy", "base weights"),
    (re.compile(r""), "unknown_tensors", "tensors of an unknown kind"),
)
"""What a tensor that is neither factor nor extra may be; the first pattern found in its name counts."""


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
    if pair.kind == "expert" and spec.rank % rank == 0:
        spec = replace(spec, rank=rank)
    if rank != spec.rank:
        return note(
            "rank_mismatch",
            module,
            f"the config gives rank {rank}, the tensors have rank {spec.rank}, so the scaling is unknown",
            f"r or rank_pattern to say {spec.rank}",
            "Correct the config; PEFT cannot load this adapter either.",
        )
    return replace(spec, scaling=scaling)


def _require_expandable(specs: Iterable[ModuleSpec | Finding], pairs: Mapping[str, Pair], store: TensorStore) -> None:
    """Raise ``AdapterFormatError`` if the experts are more than a file can have tensors: two small ones hold many."""
    experts = (spec for spec in specs if isinstance(spec, ModuleSpec) and spec.kind == "expert")
    count = sum(store.infos[pairs[spec.name].keys["A"]].shape[0] // spec.rank for spec in experts)
    if count > MAX_TENSORS:
        raise AdapterFormatError(
            f"The file holds factors of {count} experts, more than {MAX_TENSORS}.",
            remedy="Ask its author which rank it was trained with, and correct r in the config.",
        )


def _expert_specs(path: str, spec: ModuleSpec, rows: int) -> dict[str, ModuleSpec]:
    """Return the modules of the experts whose factors share ``rows`` rows of A."""
    names = [expert_name(path, number) for number in range(rows // spec.rank)]
    return {name: replace(spec, name=name) for name in names}


def _parameter_findings(
    config: Mapping[str, Any], pairs: Mapping[str, Pair], note: Callable[..., Finding]
) -> Iterator[Finding]:
    """Tell of targeted parameters whose factors are not understood."""
    targets = config.get("target_parameters")
    found = [path for path, pair in pairs.items() if pair.kind == "expert"]
    missing = [target for target in target_parameters(config) if not any(of_parameters(p, [target]) for p in found)]
    if not targets or (found and not missing and not config.get("rank_pattern") and not config.get("alpha_pattern")):
        return
    why = "rank_pattern or alpha_pattern beside it does not say which parameter has which rank"
    if not found or missing:
        why = "the file has no factors of them where PEFT 0.21 puts them"
    yield note(
        "target_parameters",
        "target_parameters",
        f"target_parameters is {brief(targets)}",
        f"no target_parameters: {why}",
    )


def _extras(
    keys: Iterable[str], infos: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> tuple[dict[str, ExtraSpec], dict[str, str]]:
    """Return the extras by name, and the key of each in the file.

    Raises:
        AdapterFormatError: Two tensors claim to be the same parameter.
    """
    specs: dict[str, ExtraSpec] = {}
    homes: dict[str, str] = {}
    for key in keys:
        if BASE_COPY.search(key) or (spec := read_extra(_module_name(key), infos[key], config)) is None:
            continue
        if spec.name in specs:
            raise AdapterFormatError(
                f"Tensors {homes[spec.name]} and {key} are the same parameter.", remedy="Keep one adapter in a file."
            )
        specs[spec.name], homes[spec.name] = spec, key
    return specs, homes


def _magnitudes(keys: Iterable[str], store: TensorStore) -> Callable[[str], Array]:
    """Return what reads the DoRA magnitudes of a module."""
    found = ((MAGNITUDE.fullmatch(_module_name(key)), key) for key in keys)
    homes = {match["module"]: key for match, key in found if match}

    def load(module: str) -> Array:
        if module not in homes:
            raise AdapterFormatError("The DoRA magnitudes are missing.", remedy="Ask its author to upload it again.")
        return store.read(homes[module])

    return load


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
    parameters = target_parameters(config)
    for path, pair in pairs.items():
        if of_parameters(path, parameters):
            pair.kind = "expert"
    scalings = read_scalings(config)
    scalings.require_cheap(pairs)
    sorted_out = {module: _spec(module, pairs[module], store.infos, scalings, note) for module in sorted(pairs)}
    _require_expandable(sorted_out.values(), pairs, store)
    plain = {path: spec for path, spec in sorted_out.items() if isinstance(spec, ModuleSpec) and spec.kind != "expert"}
    specs = dict(plain)
    for path, spec in sorted_out.items():
        if isinstance(spec, ModuleSpec) and spec.kind == "expert":
            specs |= _expert_specs(path, spec, store.infos[pairs[path].keys["A"]].shape[0])
    extras, homes = _extras(others, store.infos, config)
    known = {"trainable_token_indices"} if any(spec.kind == "tokens" for spec in extras.values()) else set()
    findings = [
        *_told_once(
            (found for found in config_findings(config, note) if found.where not in known),
            leftover_findings([key for key in others if key not in homes.values()], LEFTOVERS, note),
        ),
        *(spec for spec in sorted_out.values() if isinstance(spec, Finding)),
        *extra_findings({homes[extra]: spec for extra, spec in extras.items()}, note),
        *_parameter_findings(config, pairs, note),
        *target_findings(config, scalings, plain, name),
        *_task_findings(config, name),
    ]
    if not pairs:
        findings.append(note("no_factors", "", "the file holds no LoRA factors", "lora_A and lora_B tensors"))

    def read(path: str) -> tuple[Array, Array]:
        keys = pairs[path].keys
        return store.read(keys["A"]), store.read(keys["B"])

    read_experts = lru_cache(maxsize=2 * default_workers())(read)  # those of one parameter follow each other

    component = _component(config, store.metadata, specs)
    modules = _inside(component, specs) if component else specs

    def load(module: str) -> LoraFactors:
        spec = modules[module]
        if spec.kind != "expert":
            return factors_of(*read(spec.local_name), spec.scaling)
        A, B = read_experts(path_of(specs[spec.local_name]))
        return LoraFactors(*expert(A, B, expert_number(spec), spec.rank), spec.scaling)

    return Adapter(
        name=name,
        modules=modules,
        load=load,
        base_model=_text(config.get("base_model_name_or_path")) or None,
        base_revision=_text_like(REVISION, config.get("revision")),
        task_type=_text_like(TASK_TYPE, config.get("task_type")),
        target_modules=safe_targets(config, plain),
        target_parameters=parameters,
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        findings=tuple(findings),
        has_values=store.has_values,
        added_tokens=added_tokens or {},
        vocabulary=_vocabulary(specs, store.infos),
        extras=extras,
        load_extra=lambda extra: store.read(homes[extra]),
        load_magnitude=_magnitudes(others, store) if config.get("use_dora") else None,
        origin=origin or Origin(),
    )


def _told_once(stated: Iterable[Finding], leftovers: Iterable[Finding]) -> Iterator[Finding]:
    """Yield what the config and what the tensors show; a field and the tensors that it stands for are one finding."""
    left = {found.code: found for found in leftovers}
    for found in stated:
        tensors = left.pop(found.code, None)
        yield _joined(found, tensors) if tensors else found
    yield from left.values()


def _joined(stated: Finding, tensors: Finding) -> Finding:
    """Return a finding about a field with its tensors named; DoRA can be made plain where its magnitudes are there."""
    where, seen = f"{stated.where}, {tensors.where}", f"{stated.seen}, and {tensors.seen}"
    if stated.code != "dora":
        return replace(stated, where=where, seen=seen)
    remedy = "Let merge, compress or convert form its deltas from the base's weights."
    return replace(stated, where=where, seen=seen, remedy=remedy, overrule="--materialize")


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


def _vocabulary(specs: Mapping[str, ModuleSpec], infos: Mapping[str, TensorInfo]) -> int | None:
    """Return the rows of the vocabulary, as far as the shapes of the file tell them and agree."""
    sizes = {spec.shape[1] for spec in specs.values() if spec.kind == "embedding"}
    sizes |= {spec.shape[0] for name, spec in specs.items() if name.rpartition(".")[2] in HEADS}
    sizes |= {info.shape[0] for key, info in infos.items() if len(info.shape) == 2 and VOCABULARY.search(key)}
    return sizes.pop() if len(sizes) == 1 else None


def _text(value: object) -> str | None:
    """Return plain text, also for the text enumerations of PEFT, or ``None`` for anything else."""
    return str.__str__(value) if isinstance(value, str) else None


def _text_like(form: re.Pattern[str], value: object) -> str | None:
    text = _text(value)
    return text if text and form.fullmatch(text) else None


def _task_findings(config: Mapping[str, Any], name: str) -> Iterator[Finding]:
    if config.get("task_type") and _text_like(TASK_TYPE, config["task_type"]) is None:
        seen, expected = "task_type is not the name of a task", "one of PEFT's, such as CAUSAL_LM"
        yield Finding("caution", "task_unknown", name, "task_type", seen, expected, "It is left out.")


def open_folder(folder: Path, *, name: str, origin: Origin, allow_pickle: bool = False) -> Adapter:
    """Open the adapter in ``folder``; its weights are read when they are asked for.

    Args:
        folder: Folder with the config and the weights.
        name: Short name.
        origin: Where it came from.
        allow_pickle: Also open weights that are only there as a pickle.

    Raises:
        AdapterFormatError: A file is missing or damaged.
        BudgetExceeded: The weights are larger than a limit allows.
        UnsupportedAdapter: It is not a LoRA adapter with safetensors weights.
    """
    config = parse_config(read_bounded(contained(folder, CONFIG_FILE), most=MAX_CONFIG))
    files = adapter_files(folder, allow_pickle=allow_pickle)
    paths = [folder / file for file in files[1:]]
    budget().require_bytes(sum(path.stat().st_size for path in paths), name)
    store = JoinedStore(map(_store, paths))
    origin = replace(origin, files=files)
    return adapter_from_tensors(config, store, name=name, origin=origin, added_tokens=_added_tokens(folder))


def _store(path: Path) -> TensorStore:
    if path.suffix not in PICKLES:
        return SafetensorsStore(path)
    from hub_merge.formats.pickles import TorchZipStore  # rarely needed, and slow to import

    return TorchZipStore(path)


def adapter_from_headers(
    config: bytes,
    headers: Mapping[str, bytes],
    sizes: Mapping[str, int],
    *,
    name: str,
    origin: Origin,
    tokens: Mapping[str, bytes] = MappingProxyType({}),
) -> Adapter:
    """Build an adapter from its config and the headers of its weight files; its numbers cannot be read.

    Args:
        config: Content of ``adapter_config.json``.
        headers: First bytes of each weight file: length field and header.
        sizes: Size of each weight file in bytes.
        name: Short name.
        origin: Where it came from.
        tokens: Content of tokenizer files by name.
    """
    stores = [HeaderStore(parse_header(head, file, sizes[file])) for file, head in headers.items()]
    added = read_tokens(tokens)
    return adapter_from_tensors(parse_config(config), JoinedStore(stores), name=name, origin=origin, added_tokens=added)


def _added_tokens(folder: Path) -> dict[int, str]:
    """Return the tokens that the adapter's tokenizer files add to or mark in the vocabulary, by id."""
    present = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    return read_tokens({name: read_bounded(contained(folder, name), most=MAX_TOKENS) for name in present})


def read_tokens(files: Mapping[str, bytes]) -> dict[int, str]:
    """Return the tokens that tokenizer files, by name, add to or mark in the vocabulary, by id.

    Raises:
        AdapterFormatError: One of them does not parse, or they contradict each other.
    """
    tokens: dict[int, str] = {}
    for name, text in files.items():
        for number, token in _named_tokens(name, text).items():
            if tokens.setdefault(number, token) != token:
                raise AdapterFormatError(
                    f"Token {number} of the adapter is {tokens[number]!r} in one of its files and {token!r} in {name}.",
                    remedy="Ask its author to repair the tokenizer.",
                )
    return tokens


def _named_tokens(name: str, text: bytes) -> dict[int, str]:
    content = parse_json(text, name, most=MAX_TOKENS)
    try:
        if name == "added_tokens.json":
            return {int(number): str(token) for token, number in content.items()}
        decoder = content.get("added_tokens_decoder") or {}
        return {int(number): str(token["content"]) for number, token in decoder.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise AdapterFormatError(
            f"{name} of the adapter names no tokens: {repr(error)[:200]}.", remedy="Remove or repair that file."
        ) from error
