"""Many adapters and composites of one base, measured on the questions of several domains in one load of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hub_merge.errors import EvaluationError
from hub_merge.evaluate.journal import Journal, digest_of_factors, key_of
from hub_merge.evaluate.language_model import LanguageModel
from hub_merge.evaluate.losses import Encoded, Loss
from hub_merge.evaluate.questions import QuestionSet
from hub_merge.evaluate.statistics import (
    Difference,
    Estimate,
    Part,
    compare,
    compare_means,
    mean_perplexity,
    perplexity,
)
from hub_merge.evaluate.wearing import Wearable, factors_of
from hub_merge.pipeline.progress import Progress, silent

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The losses of every row, from which all figures follow.

    Attributes:
        model: Label of the base.
        dtype: Dtype it computed in.
        losses: By composite and domain, in the order of the rows.
        sets: The domains, by name.
        most_tokens: Where longer texts were cut.
        cut: Rows of each domain that were.
    """

    model: str
    dtype: str
    losses: Mapping[str, Mapping[str, Sequence[Loss]]]
    sets: Mapping[str, QuestionSet]
    most_tokens: int
    cut: Mapping[str, int]

    def perplexity(self, composite: str, domain: str, part: Part = "answer") -> Estimate:
        """Return the perplexity of a composite on one domain."""
        return perplexity(self.losses[composite][domain], part)

    def mean(self, composite: str, part: Part = "answer", domains: Sequence[str] | None = None) -> Estimate:
        """Return the mean of its perplexities over ``domains``, all by default."""
        losses = self.losses[composite]
        return mean_perplexity({name: losses[name] for name in domains or losses}, part)

    def compare_means(self, composite: str, other: str, part: Part = "answer") -> Difference:
        """Compare the mean perplexities of two composites over the domains of the first."""
        return compare_means(self.losses[composite], self.losses[other], part)

    def compare(self, composite: str, other: str, domain: str, part: Part = "answer") -> Difference:
        """Compare two composites on the rows of one domain."""
        return compare(self.losses[composite][domain], self.losses[other][domain], part)


def evaluate(
    model: LanguageModel,
    composites: Mapping[str, Wearable],
    sets: Sequence[QuestionSet],
    *,
    journal: Path | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measure every composite on every domain.

    Args:
        model: The base, loaded once.
        composites: By name: adapters, composites, or ``None`` for the plain base.
        sets: The domains; each name once.
        journal: File of rows that were measured before and are not measured again; new ones are added to it.
        progress: Told what is measured, the rows done and the rows there are.

    Raises:
        EvaluationError: Two domains share a name, an adapter does not fit the base, or there is nothing to score.
        UnsupportedAdapter: One cannot be worn; see ``wear``.
    """
    names = [entry.name for entry in sets]
    if not sets or len(set(names)) < len(names):
        raise EvaluationError(
            f"Every domain needs a name of its own; there are {', '.join(names) or 'none'}.",
            remedy="Name them: --data math=FILE --data medicine=FILE.",
        )
    rows = {entry.name: model.encode(entry.questions) for entry in sets}
    losses: dict[str, dict[str, list[Loss]]] = {}
    with Journal(journal) as done:
        for name, wearable in composites.items():
            losses[name] = _measured(model, name, wearable, rows, done, progress)
    cut = {name: sum(row.cut > 0 for row in encoded) for name, encoded in rows.items()}
    return Evaluation(model.label, model.dtype, losses, {entry.name: entry for entry in sets}, model.most_tokens, cut)


def _measured(
    model: LanguageModel,
    name: str,
    wearable: Wearable,
    sets: Mapping[str, Sequence[Encoded]],
    journal: Journal,
    progress: Progress,
) -> dict[str, list[Loss]]:
    """Return the losses of one composite by domain; it is put on only if a row is missing in the journal."""
    factors = factors_of(wearable)
    worn = digest_of_factors(factors)
    keys = {domain: [key_of(model.digest, worn, row) for row in rows] for domain, rows in sets.items()}
    missing = [
        (key, row)
        for domain, rows in sets.items()
        for key, row in zip(keys[domain], rows, strict=True)
        if journal.get(key) is None
    ]
    total = sum(map(len, sets.values()))
    state = {"done": total - len(missing)}

    def keep(place: int, loss: Loss) -> None:
        journal.add(missing[place][0], loss)
        state["done"] += 1
        progress(name, state["done"], total)

    if missing:
        with model.wearing(factors):
            model.losses([row for _, row in missing], keep)
    return {domain: [_found(journal, key) for key in keys[domain]] for domain in sets}


def _found(journal: Journal, key: str) -> Loss:
    loss = journal.get(key)
    assert loss is not None
    return loss
