"""``target_modules``: which modules of the base it selects, and a list that selects exactly those of a file."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

from hub_merge.adapter import ModuleSpec
from hub_merge.findings import Finding
from hub_merge.formats.peft.config import Scalings
from hub_merge.formats.peft.patterns import suffixes

__all__ = ["covered", "safe_targets", "target_findings"]

UNIQUE_NAMES = frozenset(
    "q_proj k_proj v_proj o_proj qkv_proj gate_proj up_proj down_proj gate_up_proj c_attn query_key_value "
    "embed_tokens lm_head wte wpe".split()
)
"""Last names of modules that occur at one place of a layer, so that the name alone selects them."""


MAX_SHOWN = 80
"""Characters of a name from the config that a message shows."""


def _listed_targets(config: Mapping[str, Any]) -> list[str] | None:
    """Return target_modules if they are a plain list that selects the same modules in every place."""
    targets = config.get("target_modules")
    restricted = any(config.get(name) not in (None, [], "") for name in ("layers_to_transform", "exclude_modules"))
    if restricted or not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        return None
    return targets


def covered(module: str, targets: Container[str]) -> bool:
    """Whether a list of targets selects ``module``, by PEFT's rule. Many modules want a set."""
    return any(end in targets for end in suffixes(module))


def safe_targets(config: Mapping[str, Any], specs: Mapping[str, ModuleSpec]) -> tuple[str, ...]:
    """Return names that select the file's modules in the base, and no other module.

    The config's own suffixes serve where they explain every module; a suffix that may also occur elsewhere in the base
    (GPT-2's ``c_proj``) is given with the parent it has in the file. Otherwise the full names are listed.
    """
    targets = frozenset(_listed_targets(config) or ())
    if not targets or not all(covered(module, targets) for module in specs):
        return tuple(specs)
    plain = {target for target in targets if target.rpartition(".")[2] in UNIQUE_NAMES}
    used = {end for module in specs for end in suffixes(module) if end in plain}
    qualified = {_qualified(module, targets) for module in specs if not covered(module, plain)}
    return tuple(sorted(used | qualified))


def _qualified(module: str, targets: Container[str]) -> str:
    """Return the end of the module's name as long as the target that selects it, but with the parent at least."""
    segments = module.split(".")
    length = min(end.count(".") + 1 for end in suffixes(module) if end in targets)
    return ".".join(segments[-max(2, length) :])


def _unused_targets(config: Mapping[str, Any], specs: Mapping[str, ModuleSpec]) -> list[str]:
    listed = _listed_targets(config) or []
    unused = set(listed)
    for module in specs:
        unused.difference_update(suffixes(module))
    return [target for target in listed if target in unused]


def target_findings(
    config: Mapping[str, Any], scalings: Scalings, specs: Mapping[str, ModuleSpec], name: str
) -> Iterator[Finding]:
    unused = {
        "rank_pattern": scalings.ranks.unused(specs),
        "alpha_pattern": scalings.alphas.unused(specs),
        "target_modules": _unused_targets(config, specs),
    }
    for where, keys in unused.items():
        if keys and specs:
            yield Finding(
                "caution",
                "unused_pattern",
                name,
                where,
                f"{where} names {', '.join(key[:MAX_SHOWN] for key in keys[:4])}, which no module of the file matches",
                "names of modules in the file",
                "Nothing to do if you expected this.",
            )
    if modules := [module for module in specs if len({value for _, value in scalings.alphas.matching(module)}) > 1]:
        yield Finding(
            "caution",
            "ambiguous_pattern",
            name,
            "alpha_pattern",
            f"patterns with different values match {modules[0]}; PEFT takes the first, but sorts them when it saves",
            "one pattern a module",
            "Compare with what training used; PEFT loads this file with the scaling shown here.",
        )
