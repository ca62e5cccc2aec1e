"""Xet access tokens: they point clients to the local content-addressed store."""

from __future__ import annotations

import time

from starlette.responses import Response

from . import access
from .http import Call, HubError, Routes, answer

routes = Routes()
LIFETIME = 3600
NEW_PULL_REQUEST = "None"
"""Revision that clients send while the pull request they upload for does not exist yet."""


@routes("GET", r"/api/{type}s/{repo}/xet-read-token/{revision}")
def read_token(call: Call) -> Response:
    repo = access.readable_repo(call)
    access.commit_at(repo, call.args["revision"])
    return _token(call, "read")


@routes("GET", r"/api/{type}s/{repo}/xet-write-token/{revision}")
def write_token(call: Call) -> Response:
    revision = call.args["revision"]
    repo = access.writable_repo(call, revision)
    if revision != NEW_PULL_REQUEST:
        access.commit_at(repo, revision)
    return _token(call, "write")


def _token(call: Call, scope: str) -> Response:
    cas = call.state.storage.cas
    if cas is None:
        raise HubError(400, "BadRequest", "Xet is off here: set HF_HUB_DISABLE_XET=1 in the client.")
    token = f"xet-{scope}-{call.args['repo']}"
    expiry = int(time.time()) + LIFETIME
    headers = {"X-Xet-Cas-Url": cas.address, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expiry)}
    return answer({"accessToken": token, "exp": expiry, "casUrl": cas.address}, headers=headers)
