"""PEFT's LoRA format: ``adapter_config.json`` and ``adapter_model.safetensors``.

Reading resolves the effective scaling of every module once (alpha/r or alpha/sqrt(r), rank and alpha patterns by PEFT's
own matching rule, checked against the tensors) and turns whatever is not ``scaling * B @ A`` into findings.
Writing uses the *portable profile*: one rank, ``lora_alpha == r``, no patterns, no variants, a plain list of targets,
so that PEFT, vLLM, llama.cpp's converter and MLX read the same delta.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from hub_merge.adapter import Adapter, LoraFactors, ModuleKind, ModuleSpec, Origin
from hub_merge.errors import AdapterFormatError, UnsupportedAdapter
from hub_merge.findings import Finding
from hub_merge.formats.tensors import (
    HeaderStore,
    JoinedStore,
    SafetensorsStore,
    TensorInfo,
    TensorStore,
    dtype_named,
    parse_header,
    safetensors_writer,
    widest,
)

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "adapter_files",
    "adapter_from_headers",
    "adapter_from_tensors",
    "open_folder",
    "parse_config",
    "weight_files",
    "write_portable",
]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
INDEX_FILE = "adapter_model.safetensors.index.json"
SHARD = re.compile(r"adapter_model-\d{5}-of-\d{5}\.safetensors")
MAX_CONFIG = 1_000_000
PREFIX = "base_model.model."

WRAPPERS = re.compile(r"(?:module\.)?(?:base_model\.(?:model\.)?)?(?:module\.)?")

FACTOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<side>[AB])(?:\.[^.]+)?\.weight|lora_embedding_(?P<embedding_side>[AB])(?:\.[^.]+)?)"
)
"""``….lora_A.weight``, also with the adapter's name inside, and ``….lora_embedding_A``."""

HARMLESS_FIELDS = frozenset(
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules "
    "exclude_modules lora_alpha lora_dropout fan_in_fan_out use_rslora layers_to_transform layers_pattern rank_pattern "
    "alpha_pattern megatron_core qalora_group_size runtime_config ensure_weight_tying init_lora_weights "
    "eva_config modules_to_save bias loftq_config corda_config lora_ga_config enable_lora".split()
)
"""Fields that either do not change the delta or are judged elsewhere in this file."""

VARIANT_FIELDS: Mapping[str, tuple[str, str]] = {
    "use_dora": ("dora", "DoRA rescales the whole weight by a trained magnitude, which needs the base model"),
    "use_qalora": ("qalora", "QALoRA pools the inputs, so its A is not the A of a plain product"),
    "lora_bias": ("lora_bias", "a trained bias belongs to B, which a product B @ A cannot hold"),
    "trainable_token_indices": ("trainable_tokens", "trained token rows are no part of B @ A"),
    "target_parameters": ("target_parameters", "parameters of expert layers are laid out otherwise"),
    "layer_replication": ("layer_replication", "its layers are copies that the base does not have"),
    "alora_invocation_tokens": ("alora", "an activated LoRA only works after its invocation tokens"),
    "arrow_config": ("arrow", "Arrow routes tokens between adapters"),
    "kasa_config": ("kasa", "KaSA changes the base weights by their singular values"),
    "velora_config": ("velora", "VeLoRA trains on compressed activations"),
    "monteclora_config": ("monteclora", "MonteCLoRA samples its factors"),
    "use_bdlora": ("bdlora", "BD-LoRA keeps block-diagonal factors"),
    "megatron_config": ("megatron", "Megatron splits its layers over devices"),
}
"""Fields that make the delta something else than ``scaling * B @ A``: finding code and reason."""

BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract the initial product from the base, so the factors fit only that changed base."""

UNIQUE_NAMES = frozenset(
    "q_proj k_proj v_proj o_proj qkv_proj gate_proj up_proj down_proj gate_up_proj c_attn query_key_value "
    "embed_tokens lm_head wte wpe".split()
)
"""Last names of modules that occur at one place of a layer, so that the name alone selects them."""

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


def parse_config(text: bytes) -> dict[str, Any]:
    """Return the config as a mapping.

    Raises:
        AdapterFormatError: It is no JSON object, or far too long.
        UnsupportedAdapter: It describes something else than a LoRA of PEFT.
    """
    if text.startswith(b"version https://git-lfs"):
        raise AdapterFormatError(
            f"{CONFIG_FILE} is a git-lfs pointer, not a config.", remedy="Fetch the file itself: git lfs pull."
        )
    if len(text) > MAX_CONFIG:
        raise AdapterFormatError(
            f"{CONFIG_FILE} has {len(text)} bytes, expected at most {MAX_CONFIG}.", remedy="Ask its author to mend it."
        )
    try:
        config = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AdapterFormatError(
            f"{CONFIG_FILE} is not valid JSON: {str(error)[:200]}.", remedy="Ask its author to upload it again."
        ) from error
    if not isinstance(config, dict):
        raise AdapterFormatError(f"{CONFIG_FILE} is not a JSON object.", remedy="Ask its author to upload it again.")
    _require_lora(config)
    return config


def _require_lora(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind == "LORA":
        return
    if kind is not None:
        raise UnsupportedAdapter(
            f"This is an adapter of type {str(kind)[:40]}, not LORA.", remedy="Only LoRA adapters can be merged."
        )
    tool = "MLX-LM" if "lora_parameters" in config or "fine_tune_type" in config else "another tool"
    raise UnsupportedAdapter(
        f"{CONFIG_FILE} has no peft_type; it was written by {tool}, not by PEFT.",
        remedy="Convert it to PEFT's format first.",
    )


def weight_files(names: Iterable[str], index: bytes | None = None) -> tuple[str, ...]:
    """Return which of ``names`` hold the adapter's tensors: one file, or its shards.

    Args:
        names: File names in the adapter's folder.
        index: Content of the shard index, if there is one.

    Raises:
        AdapterFormatError: A shard is missing, or the index points out of the folder.
        UnsupportedAdapter: The weights are a pickle.
    """
    present = set(names)
    if WEIGHTS_FILE in present:
        return (WEIGHTS_FILE,)
    shards = _indexed(index) if index is not None else sorted(filter(SHARD.fullmatch, present))
    if missing := [shard for shard in _all_shards(shards) if shard not in present]:
        raise AdapterFormatError(f"Shard {missing[0]} is missing.", remedy="Download the adapter again.")
    if shards:
        return tuple(shards)
    if pickles := sorted(name for name in present if name.endswith((".bin", ".pt", ".pth"))):
        raise UnsupportedAdapter(
            f"The weights are only there as {pickles[0]}, a pickle, which can run code when it is opened.",
            remedy="Ask its author for safetensors, or convert it: https://huggingface.co/spaces/safetensors/convert",
        )
    raise AdapterFormatError(f"There is no {WEIGHTS_FILE}.", remedy="Ask its author to upload the weights.")


def _indexed(index: bytes) -> list[str]:
    try:
        shards = sorted(set(json.loads(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterFormatError(f"{INDEX_FILE} is not a shard index: {error!r}.", remedy="Upload it again.") from error
    if outside := [shard for shard in shards if not isinstance(shard, str) or PurePosixPath(shard).name != shard]:
        raise AdapterFormatError(
            f"{INDEX_FILE} points to {outside[0]!r}, out of its folder.", remedy="Do not use this adapter."
        )
    return shards


def _all_shards(shards: Sequence[str]) -> list[str]:
    """Return every name that a numbered set of shards must have."""
    if not shards or not SHARD.fullmatch(shards[0]):
        return list(shards)
    count = shards[0].rpartition("-of-")[2].partition(".")[0]
    return [f"adapter_model-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1)]


def open_folder(folder: Path, *, name: str, origin: Origin) -> Adapter:
    """Open the adapter in ``folder``; its files are mapped, not read.

    Raises:
        AdapterFormatError: A file is missing or damaged.
        UnsupportedAdapter: It is not a LoRA adapter with safetensors weights.
    """
    config = parse_config((folder / CONFIG_FILE).read_bytes())
    store = JoinedStore(SafetensorsStore(folder / file) for file in adapter_files(folder)[1:])
    return adapter_from_tensors(config, store, name=name, origin=origin, added_tokens=_added_tokens(folder))


def adapter_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files an adapter is read from: its config, then its weights.

    Raises:
        AdapterFormatError: A file is missing.
        UnsupportedAdapter: The weights are a pickle.
    """
    index = (folder / INDEX_FILE).read_bytes() if (folder / INDEX_FILE).is_file() else None
    return (CONFIG_FILE, *weight_files((path.name for path in folder.iterdir() if path.is_file()), index))


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


# --- config -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scalings:
    """Effective rank and scaling by module, as PEFT resolves them."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def resolve(self, module: str) -> tuple[int, float]:
        """Return rank and scaling of ``module``: alpha/r, or alpha/sqrt(r) with rsLoRA."""
        rank = next(_matching(self.rank_pattern, module), self.rank)
        alpha = next(_matching(self.alpha_pattern, module), self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)


def _matching(patterns: Mapping[str, Any], module: str) -> Iterator[Any]:
    return (value for pattern, value in patterns.items() if _matches(pattern, module))


def _matches(pattern: str, module: str) -> bool:
    """PEFT's rule (``peft.utils.other.get_pattern_key``): the pattern is the whole name or its end after a dot."""
    if re.fullmatch(r"[\w.]+", pattern) and not module.endswith(pattern.rpartition(".")[2]):
        return False
    return _compiled(pattern).match(module) is not None


@lru_cache(maxsize=8192)  # re keeps 512, fewer than the patterns of a config that names every module
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def _is_tame(pattern: str) -> bool:
    """Whether a regular expression of a config compiles and cannot take exponential time.

    A repeated group, a back reference or many unbounded repeats are what such attacks are made of; no config seen in
    the wild uses them.
    """
    if len(pattern) > 512 or re.search(r"\)[*+{?]|\\\d|\(\?[^:]", pattern) or len(re.findall(r"[*+]|,}", pattern)) > 3:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _scalings(config: Mapping[str, Any]) -> Scalings:
    rank_pattern = _pattern(config, "rank_pattern")
    alpha_pattern = _pattern(config, "alpha_pattern")
    rank = _number(config.get("r"), "r")
    ranks = {key: _number(value, f"rank_pattern[{key!r}]") for key, value in rank_pattern.items()}
    if bad := [value for value in (rank, *ranks.values()) if value < 1 or value != int(value)]:
        raise AdapterFormatError(f"{CONFIG_FILE} states rank {bad[0]:g}.", remedy="A rank is a whole number from 1.")
    return Scalings(
        rank=int(rank),
        alpha=_number(config.get("lora_alpha"), "lora_alpha"),
        use_rslora=bool(config.get("use_rslora")),
        rank_pattern={key: int(value) for key, value in ranks.items()},
        alpha_pattern={key: _number(value, f"alpha_pattern[{key!r}]") for key, value in alpha_pattern.items()},
    )


def _pattern(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict):
        raise AdapterFormatError(f"{name} of {CONFIG_FILE} is {str(patterns)[:60]!r}.", remedy="It must be an object.")
    if wild := [key for key in patterns if not _is_tame(key)]:
        raise AdapterFormatError(
            f"{name} of {CONFIG_FILE} has the pattern {wild[0][:80]!r}, which is no safe regular expression.",
            remedy="Write the full module names instead.",
        )
    return patterns


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise AdapterFormatError(
            f"{name} of {CONFIG_FILE} is {str(value)[:60]!r}.", remedy="It must be a finite number."
        )
    return float(value)


def _config_findings(config: Mapping[str, Any], note: Callable[..., Finding]) -> Iterator[Finding]:
    for name, (code, reason) in VARIANT_FIELDS.items():
        if config.get(name):
            yield note(code, name, f"{name} is {_brief(config[name])}", f"no {name}: {reason}")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        yield note(
            "changed_base",
            "init_lora_weights",
            f"init_lora_weights is {_brief(init)}, which changes the base model at the start of training",
            "factors that fit the published base",
            "Convert it with PEFT (save_pretrained with path_initial_model_for_weight_conversion), then merge.",
        )
    unknown = sorted(
        key for key, value in config.items() if value and key not in HARMLESS_FIELDS and key not in VARIANT_FIELDS
    )
    if unknown:
        yield note(
            "unknown_fields",
            ", ".join(key[:40] for key in unknown[:8]),
            "the config sets fields that this version does not know",
            "fields of PEFT's LoraConfig up to 0.21",
            "If you know that they do not change the delta, accept them.",
            overrule="--allow unknown_fields",
        )


def _brief(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- tensors ----------------------------------------------------------------------------------------------------------


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
    scalings = _scalings(config)
    sorted_out = {module: _spec(module, pairs[module], store.infos, scalings, note) for module in sorted(pairs)}
    specs = {module: spec for module, spec in sorted_out.items() if isinstance(spec, ModuleSpec)}
    findings = [
        *_config_findings(config, note),
        *(spec for spec in sorted_out.values() if isinstance(spec, Finding)),
        *_leftover_findings(others, note),
        *_target_findings(config, scalings, specs, name),
    ]
    if not pairs:
        findings.append(note("no_factors", "", "the file holds no LoRA factors", "lora_A and lora_B tensors"))

    def load(module: str) -> LoraFactors:
        keys = pairs[module].keys
        return LoraFactors(store.read(keys["A"]), store.read(keys["B"]), specs[module].scaling)

    return Adapter(
        name=name,
        modules=specs,
        load=load,
        base_model=_text(config.get("base_model_name_or_path")) or None,
        base_revision=_text(config.get("revision")),
        task_type=_text(config.get("task_type")),
        target_modules=_safe_targets(config, specs),
        fan_in_fan_out=bool(config.get("fan_in_fan_out")),
        findings=tuple(findings),
        has_values=store.has_values,
        added_tokens=added_tokens or {},
        origin=origin or Origin(),
    )


def _text(value: object) -> str | None:
    """Return plain text, also for the text enumerations of PEFT, or ``None`` for anything else."""
    return str.__str__(value) if isinstance(value, str) else None


def _listed_targets(config: Mapping[str, Any]) -> list[str] | None:
    """Return target_modules if they are a plain list that selects the same modules in every place."""
    targets = config.get("target_modules")
    restricted = any(config.get(name) not in (None, [], "") for name in ("layers_to_transform", "exclude_modules"))
    if restricted or not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        return None
    return targets


def covered(module: str, targets: Iterable[str]) -> bool:
    """Whether a list of targets selects ``module``, by PEFT's rule."""
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _safe_targets(config: Mapping[str, Any], specs: Mapping[str, ModuleSpec]) -> tuple[str, ...]:
    """Return names that select the file's modules in the base, and no other module.

    The config's own suffixes serve where they explain every module; a suffix that may also occur elsewhere in the base
    (GPT-2's ``c_proj``) is given with the parent it has in the file. Otherwise the full names are listed.
    """
    targets = _listed_targets(config)
    if not targets or not all(covered(module, targets) for module in specs):
        return tuple(specs)
    plain = [target for target in targets if target.rpartition(".")[2] in UNIQUE_NAMES]
    qualified = {_qualified(module, targets) for module in specs if not covered(module, plain)}
    return tuple(sorted({target for target in plain if any(covered(module, [target]) for module in specs)} | qualified))


def _qualified(module: str, targets: Iterable[str]) -> str:
    """Return the end of the module's name as long as the target that selects it, but with the parent at least."""
    segments = module.split(".")
    length = min(target.count(".") + 1 for target in targets if covered(module, [target]))
    return ".".join(segments[-max(2, length) :])


def _target_findings(
    config: Mapping[str, Any], scalings: Scalings, specs: Mapping[str, ModuleSpec], name: str
) -> Iterator[Finding]:
    unused = {
        "rank_pattern": [key for key in scalings.rank_pattern if not any(_matches(key, module) for module in specs)],
        "alpha_pattern": [key for key in scalings.alpha_pattern if not any(_matches(key, module) for module in specs)],
        "target_modules": [t for t in _listed_targets(config) or () if not any(covered(m, [t]) for m in specs)],
    }
    for where, keys in unused.items():
        if keys and specs:
            yield Finding(
                "caution",
                "unused_pattern",
                name,
                where,
                f"{where} names {', '.join(keys[:4])}, which no module of the file matches",
                "names of modules in the file",
                "Nothing to do if you expected this.",
            )
    if modules := [module for module in specs if len(set(_matching(scalings.alpha_pattern, module))) > 1]:
        yield Finding(
            "caution",
            "ambiguous_pattern",
            name,
            "alpha_pattern",
            f"patterns with different values match {modules[0]}; PEFT takes the first, but sorts them when it saves",
            "one pattern a module",
            "Compare with what training used; PEFT loads this file with the scaling shown here.",
        )


# --- writing ----------------------------------------------------------------------------------------------------------


def write_portable(
    adapter: Adapter, folder: Path, *, base_model: str | None, dtype: str, rank: int, progress: Callable[[str], None]
) -> None:
    """Write ``adapter`` to the existing, empty ``folder`` in the portable profile.

    One module is in memory at a time. Factors of a smaller rank are padded with zeros, which leaves the delta as it is.

    Args:
        adapter: What to write; its scaling goes into B.
        folder: Existing folder without these files.
        base_model: Base to name in the config, a Hub id, or ``None``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        rank: The one rank of the file, at least that of every module.
        progress: Called with each module's name when it is written.
    """
    config = _portable_config(adapter, base_model, rank)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    infos = {}
    for module, spec in adapter.modules.items():
        out_features, in_features = spec.shape
        a_key, b_key = _factor_keys(module, spec.kind)
        infos[a_key] = (dtype, (rank, in_features))
        infos[b_key] = (dtype, (out_features, rank))
    with safetensors_writer(folder / WEIGHTS_FILE, infos) as writer:
        for module, spec in adapter.modules.items():
            a_key, b_key = _factor_keys(module, spec.kind)
            A, B = _padded(adapter.factors(module), rank, dtype)
            writer.write(a_key, A)
            writer.write(b_key, B)
            progress(module)


def _factor_keys(module: str, kind: ModuleKind) -> tuple[str, str]:
    if kind == "embedding":
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def _padded(factors: LoraFactors, rank: int, dtype: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    out_features, in_features = factors.shape
    A = np.zeros((rank, in_features), dtype_named(dtype))
    B = np.zeros((out_features, rank), dtype_named(dtype))
    A[: factors.rank] = factors.A.astype(A.dtype, copy=False)
    scaled = factors.B if factors.scaling == 1.0 else factors.scaling * factors.B.astype(np.float64)
    B[:, : factors.rank] = scaled.astype(B.dtype, copy=False)
    return A, B


def _portable_config(adapter: Adapter, base_model: str | None, rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": base_model,
        "revision": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(adapter.target_modules),
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
    }
