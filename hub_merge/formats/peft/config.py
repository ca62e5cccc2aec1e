"""``adapter_config.json``: what it says of rank and scaling, and what in it changes the delta otherwise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from hub_merge.errors import AdapterFormatError, UnsupportedAdapter
from hub_merge.findings import Finding
from hub_merge.formats.peft.patterns import MAX_WILD, Patterns, is_tame
from hub_merge.formats.strict_json import parse_json
from hub_merge.layout import CONFIG_FILE

__all__ = [
    "MAX_CONFIG",
    "Scalings",
    "brief",
    "config_findings",
    "finite_number",
    "parse_config",
    "read_object",
    "read_scalings",
]

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
        "DoRA rescales the whole weight by a trained magnitude, which takes the base's weights",
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

FULL_NAMES = "Write the full module names instead."

BASE_CHANGING_INITS = ("pissa", "olora", "corda", "lora_ga")
"""Initialisations that subtract the initial product from the base, so the factors fit only that changed base."""


def parse_config(text: bytes) -> dict[str, Any]:
    """Return the config as a mapping.

    Raises:
        AdapterFormatError: It is no JSON object, or far too long.
        UnsupportedAdapter: It describes something else than a LoRA of PEFT.
    """
    config = read_object(text)
    _require_lora(config)
    return config


def read_object(text: bytes) -> dict[str, Any]:
    """Return an ``adapter_config.json`` of any program as a mapping.

    Raises:
        AdapterFormatError: It is no JSON object, or far too long.
    """
    config = parse_json(text, CONFIG_FILE, most=MAX_CONFIG)
    if not isinstance(config, dict):
        raise AdapterFormatError(f"{CONFIG_FILE} is not a JSON object.", remedy="Ask its author to upload it again.")
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
        remedy="Save it with that tool in PEFT's format, or another that hub-merge convert reads.",
    )


@dataclass(frozen=True, slots=True)
class Scalings:
    """Effective rank and scaling by module, as PEFT resolves them; ``source`` is where they are stated."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    source: str = CONFIG_FILE
    ranks: Patterns = field(init=False, repr=False, compare=False)
    alphas: Patterns = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", Patterns(self.rank_pattern))
        object.__setattr__(self, "alphas", Patterns(self.alpha_pattern))

    def resolve(self, module: str) -> tuple[int, float]:
        """Return rank and scaling of ``module``: alpha/r, or alpha/sqrt(r) with rsLoRA."""
        rank = next((value for _, value in self.ranks.matching(module)), self.rank)
        alpha = next((value for _, value in self.alphas.matching(module)), self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def require_cheap(self, modules: Collection[str]) -> None:
        """Raise ``AdapterFormatError`` if matching the patterns with ``modules`` could take long."""
        for name, patterns in (("rank_pattern", self.ranks), ("alpha_pattern", self.alphas)):
            if not patterns.is_cheap(modules):
                raise AdapterFormatError(
                    f"Matching {name} of {self.source} with {len(modules)} modules could take very long.",
                    remedy="Write the full module names, and few of them, instead.",
                )


def read_scalings(config: Mapping[str, Any], source: str = CONFIG_FILE) -> Scalings:
    """Return what ``config`` says of rank and scaling.

    Args:
        config: Fields of PEFT's LoraConfig.
        source: Where they stand, to name in messages.

    Raises:
        AdapterFormatError: A field is missing or of the wrong kind.
    """
    rank_pattern = _pattern(config, "rank_pattern", source)
    alpha_pattern = _pattern(config, "alpha_pattern", source)
    rank = finite_number(config.get("r"), "r", source)
    ranks = {key: finite_number(value, f"rank_pattern[{key!r}]", source) for key, value in rank_pattern.items()}
    alphas = {key: finite_number(value, f"alpha_pattern[{key!r}]", source) for key, value in alpha_pattern.items()}
    if bad := [value for value in (rank, *ranks.values()) if value < 1 or value != int(value)]:
        raise AdapterFormatError(f"{source} states rank {bad[0]:g}.", remedy="A rank is a whole number from 1.")
    return Scalings(
        rank=int(rank),
        alpha=finite_number(config.get("lora_alpha"), "lora_alpha", source),
        use_rslora=bool(config.get("use_rslora")),
        rank_pattern={key: int(value) for key, value in ranks.items()},
        alpha_pattern=alphas,
        source=source,
    )


def _pattern(config: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict):
        raise AdapterFormatError(f"{name} of {source} is {str(patterns)[:60]!r}.", remedy="It must be an object.")
    if Patterns(patterns).wild_length() > MAX_WILD:
        raise AdapterFormatError(
            f"{name} of {source} has regular expressions of more than {MAX_WILD} characters.", remedy=FULL_NAMES
        )
    if wild := [key for key in patterns if not is_tame(key)]:
        raise AdapterFormatError(
            f"{name} of {source} has the pattern {wild[0][:80]!r}, which is no safe regular expression.",
            remedy=FULL_NAMES,
        )
    return patterns


def finite_number(value: object, name: str, source: str = CONFIG_FILE) -> float:
    """Return the value of the field ``name`` of ``source``; ``AdapterFormatError`` if it is no finite number."""
    try:
        finite = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        finite = False
    if not (finite and isinstance(value, (int, float))):
        raise AdapterFormatError(f"{name} of {source} is {str(value)[:60]!r}.", remedy="It must be a finite number.")
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
            "Give merge, compress or convert the adapter as it was saved before training. Without it there is no way "
            "back, except with PEFT where it was trained (save_pretrained, path_initial_model_for_weight_conversion).",
            overrule="--initial ADAPTER=REFERENCE",
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
