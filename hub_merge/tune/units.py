"""The units of all parents in the modules of a model, where something decides how they are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hub_merge.adapter import LoraFactors
from hub_merge.errors import EvaluationError, UnsupportedAdapter

if TYPE_CHECKING:
    import torch

__all__ = ["Mix", "spans_of", "watched"]

Mix = Callable[[str, Any, Any], Any]
"""``(module, what its input is to the rows of A, B) -> what is added to its output``; ``None`` adds nothing."""


def spans_of(parts: Sequence[LoraFactors]) -> list[slice]:
    """Return where the units of each parent are, with those of all side by side."""
    ends = np.cumsum([part.rank for part in parts]).tolist()
    return [slice(end - part.rank, end) for part, end in zip(parts, ends, strict=True)]


@contextmanager
def watched(model: torch.nn.Module, units: Mapping[str, Sequence[LoraFactors]], mix: Mix) -> Iterator[None]:
    """Let ``mix`` see what the units of each module respond to its inputs, and add to its outputs, for a while.

    Raises:
        UnsupportedAdapter: A module is no linear one.
        EvaluationError: The model lacks a module.
    """
    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for name, parts in units.items():
            if name not in modules:
                raise EvaluationError(
                    f"The base model has no module {name}.", remedy="Give the base that the adapters were trained on."
                )
            hooks.callback(modules[name].register_forward_hook(_hook(modules[name], name, parts, mix)).remove)
        yield


def _hook(module: torch.nn.Module, name: str, parts: Sequence[LoraFactors], mix: Mix) -> Callable[..., Any]:
    import torch

    if isinstance(module, torch.nn.Embedding):
        raise UnsupportedAdapter(
            f"{name} is an embedding, whose mixture cannot be tuned.", remedy="Merge without --tune."
        )
    weight: Any = module.weight
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    rows = np.concatenate([part.A.astype(np.float64) for part in parts])
    columns = np.concatenate([part.B.astype(np.float64) * part.scaling for part in parts], axis=1)
    inward, outward = (torch.from_numpy(one).to(weight.device, dtype) for one in (rows, columns))

    def add(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        added = mix(name, torch.nn.functional.linear(inputs[0].to(dtype), inward), outward)
        return None if added is None else (output + added).to(output.dtype)

    return add
