"""Questions with their answers, and how they become the text that a model reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub_merge.errors import EvaluationError

__all__ = ["Question", "QuestionFormat", "QuestionSet", "read_questions"]

LIBRARY = "pip install datasets"


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, and the text whose tokens are the answer."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class QuestionFormat:
    """How a row of a data set becomes a prompt and an answer.

    The end-of-text token of the tokenizer follows the answer and counts as a part of it.

    Attributes:
        prompt: Text before the answer; ``{name}`` stands for the row's field of that name.
        answer: The text whose tokens count.
    """

    prompt: str = "Question: {question}\nAnswer: "
    answer: str = "{answer}"

    def __call__(self, row: Mapping[str, Any]) -> Question:
        """Return the question that ``row`` holds.

        Raises:
            EvaluationError: The row lacks a field, or the format is no format.
        """
        try:
            return Question(self.prompt.format_map(row), self.answer.format_map(row))
        except KeyError as error:
            raise EvaluationError(
                f"A row has no field {error.args[0]!r}; it has {', '.join(map(repr, row))}.",
                remedy="Name the row's own fields: --prompt 'Question: {question}\\nAnswer: ' --answer '{answer}'.",
            ) from error
        except (AttributeError, IndexError, ValueError) as error:
            raise EvaluationError(
                f"{self.prompt + self.answer!r} is no format: {error}.",
                remedy="Write a field as {question}, and a brace that is meant as such twice.",
            ) from error


DEFAULT_FORMAT = QuestionFormat()


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions of one domain.

    Attributes:
        name: Name of the domain or data set.
        questions: One a row, in the order of the rows.
        split: Which part of the data set it is, such as ``test``.
        format: How its rows became questions.
    """

    name: str
    questions: Sequence[Question]
    split: str = "test"
    format: QuestionFormat = DEFAULT_FORMAT


def read_questions(
    source: str | Path,
    *,
    name: str | None = None,
    split: str = "test",
    limit: int | None = None,
    format: QuestionFormat = DEFAULT_FORMAT,
) -> QuestionSet:
    """Return the first questions of a JSONL file, or of a data set of the Hub.

    Args:
        source: File with a JSON object a line; or a data set, ``owner/name`` or ``owner/name:config``, which needs the
            library ``datasets``.
        name: Name of the domain; the folder of a file called train, test or validation, else the file's own name.
        split: Which part of the data set to read; of a file, what it is.
        limit: How many rows, ``None`` for all.
        format: How a row becomes a question.

    Raises:
        EvaluationError: The file is not there or holds no rows, or the library is missing.
    """
    path = Path(source)
    rows = _rows_of_file(path, limit) if path.is_file() else _rows_of_data_set(str(source), split, limit)
    if not rows:
        raise EvaluationError(f"{path.name} holds no rows.", remedy="Give a file with a question and an answer a line.")
    return QuestionSet(name or _name(path), [format(row) for row in rows], split, format)


def _name(path: Path) -> str:
    return path.parent.name if path.stem in ("train", "test", "validation") and path.parent.name else path.stem


def _rows_of_file(path: Path, limit: int | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(rows) >= limit:
                break
            if line.strip():
                rows.append(_row(line, f"{path.name}, line {number},"))
    return rows


def _row(line: str, subject: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise EvaluationError(f"{subject} is no JSON: {error}.", remedy="Write one JSON object a line.") from error
    if not isinstance(row, dict):
        raise EvaluationError(f"{subject} is no JSON object.", remedy="Write one JSON object a line.")
    return row


def _rows_of_data_set(source: str, split: str, limit: int | None) -> list[dict[str, Any]]:
    """Read rows of a data set of the Hub, no more of it than is asked for."""
    identifier, _, config = source.partition(":")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise EvaluationError(
            f"{source} is no file, and data sets of the Hub need the library datasets.",
            remedy=f"{LIBRARY}, or give a JSONL file.",
        ) from error
    try:
        rows = load_dataset(identifier, config or None, split=split, streaming=True)
        return list(rows if limit is None else rows.take(limit))
    except Exception as error:  # of many libraries below it
        raise EvaluationError(
            f"The data set {source}, split {split}, cannot be read: {error}",
            remedy="Check its name, configuration (owner/name:config) and split, or give a JSONL file.",
        ) from error
