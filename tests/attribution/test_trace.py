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

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import DenseNet121
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_rrr.attribution import INPUT, Trace, record


def small_network(spatial_dims: int = 3) -> nn.Sequential:
    conv, norm, pool = {
        2: (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
        3: (nn.Conv3d, nn.BatchNorm3d, nn.AdaptiveAvgPool3d),
    }[spatial_dims]
    return nn.Sequential(conv(1, 4, 3, padding=1), norm(4), nn.Softplus(), pool(1), nn.Flatten(), nn.Linear(4, 3))


class WithMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)

    def forward(self, image: Tensor, mask: Tensor, scale: float = 1.0) -> tuple[Tensor, str]:
        return (self.conv(image) * mask).flatten(2).sum(2) * scale, "extra"


class Reuses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.unused = nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        return self.act(self.act(self.conv(image))).flatten(1)


def hook_count(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._backward_hooks) for module in network.modules())


def buffers_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_records_logits_and_features(spatial_dims: int) -> None:
    network, image = small_network(spatial_dims), torch.rand(2, 1, *(6,) * spatial_dims)
    trace = record(network, image, ["2", "0", "2"])
    assert trace.layers == ("2", "0")
    assert list(trace.features) == ["2", "0"]
    assert trace.features["0"].shape == (2, 4, *(6,) * spatial_dims)
    assert torch.equal(network[1:](trace.features["0"]), trace.logits)
    gradient = torch.autograd.grad(trace.logits.sum(), trace.features["2"])[0]
    assert gradient.abs().sum() > 0


def test_no_layers_gives_logits_only() -> None:
    assert dict(record(small_network(), torch.rand(2, 1, 4, 4, 4), []).features) == {}


def test_hooks_of_the_user_stay_and_ours_go() -> None:
    network = small_network()
    network[0].register_forward_hook(lambda module, args, output: output * 2)
    trace = record(network, torch.rand(2, 1, 4, 4, 4), ["0"])
    assert hook_count(network) == 1
    assert torch.equal(trace.features["0"], network[0](trace.image))


def test_hooks_are_removed_after_an_error() -> None:
    network = small_network()
    with pytest.raises(RuntimeError, match="channels"):
        record(network, torch.rand(2, 7, 4, 4, 4), ["0", "1"])
    assert hook_count(network) == 0


def test_in_place_overwrite_is_named() -> None:
    network = DenseNet121(spatial_dims=2, in_channels=1, out_channels=2)
    image = torch.rand(2, 1, 32, 32)
    with pytest.raises(
        ValueError, match=r"output of layer 'features.norm5' was overwritten in place .*expected an output"
    ):
        record(network, image, ["features.norm5"])
    assert record(network, image, ["class_layers.relu"]).features["class_layers.relu"].min() >= 0


@pytest.mark.parametrize(("calls", "layer"), [(2, "act"), (0, "unused")])
def test_layer_must_be_called_once(calls: int, layer: str) -> None:
    with pytest.raises(ValueError, match=f"layer '{layer}' must be called exactly once .*got {calls} calls"):
        record(Reuses(), torch.rand(1, 1, 2, 2), [layer])


@pytest.mark.parametrize("layer", ["", "conf"])
def test_unknown_layer(layer: str) -> None:
    with pytest.raises(ValueError, match=f"Reuses has no layer '{layer}'"):
        record(Reuses(), torch.rand(1, 1, 2, 2), [layer])


def test_unknown_layer_lists_close_names() -> None:
    with pytest.raises(ValueError, match="no layer 'conf'; close to it: conv"):
        record(Reuses(), torch.rand(1, 1, 2, 2), ["conf"])


def test_layers_as_one_string() -> None:
    with pytest.raises(TypeError, match=r"got the string 'conv': write \['conv'\]"):
        record(Reuses(), torch.rand(1, 1, 2, 2), "conv")


def test_layer_that_returns_no_tensor() -> None:
    network = nn.Sequential(WithTuple(), TakeFirst())
    with pytest.raises(TypeError, match="layer '0' must return a tensor, got tuple from WithTuple"):
        record(network, torch.rand(1, 1, 2, 2), ["0"])
    assert hook_count(network) == 0


class WithTuple(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return image, image


class TakeFirst(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0]


class Fixed(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, image: Tensor) -> Any:
        return self.output


@pytest.mark.parametrize(("output", "kind"), [({"a": torch.ones(1)}, "dict"), ([], "list"), (("a",), "tuple")])
def test_network_that_returns_no_tensor(output: Any, kind: str) -> None:
    with pytest.raises(TypeError, match=f"the network must return a tensor .*got {kind}"):
        record(Fixed(output), torch.rand(1, 1, 2, 2), [])


def test_forward_kwargs_pass_through_and_are_kept() -> None:
    network, image, mask = WithMask(), torch.rand(2, 1, 3, 3, 3), torch.rand(2, 1, 3, 3, 3)
    trace = record(network, image, ["conv"], mask=mask, scale=2.0)
    assert torch.equal(trace.logits, network(image, mask, 2.0)[0])
    again = trace.rerun(image, update_statistics=False)
    assert torch.equal(again.logits, trace.logits)
    other = trace.rerun(image, update_statistics=False, mask=torch.zeros_like(mask))
    assert other.logits.abs().sum() == 0
    assert other.forward_kwargs["scale"] == 2.0


def test_meta_tensors_become_plain() -> None:
    image = MetaTensor(torch.rand(2, 1, 3, 3, 3))
    trace = record(WithMask(), image, ["conv"], mask=image)
    for tensor in (trace.image, trace.logits, trace.features["conv"], trace.forward_kwargs["mask"]):
        assert type(tensor) is Tensor


@pytest.mark.parametrize("training", [True, False])
def test_frozen_rerun_leaves_the_buffers(training: bool) -> None:
    network = small_network().train(training)
    trace = record(network, torch.rand(4, 1, 5, 5, 5), ["2"])
    before, plain = buffers_of(network), network.state_dict(keep_vars=True)
    erased = torch.rand(4, 1, 5, 5, 5) * 3
    frozen = trace.rerun(erased, update_statistics=False)
    assert equal(before, buffers_of(network))
    assert all(value is plain[name] for name, value in network.state_dict(keep_vars=True).items())
    assert all(module.training is training for module in network.modules())
    moving = trace.rerun(erased, update_statistics=True)
    assert torch.equal(frozen.logits, moving.logits)
    assert equal(before, buffers_of(network)) is not training


def test_frozen_rerun_survives_nan_and_double_backward() -> None:
    network = small_network()
    trace = record(network, torch.rand(2, 1, 4, 4, 4), ["2"])
    before = buffers_of(network)
    trace.rerun(torch.full((2, 1, 4, 4, 4), torch.nan), update_statistics=False)
    assert equal(before, buffers_of(network))
    frozen = trace.rerun(torch.rand(2, 1, 4, 4, 4), update_statistics=False)
    inner = torch.autograd.grad(frozen.logits.square().sum(), frozen.features["2"], create_graph=True)[0]
    (inner.square().sum() + trace.logits.sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_frozen_rerun_has_the_gradient_of_a_plain_pass() -> None:
    network, image = small_network(), torch.rand(3, 1, 4, 4, 4)
    gradients = [
        torch.autograd.grad(
            record(network, image, [], update_statistics=update).logits.square().sum(), network[0].weight
        )
        for update in (True, False)
    ]
    assert torch.equal(gradients[0][0], gradients[1][0])


def test_split_gives_the_two_halves() -> None:
    network, image, mask = WithMask(), torch.rand(4, 1, 3, 3, 3), torch.rand(4, 1, 3, 3, 3)
    trace = record(network, image, ["conv"], mask=mask, scale=0.5)
    for half, part in zip(trace.split(), (slice(0, 2), slice(2, 4)), strict=True):
        assert torch.equal(half.image, image[part])
        assert torch.equal(half.logits, trace.logits[part])
        assert torch.equal(half.features["conv"], trace.features["conv"][part])
        assert torch.equal(half.forward_kwargs["mask"], mask[part])
        assert half.forward_kwargs["scale"] == 0.5
        assert torch.equal(half.rerun(half.image, update_statistics=False).logits, half.logits)


def test_split_twice_owns_the_right_gradients() -> None:
    trace = record(small_network(), torch.rand(4, 1, 3, 3, 3), ["0"])
    gradient = torch.arange(8)
    quarter = trace.split()[1].split()[0]
    assert quarter.samples == (2, 3)
    assert torch.equal(trace.own("0", gradient), gradient)
    assert quarter.own("0", gradient).tolist() == [2]


def test_split_keeps_folded_modalities_together() -> None:
    features = torch.arange(8.0).reshape(8, 1, 1, 1, 1)
    trace = Trace(nn.Identity(), ("a",), torch.zeros(4, 2, 1, 1, 1), torch.zeros(4, 2, 3), {"a": features})
    second = trace.split()[1]
    assert second.features["a"].flatten().tolist() == [4, 5, 6, 7]
    assert second.own("a", torch.arange(8)).tolist() == [4, 5, 6, 7]


def test_split_of_an_odd_batch() -> None:
    with pytest.raises(ValueError, match="n second views, got a batch of 3"):
        record(small_network(), torch.rand(3, 1, 4, 4, 4), ["0"]).split()


def test_split_of_features_that_do_not_fit() -> None:
    trace = Trace(nn.Identity(), ("a",), torch.zeros(4, 1, 2, 2), torch.zeros(4, 3), {"a": torch.zeros(6, 1, 2, 2)})
    with pytest.raises(ValueError, match=r"output of layer 'a' \(6, 1, 2, 2\) has no whole number of entries"):
        trace.split()


class TestDistributed:
    @pytest.fixture(autouse=True)
    def _group(self, tmp_path: Any) -> Any:
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        yield
        torch.distributed.destroy_process_group()

    def test_wrapper_is_called_but_not_named(self) -> None:
        inner, image = small_network(), torch.rand(2, 1, 4, 4, 4)
        network = DistributedDataParallel(inner)
        trace = record(network, image, ["2"])
        assert trace.network is network
        before = buffers_of(inner)
        frozen = trace.rerun(image, update_statistics=False)
        assert equal(before, buffers_of(inner))
        (trace.logits.square().sum() + frozen.logits.square().sum()).backward()
        found = inner[0].weight.grad.clone()
        expected = torch.autograd.grad(2 * inner(image).square().sum(), inner[0].weight)[0]
        torch.testing.assert_close(found, expected)

    def test_static_graph_is_refused(self) -> None:
        network = DistributedDataParallel(small_network(), static_graph=True)
        with pytest.raises(ValueError, match="static_graph=True gives wrong gradients"):
            record(network, torch.rand(2, 1, 4, 4, 4), ["2"])


def test_image_is_recorded_by_name() -> None:
    network, image = small_network(), torch.rand(2, 1, 4, 4, 4)
    trace = record(network, image, [INPUT, "2"])
    assert trace.features[INPUT] is trace.image
    assert trace.image.requires_grad
    assert not image.requires_grad, "the image of the caller stays as it is"
    assert torch.autograd.grad(trace.logits.sum(), trace.image)[0].abs().sum() > 0
    asked = image.clone().requires_grad_(True)
    assert record(network, asked, [INPUT]).image is asked


def test_frozen_weights_let_gradient_reach_the_image_only() -> None:
    network = small_network()
    trace = record(network, torch.rand(2, 1, 4, 4, 4), ["2"])
    before = buffers_of(network)
    image = torch.rand(2, 1, 4, 4, 4, requires_grad=True)
    frozen = trace.rerun(image, update_statistics=True, frozen_weights=True)
    assert equal(before, buffers_of(network))
    frozen.logits.square().sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(frozen.logits, network(image))


def test_rerun_keeps_the_precision_of_the_trace() -> None:
    network, image = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Flatten()), torch.rand(2, 1, 2, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = record(network, image, ["0"])
    assert trace.autocast == torch.bfloat16
    assert trace.rerun(image, update_statistics=False).logits.dtype == torch.bfloat16
    plain = record(network, image, ["0"])
    assert plain.autocast is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plain.rerun(image, update_statistics=False).logits.dtype == torch.float32
