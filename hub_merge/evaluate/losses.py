"""What the tokens of questions and answers cost a model: negative log-likelihoods by row, computed in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hub_merge.errors import EvaluationError
from hub_merge.evaluate.questions import Question

if TYPE_CHECKING:
    import torch

__all__ = ["Encoded", "Loss", "batches", "encode", "score_batch"]

AT_ONCE = 64
"""Rows of logits whose probabilities are summed together: few enough to stay in a processor's cache."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A question as tokens.

    Attributes:
        tokens: Prompt, answer and end-of-text, cut to the length that was asked for.
        start: Place of the first token of the answer.
        cut: How many tokens were cut away.
    """

    tokens: tuple[int, ...]
    start: int
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Loss:
    """Negative log-likelihoods of one row, in nats, and how many tokens they are summed over.

    The first token of a text follows nothing and is never counted; padding is not either.

    Attributes:
        answer: Sum over the tokens of the answer, the end-of-text token among them.
        answer_tokens: Their number.
        text: Sum over all tokens but the first.
        text_tokens: Their number.
    """

    answer: float
    answer_tokens: int
    text: float
    text_tokens: int


def encode(question: Question, tokenizer: Any, most_tokens: int) -> Encoded:
    """Return the tokens of ``question``; its answer starts where the tokens of the prompt alone become other ones.

    So a token that holds the end of the prompt and the beginning of the answer counts as answer.

    Raises:
        EvaluationError: The tokenizer has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise EvaluationError(
            "The tokenizer has no end-of-text token, which ends every answer.", remedy="Set its eos_token."
        )
    prompt = tokenizer(question.prompt).input_ids
    tokens = [*tokenizer(question.prompt + question.answer).input_ids, tokenizer.eos_token_id]
    pairs = zip(prompt, tokens, strict=False)
    start = next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(prompt), len(tokens)))
    return Encoded(tuple(tokens[:most_tokens]), max(start, 1), max(0, len(tokens) - most_tokens))


def batches(rows: Sequence[Encoded], most_tokens: int) -> Iterator[list[int]]:
    """Yield the places of rows that go together: of like length, at most ``most_tokens`` with the padding.

    Long rows come first, so that memory runs out at the beginning or not at all.
    """
    batch: list[int] = []
    for place in sorted(range(len(rows)), key=lambda place: -len(rows[place].tokens)):
        if batch and (len(batch) + 1) * len(rows[batch[0]].tokens) > most_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def score_batch(
    rows: Sequence[Encoded], logits_at: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
) -> list[Loss]:
    """Return the losses of the rows of one batch.

    Args:
        rows: At least one row of at least two tokens.
        logits_at: Gives the logits, ``(positions, vocabulary)``, from tokens, attention mask and a mask of the
            positions that are wanted, each ``(rows, tokens)``.
    """
    import torch

    width = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    real = torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        tokens[place, : len(row.tokens)] = torch.tensor(row.tokens)
        real[place, : len(row.tokens)] = 1
    targets = real.bool()
    targets[:, 0] = False
    scored = targets.roll(-1, dims=1)  # the position before a token predicts it
    nats = torch.zeros(len(rows), width, dtype=torch.float64)
    nats[targets] = surprises(logits_at(tokens, real, scored), tokens[targets]).double().cpu()
    return [_loss(row, nats[place]) for place, row in enumerate(rows)]


def surprises(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the negative log-likelihood of each token, float32 ``(positions,)``, from ``(positions, vocabulary)``."""
    import torch

    tokens = tokens.to(logits.device)
    chosen = logits.gather(1, tokens[:, None])[:, 0].float()
    return torch.cat([part.float().logsumexp(1) for part in torch.split(logits, AT_ONCE)]) - chosen


def _loss(row: Encoded, nats: torch.Tensor) -> Loss:
    length = len(row.tokens)
    answer = nats[row.start : length]
    return Loss(answer.sum().item(), len(answer), nats[:length].sum().item(), length - 1)
