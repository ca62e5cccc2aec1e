"""Commits: what is to be uploaded how, then one ndjson that changes a branch or opens a pull request."""

from __future__ import annotations

import base64
import json
from fnmatch import fnmatchcase
from typing import Any

from starlette.responses import Response

from . import access
from .cards import card_problems
from .discussions import open_pull_request, record_commit
from .http import Call, HubError, Routes, answer
from .state import Commit, File, is_large

routes = Routes()
PREUPLOAD_LIMIT = 256


@routes("POST", r"/api/{type}s/{repo}/preupload/{revision}")
def preupload(call: Call) -> Response:
    repo = access.writable_repo(call, call.args["revision"])
    commit = access.commit_at(repo, call.args["revision"])
    request = call.json()
    if len(request["files"]) > PREUPLOAD_LIMIT:
        raise HubError(400, "BadRequest", f"At most {PREUPLOAD_LIMIT} files per call.")
    rules = request.get("gitIgnore")
    if rules is None:
        rules = call.state.content(commit.files[".gitignore"]).decode() if ".gitignore" in commit.files else ""
    return answer({"files": [_upload_plan(commit, rules, item) for item in request["files"]]})


def _upload_plan(commit: Commit, rules: str, item: dict[str, Any]) -> dict[str, Any]:
    path = item["path"]
    large = is_large(path, item["size"], base64.b64decode(item["sample"]))
    plan = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": is_ignored(path, rules)}
    if path in commit.files:
        plan["oid"] = commit.files[path].etag
    return plan


def is_ignored(path: str, rules: str) -> bool:
    """Apply .gitignore rules: the last one that matches the path or a folder above it decides."""
    names = path.split("/")
    ancestors = ["/".join(names[:depth]) for depth in range(1, len(names))]
    ignored = False
    for line in rules.splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!").rstrip("/")
        candidates = ancestors if rule.endswith("/") else [*ancestors, path]
        if "/" not in pattern:
            candidates = [candidate.rsplit("/", 1)[-1] for candidate in candidates]
        if any(fnmatchcase(candidate, pattern.lstrip("/")) for candidate in candidates):
            ignored = not rule.startswith("!")
    return ignored


@routes("POST", r"/api/{type}s/{repo}/commit/{revision}")
def commit(call: Call) -> Response:
    revision = call.args["revision"]
    repo = access.writable_repo(call, revision)
    user = access.logged_in(call)
    ref = repo.full_ref(revision)
    if ref is None or ref.startswith("refs/tags/"):
        raise HubError(404, "RevisionNotFound", f"Invalid branch: {revision}")
    base = repo.commits[repo.refs[ref]]
    lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
    header, operations = lines[0]["value"], lines[1:]
    if not base.oid.startswith(header.get("parentCommit", base.oid)):
        raise HubError(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
    files = dict(base.files)
    for operation in operations:
        _apply(call, files, operation["key"], operation["value"])
    _check_card(call, files)
    title, message = header["summary"], header.get("description", "")
    pull_request = open_pull_request(repo, title, message, user.name, "open") if call.flag("create_pr") else None
    made = repo.add_commit(pull_request.ref if pull_request else ref, files, title, user.name, message)
    record_commit(repo, pull_request.ref if pull_request else ref, made)
    url = call.state.url(repo)
    result = {"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}", "hookOutput": ""}
    if pull_request:
        result["pullRequestUrl"] = f"{url}/discussions/{pull_request.num}"
    return answer(result)


def _apply(call: Call, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    match key:
        case "file":
            files[path] = File.regular(base64.b64decode(value["content"]))
        case "lfsFile":
            stored = call.state.storage.find(value["oid"])
            if stored is None:
                raise HubError(400, "BadRequest", f"LFS pointer points to an object that was never uploaded: {path}")
            files[path] = File.large(stored)
        case "deletedFile" if path in files:
            del files[path]
        case "deletedFolder" if any(name.startswith(f"{path.rstrip('/')}/") for name in files):
            for name in [name for name in files if name.startswith(f"{path.rstrip('/')}/")]:
                del files[name]
        case "deletedFile" | "deletedFolder":
            raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
        case _:
            raise HubError(400, "BadRequest", f"Unknown operation: {key}")


def _check_card(call: Call, files: dict[str, File]) -> None:
    readme = files.get("README.md")
    errors = card_problems(call.state.content(readme).decode(errors="replace"))[0] if readme else []
    if errors:
        raise HubError(400, "BadRequest", "Invalid metadata in README.md: " + "; ".join(errors))
