"""The rank of a composite: what may be asked for, and which ranks keep a share of the energy.

Energy is the squared Frobenius norm, which is the sum of the squared singular values over all modules. The best
approximation of rank k keeps the k largest of a module (Eckart and Young), so ranks follow from the values alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from hub_merge.errors import MergeError

__all__ = [
    "ENERGY",
    "PROFILES",
    "Profile",
    "Rank",
    "Squares",
    "energy_by_rank",
    "ranks_by_module",
    "require_rank",
    "smallest_rank",
]

Rank: TypeAlias = int | Literal["auto"]
"""A whole number from 1, or ``auto``: the smallest that keeps a share of the energy."""

Profile: TypeAlias = Literal["portable", "peft"]
"""``portable`` is one rank for all modules, which every loader reads; ``peft`` a rank for each module, named by
``rank_pattern`` and ``alpha_pattern``, which loaders other than PEFT and transformers pass over."""

PROFILES: tuple[Profile, ...] = get_args(Profile)

Squares: TypeAlias = NDArray[np.float64]
"""Squared singular values of one module, largest first, without those that are rounding."""

ENERGY = 0.99
"""Share of the energy that ``auto`` keeps unless told otherwise: the rest is 10 % of the norm. A convention."""

TOLERANCE = 1e-9
"""Share of the energy that may lack, so that the rounding of another processor does not give another rank."""

DIGITS = 12
"""Shares that agree to so many decimals count as equal, and go to modules by name, for the same reason."""


def require_rank(rank: Rank | None, energy: float | None, profile: str) -> None:
    """Raise ``MergeError`` unless these can be asked for together."""
    if rank not in (None, "auto") and (isinstance(rank, (str, bool)) or rank < 1):
        raise MergeError(f"Rank {rank} is no rank.", remedy="Give a whole number from 1, or 'auto'.")
    if energy is not None and rank != "auto":
        raise MergeError(
            f"Energy {energy:g} says what rank 'auto' keeps, but the rank is {rank or 'left to the method'}.",
            remedy="Ask for rank 'auto', or leave out the energy.",
        )
    if energy is not None and not 0 < energy <= 1:
        raise MergeError(f"Energy {energy:g} is no share.", remedy="Give a number above 0 and up to 1, such as 0.99.")
    if profile not in PROFILES:
        raise MergeError(f"There is no profile {profile!r}.", remedy=f"It is one of {', '.join(PROFILES)}.")


def energy_by_rank(squares: Iterable[Squares]) -> tuple[float, ...]:
    """Return the share of the energy that one rank in every module keeps.

    Returns:
        The share at rank k as entry ``k - 1``, [0, 1], up to the rank that keeps all; empty where there is no energy.
    """
    modules = list(squares)
    kept = np.zeros(max(map(len, modules), default=0))
    for values in modules:
        kept[: len(values)] += values
    running = np.cumsum(kept)
    return tuple(float(part / running[-1]) for part in running)


def smallest_rank(energy: Sequence[float], share: float) -> int | None:
    """Return the smallest rank that keeps ``share`` of the energy, (0, 1]; ``None`` where there is no energy."""
    return next((rank for rank, kept in enumerate(energy, 1) if kept >= share - TOLERANCE), len(energy) or None)


def ranks_by_module(squares: Mapping[str, Squares], rank: Rank, energy: float, profile: Profile) -> dict[str, int]:
    """Return the rank of every module, from 1.

    ``portable`` gives all modules one rank. ``peft`` deals out rank-one pieces, the largest singular values of all
    modules first, after one piece for each module: with ``auto`` the fewest that keep the energy over all modules
    together, with a number as many as come to that rank on average.

    Args:
        squares: Squared singular values by module.
        rank: A number, or ``auto``.
        energy: Share to keep with ``auto``, (0, 1].
        profile: Whether all modules have one rank.
    """
    if profile == "peft":
        return _dealt_out(squares, rank, energy)
    one = (smallest_rank(energy_by_rank(squares.values()), energy) or 1) if rank == "auto" else rank
    return dict.fromkeys(squares, one)


def _dealt_out(squares: Mapping[str, Squares], rank: Rank, energy: float) -> dict[str, int]:
    total = sum(float(values.sum()) for values in squares.values())
    pieces = [(module, float(square)) for module, values in squares.items() for square in values[1:]]
    pieces.sort(key=lambda piece: -round(piece[1] / total, DIGITS))  # stable: equal ones stay in the modules' order
    if rank == "auto":
        first = sum(float(values[0]) for values in squares.values() if len(values))
        running = first + np.cumsum([0.0, *(square for _, square in pieces)])
        count = int(np.searchsorted(running, (energy - TOLERANCE) * total))
    else:
        count = (rank - 1) * len(squares)
    ranks = dict.fromkeys(squares, 1)
    for module, _ in pieces[:count]:
        ranks[module] += 1
    return ranks
