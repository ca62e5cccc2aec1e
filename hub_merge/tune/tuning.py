"""Finding a merge by measurement: candidates are made and measured on the same rows, and the best of them counts."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from hub_merge.adapter import Adapter
from hub_merge.composite import Composite, compose
from hub_merge.errors import EvaluationError, MergeError
from hub_merge.evaluate import Encoded, LanguageModel, Loss, QuestionSet, mean_perplexity, perplexity
from hub_merge.evaluate.wearing import Wearable
from hub_merge.methods import get_method
from hub_merge.mixtures import Mixtures
from hub_merge.pipeline.progress import Progress, silent
from hub_merge.scores import parents_of
from hub_merge.tune.closed import Frame, closest, frame_of
from hub_merge.tune.learning import Steps, learned
from hub_merge.tune.responses import responses

__all__ = ["Effort", "How", "tune"]

How = Literal["closed", "gradient"]

PLAIN, CLOSED, GRADIENT = "sum", "closed form", "gradient"


@dataclass(slots=True)
class Effort:
    """What tuning cost.

    Attributes:
        forward: Rows that went through the model.
        backward: Rows whose gradient was taken.
        started: Time by the clock when it began.
    """

    forward: int = 0
    backward: int = 0
    started: float = field(default_factory=time.monotonic, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return it as data, the clock read now."""
        seconds = round(time.monotonic() - self.started, 1)
        return {"forward_rows": self.forward, "backward_rows": self.backward, "seconds": seconds}


def tune(
    model: LanguageModel,
    plain: Composite,
    sets: Sequence[QuestionSet],
    *,
    how: How = "closed",
    steps: Steps | None = None,
    progress: Progress = silent,
) -> Composite:
    """Return the merge of the same adapters at the same rank that answers the questions best.

    The candidates are the plain sum and the closed form, or with ``how="gradient"`` what learning makes of that; see
    ``closest`` and ``learned``. What counts is the mean of the domains' answer perplexities on these questions, so the
    result is never worse on them than the plain sum. How good it is must be measured on others.

    Args:
        model: The base of the adapters.
        plain: Their plain sum, at the rank that the result is to have; see ``merge``.
        sets: Questions by domain. A domain named like an adapter shows what that adapter does; the rows of others show
            what the adapter does that answers them best.
        how: ``closed`` needs forward passes only; ``gradient`` also backward ones.
        steps: How to learn.
        progress: Told of each step, the rows done and the rows there are.

    Raises:
        EvaluationError: There are no questions that show what some adapter does.
        MergeError: The sum has weights or a method of its own, or trained tensors beside its factors.
    """
    _require_plain(plain)
    effort = Effort()
    domains = {entry.name: _answered(model.encode(entry.questions), entry.name) for entry in sets}
    total = sum(map(len, domains.values()))
    owners = _owners(model, plain.parents, domains, effort)
    rows = _rows_by_adapter(plain.parents, domains, owners)
    steps = (steps or Steps()) if how == "gradient" else None
    shown = rows if steps is None else [own[: steps.start] for own in rows]
    mixtures, frames = _closed(model, plain, shown, effort, progress)
    made = CLOSED
    if steps is not None:
        made = GRADIENT
        count = _Counter("learn", steps.runs * steps.epochs * total, progress)
        mixtures = learned(
            model, plain.parents, mixtures, frames, domains, owners, steps=steps, seed=plain.seed, done=count.add
        )
        effort.forward += count.done * (2 if steps.distill else 1)
        effort.backward += count.done
    candidates = {PLAIN: plain, made: _composite(plain, mixtures)}
    losses = {
        name: _measured(model, candidate, domains, effort, _Counter(f"measure {name}", total, progress))
        for name, candidate in candidates.items()
    }
    means = {name: mean_perplexity(found, resamples=1).value for name, found in losses.items()}
    best = min(means, key=lambda name: means[name])
    report = {
        "chosen": best,
        "candidates": [_figures(name, means[name], found) for name, found in losses.items()],
        "measure": "mean over the domains of the perplexity of the answers, on the rows that it was tuned on",
        "model": model.label,
        "dtype": model.dtype,
        "domains": [_domain(entry, domains[entry.name]) for entry in sets],
        "rows_by_adapter": [len(own) for own in rows],
        "steps": asdict(steps) if steps else None,
        "seed": plain.seed,
        "cost": effort.to_dict(),
    }
    return replace(candidates[best], tuning=report)


def _answered(rows: Sequence[Encoded], domain: str) -> list[Encoded]:
    """Return the rows of whose answer something is left where long texts were cut."""
    kept = [row for row in rows if row.start < len(row.tokens)]
    if not kept:
        raise EvaluationError(f"No row of {domain} has a token to score.", remedy="Give rows with shorter questions.")
    return kept


def _require_plain(plain: Composite) -> None:
    weights = [number for one in plain.weights for number in (one.values() if isinstance(one, Mapping) else [one])]
    if plain.method.name != "sum" or set(weights) != {1.0} or not isinstance(plain.rank_asked, int):
        raise MergeError(
            "Tuning finds method and weights itself, at a rank that is a number.",
            remedy="Leave out --method, --weights and --rank auto, or leave out --tune.",
        )
    if plain.profile != "portable":
        raise MergeError("Tuning gives all modules one rank.", remedy="Leave out --profile, or leave out --tune.")
    if plain.extras:
        raise MergeError("Tuning takes adapters of factors alone.", remedy="Give --extras drop, or leave out --tune.")


def _owners(
    model: LanguageModel, parents: Sequence[Adapter], domains: Mapping[str, Sequence[Encoded]], effort: Effort
) -> dict[str, list[int]]:
    """Return the adapter that each row is for, by place: the one its domain is named like, or the one that answers it
    best.
    """
    names = [parent.name for parent in parents]
    found = {}
    for domain, rows in domains.items():
        if domain in names:
            found[domain] = [names.index(domain)] * len(rows)
            continue
        losses = [_losses(model, parent, rows, effort) for parent in parents]
        found[domain] = [
            min(range(len(parents)), key=lambda place: each[place].answer) for each in zip(*losses, strict=True)
        ]
    return found


def _rows_by_adapter(
    parents: Sequence[Adapter], domains: Mapping[str, Sequence[Encoded]], owners: Mapping[str, Sequence[int]]
) -> list[list[Encoded]]:
    """Return the rows that show what each adapter does."""
    found: list[list[Encoded]] = [[] for _ in parents]
    for domain, rows in domains.items():
        for row, owner in zip(rows, owners[domain], strict=True):
            found[owner].append(row)
    for parent, own in zip(parents, found, strict=True):
        if not own:
            raise EvaluationError(
                f"No question shows what {parent.name} does.",
                remedy=f"Give it some: --tune {parent.name}=FILE, beside those of the other adapters.",
            )
    return found


def _closed(
    model: LanguageModel, plain: Composite, rows: Sequence[Sequence[Encoded]], effort: Effort, progress: Progress
) -> tuple[Mixtures, Mapping[str, Frame]]:
    """Return the closed form's mixtures, and the coordinates in which they are found."""
    count = _Counter("read", sum(map(len, rows)), progress)
    found = responses(model, plain.parents, rows, count.add)
    effort.forward += count.done
    mixtures, frames = {}, {}
    for module, spec in plain.modules.items():
        parts = parents_of(plain.parents, module)
        frames[module] = frame_of(parts, found[module])
        mixtures[module] = closest(parts, found[module], spec.rank)
    return mixtures, frames


def _composite(plain: Composite, mixtures: Mixtures) -> Composite:
    """Return the composite that the mixtures give, of the rank that the plain sum has."""
    method = get_method("mix")
    return compose(
        plain.parents,
        plain.weights,
        method,
        rank=plain.rank_asked,
        options=method.parse_options({}),
        seed=plain.seed,
        dtype=plain.dtype,
        compatibility=plain.compatibility,
        allow=plain.allow,
        beside=plain.beside,
        mixtures=mixtures,
    )


def _losses(model: LanguageModel, wearable: Wearable, rows: Sequence[Encoded], effort: Effort) -> list[Loss]:
    with model.wearing(wearable):
        effort.forward += len(rows)
        return model.losses(rows)


def _measured(
    model: LanguageModel,
    candidate: Composite,
    domains: Mapping[str, Sequence[Encoded]],
    effort: Effort,
    count: _Counter,
) -> dict[str, list[Loss]]:
    found = {}
    for name, rows in domains.items():
        found[name] = _losses(model, candidate, rows, effort)
        count.add(len(rows))
    return found


def _figures(name: str, mean: float, losses: Mapping[str, Sequence[Loss]]) -> dict[str, Any]:
    each = {domain: perplexity(rows, resamples=1).value for domain, rows in losses.items()}
    return {"name": name, "mean": mean, "perplexity": each}


def _domain(entry: QuestionSet, rows: Sequence[Encoded]) -> dict[str, Any]:
    """Return what tells the rows of a domain from others, without repeating them."""
    digest = hashlib.sha256(repr([(row.tokens, row.start) for row in rows]).encode()).hexdigest()
    return {"name": entry.name, "rows": len(rows), "tokens": sum(len(row.tokens) for row in rows), "sha256": digest}


@dataclass
class _Counter:
    """Counts rows and tells of them."""

    step: str
    total: int
    progress: Progress
    done: int = 0

    def add(self, rows: int) -> None:
        self.done += rows
        self.progress(self.step, min(self.done, self.total), self.total)
