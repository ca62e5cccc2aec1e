"""Discussions and pull requests."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import unified_diff
from typing import Any

from starlette.responses import Response

from . import access
from .http import Call, HubError, Routes, answer
from .state import MAIN, Commit, Discussion, File, Repo, State, lfs_pointer, timestamp

routes = Routes()
STATUSES = {"open": ("open", "draft"), "closed": ("closed", "merged")}


def open_pull_request(repo: Repo, title: str, text: str, author: str, status: str) -> Discussion:
    discussion = repo.open_discussion(title, author, status, repo.head)
    discussion.add_event("comment", author, _comment(text))
    return discussion


def record_commit(repo: Repo, ref: str, commit: Commit) -> None:
    """Show a commit in the pull request it was pushed to, if any."""
    for discussion in repo.discussions:
        if discussion.is_pull_request and discussion.ref == ref:
            discussion.add_event("commit", commit.author, {"subject": commit.title, "oid": commit.oid})


def _comment(text: str) -> dict[str, Any]:
    return {"edited": False, "hidden": False, "latest": {"raw": text}}


@routes("GET", r"/api/{type}s/{repo}/discussions")
def list_discussions(call: Call) -> Response:
    repo = access.visible_repo(call)
    kind, status, author = call.value("type", "all"), call.value("status", "all"), call.value("author")
    found = [
        discussion
        for discussion in reversed(repo.discussions)
        if kind in ("all", "pull_request" if discussion.is_pull_request else "discussion")
        and (status == "all" or discussion.status in STATUSES[status])
        and author in ("", discussion.author)
    ]
    start = call.number("p", 0) * call.state.page_size
    shown = found[start : start + call.state.page_size]
    return answer({"discussions": [_summary(repo, item) for item in shown], "count": len(found), "start": start})


def _summary(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "author": {"name": discussion.author},
        "createdAt": timestamp(discussion.created_at),
        "isPullRequest": discussion.is_pull_request,
        "repo": {"name": repo.id, "type": repo.type},
    }


@routes("POST", r"/api/{type}s/{repo}/discussions")
def create(call: Call) -> Response:
    repo = access.visible_repo(call)
    author = _participant(call)
    request = call.json()
    title, text = request["title"], request.get("description", "")
    if len(title) < 3:
        raise HubError(400, "BadRequest", "A title has at least 3 characters.")
    if request.get("pullRequest"):
        return answer({"num": open_pull_request(repo, title, text, author, "draft").num})
    discussion = repo.open_discussion(title, author, "open", None)
    discussion.add_event("comment", author, _comment(text))
    return answer({"num": discussion.num})


def _participant(call: Call) -> str:
    user = access.logged_in(call)
    if user.role != "write":
        raise HubError(403, "Forbidden", "You need a write token to take part in discussions.")
    return user.name


@routes("GET", r"/api/{type}s/{repo}/discussions/{num}")
def details(call: Call) -> Response:
    repo, discussion = _find(call)
    data = {**_summary(repo, discussion), "events": discussion.events}
    if discussion.base:
        base, head = repo.commits[discussion.base], repo.commits[repo.refs[discussion.ref]]
        changed = _changes(base.files, head.files)
        data["changes"] = {"base": "refs/heads/main", "mergeCommitId": discussion.merge_commit}
        data["filesWithConflicts"] = [] if discussion.merge_commit else _conflicts(repo, base, changed)
        data["diff"] = "".join(_diff(call.state, path, base, head) for path in sorted(changed))
    return answer(data)


def _find(call: Call) -> tuple[Repo, Discussion]:
    repo = access.visible_repo(call)
    discussion = repo.discussion(int(call.args["num"]))
    if discussion is None:
        raise HubError(404, "DiscussionNotFound", f"No discussion {call.args['num']}")
    return repo, discussion


def _changes(before: Mapping[str, File], after: Mapping[str, File]) -> dict[str, File | None]:
    """New content by path; None where a file is gone."""
    return {path: after.get(path) for path in {*before, *after} if before.get(path) != after.get(path)}


def _conflicts(repo: Repo, base: Commit, changed: dict[str, File | None]) -> list[str]:
    on_main = _changes(base.files, repo.head.files)
    return sorted(path for path, file in changed.items() if path in on_main and on_main[path] != file)


def _diff(state: State, path: str, base: Commit, head: Commit) -> str:
    before, after = (_lines(state, commit.files.get(path)) for commit in (base, head))
    return "".join(unified_diff(before, after, f"a/{path}", f"b/{path}"))


def _lines(state: State, file: File | None) -> list[str]:
    if file is None:
        return []
    content = lfs_pointer(file.stored) if file.stored else state.content(file)
    return content.decode(errors="replace").splitlines(keepends=True)


@routes("POST", r"/api/{type}s/{repo}/discussions/{num}/comment")
def comment(call: Call) -> Response:
    _, discussion = _find(call)
    event = discussion.add_event("comment", _participant(call), _comment(call.json()["comment"]))
    return answer({"newMessage": event})


@routes("POST", r"/api/{type}s/{repo}/discussions/{num}/title")
def rename(call: Call) -> Response:
    discussion, author = _owned(call)
    title = call.json()["title"]
    event = discussion.add_event("title-change", author, {"from": discussion.title, "to": title})
    discussion.title = title
    return answer({"newTitle": event})


@routes("POST", r"/api/{type}s/{repo}/discussions/{num}/status")
def change_status(call: Call) -> Response:
    discussion, author = _owned(call)
    discussion.status = call.json()["status"]
    return answer({"newStatus": discussion.add_event("status-change", author, {"status": discussion.status})})


def _owned(call: Call) -> tuple[Discussion, str]:
    repo, discussion = _find(call)
    author = _participant(call)
    if author != discussion.author:
        access.writer_in(call, repo.namespace)
    return discussion, author


@routes("POST", r"/api/{type}s/{repo}/discussions/{num}/merge")
def merge(call: Call) -> Response:
    repo, discussion = _find(call)
    user = access.writer_in(call, repo.namespace)
    if discussion.base is None or discussion.status not in STATUSES["open"]:
        raise HubError(400, "BadRequest", "Only an open pull request can be merged.")
    base, head = repo.commits[discussion.base], repo.commits[repo.refs[discussion.ref]]
    changed = _changes(base.files, head.files)
    conflicts = _conflicts(repo, base, changed)
    if conflicts:
        raise HubError(409, "MergeConflict", f"Files with conflicts: {', '.join(conflicts)}")
    merged = {**repo.head.files, **changed}
    files = {path: file for path, file in merged.items() if file is not None}
    made = repo.add_commit(MAIN, files, f"{discussion.title} (#{discussion.num})", user.name)
    discussion.merge_commit, discussion.status = made.oid, "merged"
    discussion.add_event("status-change", user.name, {"status": "merged"})
    return answer({"mergeCommitId": made.oid})
