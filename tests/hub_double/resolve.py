"""Downloads: /resolve on the API origin, stored objects on the other one."""

from __future__ import annotations

from urllib.parse import quote

from starlette.responses import Response

from . import access
from .http import Call, HubError, Routes, ranged
from .state import lfs_pointer

routes = Routes()
storage_routes = Routes()


@routes("GET", r"/{prefix}{repo}/resolve/{revision}/{path}")
def resolve(call: Call) -> Response:
    repo = access.readable_repo(call)
    commit = access.commit_at(repo, call.args["revision"])
    path = call.args["path"]
    file = access.file_at(commit, path)
    headers = {"X-Repo-Commit": commit.oid, "X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.etag}"'}
    if file.stored is None:
        headers["Location"] = f"/api/resolve-cache/{repo.type}s/{repo.id}/{commit.oid}/{quote(path, safe='')}"
        return Response(status_code=307, headers=headers)
    if file.stored.xet_hash:
        token_url = f"{call.state.endpoint}/api/{repo.type}s/{repo.id}/xet-read-token/{commit.oid}"
        headers["X-Xet-Hash"] = file.stored.xet_hash
        headers["Link"] = f'<{token_url}>; rel="xet-auth"'
    headers["Location"] = f"{call.state.storage_url}/objects/{file.stored.sha256}"
    return Response(status_code=302, headers=headers)


@routes("GET", r"/api/resolve-cache/{type}s/{repo}/{revision}/{path}")
def resolve_cache(call: Call) -> Response:
    repo = access.readable_repo(call)
    commit = access.commit_at(repo, call.args["revision"])
    file = access.file_at(commit, call.args["path"])
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"'}
    return ranged(call, call.state.content(file), headers)


@routes("GET", r"/{prefix}{repo}/raw/{revision}/{path}")
def raw(call: Call) -> Response:
    """The git blob itself: for a large file its pointer."""
    repo = access.readable_repo(call)
    commit = access.commit_at(repo, call.args["revision"])
    file = access.file_at(commit, call.args["path"])
    content = lfs_pointer(file.stored) if file.stored else call.state.content(file)
    return ranged(call, content, {"X-Repo-Commit": commit.oid, "ETag": f'"{file.oid}"'})


@storage_routes("GET", r"/objects/{sha256}")
def stored_object(call: Call) -> Response:
    stored = call.state.storage.find(call.args["sha256"])
    if stored is None:
        raise HubError(404, "EntryNotFound", "No such object")
    return ranged(call, call.state.storage.read(stored.sha256), {"ETag": f'"{stored.sha256}"'})
