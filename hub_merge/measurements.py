"""Results that somebody measured on data: what a record keeps of them, and how they are read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hub_merge.errors import RecipeError

__all__ = ["Measurement"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One figure that was measured.

    Attributes:
        dataset: Id of the data set on the Hub, or a name.
        split: Which part of it.
        metric: What was measured, such as ``perplexity``.
        value: The figure.
        how: How it was measured, in a sentence: prompt, dtype, what counts.
        rows: How many rows it rests on.
        interval: Its 95 % confidence interval.
        subject: What was measured beside the composite, such as ``base`` or the name of a parent; empty for the
            composite itself. Only the composite's own figures become metadata of its card.
        config: Configuration of the data set.
        revision: Commit of the data set.
        benchmark: Id of the task within a data set that the Hub knows as a benchmark, such as ``gpqa_diamond``.
    """

    dataset: str
    split: str
    metric: str
    value: float
    how: str
    rows: int | None = None
    interval: tuple[float, float] | None = None
    subject: str = ""
    config: str | None = None
    revision: str | None = None
    benchmark: str | None = None

    def __post_init__(self) -> None:
        texts = (self.dataset, self.split, self.metric, self.how, self.subject)
        optional = (self.config, self.revision, self.benchmark)
        if not all(isinstance(text, str) for text in (*texts, *(text for text in optional if text is not None))):
            raise RecipeError("A text of a measured result is none.", remedy="Measure again.")
        if not (self.dataset and self.metric and self.how):
            raise RecipeError("A measured result needs data set, metric and how it was measured.", remedy="Name them.")
        if not all(map(_is_finite, (self.value, *(self.interval or ())))):
            raise RecipeError(f"{self.metric} on {self.dataset} is no finite number.", remedy="Measure again.")

    @property
    def key(self) -> tuple[str | None, ...]:
        """What a newer measurement of the same has in common with it."""
        return self.subject, self.dataset, self.config, self.split, self.metric, self.benchmark

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Measurement:
        """Read what ``to_dict`` and JSON made of it; ``TypeError``, ``ValueError`` or ``RecipeError`` if it is none."""
        interval = content.get("interval")
        ends = None if interval is None else (float(interval[0]), float(interval[1]))
        rows = content.get("rows")
        if rows is not None and type(rows) is not int:
            raise TypeError("rows of a measured result are no number")
        return cls(**{"split": "", **content, "interval": ends})


def _is_finite(number: object) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
