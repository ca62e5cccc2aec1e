"""How much the deltas of adapters overlap: a score of orthogonality, computed from the factors alone.

It describes geometry. It does not predict quality: whether orthogonal adapters compose well is contested
(arXiv 2508.11985 finds that it tracks the loss, 2510.03262 and 2606.11262 find that it says little). Beside every
cosine stands what keeps it honest: the level that chance gives, the similarity of the A factors, which is high when two
trainings merely started from one seed, and the norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hub_merge.adapter import Adapter, LoraFactors
from hub_merge.gram import Float64, Parts, Stack, inner_products, orthonormal, stack
from hub_merge.parallel import map_modules
from hub_merge.spectra import ModuleSpectrum, Spectra, module_spectrum, summary
from hub_merge.spectra import mean as _mean
from hub_merge.weights import Weight, weight_for

__all__ = [
    "ModuleScore",
    "ModuleScores",
    "PairScore",
    "Products",
    "Scores",
    "Scoring",
    "modules_of",
    "parents_of",
    "score",
    "started_alike",
]

BLOCK_BYTES = 2**25
"""Most memory that the rows of all deltas take at once where signs are counted one by one."""


@dataclass(frozen=True, slots=True)
class ModuleScore:
    """Overlap of two adapters in one module that both adapt. All dimensionless.

    Attributes:
        cosine: Frobenius cosine of the deltas, [-1, 1]; ``None`` where a delta is zero.
        chance: Standard deviation of the cosine of two random deltas of this shape, ``1 / sqrt(out * in)``.
        left: Overlap of the output spaces, ``‖Q_iᵀ Q_j‖² / min(rank)``, [0, 1] (squared cosines of principal angles);
            the ranks are those that B really has, whatever it was padded to.
        right: The same of the input spaces.
        left_angle: Smallest principal angle between the output spaces, degrees, [0, 90].
        right_angle: The same of the input spaces.
        left_chance: What ``left`` is on average for random spaces, ``max(rank) / out``.
        right_chance: What ``right`` is on average for random spaces.
        a_rows: Mean of ``|cos|`` between row k of A and row k of the other A, where neither is zero, [0, 1].
        a_rows_chance: The same for random rows, ``sqrt(2 / (pi * in))``.
    """

    cosine: float | None
    chance: float
    left: float
    right: float
    left_angle: float
    right_angle: float
    left_chance: float
    right_chance: float
    a_rows: float | None
    a_rows_chance: float


@dataclass(frozen=True, slots=True)
class PairScore:
    """Overlap of two adapters.

    Attributes:
        first: Name of the one adapter.
        second: Name of the other.
        rms_cosine: Root mean square over shared modules of the cosine, [0, 1]; the headline. ``None`` without any.
        chance: The value ``rms_cosine`` has for random deltas of these shapes.
        times_chance: Root mean square of ``cosine / chance`` by module; 1 is what chance gives.
        global_cosine: Cosine of the whole deltas, all modules as one vector, [-1, 1]; ``None`` without a shared module.
        mean_abs_cosine: Mean of ``|cosine|`` over shared modules, [0, 1].
        max_abs_cosine: Largest ``|cosine|``, [0, 1].
        max_module: The module that has it.
        sign_conflict: Estimated share of entries of opposite sign, ``arccos(global_cosine) / pi``, [0, 1], or ``None``.
        left: Mean overlap of the output spaces, [0, 1]; ``left_chance`` is its level for random spaces.
        right: Mean overlap of the input spaces, [0, 1]; ``right_chance`` is its level for random spaces.
        a_rows: Mean row-wise ``|cos|`` of A, [0, 1]; near 1 means one initialisation, not one task.
        a_rows_chance: Level of ``a_rows`` for random rows, ``sqrt(2 / (pi * in))``.
        norm_ratio: Larger norm over smaller, [1, inf); ``None`` where a norm is zero.
        shared_modules: Modules that both adapt with a delta that is not zero.
        modules: Scores by module.
        exact_sign_conflict: Share of entries of opposite sign among those where neither delta is zero, counted over
            shared modules, [0, 1]; ``None`` unless asked for.
    """

    first: str
    second: str
    rms_cosine: float | None
    chance: float | None
    times_chance: float | None
    global_cosine: float | None
    mean_abs_cosine: float | None
    max_abs_cosine: float | None
    max_module: str | None
    sign_conflict: float | None
    left: float | None
    right: float | None
    left_chance: float | None
    right_chance: float | None
    a_rows: float | None
    a_rows_chance: float | None
    norm_ratio: float | None
    shared_modules: int
    modules: Mapping[str, ModuleScore]
    exact_sign_conflict: float | None = None

    @property
    def one_start(self) -> bool:
        """Whether the two trainings must have begun from one lora_A, see ``started_alike``."""
        return started_alike(self.a_rows, self.a_rows_chance)


def started_alike(a_rows: float | None, chance: float | None) -> bool:
    """Whether rows of A are so alike, far above chance, that both trainings must have begun from one initialisation."""
    return a_rows is not None and chance is not None and a_rows > max(0.25, 5 * chance)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a set of adapters.

    Attributes:
        adapters: Names, in the order given.
        norms: Frobenius norm of each whole delta, unweighted.
        rms_cosine: Mean of the pairs' ``rms_cosine``; ``None`` without a pair that has one.
        retention: Share of each adapter's delta that the weighted sum keeps along it,
            ``<sum_j w_j delta_j, delta_i> / ‖delta_i‖²``: its weight when all others are orthogonal to it.
        pairs: One entry a pair, in the order of ``adapters``.
        spectra: What the singular values show; ``None`` unless asked for.
    """

    adapters: tuple[str, ...]
    norms: tuple[float, ...]
    rms_cosine: float | None
    retention: tuple[float | None, ...]
    pairs: tuple[PairScore, ...]
    spectra: Spectra | None = None

    def matrix(self) -> list[list[float | None]]:
        """Return the symmetric matrix of RMS cosines, 1 on the diagonal."""
        place = {name: number for number, name in enumerate(self.adapters)}
        rows: list[list[float | None]] = [[None] * len(place) for _ in place]
        for number in place.values():
            rows[number][number] = 1.0
        for pair in self.pairs:
            i, j = place[pair.first], place[pair.second]
            rows[i][j] = rows[j][i] = pair.rms_cosine
        return rows

    def to_dict(self, modules: bool = True) -> dict[str, Any]:
        """Return the scores as plain data; ``modules=False`` leaves out the entries by module."""
        content = asdict(self)
        content["spectra"] = None if self.spectra is None else self.spectra.to_dict()
        if not modules:
            for pair in content["pairs"]:
                del pair["modules"]
        return content


@dataclass(frozen=True, slots=True, eq=False)
class ModuleScores:
    """What one module adds to the scores.

    Attributes:
        name: Its name.
        products: Inner products of the deltas, ``(T, T)``.
        pairs: Overlap by pair of adapters that both have the module.
        spectrum: Singular values, where asked for.
        signs: Counts of ``_count_signs``, where asked for.
    """

    name: str
    products: Float64
    pairs: Mapping[tuple[int, int], ModuleScore]
    spectrum: ModuleSpectrum | None
    signs: Float64 | None


def modules_of(adapters: Sequence[Adapter]) -> list[str]:
    """Return the names of all modules that any of ``adapters`` has, sorted."""
    return sorted({module for adapter in adapters for module in adapter.modules})


def parents_of(adapters: Sequence[Adapter], module: str) -> Parts:
    """Return the factors of ``module`` of every adapter, of rank 0 for one that lacks it."""
    shape = next(adapter.modules[module].shape for adapter in adapters if module in adapter.modules)
    return Parts(adapter.factors(module, shape) for adapter in adapters)


@dataclass(frozen=True, slots=True, eq=False)
class Products:
    """Inner products of the deltas in every module: all it takes to tell what any linear combination keeps of each.

    Attributes:
        adapters: Names, in the order given.
        modules: Names, one a matrix.
        values: ``<delta_i, delta_j>`` by module, ``(M, T, T)``.
        present: Which adapter has which module, ``(M, T)``.
    """

    adapters: tuple[str, ...]
    modules: tuple[str, ...]
    values: Float64
    present: NDArray[np.bool_]

    def retention(
        self, weights: Sequence[Weight], coefficients: Callable[..., Sequence[float]] | None = None
    ) -> tuple[float | None, ...]:
        """Return what a combination keeps of each adapter along it, ``None`` for a delta that is zero.

        Args:
            weights: One number an adapter, or numbers by module.
            coefficients: Gives the factors that a module's deltas are added with, from its weights and from which
                adapters take part in it; ``None`` takes the weights.
        """
        kept, whole = np.zeros(len(self.adapters)), np.einsum("mii->i", self.values)
        for module, products, present in zip(self.modules, self.values, self.present, strict=True):
            here = np.array([weight_for(weight, module) for weight in weights], np.float64)
            taking_part = (present & (here != 0)).tolist()
            kept += products @ np.asarray(
                coefficients(here.tolist(), taking_part) if coefficients else here, np.float64
            )
        return tuple(float(part / all_) if all_ > 0 else None for part, all_ in zip(kept, whole, strict=True))


class Scoring:
    """Scores in the making, one module after the other: ``measure`` in any thread, ``add`` in order."""

    def __init__(
        self,
        adapters: Sequence[Adapter],
        weights: Sequence[Weight] | None = None,
        *,
        spectra: bool = False,
        exact_signs: bool = False,
    ) -> None:
        """Begin; see ``score`` for the arguments."""
        self._adapters = adapters
        self._weights = [1.0] * len(adapters) if weights is None else list(weights)
        self._spectra, self._exact_signs = spectra, exact_signs
        self._modules: list[ModuleScores] = []

    def measure(self, module: str, parts: Parts) -> ModuleScores:
        """Return what ``module`` adds.

        Args:
            module: Its name.
            parts: Its factors, one an adapter.
        """
        stacked = stack(parts)
        products = inner_products(stacked, len(parts))
        present = [i for i, adapter in enumerate(self._adapters) if module in adapter.modules]
        spectrum = None
        if self._spectra:
            weights = [weight_for(weight, module) for weight in self._weights]
            spectrum = module_spectrum(stacked, products, weights)
        return ModuleScores(
            module,
            products,
            _score_pairs(stacked, products, present),
            spectrum,
            _count_signs(parts, products) if self._exact_signs else None,
        )

    def add(self, module: ModuleScores) -> None:
        """Count ``module`` in."""
        self._modules.append(module)

    def products(self) -> Products:
        """Return the inner products of all modules that were added."""
        count = len(self._adapters)
        modules = tuple(found.name for found in self._modules)
        return Products(
            adapters=tuple(adapter.name for adapter in self._adapters),
            modules=modules,
            values=np.array([found.products for found in self._modules]).reshape(-1, count, count),
            present=np.array(
                [[name in adapter.modules for adapter in self._adapters] for name in modules], bool
            ).reshape(-1, count),
        )

    def result(self) -> Scores:
        """Return the scores of all modules that were added."""
        count = len(self._adapters)
        total, signs, kept = np.zeros((count, count)), np.zeros((2, count, count)), np.zeros(count)
        for found in self._modules:
            total += found.products
            kept += found.products @ [weight_for(weight, found.name) for weight in self._weights]
            signs += 0.0 if found.signs is None else found.signs
        norms = np.sqrt(np.diag(total))
        pairs = tuple(self._pair(i, j, total, signs) for i, j in combinations(range(count), 2))
        return Scores(
            adapters=tuple(adapter.name for adapter in self._adapters),
            norms=tuple(float(norm) for norm in norms),
            rms_cosine=_mean(pair.rms_cosine for pair in pairs),
            retention=tuple(float(kept[i] / total[i, i]) if total[i, i] > 0 else None for i in range(count)),
            pairs=pairs,
            spectra=summary([found.spectrum for found in self._modules if found.spectrum], count)
            if self._spectra
            else None,
        )

    def _pair(self, i: int, j: int, total: Float64, signs: Float64) -> PairScore:
        found = {module.name: module.pairs[i, j] for module in self._modules if (i, j) in module.pairs}
        pair = _score_pair(
            self._adapters[i].name,
            self._adapters[j].name,
            float(total[i, j]),
            math.sqrt(total[i, i]),
            math.sqrt(total[j, j]),
            found,
        )
        return replace(pair, exact_sign_conflict=float(signs[0, i, j] / signs[1, i, j]) if signs[1, i, j] else None)


def score(
    adapters: Sequence[Adapter],
    weights: Sequence[Weight] | None = None,
    *,
    spectra: bool = False,
    exact_signs: bool = False,
) -> Scores:
    """Return how much the deltas of ``adapters`` overlap, and what their weighted sum would keep of each.

    Everything follows from ``A Aᵀ`` and ``Bᵀ B`` of the stacked factors, formed in float64, one module at a time;
    ``<delta_i, delta_j> = s_i s_j sum((B_iᵀ B_j) * (A_i A_jᵀ))``.

    Args:
        adapters: One or more adapters with different names.
        weights: Weights of the sum that ``retention`` and ``spectra`` speak of, 1.0 by default.
        spectra: Whether to look at singular values too.
        exact_signs: Whether to count conflicts of signs entry by entry, a block of rows at a time; much slower.
    """
    scoring = Scoring(adapters, weights, spectra=spectra, exact_signs=exact_signs)

    def measure(module: str) -> ModuleScores:
        return scoring.measure(module, parents_of(adapters, module))

    for found in map_modules(measure, modules_of(adapters), forks=True):
        scoring.add(found)
    return scoring.result()


def _count_signs(parts: Sequence[LoraFactors], products: Float64) -> Float64:
    """Return how many entries are of opposite sign, and how many of any, for each pair of deltas, ``(2, n, n)``.

    A few rows of every delta are formed at a time. A delta that cancels to rounding counts as zero.
    """
    count, (out_features, in_features) = len(parts), parts[0].shape
    wide = [part.astype(np.float64) for part in parts]
    counts = np.zeros((2, count, count))
    rows = max(1, BLOCK_BYTES // (8 * in_features * (count + 1)))
    for start in range(0, out_features, rows):
        signs = [np.sign(part.scaling * part.B[start : start + rows] @ part.A).astype(np.int8) for part in wide]
        for i, j in combinations(range(count), 2):
            if products[i, i] > 0 and products[j, j] > 0:
                both = signs[i] * signs[j]
                counts[:, i, j] += np.count_nonzero(both < 0), np.count_nonzero(both)
    return counts


def _score_pairs(stacked: Stack, products: Float64, present: Sequence[int]) -> dict[tuple[int, int], ModuleScore]:
    """Return the overlap of each pair of the adapters that are ``present``."""
    rows = {i: np.flatnonzero(stacked.owner == i) for i in present}
    spans = {
        i: (orthonormal(stacked.gram_b[np.ix_(own, own)])[0], orthonormal(stacked.gram_a[np.ix_(own, own)])[0])
        for i, own in rows.items()
    }
    alive = np.diag(stacked.gram_a) > 0
    scores = {}
    for i, j in combinations(present, 2):
        across = np.ix_(rows[i], rows[j])
        left = _overlap(spans[i][0].T @ stacked.gram_b[across] @ spans[j][0], stacked.shape[0])
        right = _overlap(spans[i][1].T @ stacked.gram_a[across] @ spans[j][1], stacked.shape[1])
        paired = [abs(stacked.gram_a[k, m]) for k, m in zip(rows[i], rows[j], strict=False) if alive[k] and alive[m]]
        scores[i, j] = _module_score(stacked.shape, products[np.ix_([i, j], [i, j])], left, right, paired)
    return scores


class _Overlap(NamedTuple):
    """Share of the smaller of two spans that lies in the other, smallest angle in degrees, and the share by chance."""

    share: float
    angle: float
    chance: float


def _overlap(across: Float64, dimensions: int) -> _Overlap:
    """Return how much two spans overlap.

    Args:
        across: Inner products of their orthonormal bases, ``(m, n)``.
        dimensions: Of the space that they are in.
    """
    cosines = np.minimum(np.linalg.svd(across, compute_uv=False), 1.0) if across.size else np.zeros(0)
    return _Overlap(
        share=float(np.square(cosines).mean()) if len(cosines) else 0.0,
        angle=float(np.degrees(np.arccos(cosines.max(initial=0.0)))),
        chance=min(1.0, max(across.shape) / dimensions),
    )


def _module_score(
    shape: tuple[int, int], products: Float64, left: _Overlap, right: _Overlap, paired: Sequence[float]
) -> ModuleScore:
    """Return the overlap of two adapters in one module.

    Args:
        shape: ``(out, in)``.
        products: Inner products of their deltas, ``(2, 2)``.
        left: Overlap of their output spaces.
        right: Overlap of their input spaces.
        paired: ``|cos|`` of row k of A and row k of the other A, where neither is zero.
    """
    out_features, in_features = shape
    norm = math.sqrt(products[0, 0] * products[1, 1])
    return ModuleScore(
        cosine=float(min(1.0, max(-1.0, products[0, 1] / norm))) if norm > 0 else None,
        chance=1.0 / math.sqrt(out_features * in_features),
        left=left.share,
        right=right.share,
        left_angle=left.angle,
        right_angle=right.angle,
        left_chance=left.chance,
        right_chance=right.chance,
        a_rows=float(np.mean(paired)) if paired else None,
        a_rows_chance=math.sqrt(2 / (math.pi * in_features)),
    )


def _score_pair(
    first: str, second: str, product: float, norm_i: float, norm_j: float, found: Mapping[str, ModuleScore]
) -> PairScore:
    counted = {module: entry for module, entry in found.items() if entry.cosine is not None}
    cosines = {module: abs(entry.cosine) for module, entry in counted.items() if entry.cosine is not None}
    max_module = max(cosines, key=lambda module: cosines[module], default=None)
    both = norm_i * norm_j
    global_cosine = max(-1.0, min(1.0, product / both)) if counted else None
    entries = list(counted.values())
    return PairScore(
        first=first,
        second=second,
        rms_cosine=_rms(cosines.values()),
        chance=_rms(entry.chance for entry in entries),
        times_chance=_rms(cosines[module] / entry.chance for module, entry in counted.items()),
        global_cosine=global_cosine,
        mean_abs_cosine=_mean(cosines.values()),
        max_abs_cosine=None if max_module is None else cosines[max_module],
        max_module=max_module,
        sign_conflict=None if global_cosine is None else math.acos(global_cosine) / math.pi,
        left=_mean(entry.left for entry in entries),
        right=_mean(entry.right for entry in entries),
        left_chance=_mean(entry.left_chance for entry in entries),
        right_chance=_mean(entry.right_chance for entry in entries),
        a_rows=_mean(entry.a_rows for entry in entries),
        a_rows_chance=_mean(entry.a_rows_chance for entry in entries),
        norm_ratio=max(norm_i, norm_j) / min(norm_i, norm_j) if both > 0 else None,
        shared_modules=len(counted),
        modules=found,
    )


def _rms(values: Iterable[float]) -> float | None:
    squares = _mean(value * value for value in values)
    return None if squares is None else math.sqrt(squares)
