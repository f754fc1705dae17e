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


"""Rows T1, T2, T7, T8, T9, T11, T12, T15, T16, Z1, Z4 and M6: stop and go on, in one process."""

from __future__ import annotations

import csv
import gc
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from torch import Tensor

from monai_rrr.attribution.trace import Trace
from monai_rrr.engines import PrepareViews, explanation_update, run
from monai_rrr.errors import CheckpointError, TrainingError
from monai_rrr.handlers import TrainingCheckpoint
from monai_rrr.handlers import checkpoint as module
from monai_rrr.objectives import Objective, TagClassification
from monai_rrr.utils.manifest import manifest_path, read_manifest
from monai_rrr.utils.tensor_file import read_tensors, write_tensors


def interrupt(training: Any, iteration: int, number: int = signal.SIGINT) -> None:
    """Send this process a signal while an iteration runs, and expect what it does."""
    send = Events.ITERATION_STARTED(once=iteration)
    training.trainer.add_event_handler(send, lambda _: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        training.run()
    assert training.trainer.state.iteration == iteration


@pytest.mark.parametrize("iteration", [10, 7], ids=["t1_epoch_border", "t2_middle_of_an_epoch"])
def test_t1_t2_resumed_training_ends_with_the_same_bits(
    tiny: Any, reference: Any, tmp_path: Path, iteration: int
) -> None:
    first = tiny.Training(tmp_path)
    interrupt(first, iteration)
    second = tiny.Training(tmp_path, resume=True).run()
    assert second.digest() == reference["digest"]
    assert first.seen + second.seen == reference["seen"]
    whole = tiny.Training(tmp_path / "whole").run()
    assert (tmp_path / "training.csv").read_bytes() == (tmp_path / "whole" / "training.csv").read_bytes()
    assert whole.digest() == reference["digest"]


def test_t2_rows_written_after_the_checkpoint_are_dropped(tiny: Any, tmp_path: Path) -> None:
    """What a killed process wrote after its last checkpoint is written again, once."""
    first = tiny.Training(tmp_path)
    interrupt(first, 7)
    with (tmp_path / "training.csv").open("a") as file:
        file.write("9,total,1.0\n9,classification,1.0\n12,tot")
    tiny.Training(tmp_path, resume=True).run()
    with (tmp_path / "training.csv").open(newline="") as file:
        rows = [(row["step"], row["term"]) for row in csv.DictReader(file)]
    assert len(set(rows)) == len(rows)
    assert [step for step, term in rows if term == "total"] == ["3", "6", "9", "12", "15", "18", "20"]


def test_t7_run_after_an_interrupt_in_the_same_process_goes_on(tiny: Any, reference: Any, tmp_path: Path) -> None:
    training = tiny.Training(tmp_path)
    interrupt(training, 7)
    assert training.checkpoint.files()[0].name == "checkpoint_00000007.pt"
    training.run()
    assert training.digest() == reference["digest"]
    assert training.seen == reference["seen"]


def test_t7_without_a_checkpoint_too(tiny: Any, reference: Any) -> None:
    training = tiny.Training()
    interrupt(training, 12)
    training.run()
    assert training.digest() == reference["digest"]


def test_t7_after_an_interrupt_that_ignite_saw_itself(tiny: Any) -> None:
    """The state in which a plain ``trainer.run()`` leaves ignite: the next one would do nothing."""
    training = tiny.Training(epochs=1)

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with training.trainer.add_event_handler(Events.ITERATION_STARTED(once=3), stop), pytest.raises(KeyboardInterrupt):
        training.trainer.run()
    training.trainer.run()
    assert len(training.seen) == 2 * tiny.BATCH, "ignite has learned to go on: run() need not repair it any more"
    training.trainer.state.iteration = 2
    training.run()
    assert len(training.seen) == 5 * tiny.BATCH


def test_t7_second_interrupt_stops_at_once(tiny: Any, tmp_path: Path) -> None:
    training = tiny.Training(tmp_path)

    def twice(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    training.trainer.add_event_handler(Events.ITERATION_STARTED(once=7), twice)
    with pytest.raises(KeyboardInterrupt):
        training.run()
    assert training.trainer.state.iteration == 6
    assert training.checkpoint.files()[0].name == "checkpoint_00000005.pt"
    assert training.checkpoint.files("crash")[0].name == "crash_00000007.pt"


def test_signals_are_left_as_they_were(tiny: Any) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    tiny.Training(epochs=1).run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_t8_exception_in_the_loss(tiny: Any, tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.pt", {"best": torch.ones(1)})
    training = tiny.Training(tmp_path)
    objective = training.trainer.loss_function

    class Failing:
        layers = objective.layers

        def __call__(self, *arguments: Any) -> Any:
            if training.trainer.state.iteration == 10:
                raise ArithmeticError("the loss fails")
            return objective(*arguments)

    training.trainer.loss_function = Failing()
    with pytest.raises(ArithmeticError, match="the loss fails"):
        training.run()
    assert torch.equal(read_tensors(tmp_path / "model.pt")["best"], torch.ones(1))
    (good,), (crash,) = training.checkpoint.files(), training.checkpoint.files("crash")
    assert (good.name, crash.name) == ("checkpoint_00000005.pt", "crash_00000010.pt")
    assert read_manifest(crash)["status"] == "crash"
    assert read_manifest(crash)["error"] == "ArithmeticError"
    assert tiny.Training(tmp_path, resume=True).run().trainer.state.iteration == 20


def test_t8_after_an_exception_the_same_process_repeats_the_iteration(tiny: Any, reference: Any) -> None:
    training = tiny.Training()

    def fail(_: Any) -> None:
        raise ArithmeticError("fails once")

    broken = training.trainer.add_event_handler(Events.ITERATION_STARTED(once=8), fail)
    with broken, pytest.raises(ArithmeticError, match="fails once"):
        training.run()
    training.run()
    assert training.seen == reference["seen"]
    assert training.digest() == reference["digest"]


class Poisoned:
    """The samples, with NaN in the image at given places."""

    def __init__(self, tiny: Any, bad: set[int]) -> None:
        self.items, self.bad = [tiny.sample(index) for index in range(tiny.SAMPLES)], bad

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = dict(self.items[index])
        if index in self.bad:
            item["image"] = torch.full_like(item["image"], torch.nan)
        return item


def test_t9_a_batch_of_nan_changes_nothing(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = tiny.Training(tmp_path, shuffle=False, epochs=1, data=Poisoned(tiny, {2, 3}))
    states: list[dict[str, Any]] = []

    def keep(_: Any) -> None:
        parts = (training.network, training.optimizer)
        states.append({str(i): {**_tensors(part.state_dict())} for i, part in enumerate(parts)})

    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, keep)
    with caplog.at_level(logging.WARNING):
        training.run()
    assert _equal(states[0], states[1]), "weights, statistics of batch norm and optimizer are as before the batch"
    assert not _equal(states[1], states[2]), "training goes on"
    assert [record.name for record in caplog.records] == ["monai_rrr.engines.update"]
    assert "[loss-not-finite] case case_2, case_3, field loss: expected a finite loss, got nan" in caplog.text
    assert training.trainer.state.skipped == 1
    table = (tmp_path / "training.csv").read_text()
    assert "nan" not in table


def test_t9_three_in_a_row_end_the_training(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = tiny.Training(tmp_path, shuffle=False, data=Poisoned(tiny, set(range(2, 8))))
    before: list[Any] = []
    training.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=1), lambda _: before.append(_tensors(training.network.state_dict()))
    )
    with pytest.raises(TrainingError, match=r"\[loss-not-finite\] case case_6, case_7.* at iteration 4") as caught:
        training.run()
    assert caught.value.code == "loss-not-finite"
    assert _equal(before[0], _tensors(training.network.state_dict()))
    assert "case_2, case_3" in caplog.text
    assert "case_4, case_5" in caplog.text


def _tensors(state: dict[str, Any], name: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            found[f"{name}.{key}"] = value.clone()
        elif isinstance(value, dict):
            found |= _tensors(value, f"{name}.{key}")
    return found


def _equal(one: dict[str, Any], two: dict[str, Any]) -> bool:
    one, two = _tensors(one), _tensors(two)
    return list(one) == list(two) and len(one) > 0 and all(torch.equal(one[key], two[key]) for key in one)


def test_t11_changed_settings_are_named(tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupt(tiny.Training(tmp_path, epochs=2), 7)
    with pytest.raises(CheckpointError, match=r"max_epochs \(2, now 3\), seed \(0, now 5\)") as caught:
        tiny.Training(tmp_path, epochs=3, seed=5, resume=True).run()
    assert caught.value.code == "config-changed"
    allowed = tiny.Training(tmp_path, epochs=3, resume=True, allow_config_change=True)
    allowed.objects.pop("schedule")  # it was made for two epochs
    with pytest.raises(CheckpointError, match=r"expected states of .*got those of .*schedule"):
        tiny.run(allowed.trainer, 0, TrainingCheckpoint(tmp_path / "resume", allowed.objects, resume=True))
    training = tiny.Training(tmp_path, epochs=2, seed=5, resume=True, allow_config_change=True)
    assert training.run().trainer.state.iteration == 10
    assert "seed (0, now 5)" in caplog.text


def test_t11_other_cases_are_noticed_without_their_names(tiny: Any, tmp_path: Path) -> None:
    objects = {"network": torch.nn.Linear(2, 2)}
    cases = [{"case_id": "DOE^JOHN"}, {"case_id": "b"}]
    trainer = tiny.Training().trainer
    trainer.state.iteration = 3
    (tmp_path / "resume").mkdir()
    TrainingCheckpoint(tmp_path / "resume", objects, cases=cases).save(trainer)
    text = b"".join(path.read_bytes() for path in (tmp_path / "resume").iterdir())
    assert b"DOE" not in text
    trainer = tiny.Training().trainer
    with pytest.raises(CheckpointError, match=r"settings differ: cases \(sha256"):
        TrainingCheckpoint(tmp_path / "resume", objects, cases=cases[:1], resume=True).prepare(trainer)


def test_t11_another_network_is_named(tiny: Any, tmp_path: Path) -> None:
    first = tiny.Training(tmp_path)
    interrupt(first, 5)
    other = tiny.Training(tmp_path, resume=True)
    other.checkpoint.objects["network"] = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"checkpoint-mismatch.*2 tensors of Linear, the file lacks bias, weight"):
        other.run()


@pytest.mark.parametrize(("schema", "words"), [(0, "an older version"), (2, "a newer version")])
def test_t12_other_schemas_are_refused(tiny: Any, tmp_path: Path, schema: int, words: str) -> None:
    training = tiny.Training(tmp_path)
    interrupt(training, 5)
    path = training.checkpoint.files()[0]
    write_tensors(path, {**read_tensors(path), "schema": schema}, {"status": "unfinished"})
    with pytest.raises(CheckpointError, match=rf"expected schema 1, got {schema}, of {words}"):
        tiny.Training(tmp_path, resume=True).run()


def test_t12_an_older_schema_is_migrated_where_there_is_a_way(
    tiny: Any, reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = tiny.Training(tmp_path)
    interrupt(training, 5)
    path = training.checkpoint.files()[0]
    content = read_tensors(path)
    content["states"] = content.pop("objects")
    write_tensors(path, {**content, "schema": 0}, {"status": "unfinished"})
    monkeypatch.setitem(module.MIGRATIONS, 0, lambda old: {**old, "objects": old["states"], "schema": 1})
    assert tiny.Training(tmp_path, resume=True).run().digest() == reference["digest"]


def test_t15_deleted_run_folder(tiny: Any, tmp_path: Path) -> None:
    training = tiny.Training(tmp_path / "run")
    training.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda _: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"checkpoint-write.*training\.csv: can't be written \(No such file"):
        training.run()
    training = tiny.Training(tmp_path / "run")
    folder = tmp_path / "run" / "resume"
    training.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda _: shutil.rmtree(folder))
    with pytest.raises(CheckpointError, match=r"run-folder-gone.*it was deleted or moved while training"):
        training.run()


@pytest.fixture
def plain_user() -> Any:
    """Do the test as a user whom permissions concern."""
    if os.name == "nt" or not hasattr(os, "seteuid"):
        pytest.skip("no POSIX permissions here")
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)


def test_t15_read_only_run_folder(tiny: Any, tmp_path: Path, plain_user: Any) -> None:
    with pytest.raises(TrainingError, match=r"\[run-folder\] file .*run: can't be written: Permission denied"):
        tiny.Training("/proc/run" if os.geteuid() == 0 else tmp_path / "run").run()


def test_t16_no_explanation_term_is_the_plain_trainer_bit_for_bit(tiny: Any) -> None:
    def train(ours: bool, extra: dict[str, Any]) -> list[Tensor]:
        parts = tiny.Training()
        network = parts.network
        objective = Objective({"tags": TagClassification(slice_weight=0.0), **extra}, dict.fromkeys(extra, 0.0))
        batches: list[Any] = []

        def prepare(batch: dict[str, Any], *_: Any, **__: Any) -> Any:
            batches.append(batch)
            return batch["image"], batch["class_label"], (), {"present": batch["present"]}

        maps: list[Tensor] = []

        def loss(logits: Tensor, _: Tensor) -> Tensor:
            trace = Trace(network, ("class_maps",), batches[-1]["image"], logits, {"class_maps": maps[-1]})
            return objective(trace, batches[-1])[0]

        hook = network.class_maps.register_forward_hook(lambda _, __, out: maps.append(out))
        trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=2,
            train_data_loader=parts.trainer.data_loader,
            network=network,
            optimizer=parts.optimizer,
            loss_function=objective if ours else loss,
            prepare_batch=PrepareViews() if ours else prepare,
            iteration_update=explanation_update if ours else None,
            decollate=False,
        )
        run(trainer, seed=3)
        hook.remove()
        state = [*network.state_dict().values(), *_tensors(parts.optimizer.state_dict()).values()]
        return [value.clone() for value in state]

    class Never:
        layers: tuple[str, ...] = ("first",)

        def __call__(self, *_: Any) -> Tensor:
            raise AssertionError("a term of weight 0 is evaluated")

    plain = train(ours=False, extra={})
    for extra in ({}, {"explanation": Never()}):
        ours = train(ours=True, extra=extra)
        assert len(ours) == len(plain) > 20
        assert all(torch.equal(one, two) for one, two in zip(ours, plain, strict=True))


def test_z1_the_seed_decides(tiny: Any, reference: Any, tmp_path: Path) -> None:
    tables = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        training = tiny.Training(tmp_path / name, seed=seed).run()
        assert (training.digest() == reference["digest"]) == (seed == 0)
        tables.append((tmp_path / name / "training.csv").read_bytes())
    assert tables[0] == tables[1] != tables[2]


@pytest.mark.parametrize("workers", [1, 2])
def test_z4_workers_change_nothing(tiny: Any, reference: Any, workers: int) -> None:
    training = tiny.Training(workers=workers).run()
    assert training.digest() == reference["digest"]
    assert training.seen == reference["seen"]


def test_h2_nothing_but_tensors_and_plain_values(tiny: Any, tmp_path: Path) -> None:
    training = tiny.Training(tmp_path)
    image = MetaTensor(torch.ones(2), meta={"filename_or_obj": "DOE^JOHN.nii.gz"})
    training.network.first.running_mean = image
    training.checkpoint.prepare(training.trainer)
    training.trainer.state.iteration = 5
    training.checkpoint.save(training.trainer)
    path = training.checkpoint.files()[0]
    assert b"DOE" not in path.read_bytes()
    assert b"MetaTensor" not in path.read_bytes()
    assert type(read_tensors(path)["objects"]["network"]["first.running_mean"]) is Tensor


def test_m6_a_long_history_holds_no_graph(tiny: Any, tmp_path: Path) -> None:
    training = tiny.Training(tmp_path, epochs=20)
    held: list[int] = []

    def count(_: Any = None) -> None:
        gc.collect()
        tensors = (item for item in gc.get_objects() if issubclass(type(item), Tensor))
        held.append(sum(tensor.grad_fn is not None for tensor in tensors))

    count()  # what other tests hold
    training.trainer.add_event_handler(Events.EPOCH_COMPLETED(every=10), count)
    training.run()
    assert held == held[:1] * 3
    state = training.checkpoint.objects["log"].state_dict()
    assert all(type(value) is float for row in state["rows"] for value in row.values())


def test_a_new_training_does_not_touch_an_unfinished_one(tiny: Any, tmp_path: Path) -> None:
    interrupt(tiny.Training(tmp_path), 7)
    before = {path: path.read_bytes() for path in (tmp_path / "resume").iterdir()}
    message = r"run-unfinished.*got an unfinished training: iteration 7 Hint: go on with resume"
    with pytest.raises(CheckpointError, match=message):
        tiny.Training(tmp_path).run()
    assert {path: path.read_bytes() for path in (tmp_path / "resume").iterdir()} == before


def test_a_completed_training(tiny: Any, reference: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Resumed, nothing is left to do, but what follows the last epoch is done again; else a new one replaces it."""
    tiny.Training(tmp_path).run()
    (tmp_path / "model.pt").unlink()
    again = tiny.Training(tmp_path, resume=True).run()
    assert again.seen == []
    assert again.digest() == reference["digest"]
    assert (tmp_path / "model.pt").is_file()
    assert again.run().seen == []
    new = tiny.Training(tmp_path, seed=1, epochs=1).run()
    assert len(new.seen) == tiny.SAMPLES
    assert [path.name for path in new.checkpoint.files()] == ["checkpoint_00000005.pt"]
    assert "are replaced" in caplog.text


def test_a_handler_that_ends_training_early_completes_it(tiny: Any, tmp_path: Path) -> None:
    training = tiny.Training(tmp_path)
    training.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda engine: engine.terminate())
    training.run()
    assert (tmp_path / "model.pt").is_file()
    assert tiny.Training(tmp_path, resume=True).run().seen == []


def test_an_error_that_a_handler_hides_is_no_success(tiny: Any) -> None:
    training = tiny.Training()

    def fail(_: Any) -> None:
        raise ArithmeticError("hidden")

    training.trainer.add_event_handler(Events.ITERATION_STARTED(once=3), fail)
    training.trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda *_: None)
    with pytest.raises(TrainingError, match=r"no-progress.*expected 20 iterations"):
        training.run()


def test_t6_a_worker_that_dies_of_the_same_signal_is_no_error(
    tiny: Any, reference: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a batch is awaited, which is when a signal to the whole group is met most often."""
    training, taken = tiny.Training(tmp_path), []
    kind = type(training.trainer.data_loader.dataset)
    original = kind.__getitem__

    def dies(self: Any, index: Any) -> Any:
        taken.append(index)
        if len(taken) == 2 * tiny.SAMPLES - 1:
            signal.raise_signal(signal.SIGTERM)
            raise RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly")
        return original(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "__getitem__", dies)
        with pytest.raises(SystemExit, match="143"):
            training.run()
    assert not list((tmp_path / "resume").glob("crash_*"))
    assert tiny.Training(tmp_path, resume=True).run().digest() == reference["digest"]


def test_s3_swapped_checkpoints_are_noticed(tiny: Any, tmp_path: Path) -> None:
    training = tiny.Training(tmp_path)
    interrupt(training, 10)
    new, old = training.checkpoint.files()
    data = new.read_bytes()
    new.write_bytes(old.read_bytes())
    old.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"\[checkpoint-hash\] file .*checkpoint_00000010\.pt"):
        tiny.Training(tmp_path, resume=True).run()
    shutil.copy(manifest_path(old), manifest_path(new))
    with pytest.raises(CheckpointError, match=r"\[manifest-unreadable\] file .*checkpoint_00000010\.pt\.json"):
        tiny.Training(tmp_path, resume=True).run()


def test_loader_must_fit(tiny: Any) -> None:
    training = tiny.Training()
    training.trainer.state.epoch_length = 3
    with pytest.raises(ValueError, match="epoch_length must be the 5 batches of the loader, got 3"):
        training.run()
    training.trainer.data_loader = DataLoader(Dataset([tiny.sample(0)]), batch_size=2, drop_last=True)
    with pytest.raises(TrainingError, match=r"loader-empty.*expected at least one batch per epoch, got none"):
        training.run()
