"""Looking at the chosen adapters: at their headers at once, at their numbers when the visitor asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub_merge.adapter import Adapter, unique_names
from hub_merge.advise import Advice, advise
from hub_merge.compat import Compatibility
from hub_merge.errors import HubMergeError
from hub_merge.licenses import Licensed, LicenseVerdict, united
from hub_merge.methods import get_method
from hub_merge.parallel import map_modules
from hub_merge.pipeline import checked, require_comparable
from hub_merge.pipeline.progress import Progress, silent
from hub_merge.scores import Products, Scores, Scoring, modules_of, parents_of
from hub_merge.sources import open_adapter, open_headers
from hub_merge.studio.limits import Limits
from hub_merge.studio.samples import address_of
from hub_merge.studio.visits import quick
from hub_merge.weights import Weight

if TYPE_CHECKING:
    from hub_merge.hub import Hub

__all__ = ["Look", "Measured", "look", "measure", "predicted"]


@dataclass(frozen=True, slots=True)
class Look:
    """What headers tell of the chosen adapters.

    Attributes:
        references: What names them.
        compatibility: Whether they fit together; findings carry the adapters' short names.
        sizes: Bytes of config and weights of each.
        ranks: Largest rank of each.
        licenses: What the composite may be used for.
    """

    references: tuple[str, ...]
    compatibility: Compatibility
    sizes: tuple[int, ...]
    ranks: tuple[int, ...]
    licenses: LicenseVerdict

    @property
    def names(self) -> tuple[str, ...]:
        """Short names, each once."""
        return self.compatibility.adapters


@dataclass(frozen=True, slots=True)
class Measured:
    """What the numbers tell of them.

    Attributes:
        references: What names them.
        compatibility: Whether they fit together, norms and values included.
        ranks: Largest rank of each.
        scores: How much they overlap.
        products: Inner products, from which retention follows for any weights.
        advice: Method, weights and rank that the geometry suggests; ``None`` where they cannot be merged.
    """

    references: tuple[str, ...]
    compatibility: Compatibility
    ranks: tuple[int, ...]
    scores: Scores
    products: Products
    advice: Advice | None


def look(
    references: Sequence[str], *, hub: Hub, limits: Limits, base: str | None = None, allow: Sequence[str] = ()
) -> Look:
    """Return what configs, tensor headers and cards tell; kilobytes of each adapter are read.

    Raises:
        HubMergeError: One is not there, cannot be read or is too much for this page.
    """
    limits.require_adapters(len(references))
    opened = [open_headers(address_of(name), hub=hub, download=False) for name in references]
    adapters = unique_names([entry.adapter for entry in opened])
    compatibility = checked(adapters, hub, base, allow)
    return Look(
        references=tuple(references),
        compatibility=compatibility,
        sizes=tuple(entry.bytes_total for entry in opened),
        ranks=tuple(adapter.rank for adapter in adapters),
        licenses=_licenses(adapters, compatibility.base_model, hub),
    )


def _licenses(adapters: Sequence[Adapter], base: str | None, hub: Hub) -> LicenseVerdict:
    """Return the verdict on licences; a base that the Hub does not tell of at once counts as unknown."""
    try:
        model = quick(hub).model(base) if base else None
    except HubMergeError:
        model = None
    stated = Licensed(model.repo_id, model.license, model.license_details) if model else None
    parents = [
        Licensed(adapter.origin.repo_id or adapter.name, adapter.origin.license, adapter.origin.license_details)
        for adapter in adapters
    ]
    return united(stated or Licensed(base or "the base model", None), parents)


def measure(
    references: Sequence[str],
    *,
    hub: Hub,
    limits: Limits,
    base: str | None = None,
    allow: Sequence[str] = (),
    progress: Progress = silent,
) -> Measured:
    """Return how much the deltas overlap, and what that suggests; their weights are downloaded and read once.

    Raises:
        IncompatibleAdapters: Their deltas cannot be compared.
        BudgetExceeded: They are too large for this page, or it takes too long; the size is known before the download.
        HubMergeError: One is not there or cannot be read.
    """
    tick = limits.timed(progress)
    adapters = _opened(references, hub, limits, tick)
    compatibility = checked(adapters, hub, base, allow)
    require_comparable(compatibility)
    scoring = Scoring(adapters)
    modules = modules_of(adapters)
    for done, found in enumerate(
        map_modules(lambda name: scoring.measure(name, parents_of(adapters, name)), modules), start=1
    ):
        scoring.add(found)
        tick("score", done, len(modules))
    scores = scoring.result()
    suggested = advise(adapters, scores, compatibility) if compatibility.compatible else None
    ranks = tuple(adapter.rank for adapter in adapters)
    return Measured(tuple(references), compatibility, ranks, scores, scoring.products(), suggested)


def _opened(references: Sequence[str], hub: Hub, limits: Limits, progress: Progress) -> list[Adapter]:
    """Open the adapters, after all their sizes are known to be within the limits."""
    limits.require_adapters(len(references))
    places = [address_of(name) for name in references]
    limits.require_bytes(
        sum(open_headers(place, hub=hub, tokens=False, download=False).bytes_total for place in places)
    )
    adapters = []
    for done, place in enumerate(places):
        progress("pull", done, len(places))
        adapters.append(open_adapter(place, hub=hub))
    progress("pull", len(places), len(places))
    return unique_names(adapters)


def predicted(measured: Measured, method: str, weights: Sequence[Weight]) -> tuple[tuple[float | None, ...], bool]:
    """Return what a merge keeps of each adapter, and whether that is exact for ``method`` without a rank.

    Of a method that makes no linear combination of the deltas nothing can be told without merging: what is returned
    then is what the weighted sum keeps, from which such a method starts.
    """
    coefficients = get_method(method).coefficients
    return measured.products.retention(weights, coefficients), coefficients is not None
