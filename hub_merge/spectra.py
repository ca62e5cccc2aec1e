"""Singular values of adapters and of their sum: ranks that count, energy at a rank, and interference of directions.

All of it comes from R x R matrices, R the sum of ranks in a module; no delta is formed. It describes geometry, not
quality.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hub_merge.adapter import LoraFactors
from hub_merge.gram import NULL, Float64, Stack, inner_products, orthonormal, stack
from hub_merge.parallel import map_modules
from hub_merge.ranks import energy_by_rank

__all__ = [
    "AdapterSpectrum",
    "ModuleSpectrum",
    "Spectra",
    "mean",
    "module_spectrum",
    "squares_of_sum",
    "summary",
]

SAR_NORM = 0.95
"""Share of the sum's norm that the directions behind ``sar`` keep (arXiv 2502.04959, equations 5 and 6)."""


@dataclass(frozen=True, slots=True)
class AdapterSpectrum:
    """What the singular values of one adapter show: means over the modules where its delta is not zero.

    Attributes:
        stable_rank: ``‖delta‖² / sigma_1²``, [1, rank]; ``None`` where the whole delta is zero.
        effective_rank: ``exp(-sum p log p)`` with ``p = sigma² / sum sigma²``, the share of the energy that each
            direction has, [1, rank]. (Others normalise ``sigma`` instead, which gives larger values.)
        sar: Subspace alignment ratio ``‖U_k U_kᵀ delta‖ / ‖delta‖``, [0, 1]: how much of the adapter lies in the k main
            output directions of the weighted sum, k the smallest number that keeps more than 95 % of the sum's norm.
            An adapter alone is below 1 too, for its own directions beyond k are left out.
    """

    stable_rank: float | None
    effective_rank: float | None
    sar: float | None


@dataclass(frozen=True, slots=True)
class Spectra:
    """Singular values of a set of adapters and of their weighted sum.

    Attributes:
        adapters: One entry an adapter.
        sti: Singular task interference ``‖(UᵀU - I) diag(S) (VᵀV - I)‖_1``, the sum of absolute entries, of all
            adapters' singular vectors and values side by side, unweighted (arXiv 2412.00081); [0, inf), in the unit of
            singular values. Mean over the modules that two or more adapters change; ``None`` without any.
        energy: ``energy[k - 1]`` is the share of the weighted sum's squared norm that its best approximation of rank k
            in every module keeps, [0, 1], up to the rank that keeps all; empty where the sum is zero.
    """

    adapters: tuple[AdapterSpectrum, ...]
    sti: float | None
    energy: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the spectra as plain data, the energy at powers of two and at the rank that keeps all."""
        ranks = sorted({2**n for n in range(len(self.energy).bit_length())} | {len(self.energy)} - {0})
        return {
            "adapters": [asdict(entry) for entry in self.adapters],
            "sti": self.sti,
            "energy": [{"rank": rank, "share": self.energy[rank - 1]} for rank in ranks if self.energy],
        }


@dataclass(frozen=True, slots=True, eq=False)
class ModuleSpectrum:
    """Singular values of one module.

    Attributes:
        adapters: One entry an adapter; all ``None`` for one whose delta is zero here.
        sti: See ``Spectra``; ``None`` where fewer than two deltas are not zero.
        squares: Squared singular values of the weighted sum, largest first.
    """

    adapters: tuple[AdapterSpectrum, ...]
    sti: float | None
    squares: Float64


def module_spectrum(stacked: Stack, products: Float64, weights: Sequence[float]) -> ModuleSpectrum:
    """Return the spectrum of one module.

    Args:
        stacked: The deltas of the module side by side, unweighted.
        products: Their inner products, ``(n, n)``.
        weights: One number a delta, for the sum.
    """
    pieces = {i: np.flatnonzero(stacked.owner == i) for i in range(len(products)) if products[i, i] > 0}
    own = {i: _svd(stacked, rows, stacked.lengths[rows]) for i, rows in pieces.items()}
    directions, squares = _sum_directions(stacked, products, np.asarray(weights, np.float64))
    main = directions[:, : _count_for_norm(squares, SAR_NORM)]
    entries = []
    for i in range(len(products)):
        if i not in own:
            entries.append(AdapterSpectrum(None, None, None))
            continue
        values = own[i][1] ** 2
        shares = values[values > 0] / values.sum()
        entries.append(
            AdapterSpectrum(
                stable_rank=float(values.sum() / values[0]),
                effective_rank=math.exp(-float(np.sum(shares * np.log(shares)))),
                sar=_alignment(stacked, pieces[i], main, float(products[i, i])) if len(squares) else None,
            )
        )
    return ModuleSpectrum(tuple(entries), _interference(stacked, pieces, own), squares)


def _svd(stacked: Stack, pieces: NDArray[np.intp], lengths: Float64) -> tuple[Float64, Float64, Float64]:
    """Return ``(X, S, Y)``: the SVD of these pieces is ``(B X) diag(S) (A.T Y).T``, B and A those of the pieces."""
    Wb, Rb = orthonormal(stacked.gram_b[np.ix_(pieces, pieces)])
    Wa, Ra = orthonormal(stacked.gram_a[np.ix_(pieces, pieces)])
    U, S, Vt = np.linalg.svd((Rb * lengths) @ Ra.T, full_matrices=False)
    return Wb @ U, S, Wa @ Vt.T


def _sum_directions(stacked: Stack, products: Float64, weights: Float64) -> tuple[Float64, Float64]:
    """Return the sum's output directions as combinations of B's columns, and its squared singular values.

    A sum that cancels to rounding has none, by the same rule as a delta that does.
    """
    scale = float(np.abs(weights) @ np.sqrt(np.maximum(np.diag(products), 0.0)))
    if float(weights @ products @ weights) <= NULL * scale**2:
        return np.zeros((len(stacked.owner), 0)), np.zeros(0)
    X, S, _ = _svd(stacked, np.arange(len(stacked.owner)), stacked.lengths * weights[stacked.owner])
    keep = S > NULL * S[0]
    return X[:, keep], S[keep] ** 2


def _count_for_norm(squares: Float64, share: float) -> int:
    """Return how many singular values it takes to keep more than ``share`` of the norm."""
    running = np.cumsum(squares)
    return int(np.count_nonzero(np.sqrt(running) <= share * math.sqrt(running[-1]))) + 1 if len(running) else 0


def _alignment(stacked: Stack, pieces: NDArray[np.intp], directions: Float64, square: float) -> float:
    """Return ``‖directionsᵀ delta‖ / ‖delta‖``."""
    inside = (directions.T @ stacked.gram_b[:, pieces]) * stacked.lengths[pieces]
    kept = float(np.sum((inside @ stacked.gram_a[np.ix_(pieces, pieces)]) * inside))
    return min(1.0, math.sqrt(max(kept, 0.0) / square))


def _interference(
    stacked: Stack,
    pieces: dict[int, NDArray[np.intp]],
    own: dict[int, tuple[Float64, Float64, Float64]],
) -> float | None:
    if len(own) < 2:
        return None
    counts = [len(S) for _, S, _ in own.values()]
    left, right = (np.zeros((len(stacked.owner), sum(counts))) for _ in range(2))
    start = 0
    for i, (X, S, Y) in own.items():
        left[pieces[i], start : start + len(S)] = X
        right[pieces[i], start : start + len(S)] = Y
        start += len(S)
    values = np.concatenate([S for _, S, _ in own.values()])
    eye = np.eye(len(values))
    outer, inner = left.T @ stacked.gram_b @ left - eye, right.T @ stacked.gram_a @ right - eye
    return float(np.abs((outer * values) @ inner).sum())


def summary(modules: Sequence[ModuleSpectrum], count: int) -> Spectra:
    """Return the spectra of ``count`` adapters from those of their modules."""
    entries = [[module.adapters[i] for module in modules] for i in range(count)]
    return Spectra(
        adapters=tuple(
            AdapterSpectrum(
                mean(entry.stable_rank for entry in found),
                mean(entry.effective_rank for entry in found),
                mean(entry.sar for entry in found),
            )
            for found in entries
        ),
        sti=mean(module.sti for module in modules),
        energy=energy_by_rank(module.squares for module in modules),
    )


def squares_of_sum(
    modules: Iterable[str], taking_part: Callable[[str], tuple[Sequence[LoraFactors], Sequence[float]]]
) -> dict[str, Float64]:
    """Return the squared singular values of a linear combination in every module, largest first.

    Args:
        modules: Names of the modules.
        taking_part: Returns the factors of a module and their coefficients.
    """

    def squares(module: str) -> tuple[str, Float64]:
        parts, coefficients = taking_part(module)
        stacked = stack(parts)
        products = inner_products(stacked, len(parts))
        return module, _sum_directions(stacked, products, np.asarray(coefficients, np.float64))[1]

    return dict(map_modules(squares, modules, forks=True))


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known; ``None`` if none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
