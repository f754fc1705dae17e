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


from __future__ import annotations

import csv

import pytest
import torch
from ignite.engine import Engine, Events

from monai_rrr.handlers import TermLogger, slice_scores, terms_of


def rows_of(path):
    with path.open(newline="") as file:
        return [(int(r["step"]), r["term"], float(r["value"])) for r in csv.DictReader(file)]


def run(path, iterations, every=2, start=0):
    def step(engine, value):
        terms = {"classification": torch.tensor(float(value))}
        if value >= 2:
            terms["late"] = torch.tensor(10.0 * value)
        return {"loss": torch.tensor(value + 0.5), "terms": terms}

    engine = Engine(step)
    TermLogger(path, every).attach(engine)
    if start:
        engine.load_state_dict({"iteration": start, "max_epochs": 1, "epoch_length": iterations})
    engine.run(range(iterations), max_epochs=1)


def test_means_since_the_last_row_and_the_rest_at_the_end(tmp_path):
    path = tmp_path / "sub" / "training.csv"
    run(path, 5)
    assert rows_of(path) == [
        (2, "total", 1.0),
        (2, "classification", 0.5),
        (4, "total", 3.0),
        (4, "classification", 2.5),
        (4, "late", 25.0),
        (5, "total", 4.5),
        (5, "classification", 4.0),
        (5, "late", 40.0),
    ]


def test_a_new_run_begins_a_new_file_and_a_resumed_one_goes_on(tmp_path):
    path = tmp_path / "training.csv"
    run(path, 2)
    run(path, 2)
    assert [row[0] for row in rows_of(path)] == [2, 2]
    run(path, 4, start=2)
    assert [row[0] for row in rows_of(path)][:2] == [2, 2]
    assert {row[0] for row in rows_of(path)} == {2, 4}
    run(path, 4, start=3)
    assert {row[0] for row in rows_of(path)} == {2, 4}, "rows after iteration 3 were dropped and written again"
    assert len(rows_of(path)) == 4


def test_values_that_are_not_written_yet_are_its_state(tmp_path):
    log = TermLogger(tmp_path / "training.csv", every=5)
    engine = Engine(lambda _, value: {"loss": torch.tensor(float(value)), "terms": {"a": torch.tensor(1.0)}})
    log.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda e: e.terminate(skip_completed=True))
    engine.run(range(8), max_epochs=1)
    state = log.state_dict()
    assert state == {"rows": [{"total": float(i), "a": 1.0} for i in range(3)]}
    other = TermLogger(tmp_path / "training.csv", every=5)
    other.load_state_dict(state)
    assert other.state_dict() == state


def test_skipped_steps_do_not_count(tmp_path):
    def step(engine, value):
        output = {"loss": torch.tensor(float("nan") if value == 1 else value), "terms": {}}
        return {**output, "skipped": "loss"} if value == 1 else output

    engine = Engine(step)
    TermLogger(tmp_path / "training.csv", every=3).attach(engine)
    engine.run(range(3), max_epochs=1)
    assert rows_of(tmp_path / "training.csv") == [(3, "total", 1.0)]


def test_exception():
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        TermLogger("training.csv", 0)
    with pytest.raises(TypeError, match="terms must be a dictionary, got list"):
        terms_of({"loss": 1.0, "terms": []})


def test_output_transforms():
    loss, value = torch.tensor(2.0), torch.tensor(1.0)
    assert terms_of({"loss": loss, "terms": {"a": value}, "pred": None}) == {"loss": loss, "a": value}
    items = [{"pred": torch.rand(3, 4, 4, 5), "label": torch.rand(3, 5).round()} for _ in range(2)]
    scores, labels = slice_scores(items)
    assert scores.shape == labels.shape == (10, 3)
    assert float(scores[7, 1]) == float(items[1]["pred"][1, :, :, 2].max())
    assert float(labels[7, 1]) == float(items[1]["label"][1, 2])
