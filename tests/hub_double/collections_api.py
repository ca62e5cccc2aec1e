"""Collections: ordered lists of models, datasets, Spaces and papers."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from starlette.responses import Response

from . import access
from .http import Call, HubError, Routes, answer, page
from .state import Collection, now, timestamp

routes = Routes()
MAX_DESCRIPTION = 150
LIST_PAGE = 100
ITEMS_IN_LISTING = 4


@routes("POST", r"/api/collections")
def create(call: Call) -> Response:
    request = call.json()
    owner = request["namespace"]
    access.writer_in(call, owner)
    title, description = request["title"], request.get("description")
    if len(description or "") > MAX_DESCRIPTION:
        raise HubError(400, "BadRequest", f"A description has at most {MAX_DESCRIPTION} characters.")
    identifier = hashlib.md5(f"{owner}/{title}".encode()).hexdigest()[:24]
    slug = f"{owner}/{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}-{identifier}"
    if slug in call.state.collections:
        raise HubError(409, "CollectionExists", "You already have a collection of this title.", slug=slug)
    collection = Collection(slug, title, owner, description, bool(request.get("private")))
    call.state.collections[slug] = collection
    return answer(_details(call, collection))


@routes("GET", r"/api/collections")
def list_collections(call: Call) -> Response:
    owners, items = call.values("owner"), call.values("item")
    found = [
        collection
        for collection in call.state.collections.values()
        if _may_see(call, collection)
        and (not owners or collection.owner in owners)
        and (not items or any(f"{item['type']}s/{item['id']}" in items for item in collection.items))
    ]
    return page(call, found, call.number("limit", LIST_PAGE), _summary)


@routes("GET", r"/api/collections/{slug}")
def show(call: Call) -> Response:
    return answer(_details(call, _find(call)))


@routes("POST", r"/api/collections/{slug}/items")
def add_item(call: Call) -> Response:
    collection = _find(call)
    access.writer_in(call, collection.owner)
    request = call.json()
    item = {"id": request["item"]["id"], "type": request["item"]["type"]}
    if item["type"] in ("model", "dataset", "space"):
        access.find_repo(call, item["type"], item["id"])
    if any((known["id"], known["type"]) == (item["id"], item["type"]) for known in collection.items):
        raise HubError(409, "ItemExists", "This item is already in the collection.")
    item["_id"] = hashlib.md5(f"{collection.slug}/{item['type']}/{item['id']}".encode()).hexdigest()[:24]
    if "note" in request:
        item["note"] = {"text": request["note"]}
    collection.items.append(item)
    collection.last_updated = now()
    return answer(_details(call, collection))


def _may_see(call: Call, collection: Collection) -> bool:
    return not collection.private or (call.user is not None and call.user.belongs_to(collection.owner))


def _find(call: Call) -> Collection:
    collection = call.state.collections.get(call.args["slug"])
    if collection is None or not _may_see(call, collection):
        raise HubError(404, "CollectionNotFound", "Collection not found")
    return collection


def _details(call: Call, collection: Collection) -> dict[str, Any]:
    position = list(call.state.collections).index(collection.slug)
    return {**_summary(collection, most_items=len(collection.items)), "position": position}


def _summary(collection: Collection, most_items: int = ITEMS_IN_LISTING) -> dict[str, Any]:
    items = collection.items[:most_items]
    return {
        "slug": collection.slug,
        "title": collection.title,
        "description": collection.description,
        "owner": {"name": collection.owner},
        "items": [{**item, "position": position} for position, item in enumerate(items)],
        "lastUpdated": timestamp(collection.last_updated),
        "private": collection.private,
        "theme": "blue",
        "upvotes": 0,
    }
