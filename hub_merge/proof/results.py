"""What a proof says."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Check", "Loss", "Proof", "Retention"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Retention:
    """Share of a parent's delta that lies in the composite, ``<delta, delta_i> / ‖delta_i‖²``, over all its modules.

    Attributes:
        name: The parent.
        measured: From the written file.
        predicted: From what was asked; ``None`` for a parent whose delta is zero.
    """

    name: str
    measured: float | None
    predicted: float | None


@dataclass(frozen=True, slots=True)
class Loss:
    """What one module lacks of the exact combination of the parents' deltas.

    Attributes:
        module: Its name.
        rank: Its rank in the composite.
        lost: Squared distance to the exact combination over the squared norm of that; ``None`` where that is zero.
        share: Share of the squared distance of the whole composite, [0, 1].
    """

    module: str
    rank: int
    lost: float | None
    share: float


@dataclass(frozen=True, slots=True)
class Proof:
    """What re-reading the written file showed.

    Attributes:
        passed: Whether every check passed.
        tolerance: Largest relative error accepted for this dtype.
        max_error: Largest relative error of a module's delta against what was asked. Relative to the larger of the
            wanted delta and the weighted deltas that went in, so that a sum that cancels is judged fairly. ``None``
            where the file is so wrong that no delta was compared.
        worst_module: The module that has it.
        modules: Number of modules compared.
        reference: ``definition`` (the linear combination of the parents' factors that the method makes) or
            ``recomputed`` (the method run again).
        distance_to_sum: Relative Frobenius distance of the whole composite to the exact linear combination of the
            parents' deltas that the method makes without a rank; for a method that makes none, to the weighted sum.
        energy_kept: Squared norm of the composite over that of the same combination.
        losses: The modules that lack most of it, at most five; none where all that lacks is rounding.
        retention: Per parent.
        checks: Everything that was looked at.
    """

    passed: bool
    tolerance: float
    max_error: float | None
    worst_module: str | None
    modules: int
    reference: Literal["definition", "recomputed"]
    distance_to_sum: float | None
    energy_kept: float | None
    losses: tuple[Loss, ...]
    retention: tuple[Retention, ...]
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the proof as plain data; numbers that are not finite, which JSON lacks, become ``None``."""
        return asdict(self, dict_factory=lambda fields: {name: _finite(value) for name, value in fields})


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
