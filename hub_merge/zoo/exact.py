"""Exact cosines, from the factors of the adapters themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

from hub_merge.adapter import Adapter
from hub_merge.errors import HubMergeError
from hub_merge.gram import cross_products, inner_products, stack
from hub_merge.hub import parse_reference
from hub_merge.sources import open_factors
from hub_merge.workspace import workspace
from hub_merge.zoo.entries import Entry
from hub_merge.zoo.reading import Access

__all__ = ["exact_cosine", "exactly"]


def exact_cosine(first: Adapter, second: Adapter) -> float | None:
    """Return the cosine of two whole deltas, all modules as one vector, [-1, 1]; ``None`` where one is zero.

    A module that one of them lacks, or has in another shape, is orthogonal to everything there.
    """
    product = 0.0
    for module, spec in first.modules.items():
        if module in second.modules and second.modules[module].shape == spec.shape:
            one, other = stack([first.factors(module)]), stack([second.factors(module)])
            product += float(cross_products(one, other, (1, 1))[0, 0])
    norms = math.sqrt(_square(first) * _square(second))
    return max(-1.0, min(1.0, product / norms)) if norms else None


def _square(adapter: Adapter) -> float:
    return math.fsum(float(inner_products(stack([adapter.factors(module)]), 1)[0, 0]) for module in adapter.modules)


def exactly(adapter: Adapter, access: Access) -> Callable[[Entry], float | None]:
    """Return what computes the cosine of ``adapter`` to an indexed one, which is pulled and left behind no trace of.

    An adapter that is only local, or that the Hub does not give, has none.
    """

    def cosine(entry: Entry) -> float | None:
        if entry.repo_id is None:
            return None
        with workspace() as cache:
            hub = access.connect(cache_dir=cache)
            try:
                other = open_factors(hub.resolve(parse_reference(entry.reference)), hub)
                return exact_cosine(adapter, other)
            except HubMergeError:
                return None

    return cosine
