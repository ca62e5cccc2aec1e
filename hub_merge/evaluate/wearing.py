"""Adapters worn by a model: the model computes with them for as long as a context lasts, its weights untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.errors import EvaluationError, UnsupportedAdapter

if TYPE_CHECKING:
    import torch

__all__ = ["Wearable", "factors_of", "wear"]

Wearable = Adapter | Mapping[str, LoraFactors] | None
"""An adapter, a composite, factors by module, or nothing: the plain base."""


@contextmanager
def wear(model: torch.nn.Module, adapter: Wearable) -> Iterator[None]:
    """Add ``scaling * B @ A`` to what each adapted module of ``model`` computes, until the context ends.

    The product with the factors is computed in float32 whatever the dtype of the model, as PEFT does, so nothing of a
    small delta is lost to the rounding of the weight it belongs to.

    Raises:
        UnsupportedAdapter: It adapts a convolution or experts, or brings trained tensors beside its factors.
        EvaluationError: The model has no such module, or one of another shape.
    """
    modules = dict(model.named_modules())
    with ExitStack() as worn:
        for name, part in factors_of(adapter).items():
            if part.rank:
                hook = _hook(modules.get(name), name, part)
                worn.callback(modules[name].register_forward_hook(hook).remove)
        yield


def factors_of(adapter: Wearable) -> dict[str, LoraFactors]:
    """Return the factors by the name of the module.

    Raises:
        UnsupportedAdapter: It is more than factors of linear modules and embeddings.
    """
    if adapter is None:
        return {}
    if not isinstance(adapter, Adapter):
        return dict(adapter)
    if adapter.extras:
        raise UnsupportedAdapter(
            f"{adapter.name} brings trained tensors beside its factors: {', '.join(sorted(adapter.extras)[:3])}.",
            remedy="Fuse it into its base (hub-merge fuse) and evaluate the model that results.",
        )
    if other := {spec.kind for spec in adapter.modules.values()} - {"linear", "embedding"}:
        raise UnsupportedAdapter(
            f"{adapter.name} adapts more than linear modules and embeddings: {', '.join(sorted(other))}.",
            remedy="Fuse it into its base (hub-merge fuse) and evaluate the model that results.",
        )
    return {name: adapter.factors(name) for name in adapter.modules}


def _hook(module: torch.nn.Module | None, name: str, part: LoraFactors) -> Callable[..., Any]:
    """Return the hook that adds the delta to the output of ``module``."""
    import torch

    weight = getattr(module, "weight", None)
    if module is None or weight is None or weight.ndim != 2:
        raise EvaluationError(
            f"The base model has no module {name} with a matrix of weights.",
            remedy="Give the base that the adapter was trained on.",
        )
    is_embedding = isinstance(module, torch.nn.Embedding)
    transposed = is_embedding or type(module).__name__ == "Conv1D"
    shape = tuple(reversed(weight.shape)) if transposed else tuple(weight.shape)
    if shape != part.shape:
        raise EvaluationError(
            f"The adapter's delta for {name} is {part.shape}, the base model's weight {shape}.",
            remedy="Give the base that the adapter was trained on.",
        )
    inward = _tensor(part.A, weight)
    outward = _tensor(part.B, weight) * part.scaling
    if is_embedding:
        outward = outward * getattr(module, "embed_scale", 1.0)  # Gemma's embedding multiplies what it looked up

    def add_to_linear(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        low = torch.nn.functional.linear(inputs[0].to(inward.dtype), inward)
        return (output + torch.nn.functional.linear(low, outward)).to(output.dtype)

    def add_to_embedding(_: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        low = torch.nn.functional.embedding(inputs[0], inward.T)
        return (output + torch.nn.functional.linear(low, outward)).to(output.dtype)

    return add_to_embedding if is_embedding else add_to_linear


def _tensor(factor: Any, like: torch.Tensor) -> torch.Tensor:
    """Return a factor on the device of the weight, in float32 or, for a model in float64, in float64."""
    import torch

    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.from_numpy(np.array(factor, np.float64)).to(like.device, dtype)
