"""Writing: alpha is the rank in every module, so that the scaling is 1; no variants; one rank, or one a module."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from hub_merge.adapter import Adapter, ModuleSpec
from hub_merge.errors import MergeError
from hub_merge.formats.names import is_flat
from hub_merge.formats.peft.experts import expert_number, joined, path_of
from hub_merge.formats.peft.extras import extra_fields, extra_key
from hub_merge.formats.peft.patterns import matches
from hub_merge.formats.writing import Layout, write_factors
from hub_merge.layout import COMPONENT_KEY, CONFIG_FILE, WEIGHTS_FILE

__all__ = ["only_component", "rank_fields", "stored_units", "write_folder"]

PREFIX = "base_model.model."


def write_folder(
    adapter: Adapter,
    folder: Path,
    *,
    base_model: str | None,
    dtype: str,
    rank: int | None,
    progress: Callable[[str], None],
) -> None:
    """Write ``adapter`` to the existing, empty ``folder``.

    Args:
        adapter: What to write. Its extras are written as they are.
        folder: Existing folder without these files.
        base_model: Base to name in the config, a Hub id, or ``None``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        rank: The one rank of the file, at least that of every module; ``None`` for the rank of each module.
        progress: Called with each module's name when it is written.

    Raises:
        MergeError: PEFT cannot hold it; see ``only_component``.
        ProofFailed: A factor holds NaN or infinity, or does in ``dtype``.
    """
    component = only_component(adapter)
    config = _config(adapter, base_model, rank, component)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    metadata = {COMPONENT_KEY: component} if component else {}
    write_factors(
        folder / WEIGHTS_FILE,
        adapter,
        Layout(_factor_keys, join=joined),
        dtype=dtype,
        rank=rank,
        progress=progress,
        metadata=metadata,
        units=stored_units(adapter),
        extras={PREFIX + extra_key(spec, adapter): name for name, spec in adapter.extras.items()},
    )


def stored_units(adapter: Adapter) -> dict[str, list[str]]:
    """Return the modules whose factors share two tensors in a file, by their path: one module, or a layer's experts."""
    units: dict[str, list[str]] = {}
    for module, spec in adapter.modules.items():
        units.setdefault(path_of(spec), []).append(module)
    for modules in units.values():
        modules.sort(key=lambda module: expert_number(adapter.modules[module]))
    return units


def only_component(adapter: Adapter) -> str:
    """Return the model of a pipeline that all modules belong to, empty for a model of its own.

    Raises:
        MergeError: There are several, or names that PEFT could not find in a model.
    """
    components = sorted({spec.component for spec in adapter.modules.values()})
    if flat := next((module for module in adapter.modules if is_flat(module)), None):
        raise MergeError(
            f"{flat} is a name of kohya's whose place in the model is unknown, so PEFT could not find it.",
            remedy="Write the format it came in: --format kohya.",
        )
    if len(components) > 1:
        raise MergeError(
            f"The adapter is for several models ({', '.join(components)}); a PEFT folder holds an adapter of one.",
            remedy="Write one file for all of them: --format diffusers, or --format kohya.",
        )
    return components[0] if components else ""


def _factor_keys(spec: ModuleSpec) -> tuple[str, str]:
    module = spec.local_name
    if spec.kind == "embedding":
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def rank_fields(modules: Mapping[str, ModuleSpec], rank: int | None) -> dict[str, Any]:
    """Return the fields of the config that state rank and alpha, which are equal in every module.

    Args:
        modules: The modules of the file, all of one component.
        rank: The one rank of all; ``None`` to name, by patterns, the modules that differ from the most frequent rank.
    """
    specs = {spec.local_name: spec for spec in modules.values()}
    counts = Counter(spec.rank for spec in specs.values())
    common = rank or max(counts, key=lambda value: (counts[value], value))
    others = {_pattern(name, specs): spec.rank for name, spec in specs.items() if rank is None and spec.rank != common}
    return {"r": common, "lora_alpha": common, "rank_pattern": others, "alpha_pattern": others}


def _pattern(module: str, modules: Collection[str]) -> str:
    """Return the pattern that, by PEFT's rule, matches ``module`` and no other of ``modules``.

    The name does, unless it is the end of a longer name, or a dot in it, which stands for any character, matches there.
    """
    if any(matches(module, other) for other in modules if other != module):
        return f"^{re.escape(module)}"
    return module


def _config(adapter: Adapter, base_model: str | None, rank: int | None, component: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": adapter.task_type,
        "base_model_name_or_path": base_model,
        "revision": None,
        "inference_mode": True,
        **rank_fields(adapter.modules, rank),
        "lora_dropout": 0.0,
        "target_modules": sorted(target.removeprefix(f"{component}.") for target in adapter.target_modules),
        **({"target_parameters": sorted(adapter.target_parameters)} if adapter.target_parameters else {}),
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "bias": "none",
        "modules_to_save": None,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "use_rslora": False,
        "use_dora": False,
        **extra_fields(adapter),
    }
