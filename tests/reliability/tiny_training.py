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


"""A training of seconds with everything that can spoil a resume: shuffling, augmentation, warps, dropout, batch norm,
a schedule, an averaged network, early stopping and a table. Also a program, in one process or several:
``python tiny_training.py FOLDER KEY=VALUE ...``, ``python -m torch.distributed.run ... tiny_training.py FOLDER ...``
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from ignite.handlers import EarlyStopping, EMAHandler
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, RandScaleIntensityd
from monai.utils import set_determinism
from torch import Tensor, nn

from monai_rrr.engines import PrepareViews, explanation_update, run
from monai_rrr.handlers import ReliabilityHandler, TermLogger, TrainingCheckpoint, WeightsExport
from monai_rrr.networks import MultimodalCAMNet
from monai_rrr.objectives import MutualLearning, Objective, Ramp, TagClassification, WithinModalEquivariance
from monai_rrr.transforms.warp import RandomWarp
from monai_rrr.utils.lock import RunLock
from monai_rrr.utils.tensor_file import plain, read_tensors

SAMPLES, BATCH = 10, 2
SIZE = (8, 8, 4)


class Net(MultimodalCAMNet):
    """The bundle's network behind batch normalization and dropout."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__(["a", "b"], num_classes=1, channels=(4,), stride=1, dropout=dropout)
        self.first = nn.BatchNorm3d(2)

    def forward(self, image: Tensor, present: Tensor | None = None) -> Tensor:
        """Return logits ``B M K``."""
        return super().forward(self.first(image), present)


def sample(index: int) -> dict[str, Any]:
    """Noise with a bright corner in every second sample."""
    generator = np.random.default_rng(index)
    image = generator.normal(1, 0.5, (2, *SIZE)).astype(np.float32)
    image[:, :4, :4, :2] += index % 2
    slices = np.zeros((1, SIZE[2]), np.float32)
    slices[0, :2] = index % 2
    return {
        "image": torch.from_numpy(image),
        "brain": torch.ones(1, *SIZE, dtype=torch.bool),
        "present": torch.ones(2, dtype=torch.bool),
        "slice_label": torch.from_numpy(slices),
        "class_label": torch.from_numpy(slices.max(1)),
        "case_id": f"case_{index}",
    }


def augmentation() -> Compose:
    """MONAI's random transforms."""
    noise = RandGaussianNoised("image", prob=0.5, std=0.1)
    return Compose([RandFlipd("image", prob=0.5, spatial_axis=0), noise, RandScaleIntensityd("image", 0.2, prob=0.8)])


class Training:
    """The trainer and its parts.

    Args:
        folder: of the run; None writes nothing.
        workers: processes that load.
        shuffle: random order of the samples.
        augment: random transforms, warps and dropout.
        epochs: of five iterations.
        seed: of everything.
        delay: seconds that each step takes longer.
        data: instead of the samples of this file.
        samples: how many of these.
        sampler: makes the sampler of the data set; with it, the network is wrapped for several processes.
        loader_timeout: see :func:`monai_rrr.engines.run`.
        options: of the checkpoint.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        workers: int = 0,
        shuffle: bool = True,
        augment: bool = True,
        epochs: int = 4,
        seed: int = 0,
        delay: float = 0.0,
        data: Any = None,
        samples: int = SAMPLES,
        sampler: Any = None,
        loader_timeout: float = 60.0,
        **options: Any,
    ) -> None:
        set_determinism(seed)
        self.seed, self.loader_timeout = seed, loader_timeout
        self.network = Net(0.2 if augment else 0.0)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-2)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 1e-2, total_steps=epochs * 5)
        data = data or Dataset([sample(i) for i in range(samples)], augmentation() if augment else None)
        order = {"shuffle": shuffle} if sampler is None else {"sampler": sampler(data)}
        parallel = nn.parallel.DistributedDataParallel
        terms = {
            "classification": TagClassification(),
            "within": WithinModalEquivariance(),
            "mutual": MutualLearning(),
        }
        objective = Objective(terms, {"within": Ramp(1.0)})
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=DataLoader(data, batch_size=BATCH, num_workers=workers, **order),
            network=self.network if sampler is None else parallel(self.network, broadcast_buffers=False),
            optimizer=self.optimizer,
            loss_function=objective if augment else Objective({"classification": TagClassification()}),
            prepare_batch=PrepareViews(RandomWarp(seed=seed) if augment else None),
            iteration_update=explanation_update,
            decollate=False,
            train_handlers=[LrScheduleHandler(self.schedule, print_lr=False, epoch_level=False)],
        )
        self.seen: list[str] = []
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: self.seen.extend(e.state.batch["case_id"]))
        ReliabilityHandler(self.network).attach(self.trainer)
        self.average = EMAHandler(self.network, momentum=0.1)
        self.average.attach(self.trainer)
        stopping = EarlyStopping(99, lambda engine: -float(engine.state.output["loss"]), self.trainer)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, stopping)
        if delay:
            self.trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: time.sleep(delay))
        self.objects = {
            "network": self.network,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "average": self.average.ema_model,
            "stopping": stopping,
        }
        self.checkpoint = self.lock = None
        if folder is not None:
            log = TermLogger(Path(folder) / "training.csv", every=3)
            log.attach(self.trainer)
            self.objects["log"] = log
            WeightsExport(self.network, Path(folder) / "model.pt").attach(self.trainer)
            self.checkpoint = TrainingCheckpoint(
                Path(folder) / "resume", self.objects, settings={"seed": seed}, **options
            )
            self.lock = RunLock([folder])

    def run(self) -> Training:
        """Train."""
        run(self.trainer, self.seed, self.checkpoint, self.lock, self.loader_timeout)
        return self

    def digest(self) -> str:
        """SHA-256 of all states."""
        digest = hashlib.sha256()
        for name, target in self.objects.items():
            _feed(digest, name, plain(target.state_dict()))
        return digest.hexdigest()


class Forked:
    """The tiny training in a child of this process, which says after each iteration how far it is."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.receiver, sender = multiprocessing.Pipe(duplex=False)

        def work() -> None:
            training = Training(folder, **options)
            say = Events.ITERATION_COMPLETED
            training.trainer.add_event_handler(say, lambda engine: sender.send(engine.state.iteration))
            training.run()

        self.process = multiprocessing.get_context("fork").Process(target=work)
        self.process.start()
        sender.close()

    def kill(self, iteration: int, later: float = 0.0) -> None:
        """Kill it some seconds after an iteration, which may be before that iteration's checkpoint."""
        while self.receiver.recv() < iteration:
            pass
        time.sleep(later)
        self.process.kill()
        self.process.join()


def intact(folder: Path) -> list[int]:
    """Iterations of the checkpoints of a folder, all of which must verify."""
    found = []
    for manifest in sorted((folder / "resume").glob("checkpoint_*.pt.json")):
        found.append(read_tensors(manifest.with_suffix(""))["position"]["iteration"])
    return found


def _feed(digest: Any, name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _feed(digest, f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _feed(digest, f"{name}.{index}", item)
    else:
        data = value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
        digest.update(name.encode() + data)


def main() -> None:
    """Train in FOLDER, print one line of JSON with the result; with ``verbose`` a line per iteration (first process).

    ``fail``: [rank, iteration, "raise" or "kill"]; ``even``: whether all processes get equally many samples.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, *pairs = sys.argv[1:]
    options = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in pairs)}
    verbose, fail, even = options.pop("verbose", False), options.pop("fail", None), options.pop("even", True)
    rank = int(os.environ.get("RANK", 0))
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
        options["sampler"] = lambda data: DistributedSampler(data, even_divisible=even, shuffle=True)
    training = Training(folder, **options)

    def watch(engine: Any) -> None:
        if verbose and rank == 0:  # the lines of several processes would run into each other
            print(f"iteration {engine.state.iteration}", flush=True)
        if fail is not None and fail[:2] == [rank, engine.state.iteration]:
            if fail[2] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("this process fails")

    training.trainer.add_event_handler(Events.ITERATION_COMPLETED, watch)
    training.run()
    print(json.dumps({"digest": training.digest(), "seen": training.seen}), flush=True)


if __name__ == "__main__":
    main()
