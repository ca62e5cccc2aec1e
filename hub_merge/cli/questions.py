"""Questions that the command line names, read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub_merge.evaluate import QuestionSet

__all__ = ["ANSWER", "PROMPT", "question_sets"]

PROMPT, ANSWER = "Question: {question}\\nAnswer: ", "{answer}"


def question_sets(
    data: tuple[str, ...], split: str, limit: int | None, prompt: str = PROMPT, answer: str = ANSWER
) -> list[QuestionSet]:
    """Return what ``[NAME=]SOURCE`` names, once a domain; ``\\n`` in a format is a new line."""
    from hub_merge.evaluate import QuestionFormat, read_questions

    form = QuestionFormat(*(text.replace("\\n", "\n") for text in (prompt, answer)))
    found = []
    for entry in data:
        name, equals, source = entry.partition("=")
        whole = not equals or Path(entry).is_file()
        found.append(
            read_questions(
                entry if whole else source, name=None if whole else name, split=split, limit=limit, format=form
            )
        )
    return found
