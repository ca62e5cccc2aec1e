"""Listing and describing repositories and the files in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import Response

from . import access
from .cards import model_facts
from .http import Call, HubError, Routes, answer, page
from .state import Commit, File, Repo, State, timestamp

routes = Routes()

INFO_FIELDS = (
    *(
        "id",
        "modelId",
        "author",
        "sha",
        "lastModified",
        "createdAt",
        "private",
        "gated",
        "disabled",
        "downloads",
        "likes",
    ),
    *("tags", "pipeline_tag", "library_name", "siblings", "cardData", "config", "model-index", "usedStorage", "spaces"),
)
LISTED_FIELDS = (
    *("id", "modelId", "createdAt", "private", "downloads", "likes", "tags", "pipeline_tag", "library_name"),
)
FULL_FIELDS = ("author", "sha", "lastModified", "gated", "disabled", "siblings")
SORT_KEYS: dict[str, Callable[[Repo], Any]] = {
    "trendingScore": lambda repo: repo.likes,
    "downloads": lambda repo: repo.downloads,
    "likes": lambda repo: repo.likes,
    "lastModified": lambda repo: repo.last_modified,
    "createdAt": lambda repo: repo.created_at,
}
LIST_PARAMETERS = {
    *("filter", "search", "author", "pipeline_tag", "gated", "sort", "limit", "cursor"),
    *("full", "config", "cardData", "expand", "expand[]"),
}
TREE_PAGE, EXPANDED_TREE_PAGE, LIST_PAGE = 1000, 50, 1000


def describe(state: State, repo: Repo, commit: Commit) -> dict[str, Any]:
    """Everything the Hub can say about a repository at a commit."""
    sizes = {file.stored.sha256: file.size for file in commit.files.values() if file.stored}
    return {
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.oid,
        "lastModified": timestamp(commit.date),
        "createdAt": timestamp(repo.created_at),
        "private": repo.private,
        "gated": repo.gated,
        "disabled": repo.disabled,
        "downloads": repo.downloads,
        "downloadsAllTime": repo.downloads,
        "likes": repo.likes,
        "trendingScore": repo.likes,
        "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        "spaces": [],
        "usedStorage": sum(sizes.values()),
        **model_facts(state, commit),
    }


@routes("GET", r"/api/{type}s")
def list_repos(call: Call) -> Response:
    unsupported = set(call.query) - LIST_PARAMETERS
    sort = call.value("sort", "trendingScore")
    if unsupported or sort not in SORT_KEYS:
        raise HubError(400, "BadRequest", f"Not supported here: {sorted(unsupported) or sort}")
    repos = [r for r in call.state.repos.values() if r.type == call.args["type"] and access.may_see(call.user, r)]
    repos.sort(key=SORT_KEYS[sort], reverse=True)
    found = [facts for facts in (describe(call.state, repo, repo.head) for repo in repos) if _is_wanted(call, facts)]
    fields = call.values("expand") or _listed_fields(call)
    return page(call, found, call.number("limit", LIST_PAGE), lambda facts: _pick(facts, fields))


def _is_wanted(call: Call, facts: dict[str, Any]) -> bool:
    author, pipeline_tag, gated = (call.value(name) for name in ("author", "pipeline_tag", "gated"))
    return (
        set(call.values("filter")) <= set(facts["tags"])
        and all(word.lower() in facts["id"].lower() for word in call.values("search"))
        and author in ("", facts["author"])
        and pipeline_tag in ("", facts["pipeline_tag"])
        and gated in ("", str(bool(facts["gated"])).lower())
    )


def _listed_fields(call: Call) -> list[str]:
    asked = {"full": FULL_FIELDS, "config": ("config",), "cardData": ("cardData",)}
    return [*LISTED_FIELDS, *(field for name, fields in asked.items() if call.flag(name) for field in fields)]


def _pick(facts: dict[str, Any], fields: list[str] | tuple[str, ...]) -> dict[str, Any]:
    picked = {field: facts[field] for field in fields if facts.get(field) is not None}
    return {"_id": hashlib.md5(facts["id"].encode()).hexdigest()[:24], "id": facts["id"], **picked}


@routes("GET", r"/api/{type}s/{repo}")
@routes("GET", r"/api/{type}s/{repo}/revision/{revision}")
def info(call: Call) -> Response:
    repo = access.visible_repo(call)
    commit = access.commit_at(repo, call.args.get("revision", "HEAD"))
    facts = describe(call.state, repo, commit)
    data = _pick(facts, call.values("expand") or INFO_FIELDS)
    if call.flag("blobs"):
        data["siblings"] = [_sibling(path, file) for path, file in sorted(commit.files.items())]
    if call.flag("securityStatus"):
        issues = [{"path": path, "level": level} for path, level in repo.security.items() if level != "safe"]
        data["securityRepoStatus"] = {"scansDone": repo.scans_done, "filesWithIssues": issues}
    return answer(data)


def _sibling(path: str, file: File) -> dict[str, Any]:
    sibling = {"rfilename": path, "size": file.size, "blobId": file.oid}
    if file.stored:
        sibling["lfs"] = {"sha256": file.stored.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return sibling


@routes("GET", r"/api/{type}s/{repo}/tree/{revision}")
@routes("GET", r"/api/{type}s/{repo}/tree/{revision}/{path}")
def tree(call: Call) -> Response:
    repo = access.visible_repo(call)
    commit = access.commit_at(repo, call.args["revision"])
    folder = call.args.get("path", "").strip("/")
    prefix = f"{folder}/" if folder else ""
    below = {path for path in _paths(commit) if path.startswith(prefix)}
    if prefix and not below:
        raise HubError(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.oid})
    if not call.flag("recursive"):
        below = {path for path in below if "/" not in path.removeprefix(prefix)}
    expand = call.flag("expand")
    most = EXPANDED_TREE_PAGE if expand else TREE_PAGE
    limit = min(most, call.number("limit", most))
    return page(call, sorted(below), limit, lambda path: _entry(repo, commit, path, expand))


@routes("POST", r"/api/{type}s/{repo}/paths-info/{revision}")
def paths_info(call: Call) -> Response:
    repo = access.visible_repo(call)
    commit = access.commit_at(repo, call.args["revision"])
    if call.headers.get("content-type", "").startswith("application/json"):
        asked = call.json()
        paths, expand = asked["paths"], bool(asked.get("expand"))
    else:
        form = parse_qs(call.body.decode())
        paths, expand = form.get("paths", []), form.get("expand", ["false"])[0] in ("true", "True", "1")
    known = _paths(commit)
    return answer([_entry(repo, commit, path, expand) for path in paths if path in known])


def _paths(commit: Commit) -> set[str]:
    """Files and the folders they are in."""
    parts = (path.split("/") for path in commit.files)
    return {"/".join(names[: depth + 1]) for names in parts for depth in range(len(names))}


def _entry(repo: Repo, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    file = commit.files.get(path)
    if file is None:
        inside = sorted((name, f.oid) for name, f in commit.files.items() if name.startswith(f"{path}/"))
        return {"type": "directory", "oid": hashlib.sha1(repr(inside).encode()).hexdigest(), "size": 0, "path": path}
    entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if file.stored:
        entry["lfs"] = {"oid": file.stored.sha256, "size": file.size, "pointerSize": file.pointer_size}
        if file.stored.xet_hash:
            entry["xetHash"] = file.stored.xet_hash
    if expand:
        last = _last_change(repo, commit, path)
        entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": timestamp(last.date)}
        if repo.scans_done:
            status = repo.security.get(path, "safe")
            scan = {"status": status, "message": None}
            entry["securityFileStatus"] = {"status": status, "avScan": scan, "pickleImportScan": scan}
    return entry


def _last_change(repo: Repo, commit: Commit, path: str) -> Commit:
    """The newest commit whose parent holds another content, or none, at the path."""
    for candidate in repo.history(commit):
        before = repo.commits[candidate.parent].files.get(path) if candidate.parent else None
        if before != candidate.files.get(path):
            return candidate
    raise LookupError(path)


@routes("GET", r"/api/{type}s/{repo}/commits/{revision}")
def commits(call: Call) -> Response:
    repo = access.visible_repo(call)
    history = list(repo.history(access.commit_at(repo, call.args["revision"])))
    return page(call, history, call.number("limit", LIST_PAGE), _commit_entry)


def _commit_entry(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.message,
        "date": timestamp(commit.date),
        "authors": [{"user": commit.author}],
    }


@routes("GET", r"/api/models/{repo}/safetensors-metadata/{path}")
def sharded_safetensors_metadata(call: Call) -> Response:
    repo = access.readable_repo(call)
    commit = repo.head
    index = json.loads(call.state.content(access.file_at(commit, call.args["path"])))
    shards = sorted(set(index.pop("weight_map").values()))
    headers = {shard: _safetensors_header(call.state.content(access.file_at(commit, shard))) for shard in shards}
    return answer({"index": index, "headers": headers})


def _safetensors_header(content: bytes) -> Any:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
