"""What the units of all adapters respond to the inputs that each adapter sees on rows of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.evaluate import Encoded, LanguageModel
from hub_merge.evaluate.losses import batches
from hub_merge.gram import Float64
from hub_merge.scores import parents_of
from hub_merge.tune.units import spans_of, watched

if TYPE_CHECKING:
    import torch

__all__ = ["responses"]


def responses(
    model: LanguageModel,
    parents: Sequence[Adapter],
    rows: Sequence[Sequence[Encoded]],
    done: Callable[[int], None] = lambda rows: None,
) -> dict[str, list[Float64]]:
    """Return, by module, for each adapter the mean of ``z zᵀ`` over the tokens of its rows.

    Args:
        model: The base.
        parents: The adapters. Each is worn while its own rows are read.
        rows: The rows of each adapter, at least one each.
        done: Told how many rows were read, batch by batch.
    """
    units = {name: parents_of(parents, name) for name in dict.fromkeys(m for p in parents for m in p.modules)}
    found: dict[str, list[Float64]] = {name: [] for name in units}
    for place, own in enumerate(rows):
        products = _products(model, units, place, own, done)
        for name, entries in found.items():
            entries.append(products[name])
    return found


def _products(
    model: LanguageModel,
    units: Mapping[str, Sequence[LoraFactors]],
    place: int,
    rows: Sequence[Encoded],
    done: Callable[[int], None],
) -> dict[str, Float64]:
    """Return the means of ``z zᵀ`` while the model wears the adapter at ``place``."""
    import torch

    spans = {name: spans_of(parts)[place] for name, parts in units.items()}
    sums: dict[str, torch.Tensor] = {}
    real = torch.zeros(0, dtype=torch.bool)

    def mix(name: str, z: torch.Tensor, outward: torch.Tensor) -> torch.Tensor:
        seen = z[real.to(z.device)].double()
        product = seen.T @ seen
        sums[name] = sums[name] + product if name in sums else product
        return torch.nn.functional.linear(z[..., spans[name]], outward[:, spans[name]])

    with torch.inference_mode(), watched(model.model, units, mix):
        body = _body(model, units)
        for batch in batches(rows, model.batch_tokens):
            tokens, real = padded([rows[row] for row in batch])
            body(input_ids=tokens.to(model.device), attention_mask=real.long().to(model.device))
            done(len(batch))
    count = sum(len(row.tokens) for row in rows)
    return {name: (total / count).cpu().numpy() for name, total in sums.items()}


def padded(rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and which of them are real, each ``(rows, tokens)``."""
    import torch

    width = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([[*row.tokens, *[0] * (width - len(row.tokens))] for row in rows])
    real = torch.tensor([[True] * len(row.tokens) + [False] * (width - len(row.tokens)) for row in rows])
    return tokens, real


def _body(model: LanguageModel, units: Mapping[str, Any]) -> Any:
    """Return the model without its head, whose logits nobody needs here unless an adapter changes it."""
    whole = model.model
    if any(whole.get_submodule(name) is whole.get_output_embeddings() for name in units):
        return whole
    return getattr(whole, whole.base_model_prefix, whole)
