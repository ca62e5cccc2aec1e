"""How much one run may take: limits of rank, bytes, adapters and disk, judged before the work begins.

Each limit can be raised for one run by an environment variable, which its error names::

    HUB_MERGE_MAX_RANK=8192 hub-merge merge ./a ./b -o out
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from hub_merge.errors import BudgetExceeded, DiskFull, RecipeError

__all__ = ["Budget", "budget", "human_size"]

UNITS = ("B", "kB", "MB", "GB")


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of one run.

    Attributes:
        max_rank: Largest rank of an adapter, and of all adapters of a merge together.
        max_bytes: Most bytes of one adapter that is read, and of a composite that is written.
        max_adapters: Most adapters that are looked at together.
        min_free_disk: Bytes of the disk that stay free after a download or a merge.
    """

    max_rank: int = 4096
    max_bytes: int = 16 * 10**9
    max_adapters: int = 64
    min_free_disk: int = 10**9

    def require_rank(self, rank: int, subject: str) -> None:
        """Raise ``BudgetExceeded`` if ``rank`` is too large."""
        _require(rank, self.max_rank, f"{subject} has rank {rank}", "HUB_MERGE_MAX_RANK")

    def require_bytes(self, size: int, subject: str) -> None:
        """Raise ``BudgetExceeded`` if ``size`` bytes are too many."""
        _require(size, self.max_bytes, f"{subject} takes {size} bytes", "HUB_MERGE_MAX_BYTES")

    def require_adapters(self, count: int) -> None:
        """Raise ``BudgetExceeded`` if ``count`` adapters are too many."""
        _require(count, self.max_adapters, f"There are {count} adapters", "HUB_MERGE_MAX_ADAPTERS")

    def require_disk(self, size: int, folder: Path, subject: str) -> None:
        """Raise ``DiskFull`` unless ``size`` more bytes fit on the disk of ``folder``, which need not exist."""
        place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
        free = shutil.disk_usage(place).free
        if free - size < self.min_free_disk:
            raise DiskFull(
                f"{subject} needs {size} bytes; the disk has {free}, of which {self.min_free_disk} stay free.",
                remedy="Free space, use another disk, or set HUB_MERGE_MIN_FREE_DISK to fewer bytes.",
            )


def _require(asked: int, most: int, problem: str, variable: str) -> None:
    if asked > most:
        raise BudgetExceeded(
            f"{problem}; the limit is {most}.", remedy=f"If you trust it, raise the limit: {variable}={asked}"
        )


def budget() -> Budget:
    """Return the limits, with those that the environment sets.

    Raises:
        RecipeError: A variable is no whole number from 0.
    """
    variables = {name: f"HUB_MERGE_{name.upper()}" for name in Budget.__slots__}
    asked = {name: os.environ[variable] for name, variable in variables.items() if os.environ.get(variable)}
    for name, value in asked.items():
        if not (value.isascii() and value.isdecimal()):
            raise RecipeError(f"{variables[name]} is {value!r}.", remedy="Set it to a whole number, or unset it.")
    return Budget(**{name: int(value) for name, value in asked.items()})


def human_size(number: int) -> str:
    """Return a number of bytes in the largest unit that leaves it above one."""
    value, unit = float(number), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {UNITS[unit]}"
