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


"""Training reads tags and never masks: it runs, and comes to the same weights, where there are no masks at all."""

from __future__ import annotations

import shutil

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.transforms import Compose
from monai.utils import set_determinism

from monai_rrr.data import BrainBoxCache, LoadBrainBoxd, derive_tags, load_datalist, read_tags, verify_cases, write_tags
from monai_rrr.engines import PrepareViews, explanation_update
from monai_rrr.handlers import ReliabilityHandler, TagCalibrationHandler
from monai_rrr.inferers import SlabHeatmapInferer
from monai_rrr.networks import MultimodalCAMNet
from monai_rrr.objectives import CrossModalEquivariance, Objective, TagClassification, WithinModalEquivariance
from monai_rrr.transforms import RandomWarp, RandSlabd, WholeVolumed


def train(folder, tags_file, cache_folder):
    set_determinism(0)
    cases = load_datalist(folder, with_labels=False)[:2]
    assert all("label" not in case for case in cases)
    tags = read_tags(tags_file)
    verify_cases(cases, tags=tags).raise_if_faulty()
    load = LoadBrainBoxd(BrainBoxCache(cache_folder, spacing=6.0), tags)
    slabs = RandSlabd((24, 32, 8), spacing=6.0, flip_prob=0.5).set_random_state(0)
    network = MultimodalCAMNet(channels=(4,))
    terms = {
        "classification": TagClassification(),
        "within_modal": WithinModalEquivariance(),
        "cross_modal": CrossModalEquivariance(),
    }
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=DataLoader(Dataset(cases, Compose([load, slabs])), batch_size=2),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), 1e-3),
        loss_function=Objective(terms),
        prepare_batch=PrepareViews(RandomWarp()),
        iteration_update=explanation_update,
        decollate=False,
    )
    ReliabilityHandler(network).attach(trainer)
    volumes = Dataset(cases, Compose([load, WholeVolumed((24, 32, 8), spacing=6.0, multiple=(4, 4, 1))]))
    TagCalibrationHandler(network, SlabHeatmapInferer(8), volumes, 6.0).attach(trainer)
    trainer.run()
    assert trainer.state.iteration == 2
    return network.state_dict()


def test_training_without_masks_is_the_same(phantom_cohort, tmp_path):
    tags_file = tmp_path / "tags.csv"
    write_tags(tags_file, derive_tags(load_datalist(phantom_cohort), "brats2018"))
    bare = tmp_path / "without_masks"
    shutil.copytree(phantom_cohort, bare, ignore=shutil.ignore_patterns("*_seg*"))
    assert not list(bare.rglob("*_seg*"))
    assert list(phantom_cohort.rglob("*_seg*"))
    with_masks = train(phantom_cohort, tags_file, tmp_path / "cache_a")
    without = train(bare, tags_file, tmp_path / "cache_b")
    assert all(torch.equal(with_masks[name], without[name]) for name in with_masks)
