"""Finding adapters: what the Hub lists, and which of it fits a base model.

Neither of the Hub's indices is complete: many authors never state their base model in the card, so the tag
``base_model:adapter:<id>`` misses them, while the configuration of every PEFT repository is indexed but cannot be
queried. Both ways are gone and their results united.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from hub_merge.hub.repositories import stated_base_models, stated_license

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

__all__ = ["FoundBy", "GetPage", "Listing", "Parameters", "Query", "SortKey", "find"]

FoundBy: TypeAlias = Literal["tag", "config"]
SortKey: TypeAlias = Literal["downloads", "likes", "last_modified", "created_at", "trending_score"]
Parameters: TypeAlias = Sequence[tuple[str, str]]
GetPage: TypeAlias = Callable[[Parameters], tuple[list[Any], str | None]]
"""Get one page of the model listing: its entries and the address of the next page."""

SORT_PARAMETERS: Mapping[SortKey, str] = {
    "downloads": "downloads",
    "likes": "likes",
    "last_modified": "lastModified",
    "created_at": "createdAt",
    "trending_score": "trendingScore",
}
FIELDS = (
    *("sha", "config", "cardData", "gated", "tags", "downloads", "likes", "lastModified", "createdAt"),
    *("siblings", "baseModels", "library_name", "trendingScore"),
)
MOST_SCANNED = 500
"""Entries that are looked through where the Hub cannot filter."""


@dataclass(frozen=True, slots=True)
class Listing:
    """One adapter of a search.

    Attributes:
        repo_id: Hub id.
        commit: Head of the default branch.
        base_model: Base model its configuration states, else its card.
        license: Licence it states.
        task_type: PEFT task type, such as ``CAUSAL_LM``.
        downloads: Downloads of the last month.
        likes: Number of likes.
        last_modified: ISO 8601 time.
        gated: Whether access has to be requested.
        size: Bytes of its safetensors files, ``None`` if the Hub does not tell.
        found_by: Whether its tags or its configuration name the base model.
    """

    repo_id: str
    commit: str | None
    base_model: str | None
    license: str | None
    task_type: str | None
    downloads: int
    likes: int
    last_modified: str | None
    gated: bool
    size: int | None
    found_by: FoundBy


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for; ``bases`` are the names under which the base model is known, maybe none."""

    bases: tuple[str, ...]
    text: str | None
    author: str | None
    task: str | None
    license: str | None
    sort: SortKey
    limit: int


def find(query: Query, get_page: GetPage) -> list[Listing]:
    """Return the adapters that fit, best first."""
    found: dict[str, tuple[ModelInfo, FoundBy]] = {}
    for tag in [f"base_model:adapter:{base}" for base in query.bases] or ["peft"]:
        for info in _entries(query, tag, query.text, get_page):
            found.setdefault(info.id, (info, "tag"))
    if query.bases:
        names = {base.lower() for base in query.bases}
        text = query.text or query.bases[-1].rpartition("/")[2]
        for info in _entries(query, "peft", text, get_page, names):
            found.setdefault(info.id, (info, "config"))
    ranked = sorted(found.values(), key=lambda entry: _rank(entry[0], query.sort), reverse=True)
    return [_listing(info, found_by) for info, found_by in ranked[: query.limit]]


def _entries(
    query: Query, tag: str, text: str | None, get_page: GetPage, bases: frozenset[str] | set[str] = frozenset()
) -> Iterator[ModelInfo]:
    """Yield at most ``query.limit`` entries; with ``bases``, only those whose configuration names one of them."""
    task = query.task.upper() if query.task else None
    most = MOST_SCANNED if bases or task else query.limit
    accepted = 0
    for info in _scanned(_parameters(query, tag, text, most), get_page, most):
        stated_base, stated_task = _peft(info)
        if (task and str(stated_task).upper() != task) or (bases and str(stated_base).lower() not in bases):
            continue
        yield info
        accepted += 1
        if accepted == query.limit:
            return


def _parameters(query: Query, tag: str, text: str | None, most: int) -> Parameters:
    license_tags = [f"license:{query.license}"] if query.license else []
    return [
        *(("filter", value) for value in (tag, *license_tags)),
        *((name, value) for name, value in (("search", text), ("author", query.author)) if value),
        ("sort", SORT_PARAMETERS[query.sort]),
        ("limit", str(most)),
        *(("expand", field) for field in FIELDS),
    ]


def _scanned(parameters: Parameters, get_page: GetPage, most: int) -> Iterator[ModelInfo]:
    """Yield at most ``most`` entries of the listing, page by page, leaving out those that cannot be read."""
    from huggingface_hub import ModelInfo

    scanned = 0
    while scanned < most:
        entries, following = get_page(parameters)
        for entry in entries[: most - scanned]:
            try:
                yield ModelInfo(**entry)  # type: ignore[no-untyped-call]
            except (KeyError, TypeError, ValueError, AttributeError):
                continue
        scanned += len(entries)
        if not entries or following is None:
            return
        # Only the query of the next address is used: wherever it points, no token goes there.
        parameters = parse_qsl(urlsplit(following).query)


def _peft(info: ModelInfo) -> tuple[str | None, str | None]:
    """Return base model and task type as ``adapter_config.json`` states them."""
    config = info.config if isinstance(info.config, dict) else {}
    stated = config.get("peft")
    stated = stated if isinstance(stated, dict) else {}
    base, task = stated.get("base_model_name_or_path"), stated.get("task_type")
    return base if isinstance(base, str) else None, task if isinstance(task, str) else None


def _rank(info: ModelInfo, sort: SortKey) -> Any:
    value = getattr(info, sort)
    if sort in ("last_modified", "created_at"):
        return value or datetime.min.replace(tzinfo=UTC)
    return value or 0


def _listing(info: ModelInfo, found_by: FoundBy) -> Listing:
    base, task = _peft(info)
    sizes = [sibling.size for sibling in info.siblings or () if sibling.rfilename.endswith(".safetensors")]
    known = [size for size in sizes if size is not None]
    return Listing(
        repo_id=info.id,
        commit=info.sha,
        base_model=base or next(iter(stated_base_models(info)), None),
        license=stated_license(info)[0],
        task_type=task,
        downloads=info.downloads or 0,
        likes=info.likes or 0,
        last_modified=info.last_modified.isoformat() if info.last_modified else None,
        gated=bool(info.gated),
        size=sum(known) if known and len(known) == len(sizes) else None,
        found_by=found_by,
    )
