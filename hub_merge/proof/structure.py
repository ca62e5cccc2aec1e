"""The written file as any loader will see it: names, shapes, config, tensors beside the factors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors

from hub_merge.adapter import Adapter, Tensor
from hub_merge.composite import Composite
from hub_merge.formats.output import get_format
from hub_merge.formats.peft import EXTRAS_FLAG, covered, extra_fields, parse_config, rank_fields, stored_units
from hub_merge.layout import CONFIG_FILE
from hub_merge.proof.results import Check

__all__ = ["structure_checks"]

PLAIN_FIELDS = "use_rslora use_dora bias modules_to_save layers_to_transform exclude_modules".split()
"""Fields of the config that a composite leaves empty."""

LONGEST_VALUE = 200
"""Characters of a field of the config that are quoted."""


def structure_checks(folder: Path, written: Adapter, asked: Composite) -> tuple[Check, ...]:
    """Check the file as any loader will see it."""
    weights = folder / written.origin.files[-1]
    missing, extra = asked.modules.keys() - written.modules.keys(), written.modules.keys() - asked.modules.keys()
    shapes = [
        name for name in asked.modules.keys() & written.modules.keys() if _shape(asked, name) != _shape(written, name)
    ]
    findings = [
        finding.describe()
        for finding in written.findings
        if finding.severity == "problem" and not (asked.extras and finding.overrule == EXTRAS_FLAG)
    ]
    tensors = get_format(written.format).tensors * len(stored_units(asked)) + len(asked.extras)
    return (
        _parser_check(weights, tensors),
        Check("modules", not (missing or extra), _listed(("missing", missing), ("unexpected", extra))),
        Check("shapes", not shapes, _listed(("of another shape", shapes))),
        *(_peft_checks(folder, written, asked, findings) if written.format == "peft" else _plain_checks(findings)),
        *([_extras_check(written, asked)] if asked.extras else []),
    )


def _parser_check(path: Path, tensors: int) -> Check:
    """Let the safetensors library judge the file."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            count = len(file.keys())
    except (OSError, safetensors.SafetensorError) as error:
        return Check("parser", False, f"safetensors cannot open it: {error}")
    return Check("parser", count == tensors, f"safetensors reads {count} tensors of {tensors}")


def _extras_check(written: Adapter, asked: Composite) -> Check:
    """Compare the tensors beside the factors with those asked for, bit by bit."""
    wrong = {name for name, _ in asked.extras.items() ^ written.extras.items()}
    if wrong:
        return Check("extras", False, _listed(("missing, unexpected or of another kind", wrong)))
    differing = [name for name in asked.extras if not _same_bits(written.load_extra(name), asked.load_extra(name))]
    return Check("extras", not differing, f"{len(asked.extras)} tensors, {_listed(('differ', differing))}")


def _same_bits(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


def _plain_checks(findings: Sequence[str]) -> Iterator[Check]:
    yield Check("content", not findings, "; ".join(findings) or "factors and nothing else")


def _peft_checks(folder: Path, written: Adapter, asked: Composite, findings: Sequence[str]) -> Iterator[Check]:
    config = parse_config((folder / CONFIG_FILE).read_bytes())
    targets = config.get("target_modules")
    listed = targets if isinstance(targets, list) else []
    plain = [module for module, spec in written.modules.items() if spec.kind != "expert"]
    untargeted = [module for module in plain if not covered(module, listed)]
    problems = [*_config_problems(config, asked), *findings]
    yield Check("config", not problems, "; ".join(problems) or f"{_ranks(asked)}, alpha equals rank, no variant")
    yield Check("targets", not untargeted, _listed(("that target_modules does not select", untargeted)))


def _config_problems(config: Mapping[str, Any], asked: Composite) -> Iterator[str]:
    """Tell which fields make a loader see another delta, or put it into another base, than was asked for."""
    wanted = {
        **rank_fields(asked.modules, asked.uniform_rank),
        "fan_in_fan_out": asked.fan_in_fan_out,
        "base_model_name_or_path": asked.base_model,
        "target_parameters": sorted(asked.target_parameters) or None,
        **extra_fields(asked),
    }
    for field, value in wanted.items():
        if config.get(field) != value:
            yield f"{field} is {_brief(config.get(field))}, expected {_brief(value)}"
    for field in PLAIN_FIELDS:
        if field not in wanted and config.get(field) not in (None, False, "none", "", [], {}):
            yield f"{field} is {config[field]!r}, expected none"


def _shape(adapter: Adapter, module: str) -> tuple[tuple[int, int], tuple[int, ...]]:
    spec = adapter.modules[module]
    return spec.shape, spec.kernel


def _listed(*groups: tuple[str, Collection[str]]) -> str:
    """Return how many modules each group has, and the first few of them."""
    return ", ".join(
        f"{len(names)} {what}" + (f" ({', '.join(sorted(names)[:3])})" if names else "") for what, names in groups
    )


def _ranks(asked: Composite) -> str:
    return "one rank" if asked.uniform_rank else "a rank for each module"


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"
