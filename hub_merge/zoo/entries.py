"""What an index holds of one adapter, and the columns of its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hub_merge.errors import HubMergeError
from hub_merge.zoo.fingerprint import Fingerprint
from hub_merge.zoo.sketch import SIZE, START_SIZE, VERSION

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["VECTORS", "Entry", "arrow", "entry_of", "row_of", "schema"]

VECTORS = ("sketch", "start")
WIDTHS = {"sketch": 2 * SIZE, "start": 2 * START_SIZE}
"""Bytes of the columns that hold numbers in half precision, little-endian."""


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One adapter of an index.

    Attributes:
        key: What is indexed once: ``owner/name[:place]``, or name and digest of a local adapter.
        repo_id: Hub id, ``None`` for a local adapter.
        place: Folder or file inside the repository, empty for the root.
        commit: Commit that was indexed.
        base: Canonical id of the base model.
        reason: Why there is no fingerprint; ``None`` if there is one.
        fingerprint: The fingerprint.
        license: Licence it states.
        task_type: PEFT task type.
        tags: Tags on the Hub.
        downloads: Downloads of the month before it was indexed.
        likes: Number of likes then.
        gated: Whether access has to be requested.
        bytes: Size of the weights.
        weights_hash: Hash of the weights' files: the same for files that are the same, byte by byte.
        content: Hash of all files that the fingerprint depends on.
        indexed_at: Microseconds since 1970 at which it was written; the latest of one key counts.
    """

    key: str
    repo_id: str | None
    commit: str | None
    base: str
    place: str = ""
    reason: str | None = None
    fingerprint: Fingerprint | None = field(default=None, repr=False)
    license: str | None = None
    task_type: str | None = None
    tags: tuple[str, ...] = ()
    downloads: int = 0
    likes: int = 0
    gated: bool = False
    bytes: int = 0
    weights_hash: str | None = None
    content: str | None = None
    indexed_at: int = 0

    @property
    def reference(self) -> str:
        """What names exactly this adapter again."""
        if self.repo_id is None:
            return self.key
        return f"{self.repo_id}@{self.commit}" + (f":{self.place}" if self.place else "")

    @property
    def argument(self) -> str:
        """What names it on a command line; of a local adapter, whose path is not kept, with that left to fill in."""
        return self.reference if self.repo_id else f"PATH/TO/{self.key.removeprefix('./').rpartition('#')[0]}"

    def to_dict(self) -> dict[str, Any]:
        """Return all but the sketches as plain data."""
        content = {name: value for name, value in _fields(self).items() if name != "fingerprint"}
        content["tags"] = list(self.tags)
        known = _fields(self.fingerprint) if self.fingerprint else {}
        return content | {name: value for name, value in known.items() if name not in (*VECTORS, "base")}


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def arrow() -> Any:
    """Return pyarrow.

    Raises:
        HubMergeError: It is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise HubMergeError("A zoo needs pyarrow.", remedy="pip install 'hub-merge[zoo]'") from error
    return pyarrow


def schema() -> pa.Schema:
    """Return the columns of an index's files, with the version of the fingerprints."""
    pa = arrow()
    text, number, wide = pa.string(), pa.int64(), pa.float64()
    columns = {
        "key": pa.field("key", text, nullable=False),
        "base": pa.field("base", text, nullable=False),
        "indexed_at": pa.field("indexed_at", number, nullable=False),
        "version": pa.field("version", pa.int32(), nullable=False),
        **dict.fromkeys(("repo_id", "place", "commit", "reason", "license", "task_type", "weights_hash"), text),
        **{"content": text, "tags": pa.list_(text), "gated": pa.bool_()},
        **dict.fromkeys(("downloads", "likes", "bytes", "rank", "modules", "parameters"), number),
        **{"signature": text, "norm": wide, "groups": text},
        **{name: pa.binary(width) for name, width in WIDTHS.items()},
    }
    fields = [kind if isinstance(kind, pa.Field) else pa.field(name, kind) for name, kind in columns.items()]
    return pa.schema(fields, metadata={"hub_merge.zoo": json.dumps({"version": VERSION, "size": SIZE})})


def row_of(entry: Entry) -> dict[str, Any]:
    """Return the entry as a row of the file."""
    row = _fields(entry)
    found = row.pop("fingerprint")
    row["tags"] = list(entry.tags)
    row["version"] = VERSION if found is None else found.version
    if found is not None:
        row |= {name: getattr(found, name) for name in ("norm", "rank", "modules", "parameters", "signature")}
        row["groups"] = json.dumps(dict(found.groups))
        row |= {name: getattr(found, name).astype("<f2").tobytes() for name in VECTORS}
    return row


def entry_of(row: Mapping[str, Any]) -> Entry:
    """Return the entry that a row holds; without its sketches if the row lacks them."""
    names = [name for name in Entry.__dataclass_fields__ if name not in ("fingerprint", "tags")]
    found = None
    if row["reason"] is None:
        sketch, start = (np.frombuffer(row.get(name) or b"", "<f2") for name in VECTORS)
        numbers = {name: row[name] for name in ("norm", "rank", "modules", "parameters", "signature", "version")}
        groups = json.loads(row["groups"] or "{}")
        found = Fingerprint(base=row["base"], sketch=sketch, start=start, groups=groups, **numbers)
    values = {name: row[name] for name in names}
    return Entry(**values, tags=tuple(row["tags"] or ()), fingerprint=found)
