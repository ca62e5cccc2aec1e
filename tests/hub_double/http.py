"""The small web layer: a request with its caller, errors as the Hub words them, routes on the raw path."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode

from starlette.responses import Response

from .state import State, User


class HubError(Exception):
    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None, **body: Any):
        super().__init__(message)
        self.status = status
        one_line = " ".join(message.split()).encode("ascii", "replace").decode()
        self.headers = {"X-Error-Code": code, "X-Error-Message": one_line, "X-Request-Id": "Root=1-hub-double"}
        self.headers.update(headers or {})
        self.body = {"error": message, **body}

    def response(self) -> Response:
        return answer(self.body, self.status, self.headers)


def answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(data, default=str).encode()
    return Response(body, status, dict(headers or {}), media_type="application/json")


@dataclass
class Call:
    """One request: what was asked, of which Hub, by whom."""

    state: State
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    user: User | None = None
    args: dict[str, str] = field(default_factory=dict)

    def values(self, name: str) -> list[str]:
        return self.query.get(name, []) + self.query.get(f"{name}[]", [])

    def value(self, name: str, default: str = "") -> str:
        return next(iter(self.values(name)), default)

    def flag(self, name: str) -> bool:
        return self.value(name).lower() in ("true", "1")

    def number(self, name: str, default: int) -> int:
        value = self.value(name)
        return int(value) if value.isdigit() else default

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError:
            raise HubError(400, "BadRequest", "The body is not JSON.") from None


def page(call: Call, items: Sequence[Any], most: int, render: Callable[[Any], Any]) -> Response:
    """One page of a listing; the ``Link`` header leads to the next."""
    size = max(1, min(call.state.page_size, most))
    start = call.number("cursor", 0)
    headers = {}
    if start + size < len(items):
        query = urlencode({**call.query, "cursor": start + size}, doseq=True)
        headers["Link"] = f'<{call.state.endpoint}{call.path}?{query}>; rel="next"'
    return answer([render(item) for item in items[start : start + size]], headers=headers)


def ranged(call: Call, content: bytes, headers: Mapping[str, str]) -> Response:
    """The content, or the part of it that a ``Range`` header asks for."""
    headers = {"Accept-Ranges": "bytes", **headers}
    size = len(content)
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("range", ""))
    if not wanted or wanted.group() == "bytes=-":
        return Response(content, 200, headers, media_type="application/octet-stream")
    first, last = wanted.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if start > end:
        message = "The requested range is outside of the file."
        raise HubError(416, "RangeNotSatisfiable", message, {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Response(content[start : end + 1], 206, headers, media_type="application/octet-stream")


Handler = Callable[[Call], Response]
PLACEHOLDERS = {
    "type": "model|dataset|space",
    "prefix": "datasets/|spaces/|",
    "repo": r"[^/]+/[^/]+?",
    "revision": r"refs/(?:pr|heads|tags|convert)/[^/]+|[^/]+",
    "path": ".+",
    "num": r"\d+",
    "slug": "[^/]+/[^/]+",
}


class Routes:
    """Handlers by method and path; patterns see the path still percent-encoded."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = []

    def __call__(self, method: str, template: str) -> Callable[[Handler], Handler]:
        pattern = re.sub(r"{(\w+)}", lambda name: f"(?P<{name[1]}>{PLACEHOLDERS.get(name[1], '[^/]+')})", template)

        def register(handler: Handler) -> Handler:
            self._routes.append((method, re.compile(pattern), handler))
            return handler

        return register

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]] | None:
        method = "GET" if method == "HEAD" else method
        for route_method, pattern, handler in self._routes:
            match = pattern.fullmatch(path) if route_method == method else None
            if match:
                return handler, {name: unquote(value) for name, value in match.groupdict().items() if value}
        return None
