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


from __future__ import annotations

import pytest
import torch
from monai.utils import set_determinism
from torch import nn

from monai_rrr.attribution.trace import record
from monai_rrr.networks import MultimodalCAMNet
from monai_rrr.networks.blocks.modality import ModalityConv, ModalityNorm, ModalityStem
from monai_rrr.networks.blocks.reliability import Reliability

SHARES = ["none", "norm", "all"]
NORMS = ["instance", "none"]
SIZE = (8, 8, 3)
LAYERS = ["class_maps", "reliability"]


def make(**options) -> MultimodalCAMNet:
    set_determinism(0)
    network = MultimodalCAMNet(**{"channels": (4, 6), **options})
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
        network.reliability.tag_loss.uniform_(0.2, 0.8)
    return network


def brain_image(batch: int = 2, count: int = 4, size=SIZE) -> torch.Tensor:
    image = torch.randn(batch, count, *size)
    image[..., :2, :, :] = 0
    return image


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_shapes(share, stride, norm):
    network = make(share=share, stride=stride, norm=norm)
    image = brain_image()
    trace = record(network, image, LAYERS, present=torch.ones(2, 4, dtype=torch.bool))
    assert trace.logits.shape == (2, 4, 3)
    assert trace.features["class_maps"].shape == (2, 4, 3, 8 // stride, 8 // stride, 3)
    assert trace.features["reliability"].shape == (4, 3)
    network.output = "maps"
    assert network(image).shape == (2, 3, *SIZE)


@pytest.mark.parametrize("share", SHARES)
def test_fewer_modalities_and_classes(share):
    network = MultimodalCAMNet(["flair"], num_classes=1, channels=(4,), stride=1, share=share)
    assert network(torch.rand(2, 1, 5, 6, 2)).shape == (2, 1, 1)


@pytest.mark.parametrize("share", SHARES)
def test_logits_are_the_pooled_maps_over_the_brain(share):
    network, image = make(share=share, stride=1), brain_image()
    trace = record(network, image, LAYERS)
    maps = trace.features["class_maps"][..., 2:, :, :].flatten(3)
    expected = (5 * maps.double()).exp().mean(3).log().float() / 5
    torch.testing.assert_close(trace.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("norm", NORMS)
def test_an_absent_modality_influences_nothing(share, norm):
    network, image = make(share=share, norm=norm).eval(), brain_image()
    present = torch.tensor([[True, False, True, True], [True, True, False, False]])
    garbage = image.clone()
    image = image * present[:, :, None, None, None]
    full = record(network, image, LAYERS, present=present)
    assert full.logits[~present].abs().max() == 0
    assert full.features["class_maps"][~present].abs().max() == 0
    dense = record(network, image, LAYERS)
    torch.testing.assert_close(dense.logits, full.logits)
    torch.testing.assert_close(dense.features["class_maps"], full.features["class_maps"])

    # what an absent channel holds is never looked at, beyond the mask of the brain that all modalities have in common
    garbage[0, 1] = 100 * garbage[0, 1]
    noisy = record(network, torch.where(image.any(1, keepdim=True), garbage, 0), LAYERS, present=present)
    torch.testing.assert_close(noisy.features["class_maps"], full.features["class_maps"])


@pytest.mark.parametrize("share", ["none", "norm"])
def test_missing_modality_is_the_network_without_that_file(share):
    network = make(share=share)
    kept = [0, 2, 3]
    smaller = MultimodalCAMNet(["t1", "t2", "flair"], channels=(4, 6), share=share)
    smaller.load_state_dict(subset(network, kept, share))
    image = brain_image()
    image[:, 1] = 0
    for output in ("logits", "maps"):
        network.output = smaller.output = output
        whole, part = network(image), smaller(image[:, kept])
        torch.testing.assert_close(whole[:, kept] if output == "logits" else whole, part, rtol=1e-4, atol=1e-5)


def subset(network: MultimodalCAMNet, order: list[int], share: str) -> dict[str, torch.Tensor]:
    """State of the same network for the modalities of ``order``."""
    state = {}
    for name, value in network.state_dict().items():
        if name.startswith("trunks.") and share == "none":
            _, trunk, rest = name.split(".", 2)
            if int(trunk) in order:
                state[f"trunks.{order.index(int(trunk))}.{rest}"] = value
        elif name == "operating_point" or (name.startswith("trunks.") and "norm" not in name):
            state[name] = value
        else:
            state[name] = value[order]
    return state


@pytest.mark.parametrize("share", ["none", "norm"])
def test_permuting_modalities_permutes_branches(share):
    network, order = make(share=share), [2, 0, 3, 1]
    permuted = MultimodalCAMNet([network.modalities[m] for m in order], channels=(4, 6), share=share)
    permuted.load_state_dict(subset(network, order, share))
    image = brain_image()
    torch.testing.assert_close(permuted(image[:, order]), network(image)[:, order])
    network.output = permuted.output = "maps"
    torch.testing.assert_close(permuted(image[:, order]), network(image))


def test_share_all_has_one_branch_for_every_modality():
    network, image = make(share="all"), brain_image()
    order = [2, 0, 3, 1]
    torch.testing.assert_close(network(image[:, order]), network(image)[:, order])


def test_sizes_follow_what_is_shared():
    count = {share: sum(p.numel() for p in make(share=share).trunks.parameters()) for share in SHARES}
    assert count["none"] == 4 * count["all"]
    assert count["all"] < count["norm"] < 2 * count["all"]


@pytest.mark.parametrize("share", SHARES)
def test_fused_maps_are_probabilities_inside_the_brain(share):
    network, image = make(share=share, output="maps"), brain_image()
    maps = network(image)
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert maps[..., :2, :, :].abs().max() == 0
    assert maps[..., 2:, :, :].min() > 0


def test_fusion_weighs_by_reliability():
    network, image = make(output="maps", stride=1), brain_image()
    maps = torch.sigmoid(record(network, image, LAYERS).features["class_maps"])
    weights = network.reliability()
    torch.testing.assert_close(weights.sum(0), torch.ones(3))
    expected = sum(maps[:, m] * weights[m, :, None, None, None] for m in range(4))
    expected[..., :2, :, :] = 0
    torch.testing.assert_close(network(image), expected)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("output", ["logits", "maps"])
@pytest.mark.parametrize("given", [False, True])
def test_a_sample_without_any_modality_is_finite(share, output, given):
    network, image = make(share=share, output=output), brain_image()
    image[1] = 0
    present = (image != 0).flatten(2).any(2) if given else None
    found = network(image, present)
    assert torch.isfinite(found).all()
    assert found[1].abs().max() == 0
    found.sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("norm", NORMS)
def test_the_grid_does_not_break_flips(norm):
    """With mirror-symmetric kernels the network commutes with flips: sampling, pooling and padding add no error."""
    network = make(stride=2, norm=norm).double()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim >= 5:
                for axis in (-3, -2, -1):
                    parameter.copy_((parameter + parameter.flip(axis)) / 2)
    image = brain_image(size=(16, 8, 3)).double()
    for axis in (2, 3, 4):
        plain, flipped = record(network, image, LAYERS), record(network, image.flip(axis), LAYERS)
        torch.testing.assert_close(plain.features["class_maps"].flip(axis + 1), flipped.features["class_maps"])
        torch.testing.assert_close(plain.logits, flipped.logits)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("output", ["logits", "maps"])
def test_scripting_agrees_with_eager(share, output):
    network = make(share=share, output=output).eval()
    scripted = torch.jit.script(network)
    for size in (SIZE, (12, 16, 2)):
        image = brain_image(size=size)
        image[0, 1] = 0
        torch.testing.assert_close(scripted(image), network(image))
        present = (image != 0).flatten(2).any(2)
        torch.testing.assert_close(scripted(image, present), network(image, present))


@pytest.mark.parametrize("share", ["norm", "all"])
def test_export_agrees_with_eager(share):
    network, image = make(share=share, output="maps", stride=2).eval(), brain_image()
    program = torch.export.export(network, (image,))
    torch.testing.assert_close(program.module()(image), network(image))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("norm", NORMS)
def test_every_parameter_receives_gradient(share, norm):
    network = make(share=share, norm=norm)
    network(brain_image(), torch.ones(2, 4, dtype=torch.bool)).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    # instance normalization takes away what the bias of the convolution before it adds
    assert [name for name in without if norm == "none" or not name.endswith(("conv1.bias", "conv2.bias"))] == []


def test_only_present_branches_receive_gradient():
    network, image = make(), brain_image()
    image[:, 1] = 0
    network(image, (image != 0).flatten(2).any(2)).square().sum().backward()
    assert network.stem.weight.grad[1].abs().max() == 0
    assert network.head.weight.grad[1].abs().max() == 0
    assert network.stem.weight.grad[0].abs().max() > 0


def test_state_holds_the_buffers_and_survives_a_round_trip(tmp_path):
    network = make()
    network.operating_point.copy_(torch.tensor([[0.3, 10.0], [0.4, 20.0], [0.6, 0.0]]))
    assert {"operating_point", "reliability.tag_loss"} <= set(network.state_dict())
    torch.save(network.state_dict(), tmp_path / "model.pt")
    other = MultimodalCAMNet(channels=(4, 6))
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    image = brain_image()
    assert torch.equal(other(image), network(image))
    assert torch.equal(other.operating_point, network.operating_point)
    assert torch.equal(other.reliability(), network.reliability())


@pytest.mark.parametrize("share", SHARES)
def test_autocast_keeps_the_head_in_float32(share):
    network, image = make(share=share), brain_image()
    present = torch.ones(2, 4, dtype=torch.bool)
    expected = record(network, image, LAYERS, present=present)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = record(network, image, LAYERS, present=present)
    maps = trace.features["class_maps"]
    assert maps.dtype == trace.logits.dtype == torch.float32
    assert (maps != maps.bfloat16().float()).float().mean() > 0.5, "not rounded to half precision"
    reference = expected.features["class_maps"]
    assert (maps - reference).norm() < 0.05 * reference.norm()


def test_dropout_is_off_in_evaluation():
    network, image = make(dropout=0.5), brain_image()
    assert not torch.equal(network(image), network(image))
    network.eval()
    assert torch.equal(network(image), network(image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": "some"}, "share must be none, norm or all, got 'some'"),
        ({"output": "both"}, "output must be logits or maps, got 'both'"),
        ({"stride": 4}, "stride must be 1 or 2, got 4"),
        ({"norm": "batch"}, "kind must be instance or none, got 'batch'"),
        ({"prior": 1.0}, r"prior must be in \(0, 1\), got 1\.0"),
        ({"sharpness": 0.0}, r"sharpness must be positive, got 0\.0"),
        ({"temperature": 0.0}, r"temperature must be positive, got 0\.0"),
        ({"channels": ()}, "expected modalities, classes and channels"),
        ({"modalities": ()}, "expected modalities, classes and channels"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        MultimodalCAMNet(**options)


def test_wrong_images():
    network = make()
    with pytest.raises(ValueError, match=r"expected B 4 H W D, got .*1, 3, 8, 8, 3"):
        network(torch.rand(1, 3, *SIZE))
    with pytest.raises(ValueError, match=r"H and W must be multiples of 4, got .*10"):
        network(torch.rand(1, 4, 8, 10, 3))
    with pytest.raises(ValueError, match=r"present must be .*1, 4.*, got .*2, 4"):
        network(torch.rand(1, 4, *SIZE), torch.ones(2, 4).bool())


def test_stem_convolves_each_modality_on_its_own():
    stem = ModalityStem(3, 3, 2, stride=2)
    image = torch.rand(2, 3, 8, 8, 4)
    out = stem(image)
    assert out.shape == (2, 3, 2, 4, 4, 4)
    for m in range(3):
        one = nn.functional.conv3d(image[:, m : m + 1], stem.weight[m], None, (2, 2, 1), 1)
        torch.testing.assert_close(out[:, m], one)
    with pytest.raises(ValueError, match="own must be 1 or 3, got 2"):
        ModalityStem(3, 2, 2, stride=2)


@pytest.mark.parametrize("kind", NORMS)
def test_norm_uses_the_factors_of_the_row(kind):
    norm = ModalityNorm(2, 3, kind).double()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(2, 3))
        norm.bias.copy_(torch.rand(2, 3))
    x, index = torch.randn(4, 3, 5, 4, 2).double(), torch.tensor([1, 0, 0, 1])
    out = norm(x, index)
    for row, own in enumerate(index.tolist()):
        one = x[row]
        if kind == "instance":
            one = torch.stack([(c - c.mean()) / (c.var(correction=0) + 1e-5).sqrt() for c in one])
        expected = one * norm.weight[own][:, None, None, None] + norm.bias[own][:, None, None, None]
        torch.testing.assert_close(out[row], expected)


def test_head_projects_by_the_row():
    head = ModalityConv(2, 3, 2)
    x, index = torch.randn(3, 3, 2, 2, 2), torch.tensor([1, 0, 1])
    out = head(x, index)
    for row, own in enumerate(index.tolist()):
        expected = torch.einsum("kc,cxyz->kxyz", head.weight[own], x[row]) + head.bias[own][:, None, None, None]
        torch.testing.assert_close(out[row], expected)


def test_head_starts_at_the_prior():
    head = ModalityConv(2, 3, 2, prior=0.2)
    torch.testing.assert_close(
        torch.sigmoid(head(torch.zeros(1, 3, 2, 2, 2), torch.tensor([1]))), torch.full((1, 2, 2, 2, 2), 0.2)
    )


def test_reliability_follows_the_equation():
    reliability = Reliability(3, 2, temperature=0.5, momentum=0.9)
    torch.testing.assert_close(reliability(), torch.full((3, 2), 1 / 3))
    loss, count = torch.rand(3, 2), torch.tensor([[4.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    before = reliability.tag_loss.clone()
    reliability.update(loss, count)
    expected = torch.where(count > 0, 0.9 * before + 0.1 * loss, before)
    torch.testing.assert_close(reliability.tag_loss, expected)
    for c in range(2):
        total = sum((-expected[m, c] / 0.5).exp() for m in range(3))
        for m in range(3):
            torch.testing.assert_close(reliability()[m, c], (-expected[m, c] / 0.5).exp() / total)
    assert Reliability(3, 2, temperature=float("inf"))().unique().numel() == 1
    with pytest.raises(ValueError, match=r"expected .*3, 2.*, got loss .*2, 3"):
        reliability.update(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 1\.5"):
        Reliability(3, 2, momentum=1.5)
