"""Creating, changing and deleting repositories, their branches and tags; the caller's rights on them."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from . import access
from .http import Call, HubError, Routes, answer
from .state import Repo

routes = Routes()


@routes("POST", r"/api/repos/create")
def create(call: Call) -> Response:
    request = call.json()
    user = access.logged_in(call)
    namespace = request.get("organization") or user.name
    access.writer_in(call, namespace)
    repo = Repo(f"{namespace}/{request['name']}", request.get("type", "model"))
    repo.private = request.get("visibility") == "private" or bool(request.get("private"))
    url = call.state.url(repo)
    if (repo.type, repo.id) in call.state.repos:
        message = f"You already created this {repo.type} repo: {repo.id}"
        raise HubError(409, "RepoExists", message, url=url)
    call.state.create_repo(repo, user.name)
    return answer({"url": url, "name": repo.id, "id": repo.id})


@routes("DELETE", r"/api/repos/delete")
def delete(call: Call) -> Response:
    request = call.json()
    namespace = request.get("organization") or access.logged_in(call).name
    repo = access.find_repo(call, request.get("type", "model"), f"{namespace}/{request['name']}")
    access.writer_in(call, namespace)
    del call.state.repos[repo.type, repo.id]
    return answer({})


@routes("PUT", r"/api/{type}s/{repo}/settings")
def settings(call: Call) -> Response:
    repo = access.writable_repo(call)
    request = call.json()
    if "visibility" in request:
        repo.private = request["visibility"] == "private"
    repo.gated = request.get("gated", repo.gated)
    return answer({"private": repo.private, "gated": repo.gated})


@routes("GET", r"/api/{type}s/{repo}/auth-check")
def auth_check(call: Call) -> Response:
    access.readable_repo(call)
    return answer({})


@routes("GET", r"/api/{type}s/{repo}/auth-check/write")
def auth_check_write(call: Call) -> Response:
    access.writable_repo(call)
    return answer({})


@routes("GET", r"/api/{type}s/{repo}/refs")
def refs(call: Call) -> Response:
    repo = access.visible_repo(call)
    groups = {"branches": "refs/heads/", "tags": "refs/tags/", "converts": "refs/convert/"}
    if call.flag("include_prs"):
        groups["pullRequests"] = "refs/pr/"
    return answer({group: _refs_below(repo, prefix) for group, prefix in groups.items()})


def _refs_below(repo: Repo, prefix: str) -> list[dict[str, Any]]:
    return [
        {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
        for ref, oid in repo.refs.items()
        if ref.startswith(prefix)
    ]


@routes("POST", r"/api/{type}s/{repo}/branch/{name}")
def create_branch(call: Call) -> Response:
    repo = access.writable_repo(call)
    start = access.commit_at(repo, call.json().get("startingPoint", "HEAD"))
    return _add_ref(repo, f"refs/heads/{call.args['name']}", start.oid)


@routes("POST", r"/api/{type}s/{repo}/tag/{revision}")
def create_tag(call: Call) -> Response:
    repo = access.writable_repo(call)
    commit = access.commit_at(repo, call.args["revision"])
    return _add_ref(repo, f"refs/tags/{call.json()['tag']}", commit.oid)


def _add_ref(repo: Repo, ref: str, oid: str) -> Response:
    if ref in repo.refs:
        raise HubError(409, "ReferenceExists", f"Reference {ref} already exists")
    repo.refs[ref] = oid
    return answer({}, 201)


@routes("DELETE", r"/api/{type}s/{repo}/(?P<kind>branch|tag)/{name}")
def delete_ref(call: Call) -> Response:
    repo = access.writable_repo(call)
    folder = "heads" if call.args["kind"] == "branch" else "tags"
    if repo.refs.pop(f"refs/{folder}/{call.args['name']}", None) is None:
        raise HubError(404, "RevisionNotFound", f"No such {call.args['kind']}: {call.args['name']}")
    return answer({})
