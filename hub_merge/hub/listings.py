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

from hub_merge.bases import read_base, same_name
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
LARGEST_PAGE = 1000
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
    """What is searched for.

    Attributes:
        bases: The names under which the base model is known, its canonical one first; maybe none.
        limit: Adapters on a page.
        page: Which page, from 1.
        min_downloads: Least downloads of the last month.
        copies: Whether adapters whose configuration names a quantised copy, by its name alone, count too.
    """

    bases: tuple[str, ...]
    text: str | None
    author: str | None
    task: str | None
    license: str | None
    sort: SortKey
    limit: int
    language: str | None = None
    min_downloads: int = 0
    page: int = 1
    copies: bool = False

    @property
    def wanted(self) -> int:
        """Adapters that have to be found to know the page."""
        return self.page * self.limit


def find(query: Query, get_page: GetPage) -> list[Listing]:
    """Return the adapters that fit, best first."""
    found: dict[str, tuple[ModelInfo, FoundBy]] = {}
    for tag in [f"base_model:adapter:{base}" for base in query.bases] or ["peft"]:
        for info in _entries(query, tag, query.text, get_page):
            found.setdefault(info.id, (info, "tag"))
    if query.bases:
        text = query.text or query.bases[0].rpartition("/")[2]
        for info in _entries(query, "peft", text, get_page, query.bases):
            found.setdefault(info.id, (info, "config"))
    ranked = sorted(found.values(), key=lambda entry: _rank(entry[0], query.sort), reverse=True)
    page = ranked[query.wanted - query.limit : query.wanted]
    return [_listing(info, found_by) for info, found_by in page]


def _entries(
    query: Query, tag: str, text: str | None, get_page: GetPage, bases: Sequence[str] = ()
) -> Iterator[ModelInfo]:
    """Yield at most ``query.wanted`` entries; with ``bases``, only those whose configuration names one of them."""
    task = query.task.upper() if query.task else None
    most = max(MOST_SCANNED, query.wanted) if bases or task or query.min_downloads else query.wanted
    accepted = 0
    for info in _scanned(_parameters(query, tag, text, most), get_page, most):
        stated_base, stated_task = _peft(info)
        if (task and str(stated_task).upper() != task) or (info.downloads or 0) < query.min_downloads:
            continue
        if bases and not _names_base(stated_base, query):
            continue
        yield info
        accepted += 1
        if accepted == query.wanted:
            return


def _names_base(stated: str | None, query: Query) -> bool:
    """Whether a configuration names the base model: its id, a former one, a path into the cache, or a copy's name."""
    model = read_base(stated).model_id or ""
    known = {name.casefold() for base in query.bases for name in (base, read_base(base).model_id or base)}
    return model.casefold() in known or (query.copies and any(same_name(model, base) for base in query.bases))


def _parameters(query: Query, tag: str, text: str | None, most: int) -> Parameters:
    tags = [tag, *([f"license:{query.license}"] if query.license else []), *filter(None, [query.language])]
    return [
        *(("filter", value) for value in tags),
        *((name, value) for name, value in (("search", text), ("author", query.author)) if value),
        ("sort", SORT_PARAMETERS[query.sort]),
        ("limit", str(min(most, LARGEST_PAGE))),
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
