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


"""Synthetic cohorts with and without masks, and bundles run as their users run them: in processes of their own."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
BUNDLE = "brats_mri_equivariant_cam"
GUIDED, CONSISTENT = "brats_mri_guided_attention", "brats_mri_attention_consistency"
SMALL = {"spacing": 6.0, "roi_size": [32, 32, 8], "channels": [4]}
SHORT = {"epochs": 3, "slabs_per_case": 2, "batch_size": 2, "val_interval": 3}


@dataclass(frozen=True)
class Cohort:
    """Cases with masks, the same cases without masks, and slice tags."""

    masked: Path
    blind: Path
    tags: Path


@dataclass(frozen=True)
class Runner:
    """A copy of the bundle, and what calls `python -m monai.bundle` in it."""

    root: Path

    def call(self, verb: str, *launcher: str, **options: object) -> subprocess.CompletedProcess[str]:
        """Run a verb of ``monai.bundle`` and return what it printed; the test fails when the process does."""
        command = [sys.executable, *launcher, "-m", "monai.bundle", verb]
        command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        return done

    def run(self, *configs: str, launcher: tuple[str, ...] = (), **options: object) -> subprocess.CompletedProcess[str]:
        """Run a workflow made of files in the bundle's ``configs``, small."""
        files = str([f"configs/{name}" for name in configs])
        return self.call("run", *launcher, config_file=files, **{"bundle_root": ".", **SMALL, **options})

    def rows(self, table: Path | None = None) -> list[dict[str, str]]:
        """Return the rows of a table; default: what was logged of the training."""
        with (table or self.root / "eval" / "training.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def terms(self) -> set[str]:
        """Return the names of what was logged of the training."""
        return {row["term"] for row in self.rows()}

    def record(self) -> dict[str, Any]:
        """Return what is known of the training's circumstances."""
        record: dict[str, Any] = json.loads((self.root / "eval" / "run.json").read_text())
        return record

    def network(self, **settings: object) -> nn.Module:
        """Return the trained network, ready to be called, with entries of ``inference.yaml`` replaced."""
        from monai.bundle import ConfigParser

        parser = ConfigParser()
        parser.read_config(str(self.root / "configs" / "inference.yaml"))
        parser.update(settings)
        network: nn.Module = parser.get_parsed_content("network_def")
        network.load_state_dict(torch.load(self.root / "models" / "model.pt", weights_only=True))
        return network.eval()

    def strong_weights(self, path: Path) -> Path:
        """Write the weights with departures as strong as those of a long training, so that annotators disagree."""
        from monai_rrr.utils.tensor_file import write_tensors

        weights = torch.load(self.root / "models" / "model.pt", weights_only=True)
        for name, value in weights.items():
            if name.endswith("gamma"):
                weights[name] = value / value.abs().max()
        write_tensors(path, weights)
        return path

    @staticmethod
    def image(size: tuple[int, ...]) -> Tensor:
        """Return an image with a margin, and a modality that is absent from the first sample."""
        image = torch.randn(size, generator=torch.Generator().manual_seed(0))
        image[:, :, :4] = 0
        image[0, 1] = 0
        return image

    def train_here(self, *overlays: str, **options: Any) -> None:
        """Train for some steps in this process, which saves the imports."""
        from monai.bundle import ConfigWorkflow

        configs = [str(self.root / "configs" / name) for name in ("train.yaml", *overlays)]
        values = {**SMALL, **SHORT, **{name: str(v) if isinstance(v, Path) else v for name, v in options.items()}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            workflow = ConfigWorkflow(
                config_file=configs,
                workflow_type="train",
                logging_file=False,
                bundle_root=str(self.root),
                device="cpu",
                **values,
            )
            workflow.initialize()
            workflow.run()
            workflow.finalize()

    def train(self, *overlays: str, launcher: tuple[str, ...] = (), **options: object) -> None:
        """Train for some steps."""
        self.run("train.yaml", *overlays, launcher=launcher, **{**SHORT, **options})


@pytest.fixture(scope="session")
def make_runner(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Runner]:
    """Return a function that copies a bundle into a folder of its own."""

    def make(name: str = BUNDLE) -> Runner:
        root = tmp_path_factory.mktemp("bundle") / name
        shutil.copytree(BUNDLES / name, root, ignore=shutil.ignore_patterns("eval", "*.pt*", "*.ts", "*.onnx"))
        return Runner(root)

    return make


@dataclass(frozen=True)
class Resumable:
    """Trainings of a bundle in this process, each in a folder of its own."""

    bundle: Path
    home: Path
    options: dict[str, Any]

    def workflow(self, folder: str, kind: str = "train", **options: Any) -> Any:
        """Prepare a workflow."""
        from monai.bundle import ConfigWorkflow

        models = {"ckpt_dir": str(self.home / folder / "models")} if kind == "train" else {}
        made = ConfigWorkflow(
            config_file=str(self.bundle / "configs" / f"{'train' if kind == 'train' else 'inference'}.yaml"),
            workflow_type=kind,
            logging_file=False,
            bundle_root=str(self.bundle),
            output_dir=str(self.home / folder),
            cache_dir=str(self.home / "cache"),
            device="cpu",
            **{**models, **self.options, **options},
        )
        made.initialize()
        return made

    def train(self, folder: str, **options: Any) -> None:
        """Train to the end."""
        workflow = self.workflow(folder, **options)
        workflow.run()
        workflow.finalize()

    def interrupt(self, folder: str, epoch: int = 1) -> None:
        """Train, and get SIGTERM in the middle of the epoch after so many."""
        from ignite.engine import Events

        workflow = self.workflow(folder)
        trainer = workflow.parser.get_parsed_content("train#trainer")
        middle = trainer.state.epoch_length * epoch + trainer.state.epoch_length // 2
        trainer.add_event_handler(Events.ITERATION_STARTED(once=middle), lambda _: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit, match="143"):
            workflow.run()
        workflow.finalize()

    def check_equal(self, first: str, second: str) -> None:
        """Compare weights and log of two trainings, bit by bit."""
        for name in ("models/model.pt", "training.csv"):
            assert (self.home / first / name).read_bytes() == (self.home / second / name).read_bytes()


@pytest.fixture
def resumable(tmp_path: Path) -> Callable[..., Resumable]:
    """Return a function that prepares trainings of a bundle, small, with further options."""

    def make(name: str, **options: Any) -> Resumable:
        small = {"spacing": SMALL["spacing"], "roi_size": SMALL["roi_size"]}
        return Resumable(BUNDLES / name, tmp_path, {**small, **options})

    return make


@pytest.fixture(scope="session")
def make_cohort(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Cohort]:
    """Return a function that derives tags of a folder of cases, and copies the cases without their masks."""
    from monai_rrr.data import derive_tags, load_datalist, write_tags

    def make(masked: Path) -> Cohort:
        home = tmp_path_factory.mktemp("cohort")
        shutil.copytree(masked, home / "blind", ignore=shutil.ignore_patterns("*_seg.nii.gz"))
        write_tags(home / "tags.csv", derive_tags(load_datalist(masked, with_labels=True), "brats2018"))
        return Cohort(masked, home / "blind", home / "tags.csv")

    return make


@pytest.fixture(scope="session")
def cohort(phantom_cohort: Path, make_cohort: Callable[[Path], Cohort]) -> Cohort:
    """Return six synthetic cases."""
    return make_cohort(phantom_cohort)


@pytest.fixture(scope="session")
def team(phantom_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what six simulated annotators drew of the synthetic cases: four to train with, two to test."""
    from monai_rrr.data import load_datalist, make_annotators

    cases = load_datalist(phantom_cohort, with_labels=True)
    return make_annotators(cases, "brats2018", tmp_path_factory.mktemp("annotators") / "team")


@pytest.fixture(scope="session")
def trained(cohort: Cohort, make_runner: Callable[..., Runner]) -> Runner:
    """Return a bundle that was trained for some steps on cases without masks."""
    runner = make_runner()
    assert not list(cohort.blind.rglob("*seg*"))
    runner.train(dataset_dir=cohort.blind, tags_file=cohort.tags)
    return runner


@pytest.fixture(scope="session")
def guided(cohort: Cohort, make_runner: Callable[..., Runner]) -> Runner:
    """Return a bundle that was trained on tags, and the masks of half of the cases."""
    runner = make_runner(GUIDED)
    runner.train(dataset_dir=cohort.masked, tags_file=cohort.tags, mask_share=0.5)
    return runner


@pytest.fixture(scope="session")
def tuned(guided: Runner, cohort: Cohort, make_runner: Callable[..., Runner]) -> Runner:
    """Return a bundle that was fine-tuned by consistency alone, on cases of which some have no tags."""
    runner = make_runner(CONSISTENT)
    lines = cohort.tags.read_text().splitlines()
    (runner.root / "tags.csv").write_text("\n".join(lines[:4]) + "\n")
    data = {"dataset_dir": cohort.blind, "tags_file": "tags.csv", "start_from": guided.root / "models" / "model.pt"}
    runner.train("finetune.yaml", learning_rate=1e-6, weight_decay=0.0, **data)
    return runner
