"""How much one visitor may ask for, told before work begins, and the clock that ends what takes too long."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from hub_merge.budgets import human_size
from hub_merge.errors import BudgetExceeded, RecipeError
from hub_merge.pipeline.progress import Progress

__all__ = ["Limits", "limits"]

AT_HOME = "Choose less, or run it on your own machine, without this limit: pip install hub-merge"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one visit.

    Attributes:
        max_adapters: Most adapters in one merge.
        max_bytes: Most bytes of all their weights together.
        max_seconds: Longest time that measuring or merging may take.
    """

    max_adapters: int = 8
    max_bytes: int = 2 * 10**9
    max_seconds: int = 300

    def told(self) -> str:
        """Return the limits as one sentence."""
        return (
            f"Up to {self.max_adapters} adapters, {human_size(self.max_bytes)} of weights together, "
            f"{self.max_seconds // 60} minutes."
        )

    def require_adapters(self, count: int) -> None:
        """Raise ``BudgetExceeded`` if ``count`` adapters are too many."""
        if count > self.max_adapters:
            raise BudgetExceeded(
                f"{count} adapters were chosen; this page merges at most {self.max_adapters}.", remedy=AT_HOME
            )

    def require_bytes(self, size: int) -> None:
        """Raise ``BudgetExceeded`` if adapters of ``size`` bytes together are too large."""
        if size > self.max_bytes:
            raise BudgetExceeded(
                f"These adapters have {human_size(size)} of weights together; this page reads at most "
                f"{human_size(self.max_bytes)}.",
                remedy=AT_HOME,
            )

    def timed(self, progress: Progress) -> Progress:
        """Return ``progress`` with a clock: from the time that it runs out on, a call raises ``BudgetExceeded``."""
        end = time.monotonic() + self.max_seconds

        def checked(step: str, done: int, total: int) -> None:
            if time.monotonic() > end:
                raise BudgetExceeded(
                    f"This takes longer than the {self.max_seconds} seconds that this page allows.", remedy=AT_HOME
                )
            progress(step, done, total)

        return checked


def limits() -> Limits:
    """Return the limits, with those that the environment sets, such as ``HUB_MERGE_UI_MAX_BYTES``.

    Raises:
        RecipeError: A variable is no whole number from 1.
    """
    asked = {name: os.environ.get(f"HUB_MERGE_UI_{name.upper()}") for name in Limits.__slots__}
    given = {name: value for name, value in asked.items() if value}
    for name, value in given.items():
        if not (value.isascii() and value.isdecimal() and int(value)):
            raise RecipeError(
                f"HUB_MERGE_UI_{name.upper()} is {value!r}.", remedy="Set it to a whole number from 1, or unset it."
            )
    return Limits(**{name: int(value) for name, value in given.items()})
