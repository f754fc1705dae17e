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

"""Requests are read as they are meant, or refused by name."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_rrr.errors import ConfigError, DataError, RRRError
from monai_rrr.label import CaseStore, InferRequest, TrainRequest
from monai_rrr.label.cases import Cases
from monai_rrr.label.routes import _object, answer_of, snapshot
from monai_rrr.label.server import Guard

LIMIT = 100  # bytes
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["levels", "heatmap", "annotator", "result_dtype", "result_extension", "max_epochs", "val_split", "seed"]
)


def refusal(call: Callable[[], Any]) -> ConfigError | None:
    """What a call is refused with; any other error ends the test."""
    try:
        call()
    except ConfigError as error:
        return error
    return None


def test_fields_and_defaults() -> None:
    assert InferRequest.of({"model": "m", "image": "a"}) == InferRequest()
    asked = {"result_extension": ".nrrd", "result_dtype": "uint8", "levels": 3.0, "heatmap": ["WT", "TC"]}
    assert InferRequest.of(asked) == InferRequest(".nrrd", "uint8", "WT", 3)
    assert TrainRequest.of({"max_epochs": 2, "val_split": 0, "pretrained": False}) == TrainRequest(2, 0.0, False)


@pytest.mark.parametrize(
    ("kind", "request_", "field"),
    [
        (InferRequest, {"levels": True}, "levels"),
        (InferRequest, {"levels": 256}, "levels"),
        (InferRequest, {"result_extension": ".py"}, "result_extension"),
        (InferRequest, {"result_dtype": "object"}, "result_dtype"),
        (InferRequest, {"heatmap": "x" * 81}, "heatmap"),
        (InferRequest, {"checkpoint": "/tmp/x.pt"}, "params"),
        (TrainRequest, {"max_epochs": 0}, "max_epochs"),
        (TrainRequest, {"val_split": 1}, "val_split"),
        (TrainRequest, {"pretrained": "yes"}, "pretrained"),
        (TrainRequest, {"bundle_root": "/"}, "params"),
    ],
)
def test_v2_refused_parameters(kind: Any, request_: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[request\] field {field}"):
        kind.of(request_)


@settings(max_examples=150, deadline=None)
@given(request_=st.dictionaries(KEYS | st.text(max_size=9), JSON, max_size=4))
def test_f8_any_parameters_are_read_or_refused(request_: dict[str, Any]) -> None:
    for kind in (InferRequest, TrainRequest):
        error = refusal(lambda kind=kind: kind.of(request_))
        assert error is None or (error.code == "request" and len(str(error)) < 2000)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=40) | JSON.map(lambda value: json.dumps(value)))
def test_f8_any_text_is_an_object_or_refused(text: str) -> None:
    error = refusal(lambda: _object(text, "params"))
    assert error is None or error.code == "request"
    assert error is not None or isinstance(_object(text, "params"), dict)


async def _served(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"served"})


def ask(
    path: str = "/info/", query: str = "", method: str = "GET", body: bytes = b"", limit: int = 100, **headers: str
) -> int:
    """Status that a client gets from the guard."""
    sent: list[Any] = []
    chunks = [body[i : i + 30] for i in range(0, len(body), 30)] or [b""]
    waiting = [{"type": "http.request", "body": c, "more_body": i + 1 < len(chunks)} for i, c in enumerate(chunks)]
    named = [(key.replace("_", "-").encode(), value.encode("latin-1")) for key, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": named}

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(_served, LIMIT)(scope, receive, send))
    return int(sent[0]["status"])


def test_v2_the_guard_lets_clients_work() -> None:
    assert ask() == 200
    assert ask("/infer/m", "image=Case%201&output=image", "POST", host="h:1", origin="http://h:1") == 200
    assert ask("/datastore/label", "image=a&tag=final", "PUT", b"x" * 99) == 200


@pytest.mark.parametrize(
    ("query", "path", "method"),
    [
        ("image=../x", "/infer/m", "POST"),
        ("image=a%2Fb", "/infer/m", "POST"),
        ("image=%00", "/infer/m", "POST"),
        ("tag=" + "x" * 200, "/datastore/label", "PUT"),
        ("uncompress=true", "/session/", "PUT"),
        ("", "/logs/", "GET"),
        ("", "/datastore/", "PUT"),
        ("id=a", "/datastore/", "DELETE"),
        ("", "/../x", "GET"),
    ],
)
def test_v2_the_guard_refuses(query: str, path: str, method: str) -> None:
    assert ask(path, query, method) == 400


def test_v2_pages_from_elsewhere_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(host="127.0.0.1:8000", origin="http://elsewhere.example") == 400
    assert ask(host="127.0.0.1:8000", origin="null") == 400
    monkeypatch.setenv("MONAI_RRR_LABEL_ORIGINS", "http://viewer.example")
    assert ask(host="127.0.0.1:8000", origin="http://viewer.example") == 200


def test_v3_large_bodies_are_refused_declared_or_not() -> None:
    assert ask("/infer/m", method="POST", body=b"x" * 101) == 413
    assert ask("/infer/m", method="POST", content_length="101") == 413
    assert ask("/infer/m", method="POST", content_length="-1") == 413
    assert ask("/infer/m", method="POST", body=b"x" * 100) == 200


@settings(max_examples=100, deadline=None)
@given(path=st.text(max_size=20), query=st.text(max_size=30))
def test_f8_any_address_is_answered(path: str, query: str) -> None:
    assert ask(f"/{path}", query) in (200, 400)


def test_v2_a_client_names_no_path(tmp_path: Path) -> None:
    secret = tmp_path / "secret" / "a_t1.nii.gz"
    secret.parent.mkdir()
    secret.write_bytes(b"")
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "link").symlink_to(secret.parent)
    store = CaseStore([{"case_id": "a", "modalities": {"t1": "x"}}], tmp_path / "store")
    cases = Cases(store, [uploads], ["t1"])
    assert cases.of_request("a")["modalities"] == {"t1": "x"}
    (uploads / "b_t1.nii.gz").write_bytes(b"")
    assert cases.of_request(str(uploads / "b_t1.nii.gz"))["case_id"] == "b"
    for image in (
        str(secret),
        str(uploads),
        str(uploads / "link" / "a_t1.nii.gz"),
        f"{uploads}/../secret",
        "",
        None,
        3,
    ):
        with pytest.raises(DataError, match=r"\[case-unknown\]"):
            cases.of_request(image)


def test_answers_hold_no_path() -> None:
    status, answer = answer_of(RRRError("case-unknown", "expected a case", field="image", path="/data/somebody"))
    assert status == 404
    assert "somebody" not in json.dumps(answer)


def test_a_task_that_runs_already_is_json() -> None:
    """MONAI Label keeps the lines of a running task in a deque, which may be there before the answer is sent."""
    task = {"status": "RUNNING", "details": deque(["one line"], maxlen=20)}
    assert json.loads(json.dumps(snapshot(task))) == {"status": "RUNNING", "details": ["one line"]}


def test_scores_and_levels_of_known_maps() -> None:
    from monai_rrr.label import Prediction, explanation_scores, to_levels

    heat = np.zeros((4, 4, 4), np.float32)
    heat[0], heat[3] = 0.75, 0.25
    label = np.zeros((4, 4, 4), np.uint8)
    label[0] = 2
    maps = {"WT": heat, "t1_WT": heat, "flair_WT": heat[::-1].copy()}
    found = Prediction("a", label, maps, {}, np.eye(4), np.zeros(25))
    scores = explanation_scores(found, Prediction("a", label, {"WT": heat}, {}, np.eye(4), np.zeros(25)))
    assert scores == {"evidence_outside": 0.25, "modality_disagreement": 0.4, "inconsistency": 0.0}
    assert set(np.unique(to_levels(heat, 4))) == {0, 1, 3}
    assert found.summary()["volumes_ml"]["label"]["edema"] == pytest.approx(0.016)
    empty = Prediction("a", label * 0, {"WT": heat * 0}, {}, np.eye(4), np.zeros(25))
    assert explanation_scores(empty) == {}
    with pytest.raises(ConfigError, match="heatmap to be one of WT"):
        found.heatmap("no")
    with pytest.raises(ConfigError, match="annotator to be one of consensus"):
        found.mask("no")
