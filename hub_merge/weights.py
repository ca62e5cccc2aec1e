"""How much of each adapter goes in: one number, or numbers by module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import TypeAlias

from hub_merge.errors import RecipeError

__all__ = ["EVERY_MODULE", "Weight", "checked_weight", "weight_for"]

Weight: TypeAlias = float | Mapping[str, float]
"""One number, or numbers by module: ``{"self_attn": 0.5, "*": 1.0}``; the first filter found in a name counts."""

EVERY_MODULE = "*"


def weight_for(weight: Weight, module: str) -> float:
    """Return the number that ``weight`` gives to ``module``; 1.0 where no filter matches."""
    if not isinstance(weight, Mapping):
        return float(weight)
    return next((float(value) for part, value in weight.items() if part == EVERY_MODULE or part in module), 1.0)


def checked_weight(weight: object, subject: str) -> Weight:
    """Return ``weight`` if it is finite numbers, else raise.

    Raises:
        RecipeError: It is neither a finite number nor a mapping of filters to finite numbers.
    """
    if isinstance(weight, Mapping):
        return {str(part): _finite(value, subject) for part, value in weight.items()}
    return _finite(weight, subject)


def _finite(value: object, subject: str) -> float:
    if isinstance(value, str):
        with suppress(ValueError):  # YAML 1.1 takes 1e-3 for text
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RecipeError(f"The weight of {subject} is {value!r}.", remedy="Give a finite number, such as 0.5 or -1.")
    return float(value)
