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

"""Memory, file handles and threads: nothing grows, nothing is left, nobody sees another's call."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from monai_rrr.attribution import CAM, GradCAM, record
from monai_rrr.data import BrainBoxCache, LoadBrainBoxd
from monai_rrr.engines import PrepareViews, explanation_update
from monai_rrr.errors import InferenceError
from monai_rrr.inferers import HeatmapInferer, SlabHeatmapInferer
from monai_rrr.losses import HeatmapDistanceLoss
from monai_rrr.networks import MultimodalCAMNet
from monai_rrr.objectives import Objective, TagClassification, WithinModalEquivariance
from monai_rrr.report import explain_network, mri_preprocessing
from monai_rrr.transforms import HeatmapToLabeld, HeatmapToSourced, RandomWarp, SaveHeatmapsd, WholeVolumed

MEGABYTES = 10.0
linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")


def resident() -> float:
    """Memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def live_tensors() -> int:
    # not isinstance: it asks for __class__, at which lazy modules import and deprecated ones warn
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@contextmanager
def collecting(on: bool) -> Iterator[None]:
    gc.collect()
    if not on:
        gc.disable()
    try:
        yield
    finally:
        gc.enable()


def explained_step(network: nn.Module, optimizer: torch.optim.Optimizer, image: Tensor, mask: Tensor) -> None:
    """One step of a loss on the network's own Grad-CAM: second derivatives."""
    trace = record(network, image, ["1"])
    heatmap = GradCAM("1")(trace, torch.zeros(len(image), dtype=torch.long))
    loss = HeatmapDistanceLoss()(heatmap, mask) + trace.logits.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def classifier() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.Softplus(), nn.Conv3d(4, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)
    )


@linux
@pytest.mark.parametrize("collect", [True, False])
@pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_m1_graph_retention(collect: bool, count: int) -> None:
    network = classifier()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    image, mask = torch.rand(2, 1, 8, 8, 8), torch.rand(2, 1, 6, 6, 6)
    with collecting(collect):
        for _ in range(count // 6):
            explained_step(network, optimizer, image, mask)
        memory, tensors = resident(), live_tensors()
        for _ in range(count):
            explained_step(network, optimizer, image, mask)
        assert abs(live_tensors() - tensors) <= 5
        assert resident() - memory < MEGABYTES


def slab(index: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(index)
    label = torch.rand(1, 4, generator=generator).round()
    return {
        "image": torch.rand(2, 8, 8, 4, generator=generator) + 0.1,
        "brain": torch.ones(1, 8, 8, 4, dtype=torch.bool),
        "present": torch.ones(2, dtype=torch.bool),
        "slice_label": label,
        "class_label": label.amax(1),
        "case_id": str(index),
    }


def make_trainer(network: nn.Module, steps: int) -> SupervisedTrainer:
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset([slab(i) for i in range(2)] * steps), batch_size=2),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 1e-3),
        loss_function=Objective({"tags": TagClassification(), "within": WithinModalEquivariance()}),
        prepare_batch=PrepareViews(RandomWarp(seed=0)),
        iteration_update=explanation_update,
        decollate=False,
    )


@linux
@pytest.mark.slow
@pytest.mark.parametrize("collect", [True, False])
def test_m1_training_steps(collect: bool) -> None:
    trainer = make_trainer(MultimodalCAMNet(["a", "b"], num_classes=1, channels=(4,)), steps=350)
    found: dict[str, float] = {}

    def note(engine: Any) -> None:
        if engine.state.iteration == 50:
            found.update(memory=resident(), tensors=live_tensors())

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    with collecting(collect):
        trainer.run()
        assert trainer.state.iteration == 350
        assert abs(live_tensors() - found["tensors"]) <= 5
        assert resident() - found["memory"] < MEGABYTES


def test_m2_networks_recreated() -> None:
    """Without the garbage collector: no cycle keeps a network after its explanation or its training."""
    image, mask = torch.rand(2, 1, 10, 10, 10), torch.rand(2, 1, 8, 8, 8)
    with collecting(False):
        alive = []
        for _ in range(10):
            network = classifier()
            explained_step(network, torch.optim.SGD(network.parameters(), 1e-3), image, mask)
            HeatmapInferer(GradCAM("1"), class_idx=0)(image, network)
            HeatmapInferer(CAM("2", "5"), class_idx=1)(image, network)
            alive.append(weakref.ref(network))
            del network
        assert [reference() for reference in alive] == [None] * 10
        slabs = MultimodalCAMNet(channels=(4,))
        SlabHeatmapInferer(4)(torch.rand(1, 4, 8, 8, 4), slabs)
        reference = weakref.ref(slabs)
        del slabs
        assert reference() is None


@linux
@pytest.mark.slow
def test_m2_memory_of_recreated_networks() -> None:
    def fold() -> None:
        make_trainer(MultimodalCAMNet(["a", "b"], num_classes=1, channels=(8, 8)), steps=2).run()
        gc.collect()

    for _ in range(2):
        fold()
    before = resident()
    for _ in range(10):
        fold()
    assert resident() - before < MEGABYTES


def write_case(folder: Path, case_id: str, ending: str) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    array = np.zeros((8, 8, 6), np.int16)
    array[1:-1, 1:-1, 1:-1] = np.random.default_rng(0).integers(50, 500, (6, 6, 4))
    path = folder / f"{case_id}{ending}"
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return {"case_id": case_id, "modalities": {"flair": str(path)}}


@linux
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("count", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_m3_file_handles(
    tmp_path: Path, ending: str, count: int, monkeypatch: pytest.MonkeyPatch, open_files: Callable[[Path], list[str]]
) -> None:
    """200 loads and predictions, files written: no handle stays open, no temporary file stays."""
    case = write_case(tmp_path / "data", "a", ending)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    network = MultimodalCAMNet(channels=(4,))
    inferer = SlabHeatmapInferer(6)
    steps = (HeatmapToSourced("pred"), HeatmapToLabeld(network, "brats2018"), SaveHeatmapsd(str(tmp_path / "out")))

    def predict() -> None:
        load = LoadBrainBoxd(BrainBoxCache(tmp_path / "cache", spacing=1.0))
        data = WholeVolumed((8, 8, 6), spacing=1.0, multiple=(8, 8, 1))(load(case))
        data["pred"] = inferer(data["image"][None], network)[0]
        for step in steps:
            data = step(data)

    for _ in range(count):
        predict()
    assert open_files(tmp_path) == []
    assert os.listdir(tmp_path / "tmp") == []
    assert not list(tmp_path.rglob(".tmp_*"))
    assert len(list((tmp_path / "out" / "a").iterdir())) == 5


class Hungry(nn.Module):
    """Class maps of the intensity; memory is short for more than so many slabs."""

    def __init__(self, most: int, error: BaseException) -> None:
        super().__init__()
        self.class_maps, self.reliability = nn.Identity(), nn.Identity()
        self.most, self.error, self.sizes = most, error, []

    def forward(self, image: Tensor, present: Tensor) -> Tensor:
        self.sizes.append(len(image))
        if len(image) > self.most:
            raise self.error
        self.reliability(torch.full((4, 3), 0.25))
        return self.class_maps(image[:, :, None].repeat(1, 1, 3, 1, 1, 1)).flatten(3).amax(3)


SHORT = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: 8 bytes."),
    "python": MemoryError(),
}


@pytest.mark.parametrize("error", SHORT.values(), ids=SHORT)
def test_m5_out_of_memory(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    image = torch.randn(1, 4, 4, 4, 12)
    expected = SlabHeatmapInferer(4)(image, Hungry(9, error))
    network = Hungry(1, error)
    torch.testing.assert_close(SlabHeatmapInferer(4, slabs_per_batch=4)(image, network), expected)
    assert set(network.sizes[1:]) == {1}
    assert "memory is short for 4 slabs at a time" in caplog.text
    network = Hungry(0, error).train()
    with pytest.raises(InferenceError, match=r"case a: expected memory .* 1 x 4 x 4 x 4 x 12") as caught:
        SlabHeatmapInferer(4)(image, network, case_id=["a"])
    assert caught.value.code == "out-of-memory"
    assert "slabs at a time: 4, then 1" in caught.value.message
    assert "coarser spacing" in str(caught.value.hint)
    assert network.sizes == [4, 1], "one retry"
    assert network.training


def test_m5_other_errors_pass_and_are_not_tried_again() -> None:
    network = Hungry(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        SlabHeatmapInferer(4)(torch.randn(1, 4, 4, 4, 12), network)
    assert network.sizes == [4]


def test_m5_explain() -> None:
    class Full(nn.Sequential):
        def forward(self, image: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    image = MetaTensor(torch.rand(1, 8, 8, 8), meta={"case_id": "a"})
    with pytest.raises(InferenceError, match=r"\[out-of-memory\] case a: .*1 x 1 x 8 x 8 x 8.*coarser spacing"):
        explain_network(Full(nn.Conv3d(1, 1, 1)), image, "0", 0, preprocessing=mri_preprocessing(divisible=8))


LIMITED = """
import resource, sys, torch
from monai_rrr.errors import InferenceError
from monai_rrr.inferers import SlabHeatmapInferer
from monai_rrr.networks import MultimodalCAMNet
torch.set_num_threads(1)
network, image = MultimodalCAMNet(channels=(16,)), torch.rand(1, 4, 128, 128, 16)
SlabHeatmapInferer(4)(image[..., :4], network)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]) * 2**20,) * 2)
try:
    SlabHeatmapInferer(16, slabs_per_batch=4)(image, network)
except InferenceError as error:
    print(error)
    sys.exit(3)
"""


@linux
@pytest.mark.slow
def test_m5_address_space_limit() -> None:
    """A real allocator that fails: advice instead of a traceback."""
    done = subprocess.run([sys.executable, "-c", LIMITED, "40"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 3, done.stderr[-2000:]
    assert done.stdout.startswith("[out-of-memory] expected memory for an image of shape 1 x 4 x 128 x 128 x 16")


class Slow(nn.Sequential):
    """Waits inside the forward pass until other threads had their chance to disturb it."""

    turn = threading.Event()

    def forward(self, image: Tensor) -> Tensor:
        Slow.turn.wait(0.01)
        return super().forward(image)


def test_m7_threads_share_a_network() -> None:
    """Four predictors, one network that was left in training mode: as one after the other."""
    layers = [nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout(0.5)]
    network = Slow(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)).train()
    inferers = [HeatmapInferer(CAM("1", "5"), class_idx=1), HeatmapInferer(GradCAM("0"), class_idx=0)]
    jobs = [(inferers[i % 2], torch.rand(1, 1, 6, 6, 6)) for i in range(16)]
    expected = [inferer(image, network) for inferer, image in jobs]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    buffers = [id(buffer) for buffer in network.buffers()]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: job[0](job[1], network), jobs))
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)
    assert all(module.training and not module._forward_hooks for module in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert [id(buffer) for buffer in network.buffers()] == buffers


def test_m7_slabs_in_threads() -> None:
    network, inferer = MultimodalCAMNet(channels=(4,), dropout=0.5).train(), SlabHeatmapInferer(4, per_modality=True)
    images = [torch.randn(1, 4, 8, 8, 7) for _ in range(12)]
    expected = [inferer(image, network) for image in images]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda image: inferer(image, network), images))
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert all(module.training for module in network.modules())
