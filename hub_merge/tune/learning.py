"""Mixtures by gradient: those of the closed form, moved so that the composite answers the rows themselves better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hub_merge.adapter import Adapter
from hub_merge.evaluate import Encoded, LanguageModel
from hub_merge.gram import Float64
from hub_merge.mixtures import Mixture, Mixtures
from hub_merge.scores import parents_of
from hub_merge.tune.closed import Frame
from hub_merge.tune.responses import padded
from hub_merge.tune.units import spans_of, watched

if TYPE_CHECKING:
    import torch

__all__ = ["Steps", "learned"]

NEARBY = 16
"""Batches among whose rows those of like length come together."""


@dataclass(frozen=True, slots=True)
class Steps:
    """How coefficients are learned.

    Attributes:
        start: Rows of each adapter, at most, that the closed form is read from, where learning starts.
        runs: How often learning goes from the start to the end, in another order of the rows each time. The mean of
            where it arrives counts: what single rows did to one run mostly cancels (Wortsman et al., arXiv 2203.05482).
        epochs: How often a run sees each row.
        batch: Rows in a step of the domain that has most; others give fewer, so that all are gone through alike.
        rate: Size of a step, relative to the root mean square of each matrix of coefficients in its frame.
        warm_up: Steps until the rate is reached; then it falls along a cosine.
        distill: Share of the loss, from 0 to 1, that is taken against what the row's own adapter would say there and
            not against the answer (Hinton et al., arXiv 1503.02531). It costs another forward pass.
    """

    start: int = 128
    runs: int = 2
    epochs: int = 1
    batch: int = 4
    rate: float = 0.1
    warm_up: int = 5
    distill: float = 0.5


def learned(
    model: LanguageModel,
    parents: Sequence[Adapter],
    mixtures: Mixtures,
    frames: Mapping[str, Frame],
    domains: Mapping[str, Sequence[Encoded]],
    owners: Mapping[str, Sequence[int]],
    *,
    steps: Steps | None = None,
    seed: int = 0,
    done: Callable[[int], None] = lambda rows: None,
) -> Mixtures:
    """Return mixtures with a smaller mean of the domains' answer losses on these rows, by Adam.

    Only the coefficients move, ``2 R k`` numbers a module: the composite stays one of the adapters' own units. The loss
    is in nats a token, so that a domain of large perplexity, where there is most to learn by heart, weighs no more than
    the others, and a share of it, ``distill``, asks for what the row's own adapter says instead of for the answer.

    Args:
        model: The base.
        parents: The adapters.
        mixtures: Where to start.
        frames: Coordinates to move in, by module: units of trainings that began alike are nearly parallel, so that what
            tells them apart would take many steps of their own coefficients.
        domains: The rows of each domain.
        owners: For each of these rows the place of its adapter among ``parents``.
        steps: How to go on from there.
        seed: Seed of the first order of the rows.
        done: Told how many rows were learned from, step by step.
    """
    import torch

    steps = steps or Steps()
    units = {name: parents_of(parents, name) for name in mixtures}
    spans = {name: spans_of(parts) for name, parts in units.items()}
    teacher: int | None = None

    def held(*arrays: Float64) -> list[torch.Tensor]:
        return [torch.tensor(one, dtype=torch.float32, device=model.model.device) for one in arrays]

    undo = {name: held(frame.undo_left, frame.undo_right) for name, frame in frames.items()}
    start = {
        name: held(frames[name].left @ mixture.out, mixture.inward @ frames[name].right)
        for name, mixture in mixtures.items()
    }
    scale = {name: [one.square().mean().sqrt() for one in pair] for name, pair in start.items()}
    moved = {name: [torch.zeros_like(one, requires_grad=True) for one in pair] for name, pair in start.items()}
    moves = [one for pair in moved.values() for one in pair]

    def now(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        out, inward = (a + size * move for a, size, move in zip(start[name], scale[name], moved[name], strict=True))
        return undo[name][0] @ out, inward @ undo[name][1]

    def mix(name: str, z: torch.Tensor, outward: torch.Tensor) -> torch.Tensor:
        if teacher is not None:
            own = spans[name][teacher]
            return z[..., own] @ outward[:, own].T
        out, inward = (one.to(z.dtype) for one in now(name))
        return z @ inward.T @ out.T @ outward.T

    count = steps.epochs * -(-max(map(len, domains.values())) // steps.batch)
    usual = {domain: steps.epochs * sum(map(_answered, rows)) / count for domain, rows in domains.items()}

    def run(seed: int) -> list[torch.Tensor]:
        nonlocal teacher
        for move in moves:
            move.detach().zero_()
        optimizer = torch.optim.Adam(moves, steps.rate, betas=(0.9, 0.99))
        for step, chosen in enumerate(_drawn(domains, steps, count, seed)):
            optimizer.param_groups[0]["lr"] = steps.rate * _share(step, count, steps.warm_up)
            for domain, places in chosen.items():
                for owner, rows in _by_owner(domains[domain], owners[domain], places):
                    wanted = None
                    if steps.distill:
                        teacher = owner
                        with torch.no_grad():
                            wanted = _logits(model, rows)
                        teacher = None
                    loss = _loss(_logits(model, rows), rows, wanted, steps.distill)
                    (loss / usual[domain] / len(domains)).backward()
                    done(len(rows))
            optimizer.step()
            optimizer.zero_grad()
        return [move.detach().clone() for move in moves]

    weights = [one for one in model.model.parameters() if one.requires_grad]
    for one in weights:
        one.requires_grad_(False)
    try:
        with watched(model.model, units, mix):
            ends = [run(seed + place) for place in range(steps.runs)]
    finally:
        for one in weights:
            one.requires_grad_(True)
    for move, *reached in zip(moves, *ends, strict=True):
        move.detach().copy_(torch.stack(reached).mean(0))
    return {name: Mixture(*(one.detach().cpu().numpy() for one in now(name))) for name in mixtures}


def _answered(row: Encoded) -> int:
    """Return the number of tokens of the answer."""
    return len(row.tokens) - row.start


def _by_owner(
    rows: Sequence[Encoded], owners: Sequence[int], places: Sequence[int]
) -> Iterator[tuple[int, list[Encoded]]]:
    """Yield each adapter that has rows at these places, and them."""
    for owner in dict.fromkeys(owners[place] for place in places):
        yield owner, [rows[place] for place in places if owners[place] == owner]


def _logits(model: LanguageModel, rows: Sequence[Encoded]) -> torch.Tensor:
    """Return the logits that say each token of the answers, row by row, ``(tokens, vocabulary)``."""
    import torch

    tokens, real = padded(rows)
    starts = torch.tensor([[row.start] for row in rows])
    answers = real & (torch.arange(tokens.shape[1]) >= starts)
    return model.logits_at(tokens, real.long(), answers.roll(-1, dims=1)).float()


def _loss(logits: torch.Tensor, rows: Sequence[Encoded], wanted: torch.Tensor | None, share: float) -> Any:
    """Return the loss of the answers' tokens, each of which counts the same, in all."""
    import torch

    answers = torch.tensor([token for row in rows for token in row.tokens[row.start :]], device=logits.device)
    loss = torch.nn.functional.cross_entropy(logits, answers, reduction="sum")
    if wanted is None:
        return loss
    return (1 - share) * loss + share * torch.nn.functional.cross_entropy(logits, wanted.softmax(-1), reduction="sum")


def _share(step: int, count: int, warm_up: int) -> float:
    """Return the share of the rate at a step."""
    return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / count))


def _drawn(
    domains: Mapping[str, Sequence[Encoded]], steps: Steps, count: int, seed: int
) -> Iterator[dict[str, list[int]]]:
    """Yield the places of each step's rows: of every domain as many as bring it to its end with the others."""
    rng = np.random.default_rng(seed)
    orders: dict[str, list[int]] = {name: [] for name in domains}
    for name, rows in domains.items():
        for _ in range(steps.epochs):
            orders[name] += _order([len(row.tokens) for row in rows], steps.batch, rng)
    for step in range(count):
        chosen = {}
        for name, order in orders.items():
            begin, end = (len(order) * place // count for place in (step, step + 1))
            if begin < end:
                chosen[name] = order[begin:end]
        yield chosen


def _order(lengths: Sequence[int], batch: int, rng: np.random.Generator) -> list[int]:
    """Return the rows in random order, but those of a batch of like length, so that little is padded."""
    shuffled = rng.permutation(len(lengths))
    parts = np.array_split(shuffled, -(-len(lengths) // (NEARBY * batch)))
    ordered = [int(row) for part in parts for row in sorted(part, key=lambda row: lengths[row])]
    groups = [ordered[place : place + batch] for place in range(0, len(ordered), batch)]
    return [row for group in rng.permutation(len(groups)) for row in groups[group]]
