"""The ASGI application and its server thread."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from . import access, accounts, cards, collections_api, commits, discussions, lfs, models_api, repos_api, resolve, xet
from .faults import Fault, Faults
from .http import Call, HubError, Routes
from .state import State

API_MODULES = (accounts, cards, models_api, repos_api, resolve, xet, lfs, commits, discussions, collections_api)
API_ROUTES: tuple[Routes, ...] = tuple(module.routes for module in API_MODULES)
STORAGE_ROUTES: tuple[Routes, ...] = (resolve.storage_routes, lfs.storage_routes)
REPO_PATH = r"(/api/(?:models|datasets|spaces)/|/(?:(?:datasets|spaces)/)?){repo}((?:/|\.git/).*|)"


@dataclass
class Request:
    """One line of the request log; ``status`` stays None when the connection was cut."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    status: int | None = None


class Application:
    def __init__(self, state: State) -> None:
        self.state = state
        self.lock = threading.RLock()
        self.faults = Faults()
        self.requests: list[Request] = []
        self.leaked_tokens: list[Request] = []
        self.crashes: list[str] = []

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        path, query = scope["raw_path"].decode(), scope["query_string"].decode()
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        body = await _read_body(receive)
        if body is None:
            return
        request = Request(scope["method"], path, parse_qs(query, True), headers, body)
        self.requests.append(request)
        fault = self.faults.take(f"{request.method} {path}{'?' if query else ''}{query}") or Fault("")
        await asyncio.sleep(fault.delay)
        transport = scope["state"]["transport"]
        if fault.cut == "request":
            transport.abort()
            return
        if fault.status:
            response = _fault_response(fault)
        else:
            response = await asyncio.to_thread(self._respond, request, query)
        if fault.cut == "response":
            transport.abort()
            return
        response.headers.update(fault.headers)
        if fault.loop:
            response.status_code, response.headers["Location"] = 307, f"{path}?{query}" if query else path
        request.status = response.status_code
        await _send(response, fault, send, transport)

    def _respond(self, request: Request, query: str) -> Response:
        with self.lock:
            try:
                return self._route(request, query)
            except HubError as error:
                return error.response()
            except Exception:
                self.crashes.append(f"{request.method} {request.path}\n{traceback.format_exc()}")
                return HubError(500, "DoubleCrashed", "The Hub double has a bug; see `crashes`.").response()

    def _route(self, request: Request, query: str) -> Response:
        call = Call(self.state, request.method, request.path, request.query, request.headers, request.body)
        origin = f"http://{request.headers.get('host', '')}"
        if origin == self.state.storage_url:
            routes = STORAGE_ROUTES
            if "authorization" in request.headers:
                self.leaked_tokens.append(request)
                raise HubError(400, "InvalidRequest", "Only one auth mechanism allowed; do not send your token here.")
        elif origin == self.state.endpoint:
            routes = API_ROUTES
            call.user = access.authenticate(call)
        else:
            raise HubError(421, "MisdirectedRequest", f"Not a host of this Hub: {origin}")
        for old, new in self.state.renames.items():
            match = re.fullmatch(REPO_PATH.format(repo=re.escape(old)), request.path)
            if match:
                location = f"{match[1]}{new}{match[2]}{'?' if query else ''}{query}"
                return Response(status_code=307, headers={"Location": location})
        return _call_handler(routes, call)


def _call_handler(tables: tuple[Routes, ...], call: Call) -> Response:
    for table in tables:
        found = table.find(call.method, call.path)
        if found:
            handler, call.args = found
            return handler(call)
    if tables is API_ROUTES and call.path.startswith(("/api/models/", "/api/datasets/", "/api/spaces/")):
        raise access.repo_not_found(call)
    raise HubError(404, "NotFound", f"Sorry, we can't find {call.method} {call.path}")


async def _read_body(receive: Callable[[], Awaitable[dict[str, Any]]]) -> bytes | None:
    """Return the body of a request, ``None`` if its sender was gone before all of it had come."""
    chunks = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(chunks)


def _fault_response(fault: Fault) -> Response:
    assert fault.status is not None
    if fault.body is not None:
        return Response(fault.body, fault.status)
    return HubError(fault.status, "InjectedFault", "Injected by the test").response()


async def _send(
    response: Response,
    fault: Fault,
    send: Callable[[dict[str, Any]], Awaitable[None]],
    transport: asyncio.Transport,
) -> None:
    body = bytes(response.body)
    if fault.garbled and body:
        body = body[:-1] + bytes([body[-1] ^ 1])
    if fault.length is not None:
        body = body[: fault.length].ljust(fault.length, b"\0")
        response.headers["content-length"] = str(len(body))
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    if fault.cut in ("body", "reset"):
        await send({"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True})
        (transport.close if fault.cut == "body" else transport.abort)()
    elif fault.drip:
        for place in range(len(body)):
            await send({"type": "http.response.body", "body": body[place : place + 1], "more_body": True})
            await asyncio.sleep(fault.drip)
        await send({"type": "http.response.body", "body": b""})
    else:
        await send({"type": "http.response.body", "body": body})


class _Protocol(H11Protocol):
    """Gives the application its connection, so that it can cut it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {"transport": transport}


class _Server(uvicorn.Server):
    """A server that stops at once instead of waiting for idle connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stopping = threading.Event()
        self._wake: Callable[[], object] = lambda: None

    def stop(self) -> None:
        self._stopping.set()
        self._wake()

    async def main_loop(self) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(stop.set)
        if not self._stopping.is_set():
            await stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class ServerThread:
    """Serve an application on a loopback port until stopped."""

    def __init__(self, application: Application, listener: socket.socket) -> None:
        config = uvicorn.Config(
            application,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            date_header=False,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="hub-double", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.stop()
        self._thread.join()


def listen(port: int) -> socket.socket:
    # asyncio switches Nagle's algorithm off only for sockets of an explicit protocol
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    return listener
