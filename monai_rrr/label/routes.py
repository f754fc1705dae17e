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

"""Our own routes in place of MONAI Label's: nothing that a client sends becomes a path, and the server stays awake."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_rrr.errors import ConfigError, RRRError, named_error
from monai_rrr.label.request import TrainRequest

__all__ = ["answer_of", "our_routes", "snapshot"]

OUTPUTS = ("json", "image", "all")
_STATUS = {"case-unknown": 404, "request-size": 413, "checkpoint-missing": 409, "score-missing": 409}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\.nii(\.gz)?\Z", re.IGNORECASE)
_MAX_FILES = 8


def our_routes(instance: Callable[[], Any]) -> list[Any]:
    """Return the routes for inference, for handing in labels and for training.

    MONAI Label's own run the network on the thread that answers everybody, merge what the client sends over what the
    server set, and find out in the background what could be said at once.

    Args:
        instance: returns the app.
    """
    from starlette.routing import Route

    async def infer(request: Any) -> Any:
        return await _handled(request, "USER", lambda form: _infer(instance(), request, form))

    async def submit(request: Any) -> Any:
        return await _handled(request, "ANNOTATOR", lambda form: _submit(instance(), request, form))

    async def train(request: Any) -> Any:
        body = await request.body()
        return await _handled(request, "ADMIN", lambda form: _train(instance(), request, body), form=False)

    return [
        Route("/infer/{model}", infer, methods=["POST"]),
        Route("/datastore/label", submit, methods=["PUT"]),
        Route("/train/{model}", train, methods=["POST"]),
    ]


def answer_of(error: RRRError) -> tuple[int, dict[str, Any]]:
    """Return status and JSON for an error that a request caused; paths of the server stay on the server."""
    fields = {key: value for key, value in error.as_dict().items() if key != "path" and value is not None}
    where = f"field {error.field}: " if error.field else ""
    return _STATUS.get(error.code, 400), {"detail": f"[{error.code}] {where}{error.message}", **fields}


async def _handled(request: Any, role: str, work: Callable[[Any], Any], form: bool = True) -> Any:
    """Check who asks, run the work on a thread, and turn named errors into answers."""
    from monailabel.config import settings
    from monailabel.endpoints.user.auth import RBAC, get_current_user
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    kind, _, token = request.headers.get("authorization", "").partition(" ")
    user = await get_current_user(token if kind.lower() == "bearer" else "")
    await RBAC(getattr(settings, f"MONAI_LABEL_AUTH_ROLE_{role}"))(user)
    try:
        if not form:
            return await run_in_threadpool(work, None)
        async with request.form(max_files=_MAX_FILES, max_fields=_MAX_FILES) as fields:
            return await run_in_threadpool(work, fields)
    except Exception as error:
        named = named_error(error)
        if named is None:
            raise
        status, answer = answer_of(named)
        return JSONResponse(answer, status_code=status)


def _infer(app: Any, request: Any, form: Any) -> Any:
    from starlette.responses import JSONResponse, Response

    query = request.query_params
    output = query.get("output") or "all"
    if output not in OUTPUTS:
        hint = "hand the mask in with label_info, and the archive gets a DICOM segmentation"
        message = f"expected one of {', '.join(OUTPUTS)}, got {output[:80]!r}"
        raise ConfigError("request", message, field="output", hint=hint)
    params = _object(form.get("params"), "params")
    for key in ("image", "model", "case", "session"):
        if key in params:
            raise ConfigError("request", "expected it in the address, got it in params", field=key)
    folder = Path(tempfile.mkdtemp())
    try:
        image = _image(app, query, form.getlist("file"), folder)
        found = app.infer({**params, "model": request.path_params["model"], "image": image})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    path, details = Path(found["file"]), found["params"]
    content = path.read_bytes()
    path.unlink()  # now, as a client that goes away would leave it behind
    if output == "json":
        return JSONResponse(details)
    if output == "image":
        disposition = {"Content-Disposition": f'attachment; filename="{path.name}"'}
        return Response(content, media_type="application/octet-stream", headers=disposition)
    from requests_toolbelt import MultipartEncoder

    parts = {"params": (None, json.dumps(details), "application/json")}
    encoder = MultipartEncoder({**parts, "image": (path.name, content, "application/octet-stream")})
    return Response(encoder.to_string(), media_type=encoder.content_type)


def _image(app: Any, query: Mapping[str, str], uploads: Sequence[Any], folder: Path) -> str:
    """What the request is about: an id, an upload in ``folder``, or that of a session."""
    files = [one for one in uploads if hasattr(one, "file")]
    if files:
        for one in files:
            if not _NAME.match(one.filename or ""):
                message = f"expected names of up to 128 simple signs that end in .nii.gz, got {one.filename!r:.90}"
                raise ConfigError("request", message, field="file")
            with (folder / one.filename).open("wb") as target:
                shutil.copyfileobj(one.file, target)
        return str(folder / files[0].filename) if len(files) == 1 else str(folder)
    if query.get("session_id"):
        sessions = app.sessions()
        found = sessions.get_session(query["session_id"]) if sessions is not None else None
        if found is None:
            raise ConfigError("request", "expected the id of a session, it is unknown or over", field="session_id")
        return str(found.image)
    return str(query.get("image") or "")


def _submit(app: Any, request: Any, form: Any) -> Any:
    from starlette.responses import JSONResponse

    query = request.query_params
    image, tag = str(query.get("image") or ""), str(query.get("tag") or "final")
    label = form.get("label")
    if not hasattr(label, "file"):
        raise ConfigError("request", "expected a file, got none", field="label")
    name = str(label.filename or "").lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise ConfigError("request", f"expected a file .nii.gz, got {name[-40:]!r}", field="label")
    params = _object(form.get("params"), "params")
    handle, path = tempfile.mkstemp(suffix=".nii.gz" if name.endswith(".gz") else ".nii")
    try:
        with os.fdopen(handle, "wb") as target:
            shutil.copyfileobj(label.file, target)
        label_id = app.datastore().save_label(image, path, tag, params)
    finally:
        os.unlink(path)
    return JSONResponse({"image": image, "label": label_id, "tag": tag})


def _train(app: Any, request: Any, body: bytes) -> Any:
    from monailabel.endpoints.train import run_model
    from starlette.responses import JSONResponse

    model = request.path_params["model"]
    trainers = app.info()["trainers"]
    if model not in trainers:
        message = f"expected a trainer out of {', '.join(trainers)}, got {model[:80]!r}"
        raise ConfigError("request", message, field="model")
    params = _object(body.decode("utf-8", "replace") or "{}", "body")
    TrainRequest.of(params)
    return JSONResponse(snapshot(run_model(model, params, run_sync=False, enqueue=False)))


def snapshot(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task as JSON values: another thread may have started it already, and be collecting its lines."""
    return {key: list(value) if isinstance(value, deque) else value for key, value in dict(task).items()}


def _object(text: Any, field: str) -> dict[str, Any]:
    """Read a JSON object."""
    if text is None or text == "":
        return {}
    try:
        if not isinstance(text, str):
            raise ValueError("a file")
        found = json.loads(text, parse_constant=_no_constant)
        if not isinstance(found, dict):
            raise ValueError(type(found).__name__)
    except (ValueError, RecursionError) as error:
        raise ConfigError("request", f"expected a JSON object, got {error}"[:200], field=field) from None
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name}, which is not JSON")
