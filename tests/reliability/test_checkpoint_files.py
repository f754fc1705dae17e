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


"""Rows T4, T5, T10, S1, S3 and F6: what may happen to the files of a training."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from ignite.engine import Engine, State

from monai_rrr.errors import CheckpointError
from monai_rrr.handlers import TrainingCheckpoint, WeightsLoader
from monai_rrr.utils import files
from monai_rrr.utils.manifest import manifest_path
from monai_rrr.utils.tensor_file import plain, read_tensors, write_tensors
from monai_rrr.utils.weights import load_weights


def engine_at(iteration: int) -> Any:
    engine = Engine(lambda *_: None)
    engine.state = State(iteration=iteration, epoch=0, epoch_length=5, max_epochs=4)
    return engine


def saved(folder: Path, *iterations: int, value: float = 1.0) -> TrainingCheckpoint:
    """Checkpoints of a network whose weight is its iteration."""
    network = torch.nn.Linear(8, 8)
    checkpoint = TrainingCheckpoint(folder, {"network": network}, keep=3)
    folder.mkdir(exist_ok=True)
    for iteration in iterations:
        torch.nn.init.constant_(network.weight, iteration * value)
        checkpoint.save(engine_at(iteration))
    return checkpoint


def resumed(folder: Path, **options: Any) -> float:
    """Iteration from which a new process would go on, read off the weights."""
    network, engine = torch.nn.Linear(8, 8), engine_at(0)
    checkpoint = TrainingCheckpoint(folder, {"network": network}, resume=True, **options)
    checkpoint.prepare(engine)
    checkpoint.restore(engine)
    return float(network.weight.detach()[0, 0])


def in_a_child(action: Any) -> int | None:
    child = multiprocessing.get_context("fork").Process(target=action)
    child.start()
    child.join(60)
    return child.exitcode


@pytest.mark.parametrize("moment", ["middle of the file", "before its manifest", "before it gets its name"])
def test_t4_killed_inside_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    saved(tmp_path, 5)

    def kill(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def half(_: Any, file: BinaryIO) -> None:
        file.write(b"half")
        file.flush()
        kill()

    def write() -> None:
        real, replace, name = files.atomic_write, os.replace, "checkpoint_00000010.pt"
        if moment == "middle of the file":
            monkeypatch.setattr(torch, "save", half)
        elif moment == "before its manifest":
            mine = lambda path, content: kill() if Path(path).suffix == ".json" else real(path, content)  # noqa: E731
            monkeypatch.setattr("monai_rrr.utils.manifest.atomic_write", mine)
        else:
            monkeypatch.setattr(os, "replace", lambda a, b: kill() if Path(b).name == name else replace(a, b))
        saved(tmp_path, 10)

    assert in_a_child(write) == -signal.SIGKILL
    assert resumed(tmp_path) == 5
    left = {path.name for path in tmp_path.iterdir()}
    assert {"checkpoint_00000005.pt", "checkpoint_00000005.pt.json"} <= left
    assert not any(name.startswith(".tmp_") for name in left), "the next process clears what was never finished"


def test_t4_killed_while_the_exported_weights_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One name for two contents: at every moment, the file is one that its manifest accepts."""
    path = tmp_path / "model.pt"
    real = os.replace
    for stop in range(1, 8):
        write_tensors(path, {"weight": torch.zeros(2)})
        calls = iter(range(1, 99))

        def replace(source: Any, target: Any, stop: int = stop, calls: Iterator[int] = calls) -> None:
            if next(calls) == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)

        def write() -> None:
            monkeypatch.setattr(os, "replace", replace)
            write_tensors(path, {"weight": torch.ones(2)})

        code = in_a_child(write)
        assert float(read_tensors(path)["weight"][0]) == (stop > 3)
        if code == 0:
            break
    assert stop == 5, "four renames: file, manifest of both, name, manifest of one"


@contextmanager
def small_files(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("way", ["limit", "full"])
def test_t5_disk_full(tmp_path: Path, way: str) -> None:
    checkpoint = saved(tmp_path / "resume", 5)
    write_tensors(tmp_path / "model.pt", {"weight": torch.zeros(2)})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writes = {
        "resume/checkpoint_00000010.pt": lambda: checkpoint.save(engine_at(10)),
        "model.pt": lambda: write_tensors(tmp_path / "model.pt", {"weight": torch.ones(1000)}),
    }
    for target, write in writes.items():
        message = rf"\[checkpoint-write\] file .*{target}: can't be written \(.*\); \d+ bytes are free there Hint: free"
        with small_files(1000 if way == "limit" else 1 << 30), pytest.MonkeyPatch.context() as patch:
            if way == "full":
                patch.setattr(os, "fsync", full)
            with pytest.raises(CheckpointError, match=message):
                write()
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    checkpoint.save(engine_at(10))
    assert resumed(tmp_path / "resume") == 5


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_t10_damaged_checkpoint(tmp_path: Path, damage: str) -> None:
    saved(tmp_path, 5, 10)
    newest = tmp_path / "checkpoint_00000010.pt"
    whole = newest.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(1 if damage == "empty" else 50):
        data = bytearray(whole)
        position = int(generator.integers(len(whole)))
        if damage == "flip":
            data[position] ^= 1 << int(generator.integers(8))
        newest.write_bytes({"flip": bytes(data), "cut": whole[:position], "empty": b""}[damage])
        message = r"checkpoint-damaged.*checkpoint_00000010\.pt.*after iteration 5 is intact Hint: .*use_older true"
        with pytest.raises(CheckpointError, match=message):
            resumed(tmp_path)
    assert resumed(tmp_path, use_older=True) == 5
    newest.write_bytes(whole)
    assert resumed(tmp_path) == 10


def test_t10_damaged_manifest_and_nothing_older(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    manifest = manifest_path(tmp_path / "checkpoint_00000005.pt")
    for text in ("", "{", "[]", "{}", manifest.read_text().replace("checkpoint_00000005", "checkpoint_00000006")):
        manifest.write_text(text)
        with pytest.raises(CheckpointError, match="manifest-unreadable"):
            resumed(tmp_path, use_older=True)


class Canary:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("canary",)


def test_s1_a_checkpoint_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with a manifest that fits: whoever can write the file can write that too."""
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, 5)
    path = tmp_path / "checkpoint_00000005.pt"
    torch.save({"schema": 1, "objects": {"network": Canary()}}, path)
    manifest = manifest_path(path).read_text()
    digest = manifest.split('"sha256": [')[1].split('"')[1]
    manifest_path(path).write_text(manifest.replace(digest, files.sha256(path)))
    with pytest.raises(CheckpointError, match="checkpoint-unreadable"):
        resumed(tmp_path)
    with pytest.raises(CheckpointError, match="checkpoint-unreadable"):
        load_weights(torch.nn.Linear(2, 2), path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("fault", ["flip", "swap", "cut", "manifest missing", "manifest edited"])
def test_s3_tampered_weights(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Linear(8, 8)
    for name in ("a.pt", "b.pt"):
        write_tensors(tmp_path / name, torch.nn.Linear(8, 8).state_dict())
    path, data = tmp_path / "a.pt", bytearray((tmp_path / "a.pt").read_bytes())
    data[len(data) // 2] ^= 4
    if fault == "flip":
        path.write_bytes(data)
    elif fault == "swap":
        for ending in (".pt", ".pt.json"):
            shutil.copy(tmp_path / f"b{ending}", tmp_path / f"a{ending}")
    elif fault == "cut":
        path.write_bytes(data[:-1])
    elif fault == "manifest missing":
        manifest_path(path).unlink()
    else:
        manifest_path(path).write_text(manifest_path(path).read_text().replace('"sha256": [\n  "', '"sha256": [\n  "0'))
    parsed: list[Any] = []
    monkeypatch.setattr(torch, "load", lambda *arguments, **_: parsed.append(arguments))
    with pytest.raises(CheckpointError, match=r"checkpoint-hash|manifest-missing|manifest-unreadable"):
        WeightsLoader(network, path)(Engine(lambda *_: None))
    assert not parsed, "the hash is compared before anything is interpreted"


def test_weights_from_elsewhere_need_a_word(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "model.pt")
    network, engine = torch.nn.Linear(2, 2), Engine(lambda *_: None)
    with pytest.raises(CheckpointError, match=r"manifest-missing.*say explicitly that none is required"):
        WeightsLoader(network, tmp_path / "model.pt")(engine)
    WeightsLoader(network, tmp_path / "model.pt", require_manifest=False)(engine)
    assert torch.equal(network.weight, torch.load(tmp_path / "model.pt", weights_only=True)["weight"])


def test_only_tensors_and_plain_values_are_written(tmp_path: Path) -> None:
    value = {"a": [np.float64(1.5), np.int16(2), True, None, "x"], 3: (torch.ones(2),)}
    write_tensors(tmp_path / "a.pt", value)
    read = read_tensors(tmp_path / "a.pt")
    assert [type(item) for item in read["a"]] == [float, int, bool, type(None), str]
    assert torch.equal(read[3][0], torch.ones(2))
    whole = torch.zeros(1000)
    write_tensors(tmp_path / "part.pt", whole[:2])
    assert (tmp_path / "part.pt").stat().st_size < 3000, "a view does not take its whole storage along"
    write_tensors(tmp_path / "same.pt", torch.zeros(()).expand(1000))
    assert (tmp_path / "same.pt").stat().st_size < 3000, "one value for all takes the room of one"
    assert torch.equal(read_tensors(tmp_path / "same.pt"), torch.zeros(1000))
    for bad, name in (({"a": [Path("x")]}, r"content\['a'\]\[0\]"), ({(1,): 2}, "keys of content")):
        with pytest.raises(TypeError, match=name):
            plain(bad)


def _fuzz(folder: Path, count: int, seed: int) -> None:
    """Mutate file or manifest; exit code 1 when anything but an error by name or identical tensors comes out."""
    path = folder / "checkpoint_00000005.pt"
    whole = {part: part.read_bytes() for part in (path, manifest_path(path))}
    generator = np.random.default_rng(seed)
    for _ in range(count):
        for part, content in whole.items():
            part.write_bytes(content)
        victim = list(whole)[int(generator.integers(2))]
        data = bytearray(whole[victim])
        for _ in range(int(generator.integers(1, 5))):
            start = int(generator.integers(len(data)))
            stop = start + int(generator.integers(1, 40))
            action = generator.integers(4)
            if action == 0:
                data[start] = int(generator.integers(256))
            elif action == 1:
                del data[start:stop]
            elif action == 2:
                data[start:start] = data[start:stop]
            else:
                data[start:stop] = generator.bytes(stop - start)
            data = data or bytearray(b"x")
        victim.write_bytes(data)
        with suppress(CheckpointError):
            assert resumed(folder) == 5


def test_f6_mutated_checkpoints(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    assert in_a_child(lambda: _fuzz(tmp_path, 300, seed=0)) == 0
