"""What a record says, as a card tells it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from hub_merge.card.markdown import Markdown, escape
from hub_merge.card.words import counted
from hub_merge.errors import MergeError
from hub_merge.formats.names import COMPONENTS
from hub_merge.layout import FILE_FORMATS
from hub_merge.licenses import LicenseVerdict
from hub_merge.methods import Method, get_method
from hub_merge.recipe import MergeRecord

__all__ = [
    "PACKAGE",
    "TASKS",
    "agreed_task",
    "components_of",
    "described",
    "exact_words",
    "format_of",
    "library_of",
    "losses_of",
    "matrix_of",
    "method_name",
    "method_of",
    "most_alike",
    "options_of",
    "owed_lines",
    "rank_words",
    "task_type",
    "version_of",
    "weight_files",
]

PACKAGE = "hub-merge"
MOST_PAIRS = 10
ALIKE = ([1.0, 1.0], [True, True])
"""Weights and presence of two adapters, to tell a weighted sum by its coefficients from another combination."""

TASKS = {
    "CAUSAL_LM": ("text-generation", "AutoModelForCausalLM"),
    "FEATURE_EXTRACTION": ("feature-extraction", "AutoModel"),
    "QUESTION_ANS": ("question-answering", "AutoModelForQuestionAnswering"),
    "SEQ_2_SEQ_LM": (None, "AutoModelForSeq2SeqLM"),
    "SEQ_CLS": ("text-classification", "AutoModelForSequenceClassification"),
    "TOKEN_CLS": ("token-classification", "AutoModelForTokenClassification"),
}
"""PEFT's task types, with the Hub's pipeline tag and the class that loads the base."""


def task_type(record: MergeRecord) -> str | None:
    """Return the task type that was written, by which PEFT wraps the model."""
    written = record.output.get("task_type")
    return written if isinstance(written, str) else None


def agreed_task(record: MergeRecord) -> str | None:
    """Return the task type that was written, unless a parent is for another task."""
    written = task_type(record)
    return written if all(parent.task_type in (None, written) for parent in record.parents) else None


def library_of(record: MergeRecord) -> str:
    """Return what the Hub calls the library that loads the composite."""
    if format_of(record) == "mlx":
        return "mlx"
    return "diffusers" if components_of(record) else "peft"


def format_of(record: MergeRecord) -> str:
    written = record.output.get("format", "peft")
    return written if written in FILE_FORMATS else "peft"


def components_of(record: MergeRecord) -> list[str]:
    """Return the models of a pipeline that the composite is for; none for a model of its own."""
    return [name for name in record.output.get("components", ()) if name in COMPONENTS]


def method_of(record: MergeRecord) -> Method | None:
    """Return the method of the merge; ``None`` if it is not installed here."""
    try:
        return get_method(record.recipe.merge_method)
    except MergeError:
        return None


def method_name(record: MergeRecord) -> str:
    method = method_of(record)
    return method.name if method else record.recipe.merge_method


def options_of(record: MergeRecord) -> Mapping[str, Any]:
    """Return the options with their defaults, as far as the method is known here."""
    method = method_of(record)
    try:
        return method.parse_options(record.recipe.options) if method else record.recipe.options
    except MergeError:
        return record.recipe.options


def described(method: Method | None) -> dict[str, Any] | None:
    """Return what the card tells of the method; ``does`` is the rest of a sentence that its name begins."""
    if method is None:
        return None
    verb, _, rest = method.summary.partition(" ")
    return {
        "formula": method.formula,
        "does": f"returns {rest}" if verb == "Return" else f"is described as: {method.summary}",
        "paper": Markdown(method.paper) if re.fullmatch(r"\d{4}\.\d{4,5}", method.paper) else None,
    }


def exact_words(record: MergeRecord) -> Markdown:
    """Return what the composite is measured against, in words."""
    if len(record.parents) == 1:
        weighted = "" if record.parents[0].weight == 1.0 else "weighted "
        return Markdown(f"the {weighted}delta of its parent")
    method = method_of(record)
    is_older = "losses" not in record.proof  # and measured every composite against the weighted sum
    if is_older or method is None or method.coefficients is None or list(method.coefficients(*ALIKE)) == ALIKE[0]:
        return Markdown("the exact weighted sum of the deltas")
    return Markdown("the exact combination of the deltas")


def rank_words(record: MergeRecord) -> tuple[list[int], list[Markdown]] | None:
    """Return the smallest and the largest rank, and how many modules have which; ``None`` where all have one."""
    counts = {int(rank): int(count) for rank, count in record.output.get("ranks", {}).items()}
    if not counts:
        return None
    told = [Markdown(f"{rank} in {counted(count, 'module')}") for rank, count in sorted(counts.items())]
    return sorted({min(counts), max(counts)}), told


def losses_of(record: MergeRecord) -> Sequence[Mapping[str, Any]]:
    """Return the modules that a truncation took most from."""
    losses: Sequence[Mapping[str, Any]] = record.proof.get("losses", [])
    return losses if record.recipe.rank is not None else []


def owed_lines(verdict: LicenseVerdict) -> list[Markdown]:
    """Return one line a licence: a link to its text, and what its clauses ask for."""
    return [
        Markdown(
            f"[{escape(license)}]({url}): {'; '.join(f'{escape(owed.says)} ({escape(owed.where)})' for owed in each)}"
        )
        for (license, url), each in groupby(verdict.obligations, key=lambda owed: (owed.license, owed.url))
    ]


def matrix_of(scores: Mapping[str, Any]) -> list[tuple[str, list[float | None]]]:
    """Return the rows of the matrix of RMS cosines, each with its adapter's name."""
    known = {frozenset((pair["first"], pair["second"])): pair["rms_cosine"] for pair in scores["pairs"]}
    names: Sequence[str] = scores["adapters"]
    return [(row, [1.0 if row == name else known.get(frozenset((row, name))) for name in names]) for row in names]


def most_alike(pairs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(pairs, key=lambda pair: -(pair["rms_cosine"] or 0.0))[:MOST_PAIRS]


def weight_files(files: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those of a record's files that hold weights."""
    return [file for file in files if str(file["name"]).endswith(".safetensors")]


def version_of(record: MergeRecord) -> Markdown | None:
    version = record.versions.get(PACKAGE, "")
    return Markdown(version) if re.fullmatch(r"\d[A-Za-z0-9.+!]*", version) else None
