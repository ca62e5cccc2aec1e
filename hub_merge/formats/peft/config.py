"""``adapter_config.json``: what it says of rank and scaling, and what in it changes the delta otherwise."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hub_merge.errors import AdapterFormatError, UnsupportedAdapter
from hub_merge.findings import Finding
from hub_merge.layout import CONFIG_FILE

__all__ = ["MAX_CONFIG", "Scalings", "brief", "config_findings", "matches", "matching", "parse_config", "read_scalings"]

MAX_CONFIG = 1_000_000
"""Bytes of the longest config that is read."""

HARMLESS_FIELDS = frozenset(
    "task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules "
    "exclude_modules lora_alpha lora_dropout fan_in_fan_out use_rslora layers_to_transform layers_pattern rank_pattern "
    "alpha_pattern megatron_core qalora_group_size runtime_config ensure_weight_tying init_lora_weights "
    "eva_config modules_to_save bias target_parameters loftq_config corda_config lora_ga_config enable_lora".split()
)
"""Fields that either do not change the delta or are judged elsewhere in this file."""

VARIANT_FIELDS: Mapping[str, tuple[str, str]] = {
    "use_dora": (
        "dora",
        "DoRA rescales the whole weight by a trained magnitude, which takes the base's weights: --materialize",
    ),
    "use_qalora": ("qalora", "QALoRA pools the inputs, so its A is not the A of a plain product"),
    "lora_bias": ("lora_bias", "a trained bias belongs to B, which a product B @ A cannot hold"),
    "trainable_token_indices": ("trainable_tokens", "trained token rows are no part of B @ A"),
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

BASE_CHANGING_INITS = ("pissa", "olora", "corda", "lora_ga")
"""Initialisations that subtract the initial product from the base, so the factors fit only that changed base."""


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
        rank = next(matching(self.rank_pattern, module), self.rank)
        alpha = next(matching(self.alpha_pattern, module), self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)


def matching(patterns: Mapping[str, Any], module: str) -> Iterator[Any]:
    return (value for pattern, value in patterns.items() if matches(pattern, module))


def matches(pattern: str, module: str) -> bool:
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


def read_scalings(config: Mapping[str, Any]) -> Scalings:
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


def config_findings(config: Mapping[str, Any], note: Callable[..., Finding]) -> Iterator[Finding]:
    for name, (code, reason) in VARIANT_FIELDS.items():
        if config.get(name):
            yield note(code, name, f"{name} is {brief(config[name])}", f"no {name}: {reason}")
    yield from _init_findings(config.get("init_lora_weights"), note)
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


def _init_findings(init: object, note: Callable[..., Finding]) -> Iterator[Finding]:
    if not isinstance(init, str):
        return
    seen = f"init_lora_weights is {brief(init)}"
    if init.lower().startswith(BASE_CHANGING_INITS):
        yield note(
            "changed_base",
            "init_lora_weights",
            f"{seen}, which takes the initial product out of the base at the start of training",
            "factors that fit the published base",
            "Give the adapter as it was saved before training: --initial ADAPTER=REFERENCE. Without it there is no way "
            "back, except with PEFT where it was trained (save_pretrained, path_initial_model_for_weight_conversion).",
        )
    elif init.lower().startswith("loftq"):
        yield note(
            "quantised_base",
            "init_lora_weights",
            f"{seen}, which quantises the base and starts from factors that only come near to what that took away",
            "factors that fit the published base",
            "Use it with its own quantised base; it cannot be converted exactly.",
        )


def brief(value: object) -> str:
    """Return ``value`` as JSON, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
