"""Numbers in words."""

from __future__ import annotations

__all__ = ["human_size", "percent"]

UNITS = ("B", "kB", "MB", "GB")


def human_size(number: int) -> str:
    """Return a number of bytes in the largest unit that leaves it above one."""
    value, unit = float(number), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {UNITS[unit]}"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{share:.2%}"
