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


"""Rows T1, T3, T6, T13, M4, P4, J2 and F9: a training as a process that is stopped, killed or started twice."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import Dataset

from monai_rrr.errors import TrainingError

Start = Callable[..., "subprocess.Popen[str]"]
SCRIPT = Path(__file__).with_name("tiny_training.py")
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return dict(json.loads(out.splitlines()[-1]))


def wait_for(process: subprocess.Popen[str], iteration: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line == f"iteration {iteration}\n":
            return
    raise AssertionError(f"ended before iteration {iteration}: {process.communicate()[1][-3000:]}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "shuffle", "augment"), list(itertools.product((0, 2), (False, True), (False, True)))
)
def test_t1_eight_configurations(tiny: Any, tmp_path: Path, workers: int, shuffle: bool, augment: bool) -> None:
    options = {"workers": workers, "shuffle": shuffle, "augment": augment}
    whole = tiny.Training(**options).run()
    for iteration in (10, 7):
        folder = tmp_path / str(iteration)
        first = tiny.Training(folder, **options)
        first.trainer.add_event_handler(
            tiny.Events.ITERATION_STARTED(once=iteration), lambda _: os.kill(os.getpid(), signal.SIGTERM)
        )
        with pytest.raises(SystemExit, match="143"):
            first.run()
        second = tiny.Training(folder, resume=True, **options).run()
        assert second.digest() == whole.digest()
        assert first.seen + second.seen == whole.seen


@pytest.mark.slow
def test_t3_killed_at_random_times(tiny: Any, reference: Any, tmp_path: Path) -> None:
    chance = random.Random(0)
    for trial in range(25):
        folder = tmp_path / str(trial)
        tiny.Forked(folder, every=1).kill(chance.randint(2, 18), later=chance.uniform(0, 0.1))
        assert tiny.intact(folder)
        if trial % 5 == 0:
            assert tiny.Training(folder, every=1, resume=True).run().digest() == reference["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_t6_signals(start: Start, tiny: Any, reference: Any, tmp_path: Path, name: str) -> None:
    process = start(tmp_path, "verbose=true", "delay=0.1", "workers=2")
    wait_for(process, 6)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=300)
    assert process.returncode == (-signal.SIGINT if name == "SIGINT" else 143), err[-3000:]
    assert max(tiny.intact(tmp_path)) in (6, 7, 8)
    assert tiny.Training(tmp_path, resume=True).run().digest() == reference["digest"]


@pytest.mark.slow
def test_t6_signal_to_the_whole_group(start: Start, tiny: Any, reference: Any, tmp_path: Path) -> None:
    """As batch systems and terminals send it: the worker processes get it too, and die of it."""
    process = start(tmp_path, "verbose=true", "delay=0.1", "workers=2", launcher=("-c", GROUP))
    wait_for(process, 6)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143, err[-3000:]
    assert not list((tmp_path / "resume").glob("crash_*"))
    assert tiny.Training(tmp_path, resume=True).run().digest() == reference["digest"]


GROUP = "import os, runpy, sys; os.setpgrp(); sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.slow
def test_t13_two_processes_and_one_folder(start: Start, tiny: Any, reference: Any, tmp_path: Path) -> None:
    first = start(tmp_path, "verbose=true", "delay=0.3")
    wait_for(first, 1)
    first.send_signal(signal.SIGSTOP)  # or it ends while the second one still imports
    second = start(tmp_path)
    try:
        _, err = second.communicate(timeout=300)
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"in use by process {first.pid} on " in err
    assert "[run-folder-locked]" in err
    assert result(first)["digest"] == reference["digest"]
    assert tiny.intact(tmp_path) == [15, 20]


class Broken(Dataset):
    """Samples of which one kills its worker, or never comes, once a file exists."""

    def __init__(self, items: list[Any], kill: bool, flag: Path) -> None:
        super().__init__(items)
        self.kill, self.flag = kill, flag

    def _transform(self, index: int) -> Any:
        if index == 6 and self.flag.exists() and multiprocessing.parent_process() is not None:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return super()._transform(index)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "hanging"])
def test_m4_broken_worker(tiny: Any, reference: Any, tmp_path: Path, kill: bool) -> None:
    data = Broken(
        [tiny.sample(index) for index in range(tiny.SAMPLES)], kill, tmp_path / "resume" / "checkpoint_00000005.pt.json"
    )
    options = {"shuffle": False, "augment": False}
    training = tiny.Training(tmp_path, workers=2, data=data, loader_timeout=8.0, **options)
    with pytest.raises(TrainingError, match="fewer num_workers" if kill else "larger loader_timeout") as caught:
        training.run()
    assert caught.value.code == ("loader-worker" if kill else "loader-timeout")
    assert [child for child in multiprocessing.active_children() if child.is_alive()] == []
    assert 5 <= max(tiny.intact(tmp_path)) <= 8
    assert not training.checkpoint.files("crash"), "nothing was half done: this is a checkpoint to go on from"
    whole = tiny.Training(**options).run()
    assert tiny.Training(tmp_path, resume=True, **options).run().digest() == whole.digest()


@pytest.mark.slow
def test_p4_two_processes_stop_together_and_go_on(start: Start, tiny: Any, tmp_path: Path) -> None:
    whole = result(start(tmp_path / "whole", launcher=LAUNCHER))
    process = start(tmp_path / "run", "verbose=true", "delay=1.0", launcher=LAUNCHER)
    wait_for(process, 4)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode != 0
    (last,) = tiny.intact(tmp_path / "run")[-1:]
    assert 4 <= last < 12
    again = result(start(tmp_path / "run", "resume=true", launcher=LAUNCHER))
    assert len(again["seen"]) < len(whole["seen"])
    assert (tmp_path / "run" / "training.csv").read_text().startswith("step,term,value\n")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "kill", "uneven"])
def test_p4_one_of_two_processes_fails(start: Start, tiny: Any, tmp_path: Path, fault: str) -> None:
    words = ("even=false", "samples=9") if fault == "uneven" else (f'fail=[1,5,"{fault}"]',)
    process = start(tmp_path, *words, "every=2", launcher=LAUNCHER)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    if fault == "uneven":
        assert "[uneven-processes]" in err
        return
    assert tiny.intact(tmp_path) == [3, 4]


@pytest.mark.slow
def test_j2_interrupt_of_a_notebook_cell(tiny: Any, reference: Any, tmp_path: Path) -> None:
    client = pytest.importorskip("jupyter_client", reason="needs the extra notebooks")
    manager, kernel = client.manager.start_new_kernel(kernel_name="python3")
    try:

        def run_cell(code: str) -> list[Any]:
            seen: list[Any] = []
            kernel.execute_interactive(code, timeout=120, output_hook=seen.append)
            return [message["content"] for message in seen]

        run_cell(f"import sys, warnings; warnings.simplefilter('ignore'); sys.path.insert(0, {str(SCRIPT.parent)!r})")
        # As many threads as the reference was computed with: sums depend on it.
        run_cell(f"import torch; torch.set_num_threads({torch.get_num_threads()})")
        run_cell(f"import tiny_training as t; a = t.Training({str(tmp_path)!r}, delay=0.2)")
        kernel.execute("a.run()")
        deadline = time.monotonic() + 60
        while not (tmp_path / "resume" / "checkpoint_00000005.pt.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        manager.interrupt_kernel()
        stopped = [m for m in _until_idle(kernel) if m["msg_type"] == "error"]
        assert [message["content"]["ename"] for message in stopped] == ["KeyboardInterrupt"]
        out = run_cell("print(a.trainer.state.iteration); a.run(); print(a.trainer.state.iteration, a.digest())")
        text = "".join(content.get("text", "") for content in out if content.get("name") == "stdout").split()
        assert 5 <= int(text[0]) < 20
        assert text[1:] == ["20", reference["digest"]]
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)


def _until_idle(kernel: Any) -> list[Any]:
    messages = []
    while True:
        message = kernel.get_iopub_msg(timeout=60)
        messages.append(message)
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return messages


@pytest.mark.slow
def test_f9_any_resume_point_and_any_workers(tiny: Any, reference: Any, tmp_path: Path) -> None:
    chance = random.Random(9)
    for trial in range(10):
        folder = tmp_path / str(trial)
        tiny.Forked(folder, every=1, workers=chance.randint(0, 2)).kill(chance.randint(2, 18))
        after = tiny.Training(folder, every=1, workers=chance.randint(0, 2), resume=True).run()
        assert after.digest() == reference["digest"]
        assert after.seen == reference["seen"][len(reference["seen"]) - len(after.seen) :]
