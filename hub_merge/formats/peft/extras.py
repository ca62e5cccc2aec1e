"""Tensors beside the factors: trained heads and other whole modules, biases, rows of embeddings.

PEFT loads a whole module where ``modules_to_save`` names it, a bias wherever its key fits the model, and rows where
``trainable_token_indices`` says which tokens they are for. All of them replace what the base has; none is a delta.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hub_merge.adapter import Adapter, ExtraKind, ExtraSpec
from hub_merge.findings import Finding
from hub_merge.formats.tensors import TensorInfo

__all__ = ["EXTRAS_FLAG", "extra_fields", "extra_findings", "extra_key", "read_extra"]

EXTRAS_FLAG = "--extras keep:NAME, --extras average or --extras drop"
"""What settles a finding about extras."""

TOKENS = ".token_adapter.trainable_tokens_delta"
HEADS: Mapping[str, tuple[str, ...]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""Modules that PEFT trains for a task whether ``modules_to_save`` names them or not."""

NEVER = (".lora_", ".original_module.", ".modules_to_save.", ".token_adapter.")
"""Parts of keys that are no parameter of the base."""

TOLD: Mapping[ExtraKind, tuple[str, str]] = {
    "weights": ("trained_weights", "trained weights outside LoRA (heads, modules_to_save)"),
    "bias": ("trained_weights", "trained biases"),
    "tokens": ("trainable_tokens", "trained token rows"),
}
"""Code and words of the finding about each kind."""


def read_extra(path: str, info: TensorInfo, config: Mapping[str, Any]) -> ExtraSpec | None:
    """Return what the tensor at ``path`` is; ``None`` if it is nothing that could be written again.

    Args:
        path: The tensor's key without PEFT's prefix.
        info: Its dtype and shape.
        config: The adapter's config.
    """
    if path.endswith(TOKENS):
        module = path.removesuffix(TOKENS)
        rows = _rows(config.get("trainable_token_indices"), module)
        fits = rows and len(info.shape) == 2 and info.shape[0] == len(rows)
        return ExtraSpec(path, "tokens", module, info.shape, info.dtype, rows) if fits else None
    if any(part in path for part in NEVER):
        return None
    if saved := _saved_module(path, config):
        return ExtraSpec(path, "weights", saved, info.shape, info.dtype)
    owner, _, parameter = path.rpartition(".")
    module = owner.removesuffix(".base_layer")
    if parameter not in ("weight", "bias") or not module:
        return None
    kind: ExtraKind = "bias" if parameter == "bias" else "weights"
    return ExtraSpec(f"{module}.{parameter}", kind, module, info.shape, info.dtype)


def _rows(indices: object, module: str) -> tuple[int, ...]:
    """Return the ids of the tokens whose rows ``module`` trains, in the order of the rows."""
    if isinstance(indices, Mapping):
        indices = next((rows for name, rows in indices.items() if module.endswith(name)), None)
    if not isinstance(indices, list) or not all(type(row) is int and row >= 0 for row in indices):
        return ()
    return tuple(indices)


def _saved_module(path: str, config: Mapping[str, Any]) -> str | None:
    """Return the outermost module on the way to ``path`` that PEFT saves whole, by PEFT's rule of a common ending."""
    stated = config.get("modules_to_save")
    names = [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []
    names += HEADS.get(str(config.get("task_type")), ())
    segments = path.split(".")
    prefixes = (".".join(segments[:length]) for length in range(1, len(segments)))
    return next((prefix for prefix in prefixes if any(prefix.endswith(name) for name in names)), None)


def extra_findings(extras: Mapping[str, ExtraSpec], note: Callable[..., Finding]) -> Iterator[Finding]:
    """Yield a finding about each kind of extra; ``extras`` are by their keys in the file."""
    for kind, (code, what) in TOLD.items():
        names = [name for name, spec in extras.items() if spec.kind == kind]
        if names:
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            yield note(
                code,
                shown,
                f"the file also holds {len(names)} tensors of {what}",
                "LoRA factors only",
                "They replace what the base has and cannot be added up: say what becomes of them in a merge.",
                overrule=EXTRAS_FLAG,
            )


def extra_key(spec: ExtraSpec, adapter: Adapter) -> str:
    """Return the key, without PEFT's prefix, under which PEFT finds the tensor in a file of ``adapter``'s modules."""
    if spec.kind == "bias" and spec.module in _adapted(adapter):
        return f"{spec.module}.base_layer.bias"
    return spec.name


def _adapted(adapter: Adapter) -> set[str]:
    """Return the adapted modules as the file names them; extras never have the model of a pipeline before theirs."""
    return {spec.local_name for spec in adapter.modules.values()}


def extra_fields(adapter: Adapter) -> dict[str, Any]:
    """Return the fields of the config that tell PEFT of the adapter's extras; none for an adapter without."""
    extras = adapter.extras.values()
    saved = sorted({spec.module for spec in extras if spec.kind == "weights"})
    biased = {spec.module for spec in extras if spec.kind == "bias"}
    tokens = {spec.module: list(spec.rows) for spec in extras if spec.kind == "tokens"}
    bias = "lora_only" if biased <= _adapted(adapter) else "all"
    return {
        **({"modules_to_save": saved} if saved else {}),
        **({"bias": bias} if biased else {}),
        **({"trainable_token_indices": tokens} if tokens else {}),
    }
