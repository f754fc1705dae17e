# Copyright (c) monai_rrr contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""MONAI Label's web application behind limits: size, ids, no archives to unpack, one clear answer for each fault."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, unquote

from monai_rrr.errors import ConfigError, RRRError
from monai_rrr.label.routes import answer_of, our_routes

__all__ = ["Guard", "guarded_app"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

MAX_UPLOAD = 1 << 30
LIMIT = "MONAI_RRR_LABEL_MAX_UPLOAD"
ORIGINS = "MONAI_RRR_LABEL_ORIGINS"
_ID = re.compile(r"[^\x00-\x1f/\\]{1,128}\Z")
_IDS = ("image", "label", "id", "tag", "session_id", "strategy")
_CLOSED = ("/logs", "/dsa", "/wsi")
_READ_ONLY = "/datastore"
_HARMLESS = {("PUT", "/datastore/label"), ("DELETE", "/datastore/label")}


class Guard:
    """Refuse what no client of ours sends, before MONAI Label reads it.

    Args:
        app: any ASGI application.
        limit: largest body in bytes, declared or not.
    """

    def __init__(self, app: Any, limit: int = MAX_UPLOAD) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            _check(scope, self.limit)
            await self.app(scope, _counted(receive, self.limit), watched)
        except RRRError as error:
            if started:
                raise
            await _respond(send, *answer_of(error))


def guarded_app() -> Guard:
    """Return MONAI Label's application with our routes, behind the guard."""
    from monailabel.app import app
    from monailabel.interfaces.exception import MONAILabelException
    from monailabel.interfaces.utils.app import app_instance
    from starlette.responses import JSONResponse

    async def named(request: Any, error: Any) -> Any:
        status, answer = answer_of(error)
        return JSONResponse(answer, status_code=status)

    async def theirs(request: Any, error: Any) -> Any:
        return JSONResponse({"detail": str(error.msg), "code": "request"}, status_code=400)

    app.add_exception_handler(RRRError, named)
    app.add_exception_handler(MONAILabelException, theirs)
    app.router.routes[:0] = our_routes(app_instance)
    return Guard(app, int(os.environ.get(LIMIT, MAX_UPLOAD)))


def __getattr__(name: str) -> Guard:
    """Make ``monai_rrr.label.server:app`` for the web server, without importing MONAI Label before."""
    if name == "app":
        return guarded_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _check(scope: Scope, limit: int) -> None:
    path = unquote(scope["path"]).rstrip("/") or "/"
    method = scope["method"]
    if ".." in path.split("/") or "\0" in path or path.startswith(_CLOSED):
        raise ConfigError("request", f"expected a route of the server, got {path[:80]!r}", field="path")
    if path.startswith(_READ_ONLY) and method not in ("GET", "HEAD", "OPTIONS") and (method, path) not in _HARMLESS:
        raise ConfigError("request", f"expected a question, got {method} {path[:80]}: data stay as they are")
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    if query.get("uncompress", ["false"])[-1].lower() not in ("false", "0", ""):
        raise ConfigError("request", "expected images, got an archive to unpack", field="uncompress")
    for name in _IDS:
        for value in query.get(name, []):
            if value and (not _ID.match(value) or ".." in value):
                message = f"expected an id of up to 128 signs without / and .., got {value[:80]!r}"
                raise ConfigError("request", message, field=name)
    headers = dict(scope["headers"])
    size = headers.get(b"content-length", b"0")
    if not size.isdigit() or int(size) > limit:
        raise _too_large(limit)
    origin = headers.get(b"origin", b"").decode("latin-1")
    own = headers.get(b"host", b"").decode("latin-1")
    # a page from elsewhere that an annotator has open could otherwise use the server in their name
    if origin and origin.partition("://")[2] != own and origin not in os.environ.get(ORIGINS, "").split(","):
        hint = f"start the server with {ORIGINS}={origin[:80]} to allow it"
        raise ConfigError("request", f"expected a page of {own[:80]}, got one of {origin[:80]}", hint=hint)


def _counted(receive: Receive, limit: int) -> Receive:
    size = 0

    async def counted() -> Any:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise _too_large(limit)
        return message

    return counted


def _too_large(limit: int) -> ConfigError:
    hint = f"send less, or start the server with {LIMIT}=BYTES"
    return ConfigError("request-size", f"expected a request of at most {limit} bytes, got more", hint=hint)


async def _respond(send: Send, status: int, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
