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

"""Maps of the tied autoencoder, stitched."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet
from torch import Tensor, nn

from monai_rrr.errors import InferenceError
from monai_rrr.inferers import SlabRelevanceInferer
from monai_rrr.networks import SegmenterClassifier, TiedAutoencoder


def make_network(**options) -> TiedAutoencoder:
    torch.manual_seed(0)
    encoder = SegmenterClassifier(UNet(3, 4, 3, channels=(4, 8), strides=(2,), num_res_units=1), num_classes=3)
    network = TiedAutoencoder(encoder, num_classes=3, **options)
    with torch.no_grad():
        network.scale.copy_(torch.tensor([1.5, 0.5, 2.0]))
        network.offset.copy_(torch.tensor([-1.0, 0.5, 0.0]))
    return network


def make_image(batch: int = 1, depth: int = 4) -> Tensor:
    image = torch.randn(batch, 4, 8, 8, depth, generator=torch.Generator().manual_seed(0))
    image[:, :, :2] = 0
    return image


def test_one_slab_is_the_network():
    image, network = make_image(2), make_network()
    found = SlabRelevanceInferer(4, per_modality=True, details=True)(MetaTensor(image), network)
    assert network.training
    network.eval()
    with torch.no_grad():
        scores = network(image).sigmoid()
        network.output = "segmentation"
        logits = network(image)
    brain = (image != 0).any(1, keepdim=True)
    torch.testing.assert_close(found["heatmap"], logits.sigmoid() * brain)
    torch.testing.assert_close(found["class_score"], scores)
    for output in ("segmentation", "logits"):
        network.output = output
        again = SlabRelevanceInferer(4, details=True)(image, network)
        assert all(torch.equal(again[name], found[name]) for name in again)
    # what the modalities add, and the offset, are the logit
    assert found["relevance"].shape == (2, 4, 3, 8, 8, 4)
    total = found["relevance"].sum(1) + network.offset.detach()[:, None, None, None]
    torch.testing.assert_close((total * brain), logits * brain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
def test_several_slabs_still_add_up(normalize):
    image, network = make_image(depth=9), make_network(normalize=normalize)
    found = SlabRelevanceInferer(4, flips=(0, 2), per_modality=True, details=True)(image, network)
    brain = (image != 0).any(1, keepdim=True)
    total = found["relevance"].sum(1) + network.offset.detach()[:, None, None, None]
    torch.testing.assert_close(total.sigmoid() * brain, found["heatmap"], atol=1e-4, rtol=1e-4)


def test_class_score_is_that_of_the_best_slice():
    class Slices(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.segmentation, self.relevance, self.gain = nn.Identity(), nn.Identity(), nn.Identity()
            self.class_logits = nn.Identity()

        def forward(self, image: Tensor, present: Tensor) -> Tensor:
            logits: Tensor = self.class_logits(image[:, :2].amax((2, 3, 4)))
            self.relevance(torch.zeros(len(image), 2, *image.shape[1:]))
            self.gain(torch.ones(len(image), 2, 1, 1, 1))
            self.segmentation(torch.zeros(len(image), 2, *image.shape[2:]))
            return logits

    image = torch.zeros(1, 2, 2, 2, 8)
    image[0, 0, 0, 0, 6] = 5.0
    scores = SlabRelevanceInferer(4, overlap=0.0, details=True)(image, Slices())["class_score"]
    torch.testing.assert_close(scores, torch.tensor([[5.0, 0.0]]).sigmoid())


def test_absent_modalities_have_no_relevance():
    image = make_image()
    image[0, 1] = 0
    found = SlabRelevanceInferer(4, per_modality=True, details=True)(image, make_network())
    assert not found["relevance"][0, 1].any()
    assert all(found["relevance"][0, m].any() for m in (0, 2, 3))
    assert not found["relevance"][:, :, :, :2].any()
    present = torch.tensor([[True, False, True, True]])
    given = SlabRelevanceInferer(4, per_modality=True, details=True)(make_image(), make_network(), present=present)
    torch.testing.assert_close(given, found)


def test_keys_without_details_and_modalities():
    found = SlabRelevanceInferer(4, details=True)(make_image(), make_network())
    assert set(found) == {"heatmap", "class_score"}
    assert not found["heatmap"].requires_grad


def test_exception():
    with pytest.raises(ValueError, match=r"flips must be spatial axes 0 to 2, got \(3,\)"):
        SlabRelevanceInferer(4, flips=(3,))
    image = make_image(2)
    image[1, 0, 5, 5, 2] = torch.nan
    with pytest.raises(InferenceError, match=r"\[heatmap-not-finite\] case b, field WT: expected finite values"):
        SlabRelevanceInferer(4)(image, make_network(), case_id=["a", "b"])
