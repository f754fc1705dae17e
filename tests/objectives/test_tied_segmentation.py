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

"""Terms of the tied autoencoder: slow references, and batches with few, no or only masks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_rrr.attribution import Trace, record
from monai_rrr.networks import TiedAutoencoder
from monai_rrr.objectives import ImageTags, Objective, TiedSegmentation

B, K, SIZE = 3, 4, (4, 3, 2)


def make_trace(maps: Tensor, class_idx: Tensor | None = None, logits: Tensor | None = None) -> Trace:
    kwargs = {} if class_idx is None else {"class_idx": class_idx}
    logits = torch.zeros(len(maps), K) if logits is None else logits
    image = torch.ones(len(maps), 2, *SIZE)
    return Trace(nn.Identity(), ("segmentation",), image, logits, {"segmentation": maps}, kwargs)


def make_batch(exclusive: bool = False) -> dict[str, Any]:
    if exclusive:
        label = torch.nn.functional.one_hot(torch.randint(0, K, (B, *SIZE)), K).movedim(-1, 1).float()
    else:
        label = (torch.rand(B, K, *SIZE) > 0.6).float()
        label[:, 3] = 0
    brain = torch.ones(B, 1, *SIZE, dtype=torch.bool)
    brain[:, :, 0] = False
    return {"label": label, "has_mask": torch.tensor([True, False, True]), "brain": brain}


def reference(maps: Tensor, batch: dict[str, Any], class_idx: Tensor, exclusive: bool) -> Tensor:
    """Voxel by voxel."""
    entropies, dices = [], []
    for b in range(B):
        if not batch["has_mask"][b]:
            continue
        overlap = {t: [torch.tensor(0.0)] * 3 for t in range(class_idx.shape[1])}
        for p in torch.cartesian_prod(*(torch.arange(n) for n in SIZE)).tolist():
            truth = batch["label"][(b, slice(None), *p)]
            s = maps[(b, slice(None), *p)]
            wanted = truth[class_idx[b]]
            if not batch["brain"][(b, 0, *p)] or (truth < 0).any() or truth.isnan().any():
                continue
            if exclusive and wanted.sum() == 0:
                continue
            probability = s.softmax(0) if exclusive else s.sigmoid()
            if exclusive:
                entropies.append(-probability[wanted.argmax()].log())
            else:
                entropies += [-(q if y else 1 - q).log() for q, y in zip(probability, wanted, strict=True)]
            for t, (q, y) in enumerate(zip(probability, wanted, strict=True)):
                a, c, d = overlap[t]
                overlap[t] = [a + q * y, c + q, d + y]
        dices += [1 - (2 * a + 1e-5) / (c + d + 1e-5) for a, c, d in overlap.values() if d > 0]
    return torch.stack(entropies).mean() + torch.stack(dices).mean()


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("class_idx", [None, torch.tensor([[0, 2, 3], [1, 2, 0], [3, 1, 2]])], ids=["all", "subset"])
def test_value(exclusive: bool, class_idx: Tensor | None) -> None:
    batch = make_batch(exclusive)
    batch["label"][0, :, 1, 1, 1] = -1
    batch["label"][2, 0, 2, 1, 1] = torch.nan
    columns = torch.arange(K).expand(B, -1) if class_idx is None else class_idx
    maps = torch.randn(B, columns.shape[1], *SIZE, requires_grad=True)
    found = TiedSegmentation(exclusive)(make_trace(maps, class_idx), batch)
    torch.testing.assert_close(found, reference(maps, batch, columns, exclusive))
    gradient = torch.autograd.grad(found, maps)[0]
    assert gradient.isfinite().all()
    assert gradient[1].abs().max() == 0
    assert gradient[0].abs().max() > 0


@pytest.mark.parametrize("exclusive", [False, True])
def test_batch_without_a_mask_is_zero(exclusive: bool) -> None:
    batch = make_batch(exclusive)
    batch["has_mask"][:] = False
    batch["label"][:] = torch.nan
    maps = torch.randn(B, K, *SIZE, requires_grad=True)
    found = TiedSegmentation(exclusive)(make_trace(maps), batch)
    assert found.item() == 0
    assert torch.autograd.grad(found, maps)[0].abs().max() == 0


def test_all_masks_equals_the_mean_over_single_ones_only_through_the_same_voxels() -> None:
    """What stands where there is no mask is never looked at."""
    batch, maps = make_batch(), torch.randn(B, K, *SIZE)
    found = TiedSegmentation()(make_trace(maps), batch)
    batch["label"][1] = 7.0
    torch.testing.assert_close(TiedSegmentation()(make_trace(maps), batch), found)
    kept = {key: value[[0, 2]] for key, value in batch.items()}
    torch.testing.assert_close(TiedSegmentation()(make_trace(maps[[0, 2]]), kept), found)


def test_perfect_maps_cost_nothing() -> None:
    batch = make_batch()
    found = TiedSegmentation()(make_trace(40 * (batch["label"] - 0.5)), batch)
    assert found.item() < 1e-5


def test_half_precision_maps_are_compared_in_float32() -> None:
    batch, maps = make_batch(), torch.randn(B, K, *SIZE)
    found = TiedSegmentation()(make_trace(maps.bfloat16()), batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, TiedSegmentation()(make_trace(maps.bfloat16().float()), batch))


def test_tags() -> None:
    logits = torch.randn(2, K, requires_grad=True)
    tags = torch.tensor([[0.0, 1, torch.nan, 0], [1, 0, 1, torch.nan]])
    maps = torch.zeros(2, K, *SIZE)
    found = ImageTags(background=0)(make_trace(maps, logits=logits), {"class_label": tags})
    expected = [-torch.nn.functional.logsigmoid(logits[0, 1]), -torch.nn.functional.logsigmoid(-logits[0, 3])]
    expected += [-torch.nn.functional.logsigmoid(-logits[1, 1]), -torch.nn.functional.logsigmoid(logits[1, 2])]
    torch.testing.assert_close(found, torch.stack(expected).mean())
    unknown = ImageTags()(make_trace(maps, logits=logits), {"class_label": torch.full_like(tags, torch.nan)})
    assert unknown.item() == 0
    assert torch.autograd.grad(unknown, logits)[0].abs().max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"has_mask": None}, r"got a batch without \['has_mask'\]"),
        (
            {"label": torch.zeros(B, K, 2, 2, 2)},
            r"label \(3, 4, 2, 2, 2\) does not match segmentation \(3, 4, 4, 3, 2\)",
        ),
        ({"label": torch.zeros(B, 2, *SIZE)}, "expected masks of 4 decoded classes, got 2"),
        ({"has_mask": torch.ones(2)}, r"has_mask must have shape \(3,\), got \(2,\)"),
    ],
)
def test_wrong_batches(change: dict[str, Any], message: str) -> None:
    batch = {key: value for key, value in {**make_batch(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        TiedSegmentation()(make_trace(torch.zeros(B, K, *SIZE)), batch)


def test_tags_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"logits \(3, 4\) do not match class_label \(3, 2\)"):
        ImageTags()(make_trace(torch.zeros(B, K, *SIZE)), {"class_label": torch.zeros(B, 2)})


def cubes(count: int, size: tuple[int, ...] = (10, 10, 6)) -> dict[str, Tensor]:
    """Noise in which some images have a cube: bright in channel 0 (class 0), or in channel 1 (class 1)."""
    image, label = 0.3 * torch.randn(count, 2, *size) + 0.5, torch.zeros(count, 2, *size)
    for i in range(count):
        for c in range(2):
            if (i >> c) % 2 == 0:
                x, y, z = (int(torch.randint(0, n - 4, ())) for n in size)
                label[i, c, x : x + 4, y : y + 4, z : z + 4] = 1.0
    tags = label.flatten(2).amax(2)
    has_mask = torch.arange(count) < 4
    brain = torch.ones(count, 1, *size, dtype=torch.bool)
    return {"image": image + 2 * label, "label": label, "class_label": tags, "has_mask": has_mask, "brain": brain}


@pytest.mark.slow
def test_learns_to_segment_from_four_masks_and_many_tags() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.AvgPool3d(2)]
    layers += [nn.Conv3d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 2)]
    network = TiedAutoencoder(nn.Sequential(*layers), 2)
    objective = Objective({"tags": ImageTags(), "segmentation": TiedSegmentation()})
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    train, test = cubes(24), cubes(8)
    history = []
    for _ in range(120):
        order = torch.cat([torch.randperm(4)[:2], 4 + torch.randperm(20)[:2]])
        batch = {key: value[order] for key, value in train.items()}
        total, terms = objective(record(network, batch["image"], objective.layers), batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(terms["tags"].item())
    network.eval()
    network.output = "segmentation"
    with torch.no_grad():
        predicted = (network(test["image"]) > 0).float()
    shown = test["class_label"] > 0
    overlap = 2 * (predicted * test["label"]).flatten(2).sum(2) / (predicted + test["label"]).flatten(2).sum(2)
    assert sum(history[-20:]) < 0.85 * sum(history[:20])
    assert overlap[shown].mean() > 0.5
