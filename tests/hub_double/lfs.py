"""Git LFS uploads: the batch call on the API origin, the bytes on the other one."""

from __future__ import annotations

import hashlib
import math
import secrets
from typing import Any

from starlette.responses import Response

from . import access
from .http import Call, HubError, Routes, answer
from .state import Upload

routes = Routes()
storage_routes = Routes()
MULTIPART_ABOVE = 16 * 1024 * 1024
PART_SIZE = 8 * 1024 * 1024


@routes("POST", r"/{prefix}{repo}\.git/info/lfs/objects/batch")
def batch(call: Call) -> Response:
    request = call.json()
    if request.get("operation") != "upload":
        raise HubError(400, "BadRequest", "Only uploads are served.")
    if "ref" in request:
        access.writable_repo(call, request["ref"]["name"])
    else:
        _check_may_open_pull_request(call)
    objects = [_plan(call, item["oid"], item["size"]) for item in request["objects"]]
    multipart = any("chunk_size" in item.get("actions", {}).get("upload", {}).get("header", {}) for item in objects)
    return answer({"transfer": "multipart" if multipart else "basic", "objects": objects})


def _check_may_open_pull_request(call: Call) -> None:
    access.visible_repo(call)
    if access.logged_in(call).role != "write":
        raise HubError(403, "Forbidden", "You need a write token to upload.")


def _plan(call: Call, sha256: str, size: int) -> dict[str, Any]:
    if call.state.storage.find(sha256):
        return {"oid": sha256, "size": size}
    upload_id = secrets.token_hex(8)
    call.state.uploads[upload_id] = Upload(sha256, size)
    upload: dict[str, Any] = {"href": f"{call.state.storage_url}/uploads/{upload_id}"}
    if size > MULTIPART_ABOVE:
        parts = range(1, math.ceil(size / PART_SIZE) + 1)
        urls = {f"{part:05d}": f"{upload['href']}/{part}" for part in parts}
        completion = f"{call.state.endpoint}/api/complete_multipart?uploadId={upload_id}"
        upload = {"href": completion, "header": {"chunk_size": str(PART_SIZE), **urls}}
    verify = f"{call.state.endpoint}/{call.args.get('prefix', '')}{call.args['repo']}.git/info/lfs/verify"
    return {"oid": sha256, "size": size, "actions": {"upload": upload, "verify": {"href": verify}}}


@storage_routes("PUT", r"/uploads/{upload}")
def put_object(call: Call) -> Response:
    upload = _upload(call, call.args["upload"])
    _store(call, upload, call.body)
    return Response()


@storage_routes("PUT", r"/uploads/{upload}/{part}")
def put_part(call: Call) -> Response:
    _upload(call, call.args["upload"]).parts[int(call.args["part"])] = call.body
    return Response(headers={"ETag": _part_etag(call.body)})


@routes("POST", r"/api/complete_multipart")
def complete(call: Call) -> Response:
    upload = _upload(call, call.value("uploadId"))
    listed = [(part["partNumber"], part["etag"]) for part in call.json()["parts"]]
    if listed != [(number, _part_etag(part)) for number, part in sorted(upload.parts.items())]:
        raise HubError(400, "InvalidPart", "The listed parts are not those that were uploaded.")
    _store(call, upload, b"".join(part for _, part in sorted(upload.parts.items())))
    return answer({})


@routes("POST", r"/{prefix}{repo}\.git/info/lfs/verify")
def verify(call: Call) -> Response:
    access.logged_in(call)
    stored = call.state.storage.find(call.json()["oid"])
    if stored is None or stored.size != call.json()["size"]:
        raise HubError(404, "EntryNotFound", "The object was not uploaded, or not completely.")
    return answer({})


@routes("POST", r"/api/{type}s/{repo}/lfs-files/duplicate")
def duplicate(call: Call) -> Response:
    source = access.readable_repo(call)
    request = call.json()
    target = access.find_repo(call, request["target"]["type"], request["target"]["name"])
    access.writer_in(call, target.namespace)
    owned = {f.stored.sha256 for commit in source.commits.values() for f in commit.files.values() if f.stored}
    missing = [file["sha256"] for file in request["files"] if file["sha256"] not in owned]
    return answer({"failed": [{"sha256": sha256, "error": "not in the source repository"} for sha256 in missing]})


def _upload(call: Call, upload_id: str) -> Upload:
    if upload_id not in call.state.uploads:
        raise HubError(403, "AccessDenied", "This link is not valid.")
    return call.state.uploads[upload_id]


def _part_etag(part: bytes) -> str:
    return f'"{hashlib.md5(part).hexdigest()}"'


def _store(call: Call, upload: Upload, content: bytes) -> None:
    if len(content) != upload.size or hashlib.sha256(content).hexdigest() != upload.sha256:
        raise HubError(400, "BadDigest", "The content is not what was announced.")
    call.state.storage.add(content)
