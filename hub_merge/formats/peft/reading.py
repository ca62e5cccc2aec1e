"""From config and tensors to an adapter; what is not ``scaling * B @ A`` becomes findings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hub_merge.adapter import Adapter, Array, ExtraSpec, LoraFactors, ModuleKind, ModuleSpec, Origin
from hub_merge.errors import AdapterFormatError
from hub_merge.findings import Finding
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
from hub_merge.formats.peft.files import adapter_files
from hub_merge.formats.peft.targets import safe_targets, target_findings
from hub_merge.formats.tensors import (
    HeaderStore,
    JoinedStore,
    SafetensorsStore,
    TensorInfo,
    TensorStore,
    parse_header,
    widest,
)
from hub_merge.layout import CONFIG_FILE
from hub_merge.parallel import default_workers

__all__ = ["adapter_from_headers", "adapter_from_tensors", "open_folder"]

WRAPPERS = re.compile(r"(?:module\.)?(?:base_model\.(?:model\.)?)?(?:module\.)?")
"""PEFT's prefix, with that of DistributedDataParallel around or inside it."""

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
    module: str, pair: Pair, infos: Mapping[str, TensorInfo], scalings: Scalings, note: Callable[..., Finding]
) -> ModuleSpec | Finding:
    """Return what the module is, or why it cannot be used."""
    a, b = (infos.get(pair.keys.get(side, "")) for side in "AB")
    if a is None or b is None:
        missing = "lora_A" if a is None else "lora_B"
        return note("missing_factor", module, f"{missing} is missing", "both factors", "Ask its author to upload it.")
    if not (a.is_float and b.is_float):
        return note("factor_dtype", module, f"factors are {a.dtype} and {b.dtype}", "floating point")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        return note(
            "factor_shape", module, f"A {list(a.shape)} and B {list(b.shape)}", "A [rank, in] and B [out, rank]"
        )
    rank, scaling = scalings.resolve(module)
    if pair.kind == "expert" and a.shape[0] % rank == 0:
        a, b = replace(a, shape=(rank, a.shape[1])), replace(b, shape=(b.shape[0], rank))
    if rank != a.shape[0]:
        return note(
            "rank_mismatch",
            module,
            f"the config gives rank {rank}, the tensors have rank {a.shape[0]}, so the scaling is unknown",
            f"r or rank_pattern to say {a.shape[0]}",
            "Correct the config; PEFT cannot load this adapter either.",
        )
    dtype = a.dtype if a.dtype == b.dtype else widest((a.dtype, b.dtype))
    return ModuleSpec(module, pair.kind, (b.shape[0], a.shape[1]), rank, scaling, dtype)


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


def _leftover_findings(keys: Sequence[str], note: Callable[..., Finding]) -> Iterator[Finding]:
    groups: dict[tuple[str, str], list[str]] = {}
    for key in keys:
        code, what = next((code, what) for pattern, code, what in LEFTOVERS if pattern.search(key))
        groups.setdefault((code, what), []).append(key)
    for (code, what), names in groups.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        allowed = code == "base_copy"
        yield note(
            code,
            shown,
            f"the file also holds {len(names)} tensors of {what}",
            "LoRA factors only",
            "They are copies of the base unless its vocabulary was resized." if allowed else "",
            overrule="--allow base_copy" if allowed else None,
        )


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

    def note(
        code: str, where: str, seen: str, expected: str = "", remedy: str = "", overrule: str | None = None
    ) -> Finding:
        return Finding("problem", code, name, where, seen, expected, remedy or "Leave this adapter out.", overrule)

    pairs, others = _sort_keys(store.infos)
    parameters = target_parameters(config)
    for path, pair in pairs.items():
        if of_parameters(path, parameters):
            pair.kind = "expert"
    scalings = read_scalings(config)
    sorted_out = {module: _spec(module, pairs[module], store.infos, scalings, note) for module in sorted(pairs)}
    plain = {path: spec for path, spec in sorted_out.items() if isinstance(spec, ModuleSpec) and spec.kind != "expert"}
    specs = dict(plain)
    for path, spec in sorted_out.items():
        if isinstance(spec, ModuleSpec) and spec.kind == "expert":
            specs |= _expert_specs(path, spec, store.infos[pairs[path].keys["A"]].shape[0])
    extras, homes = _extras(others, store.infos, config)
    known = {"trainable_token_indices"} if any(spec.kind == "tokens" for spec in extras.values()) else set()
    findings = [
        *(found for found in config_findings(config, note) if found.where not in known),
        *(spec for spec in sorted_out.values() if isinstance(spec, Finding)),
        *extra_findings({homes[extra]: spec for extra, spec in extras.items()}, note),
        *_leftover_findings([key for key in others if key not in homes.values()], note),
        *_parameter_findings(config, pairs, note),
        *target_findings(config, scalings, plain, name),
    ]
    if not pairs:
        findings.append(note("no_factors", "", "the file holds no LoRA factors", "lora_A and lora_B tensors"))

    def read(path: str) -> tuple[Array, Array]:
        keys = pairs[path].keys
        return store.read(keys["A"]), store.read(keys["B"])

    read_experts = lru_cache(maxsize=2 * default_workers())(read)  # those of one parameter follow each other

    def load(module: str) -> LoraFactors:
        spec = specs[module]
        if spec.kind != "expert":
            return LoraFactors(*read(module), spec.scaling)
        A, B = read_experts(path_of(spec))
        return LoraFactors(*expert(A, B, expert_number(spec), spec.rank), spec.scaling)

    return Adapter(
        name=name,
        modules=specs,
        load=load,
        base_model=_text(config.get("base_model_name_or_path")) or None,
        base_revision=_text(config.get("revision")),
        task_type=_text(config.get("task_type")),
        target_modules=safe_targets(config, plain),
        target_parameters=parameters,
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        findings=tuple(findings),
        has_values=store.has_values,
        added_tokens=added_tokens or {},
        extras=extras,
        load_extra=lambda extra: store.read(homes[extra]),
        load_magnitude=_magnitudes(others, store) if config.get("use_dora") else None,
        origin=origin or Origin(),
    )


def _text(value: object) -> str | None:
    """Return plain text, also for the text enumerations of PEFT, or ``None`` for anything else."""
    return str.__str__(value) if isinstance(value, str) else None


def open_folder(folder: Path, *, name: str, origin: Origin) -> Adapter:
    """Open the adapter in ``folder``; its files are mapped, not read.

    Raises:
        AdapterFormatError: A file is missing or damaged.
        UnsupportedAdapter: It is not a LoRA adapter with safetensors weights.
    """
    config = parse_config((folder / CONFIG_FILE).read_bytes())
    store = JoinedStore(SafetensorsStore(folder / file) for file in adapter_files(folder)[1:])
    return adapter_from_tensors(config, store, name=name, origin=origin, added_tokens=_added_tokens(folder))


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
