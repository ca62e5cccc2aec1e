"""Numbers in words."""

from __future__ import annotations

from hub_merge.budgets import human_size

__all__ = ["human_size", "percent"]


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{share:.2%}"
