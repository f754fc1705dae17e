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


"""What bundles really say passes the gate: ours with every overlay, and the idioms of the model zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monai_rrr.bundle import check_bundle, check_content

REPOSITORY = Path(__file__).resolve().parents[2]
BUNDLES = sorted(path.parents[1] for path in REPOSITORY.glob("bundles/*/configs/metadata.json"))
ALONE = ("train", "inference")
IMPORTS = [
    "$import glob",
    "$import os",
    "$import math",
    "$import numpy as np",
    "$import torch.distributed as dist",
    "$import torch.nn.functional as F",
    "$import ignite",
    "$import monai.transforms as mt",
    "$from monai.data import Dataset",
    "$from torch import nn",
    "$import itertools",
]
EXPRESSIONS = [
    "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "$torch.device(f'cuda:{os.environ[\"LOCAL_RANK\"]}')",
    "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
    "$[{'image': i, 'label': l} for i, l in zip(@images, @labels)]",
    "$@datalist[:-9]",
    "$@datalist[: int(len(@datalist) * 0.8)]",
    "$os.path.join(@bundle_root, 'models', 'model.pt')",
    "$os.path.exists(@checkpoint)",
    "$@bundle_root + '/eval'",
    "$@network_def.to(@device)",
    "$@network.parameters()",
    "$@network.named_parameters()",
    "$@train#trainer.run()",
    "$@train::trainer.run()",
    "$@validate#evaluator.run()",
    "$monai.utils.set_determinism(seed=123)",
    "$setattr(torch.backends.cudnn, 'benchmark', True)",
    "$monai.data.load_decathlon_datalist(@data_list_file_path, data_list_key='training', base_dir=@dataset_dir)",
    "$monai.data.partition_dataset(data=@datalist, num_partitions=dist.get_world_size(), shuffle=True)",
    "$monai.handlers.from_engine(['pred', 'label'])",
    "$monai.handlers.from_engine(['loss'], first=True)",
    "$monai.handlers.stopping_fn_from_metric('val_mean_dice')",
    "$lambda x: torch.where(x > 0, 1, 0)",
    "$lambda x: x.max()",
    "$lambda engine: engine.state.metrics['val_mean_dice']",
    "$dist.init_process_group(backend='nccl')",
    "$dist.is_initialized() or dist.init_process_group(backend='gloo')",
    "$dist.destroy_process_group()",
    "$torch.cuda.set_device(@device)",
    "$None if dist.get_rank() > 0 else @validate#handlers",
    "$@train#handlers[: -2 if dist.get_rank() > 0 else None]",
    "$dist.get_rank() > 0",
    "$[@device] if torch.cuda.is_available() else None",
    "$monai.transforms.Compose([@load, @whole_volume])",
    "$mt.Compose([mt.EnsureTyped(keys='image')])",
    "$Dataset(@datalist, @preprocessing)",
    "$F.relu",
    "$nn.ReLU()",
    "$ignite.engine.Events.EPOCH_COMPLETED",
    "$ignite.engine.Events.ITERATION_COMPLETED",
    "$monai.utils.CommonKeys.IMAGE",
    "$torch.float32",
    "$np.float32",
    "$int(np.prod(@roi_size))",
    "$math.ceil(@epochs / @val_interval)",
    "$max(1, 24 // len(@parts[0]))",
    "$1 - @held_out",
    "$not @amp",
    "$'a' if @flag and @other > 2 or @third is None else 'b'",
    "$'epoch_' + str(@epochs)",
    '$f"{@output_dir}/run_{@seed:03d}"',
    "$dict(a=1, b=[2, 3])",
    "$dict(zip(@names, range(len(@names))))",
    "${case['case_id']: @tags[case['case_id']] for case in @parts[0]}",
    "${'a', 'b'}",
    "$sum(1 for p in @network.parameters())",
    "$@network_def.load_state_dict(@weights)",
    "$monai.networks.utils.copy_model_state(@network_def, @weights)",
    "$' '.join(str(x) for x in @names).upper()",
    "$list(itertools.chain(@a, @b))",
    "$tuple(@roi_size)",
    "$@loader.dataset.transform",
    "$@network(@image)",
    "$(@a + @b) * 2 ** 3 % 5",
    "$monai.transforms.LoadImaged(keys='image', reader='NibabelReader')",
    "$[x for x in @images if x.endswith('.nii.gz')]",
    "$@relative#x",
    "$print('done', @epochs)",
]
COMPONENTS: list[dict[str, Any]] = [
    {"_target_": "SegResNet", "spatial_dims": 3, "in_channels": 4, "out_channels": 3, "init_filters": 16},
    {
        "_target_": "monai.networks.nets.UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [16, 32],
    },
    {"_target_": "resnet18", "spatial_dims": 3, "n_input_channels": 1, "pretrained": False},
    {"_target_": "EfficientNetBN", "model_name": "efficientnet-b0", "pretrained": False},
    {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
    {"_target_": "LoadImaged", "keys": "image", "reader": ["NibabelReader", "ITKReader"]},
    {"_target_": "LoadImaged", "keys": "image", "reader": {"_target_": "NibabelReader"}},
    {"_target_": "LoadImaged", "keys": "image", "_disabled_": True},
    {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "resample": False,
        "writer": "NibabelWriter",
    },
    {"_target_": "Orientationd", "keys": ["image"], "axcodes": "RAS"},
    {"_target_": "Compose", "transforms": ["@a", {"_target_": "EnsureTyped", "keys": "image"}]},
    {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: torch.where(x > 0, 1, 0)"},
    {"_target_": "CacheDataset", "data": "@datalist", "transform": "@preprocessing", "cache_rate": 1.0},
    {"_target_": "PersistentDataset", "data": "@datalist", "transform": "@preprocessing", "cache_dir": "cache"},
    {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": True, "num_workers": 4},
    {"_target_": "SlidingWindowInferer", "roi_size": [96, 96, 96], "sw_batch_size": 4, "overlap": 0.5},
    {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
    {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": 1e-4},
    {"_target_": "torch.optim.lr_scheduler.StepLR", "optimizer": "@optimizer", "step_size": 80},
    {"_target_": "Novograd", "params": "$@network.parameters()", "lr": 1e-3},
    {"_target_": "torch.nn.parallel.DistributedDataParallel", "module": "@network", "find_unused_parameters": False},
    {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.Conv3d", "in_channels": 1}]},
    {"_target_": "torch.nn.functional.softmax", "_mode_": "callable", "dim": 1},
    {"_target_": "SupervisedTrainer", "max_epochs": 3, "amp": True, "key_train_metric": {"train_accuracy": "@metric"}},
    {"_target_": "SupervisedEvaluator", "device": "@device", "val_handlers": "@handlers"},
    {"_target_": "MeanDice", "include_background": False, "output_transform": "$monai.handlers.from_engine(['pred'])"},
    {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "epoch_level": True, "interval": 5},
    {"_target_": "StatsHandler", "tag_name": "train_loss", "output_transform": "$monai.handlers.from_engine(['loss'])"},
    {"_target_": "TensorBoardStatsHandler", "log_dir": "@output_dir", "tag_name": "train_loss"},
    {
        "_target_": "CheckpointSaver",
        "save_dir": "@ckpt_dir",
        "key_metric_filename": "model.pt",
        "save_key_metric": True,
    },
    {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network"},
    },
    {"_target_": "MetricsSaver", "save_dir": "@output_dir", "metrics": ["val_mean_dice"], "summary_ops": "*"},
    {"_target_": "ClassificationSaver", "output_dir": "@output_dir", "filename": "predictions.csv"},
    {"_target_": "LrScheduleHandler", "lr_scheduler": "@lr_scheduler", "print_lr": True},
    {"_target_": "EarlyStopHandler", "patience": 3, "score_function": "$lambda e: e.state.metrics['val_mean_dice']"},
    {"_target_": "ignite.handlers.ProgressBar", "desc": "cases"},
    {"_target_": "ignite.metrics.Accuracy"},
    {"_target_": "monai.apps.detection.networks.retinanet_network.RetinaNet", "spatial_dims": 3},
    {"_target_": "monai.data.partition_dataset", "data": "@cases", "ratios": [0.8, 0.2]},
    {"_target_": "monai.utils.set_determinism", "seed": 0},
    {"_target_": "torch.device", "device": "cpu"},
    {"_target_": "GradCAM", "nn_module": "@network", "target_layers": "layer4"},
    {"_target_": "monai_rrr.handlers.RunRecord", "path": "$@output_dir + '/run.json'"},
    {"_target_": "DistributedSampler", "dataset": "@dataset", "even_divisible": True, "_requires_": "$@x.run()"},
]


def runs() -> list[Any]:
    found = []
    for bundle in BUNDLES:
        present = {path.stem: path for path in (bundle / "configs").glob("*.yaml")}
        lists = [("train",), ("inference",), *(("train", name) for name in sorted(present) if name not in ALONE)]
        found += [
            pytest.param(bundle, [present[n] for n in names], id=f"{bundle.name}-{'-'.join(names)}") for names in lists
        ]
    return found


@pytest.mark.parametrize(("bundle", "files"), runs())
def test_s5_our_bundles_pass(bundle: Path, files: list[Path]) -> None:
    overrides = {"dataset_dir": "/some/where", "train#trainer#max_epochs": 2, "bundle_root": str(bundle)}
    if files[0].stem != "train":
        del overrides["train#trainer#max_epochs"]
    assert [str(refusal) for refusal in check_bundle(bundle, files, overrides)] == []


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions_of_the_zoo_pass(text: str) -> None:
    refusals = check_content({"imports": IMPORTS, "run": [text]}, "train.json")
    assert [str(refusal) for refusal in refusals] == []


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component["_target_"])
def test_components_of_the_zoo_pass(component: dict[str, Any]) -> None:
    refusals = check_content({"part": {"list": [component]}}, "train.json")
    assert [str(refusal) for refusal in refusals] == []


def test_plain_values_pass() -> None:
    content = {"a": None, "b": [1, 2.5, True, "text", "50 % of #3", "a@b"], "c d": {"e.f": {}}, "0": [], "+list": [1]}
    assert check_content(content, "train.json") == []
    assert check_content({"changelog (old)": {"0.1": "see https://example.org"}}, "metadata.json", data=True) == []
