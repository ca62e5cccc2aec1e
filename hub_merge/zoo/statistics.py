"""What an index holds, in figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from hub_merge.zoo.index import Index

__all__ = ["Statistics", "statistics"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Figures of an index.

    Attributes:
        adapters: Adapters that are indexed, usable or not.
        usable: Those with a fingerprint.
        untrained: Those of them whose delta is zero.
        copies: Those whose weights' files are the same as another's, byte by byte, not counting one of each.
        bases: Usable adapters by base model, the most frequent first.
        reasons: Adapters without a fingerprint, by reason.
        files: Parquet files.
        bytes: Their size.
        superseded: Rows that later ones took the place of.
        searches: What was searched for to fill it.
    """

    adapters: int
    usable: int
    untrained: int
    copies: int
    bases: dict[str, int]
    reasons: dict[str, int]
    files: int
    bytes: int
    superseded: int
    searches: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def statistics(index: Index) -> Statistics:
    """Return the figures of an index; its sketches are not read."""
    rows = index.table(("base", "reason", "norm", "weights_hash")).to_pylist()
    usable = [row for row in rows if row["reason"] is None]
    hashes = Counter(row["weights_hash"] for row in usable if row["weights_hash"])
    return Statistics(
        adapters=len(rows),
        usable=len(usable),
        untrained=sum(row["norm"] == 0 for row in usable),
        copies=hashes.total() - len(hashes),
        bases=dict(Counter(row["base"] for row in usable).most_common()),
        reasons=dict(Counter(row["reason"] for row in rows if row["reason"]).most_common()),
        files=len(index.files),
        bytes=sum(path.stat().st_size for path in index.files),
        superseded=index.rows - len(rows),
        searches=index.searches,
    )
