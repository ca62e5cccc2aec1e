"""A search that also looks into the adapters: by rank, and by whether they fit one that is at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub_merge.adapter import Adapter
from hub_merge.compat import check
from hub_merge.errors import HubMergeError, HubUnavailable
from hub_merge.parallel import map_modules
from hub_merge.pipeline import followers
from hub_merge.privacy import one_line
from hub_merge.sources import open_headers
from hub_merge.zoo.queries import fit_together

if TYPE_CHECKING:
    from hub_merge.hub import Hub, Listing

__all__ = ["Fit", "fitting"]

WORKERS = 4


@dataclass(frozen=True, slots=True)
class Fit:
    """One adapter of a search that was looked into.

    Attributes:
        listing: What the Hub lists.
        rank: Largest rank, ``None`` if it could not be read.
        fits: Whether it may be merged with the adapter at hand.
        reason: What stands in the way, or is to be known; may be empty.
    """

    listing: Listing
    rank: int | None
    fits: bool
    reason: str


def fitting(
    listings: Sequence[Listing], *, hub: Hub, to: Adapter | None = None, max_rank: int | None = None
) -> Iterator[Fit]:
    """Yield each listed adapter with whether it fits, judged by config and tensor headers; that costs kilobytes each.

    Args:
        listings: What a search gave.
        hub: Client to read headers with.
        to: Adapter that it is to fit; its licence counts too.
        max_rank: Largest rank that it may have.

    Raises:
        HubUnavailable: The Hub did not answer.
    """
    yield from map_modules(_Judge(hub, to, max_rank), listings, WORKERS)


class _Judge:
    def __init__(self, hub: Hub, to: Adapter | None, max_rank: int | None) -> None:
        self._hub, self._to, self._max_rank = hub, to, max_rank
        self._canonical, self._original = followers(hub)

    def __call__(self, listing: Listing) -> Fit:
        reference = f"{listing.repo_id}@{listing.commit}" if listing.commit else listing.repo_id
        try:
            adapter = open_headers(reference, hub=self._hub, tokens=False, download=False).adapter
        except HubUnavailable:
            raise
        except HubMergeError as error:
            return Fit(listing, None, False, one_line(error.problem))
        reasons, fits = self._compared(adapter, listing)
        if self._max_rank and adapter.rank > self._max_rank:
            fits, reasons = False, [f"Its rank is {adapter.rank}.", *reasons]
        return Fit(listing, adapter.rank, fits, " ".join(reasons))

    def _compared(self, adapter: Adapter, listing: Listing) -> tuple[list[str], bool]:
        """Return what is to be said of two adapters, and whether they may be merged."""
        if self._to is None:
            return [], True
        found = check([self._to, adapter], canonical=self._canonical, original=self._original).report
        reasons = [finding.describe() for finding in found.problems or found.cautions]
        if not fit_together(self._to.origin.license, listing.license):
            stated = listing.license or "none"
            reasons.append(f"The licence it states ({stated}) may keep you from sharing the result.")
        return reasons, not found.problems
