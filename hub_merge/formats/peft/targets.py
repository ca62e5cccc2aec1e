"""``target_modules``: which modules of the base it selects, and a list that selects exactly those of a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hub_merge.adapter import ModuleSpec
from hub_merge.findings import Finding
from hub_merge.formats.peft.config import Scalings, matches, matching

__all__ = ["covered", "safe_targets", "target_findings"]

UNIQUE_NAMES = frozenset(
    "q_proj k_proj v_proj o_proj qkv_proj gate_proj up_proj down_proj gate_up_proj c_attn query_key_value "
    "embed_tokens lm_head wte wpe".split()
)
"""Last names of modules that occur at one place of a layer, so that the name alone selects them."""


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


def safe_targets(config: Mapping[str, Any], specs: Mapping[str, ModuleSpec]) -> tuple[str, ...]:
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


def target_findings(
    config: Mapping[str, Any], scalings: Scalings, specs: Mapping[str, ModuleSpec], name: str
) -> Iterator[Finding]:
    unused = {
        "rank_pattern": [key for key in scalings.rank_pattern if not any(matches(key, module) for module in specs)],
        "alpha_pattern": [key for key in scalings.alpha_pattern if not any(matches(key, module) for module in specs)],
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
    if modules := [module for module in specs if len(set(matching(scalings.alpha_pattern, module))) > 1]:
        yield Finding(
            "caution",
            "ambiguous_pattern",
            name,
            "alpha_pattern",
            f"patterns with different values match {modules[0]}; PEFT takes the first, but sorts them when it saves",
            "one pattern a module",
            "Compare with what training used; PEFT loads this file with the scaling shown here.",
        )
