"""Merging adapters that are at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hub_merge.adapter import Adapter, unique_names
from hub_merge.budgets import budget
from hub_merge.compat import Compatibility, check, total_rank
from hub_merge.composite import Composite, compose
from hub_merge.errors import IncompatibleAdapters, MergeError, RecipeError
from hub_merge.extras import decide
from hub_merge.findings import REFUSE, Finding, Report
from hub_merge.formats.tensors import WRITABLE
from hub_merge.lineage import Follow
from hub_merge.methods import Method, get_method
from hub_merge.mixtures import Mixtures
from hub_merge.outliers import dominance_findings
from hub_merge.ranks import Profile, Rank, require_rank
from hub_merge.weights import Weight, checked_weight

__all__ = ["affordable", "checked_weights", "compress", "merge", "require_choices", "require_compatible"]


def merge(
    adapters: Sequence[Adapter],
    method: str = "sum",
    *,
    weights: Sequence[Weight] | None = None,
    rank: Rank | None = None,
    energy: float | None = None,
    profile: Profile = "portable",
    seed: int = 0,
    dtype: str | None = None,
    base: str | None = None,
    allow: Sequence[str] = (),
    extras: str = REFUSE,
    canonical: Follow | None = None,
    original: Follow | None = None,
    mixtures: Mixtures | None = None,
    tuning: Mapping[str, Any] | None = None,
    **options: Any,
) -> Composite:
    """Return the composite of ``adapters``. Its factors are computed when they are asked for or saved.

    Args:
        adapters: One or more adapters.
        method: Name of the merge method; ``list_methods()`` has them all.
        weights: One number an adapter, or numbers by module (``{"self_attn": 0.5, "*": 1.0}``); 1.0 by default.
        rank: Rank of the result; ``None`` leaves it to the method, ``auto`` takes the smallest that keeps ``energy``.
        energy: Share of the squared Frobenius norm that ``auto`` keeps of the linear combination that the method makes,
            or of the weighted sum for a method that makes none, (0, 1]; 0.99 by default.
        profile: ``portable`` gives all modules one rank. ``peft`` gives each its own, the largest singular values of
            all modules first: the fewest that keep ``energy`` with ``auto``, ``rank`` a module on average with a
            number, the method's own without one. Only PEFT and transformers read such a file right.
        seed: Seed of every random choice.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``None`` takes the widest of the sources.
        base: Hub id that you assert to be the base of all adapters.
        allow: Codes of findings that you accept, such as ``task_differs``.
        extras: What becomes of heads, biases and token rows: ``refuse``, ``keep:NAME`` (those of one adapter),
            ``average`` (the plain mean over the adapters that have them) or ``drop``.
        canonical: Follows renames of a Hub id, such as ``Hub().canonical``.
        original: Tells which model a quantised copy was made from, such as ``Hub().original``.
        mixtures: Mixtures by module, for method ``mix``.
        tuning: How weights, method or coefficients were chosen by measurement, as data for the record.
        **options: Options of the method.

    Raises:
        IncompatibleAdapters: They do not fit together; the error lists every problem.
        BudgetExceeded: There are more adapters, or they have a larger rank together, than a limit allows.
        UnknownMethod: No such method.
        MergeError: An option, rank or dtype that the method cannot use.
        RecipeError: Weights that are no numbers, or not one an adapter.
    """
    if not adapters:
        raise MergeError("There is nothing to merge.", remedy="Name one or more adapters.")
    chosen = get_method(method)
    numbers = checked_weights(adapters, weights)
    settings = chosen.parse_options(options)
    require_choices(dtype, seed)
    require_rank(rank, energy, profile)
    named = affordable(adapters)
    compatibility = check(named, base=base, allow=allow, canonical=canonical, original=original)
    beside, report = decide(extras, named, numbers, compatibility.report)
    require_compatible(report)
    compatibility = replace(compatibility, report=report)
    compatibility = _with_cautions(compatibility, chosen, numbers, settings, rank)
    return compose(
        named,
        numbers,
        chosen,
        rank=rank,
        energy=energy,
        profile=profile,
        options=settings,
        seed=seed,
        dtype=dtype,
        compatibility=compatibility,
        allow=allow,
        beside=beside,
        mixtures=mixtures,
        tuning=tuning,
    )


def affordable(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return the adapters under unique names, or raise ``BudgetExceeded``; none of their numbers is read."""
    limits = budget()
    limits.require_adapters(len(adapters))
    limits.require_rank(total_rank(adapters), "The exact sum")
    return unique_names(adapters)


def checked_weights(adapters: Sequence[Adapter], weights: Sequence[Weight] | None) -> list[Weight]:
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if len(weights) != len(adapters):
        raise RecipeError(
            f"There are {len(adapters)} adapters and {len(weights)} weights.", remedy="Give one weight an adapter."
        )
    return [checked_weight(weight, adapter.name) for weight, adapter in zip(weights, adapters, strict=True)]


def require_compatible(report: Report) -> None:
    """Raise ``IncompatibleAdapters`` if something blocks the merge: the one place where findings become an error."""
    if not report.compatible:
        raise IncompatibleAdapters(report)


def require_choices(dtype: str | None, seed: int) -> None:
    if dtype is not None and dtype not in WRITABLE:
        raise MergeError(f"{dtype!r} is no dtype to write.", remedy=f"It is one of {', '.join(WRITABLE)}.")
    if seed < 0:
        raise MergeError(f"Seed {seed} is negative.", remedy="Give a whole number from 0.")


def _with_cautions(
    compatibility: Compatibility,
    method: Method,
    weights: Sequence[Weight],
    options: Mapping[str, Any],
    rank: Rank | None,
) -> Compatibility:
    """Add what is to be told about the choice of method and weights."""
    numbers = [
        number for weight in weights for number in (weight.values() if isinstance(weight, Mapping) else [weight])
    ]
    told = list(method.cautions(numbers, options)) if method.cautions else []
    if isinstance(rank, int) and rank > compatibility.total_rank:
        told.append(
            f"rank {rank} is more than the adapters have together; the composite has {compatibility.total_rank}"
        )
    cautions = [Finding("caution", "method", "", method.name, text, "", "") for text in told]
    cautions += dominance_findings(compatibility.adapters, compatibility.statistics, weights)
    return replace(compatibility, report=Report((*compatibility.report.findings, *cautions)))


def compress(
    adapter: Adapter,
    rank: Rank = "auto",
    energy: float | None = None,
    *,
    profile: Profile = "portable",
    dtype: str | None = None,
    base: str | None = None,
    allow: Sequence[str] = (),
) -> Composite:
    """Return ``adapter`` at a smaller rank, as close to it as that rank allows: method ``svd`` of it alone.

    Args:
        adapter: What to compress.
        rank: A whole number, or ``auto`` for the smallest rank that keeps ``energy``; 1 for a delta that is zero.
        energy: Share of the squared Frobenius norm that ``auto`` keeps, (0, 1]; 0.99 by default.
        profile: ``portable`` for one rank in all modules, ``peft`` for a rank in each; see ``merge``.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``None`` takes that of the adapter.
        base: Hub id that you assert to be the adapter's base.
        allow: Codes of findings that you accept.

    Raises:
        IncompatibleAdapters: The adapter holds more than its factors, which would be lost.
        MergeError: A rank, energy, profile or dtype that cannot be used.
    """
    return merge([adapter], "svd", rank=rank, energy=energy, profile=profile, dtype=dtype, base=base, allow=allow)
