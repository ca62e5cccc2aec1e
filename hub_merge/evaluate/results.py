"""Measurements as data: for a JSON document, and for the record and card of a composite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from hub_merge.evaluate.evaluation import Evaluation
from hub_merge.evaluate.statistics import Difference, Estimate, Part
from hub_merge.measurements import Measurement

__all__ = ["document", "figures", "results_of"]

PARTS: tuple[Part, ...] = ("answer", "text")
BASE = "base"
"""Name of the plain base among the composites."""
MEAN = "mean"
"""What stands for the domain where the figure is the mean over all."""

DEFINITIONS = {
    "answer": "exp of the mean negative log-likelihood of the answers' tokens, the end-of-text token among them",
    "text": "exp of the mean negative log-likelihood of all tokens but the first of each text, prompt and answer",
}


def figures(evaluation: Evaluation, against: str = BASE) -> list[dict[str, Any]]:
    """Return one flat row a composite and domain, and one for the mean over several domains.

    Args:
        evaluation: The measurements.
        against: The composite that the others are compared with; without it there is no comparison.
    """
    return [row for name in evaluation.losses for row in _figures_of(evaluation, name, against)]


def _figures_of(evaluation: Evaluation, name: str, against: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of one composite."""
    domains, reference = evaluation.losses[name], evaluation.losses.get(against, {})
    for domain in domains:
        estimates = [evaluation.perplexity(name, domain, part) for part in PARTS]
        compared = name != against and domain in reference
        yield _row(name, domain, estimates, evaluation.compare(name, against, domain) if compared else None)
    if len(domains) > 1:
        estimates = [evaluation.mean(name, part) for part in PARTS]
        compared = name != against and set(domains) <= set(reference)
        yield _row(name, MEAN, estimates, evaluation.compare_means(name, against) if compared else None)


def _row(name: str, domain: str, estimates: Sequence[Estimate], difference: Difference | None) -> dict[str, Any]:
    answer, text = estimates
    return {
        "composite": name,
        "domain": domain,
        "perplexity": answer.value,
        "low": answer.low,
        "high": answer.high,
        "text": text.value,
        "rows": answer.rows,
        "change": difference.ratio - 1 if difference else None,
        "p": difference.p if difference else None,
    }


def document(evaluation: Evaluation, against: str = BASE) -> dict[str, Any]:
    """Return everything as plain data: figures, tests of every pair of composites, and the loss of every row."""
    return {
        "base": evaluation.model,
        "dtype": evaluation.dtype,
        "most_tokens": evaluation.most_tokens,
        "definitions": {**DEFINITIONS, "interval": "95 % percentile bootstrap over rows"},
        "domains": {
            name: {
                "split": entry.split,
                "rows": len(entry.questions),
                "cut": evaluation.cut[name],
                **asdict(entry.format),
            }
            for name, entry in evaluation.sets.items()
        },
        "figures": figures(evaluation, against),
        "comparisons": _comparisons(evaluation),
        "losses": {
            name: {domain: [list(asdict(loss).values()) for loss in rows] for domain, rows in losses.items()}
            for name, losses in evaluation.losses.items()
        },
    }


def _comparisons(evaluation: Evaluation) -> list[dict[str, Any]]:
    names: Sequence[str] = list(evaluation.losses)
    return [
        {"composite": name, "other": other, "domain": domain, "part": part}
        | asdict(evaluation.compare(name, other, domain, part))
        for place, other in enumerate(names)
        for name in names[place + 1 :]
        for domain in evaluation.losses[name]
        if domain in evaluation.losses[other]
        for part in PARTS
    ]


def results_of(evaluation: Evaluation, composite: str) -> list[Measurement]:
    """Return the perplexities of one composite as its record and card hold results."""
    found = []
    for domain, entry in evaluation.sets.items():
        if domain not in evaluation.losses[composite]:
            continue
        for part in PARTS:
            estimate = evaluation.perplexity(composite, domain, part)
            found.append(
                Measurement(
                    dataset=domain,
                    split=entry.split,
                    metric=f"{part} perplexity",
                    value=estimate.value,
                    interval=(estimate.low, estimate.high),
                    rows=estimate.rows,
                    how=_how(evaluation, domain, part),
                )
            )
    return found


def _how(evaluation: Evaluation, domain: str, part: Part) -> str:
    entry = evaluation.sets[domain]
    written = (entry.format.prompt + entry.format.answer).replace("\n", "\\n")
    cut = f", {evaluation.cut[domain]} rows cut to {evaluation.most_tokens} tokens" if evaluation.cut[domain] else ""
    return (
        f"{DEFINITIONS[part]}; rows written as '{written}' and the end-of-text token{cut}; {evaluation.dtype}; "
        "interval: 95 % percentile bootstrap over rows"
    )
