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

"""The tied autoencoder: tied through everything that is done to a network, one encoder pass, exact gradients."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.networks.nets import DenseNet, DynUNet, SegResNet, UNet, resnet18
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_rrr.attribution import Epsilon, Gamma, LRPRules, UnrolledLRP, record
from monai_rrr.networks import SegmenterClassifier, TiedAutoencoder

K, SIZE = 3, (6, 5, 4)


def small_encoder() -> nn.Sequential:
    layers = [nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(inplace=True), nn.MaxPool3d(2)]
    layers += [nn.Conv3d(4, 6, 2), nn.ReLU(inplace=True), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, K)]
    return nn.Sequential(*layers)


def make(**options: Any) -> TiedAutoencoder:
    torch.manual_seed(0)
    return TiedAutoencoder(small_encoder(), K, **options)


def image(batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    found = torch.randn(batch, 2, *SIZE)
    found[..., 0, :, :] = 0
    return found


def loss_of(network: nn.Module, x: Tensor, class_idx: Tensor | None = None) -> Tensor:
    kwargs = {} if class_idx is None else {"class_idx": class_idx}
    trace = record(network, x, ["segmentation"], **kwargs)
    return trace.features["segmentation"].square().mean() + trace.logits.square().mean()


def test_maps_are_scaled_relevance() -> None:
    network, x = make(), image()
    with torch.no_grad():
        network.scale.copy_(torch.tensor([1.0, 2.0, -0.5]))
        network.offset.copy_(torch.tensor([0.1, -0.2, 0.3]))
    network.eval()
    class_idx = torch.tensor([[2, 0], [1, 2]])
    trace = record(network, x, ["class_logits", "relevance", "gain", "segmentation"], class_idx=class_idx)
    expected = UnrolledLRP().by_modality(record(network.encoder, x, []), class_idx)
    torch.testing.assert_close(trace.features["relevance"], expected)
    torch.testing.assert_close(trace.logits, network.encoder(x))
    torch.testing.assert_close(trace.features["class_logits"], trace.logits)
    added = trace.features["relevance"] * trace.features["gain"].unsqueeze(2)
    offset = network.offset[class_idx][..., None, None, None]
    torch.testing.assert_close(added.sum(2) + offset, trace.features["segmentation"])
    brain = (x != 0).any(1)
    for b, t in ((0, 0), (1, 0)):
        c, total = class_idx[b, t], expected[b, t].sum(0)
        wanted = network.scale[c] * total / total.abs()[brain[b]].mean() + network.offset[c]
        torch.testing.assert_close(trace.features["segmentation"][b, t], wanted)
    network.output = "segmentation"
    torch.testing.assert_close(network(x, class_idx=class_idx), trace.features["segmentation"])
    assert network(x).shape == (2, K, *SIZE)


def test_without_normalization_the_map_sums_to_the_score() -> None:
    network, x = make(rules=LRPRules(first=None), normalize=False).double().eval(), image().double()
    trace = record(network, x, ["segmentation"])
    expected = trace.logits - network.encoder[-1].bias
    assert (trace.features["segmentation"].flatten(2).sum(2) - expected).abs().max() < 0.2 * expected.abs().max()


def test_parameters_are_those_of_the_encoder_and_two_per_class() -> None:
    network, encoder = make(), small_encoder()
    count = sum(p.numel() for p in encoder.parameters())
    assert sum(p.numel() for p in network.parameters()) == count + 2 * K
    untied = make(tied=False)
    assert sum(p.numel() for p in untied.parameters()) == 2 * count + 2 * K
    assert {id(p) for p in network.encoder.parameters()} < {id(p) for p in network.parameters()}


@pytest.mark.parametrize("how", ["to", "deepcopy", "state_dict", "optimizer", "load"])
def test_the_tie_holds(how: str) -> None:
    """After anything that is done to a network, its maps are those of its own encoder."""
    network, x = make(), image()
    if how == "to":
        network, x = network.to(torch.float64), x.double()
    elif how == "deepcopy":
        network = copy.deepcopy(network)
    elif how == "state_dict":
        other = TiedAutoencoder(small_encoder(), K)
        other.load_state_dict(network.state_dict())
        network = other
    elif how == "optimizer":
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
        loss_of(network, x).backward()
        optimizer.step()
    else:
        network.encoder.load_state_dict({k: 2 * v.float() for k, v in network.encoder.state_dict().items()})
    network.eval()
    found = record(network, x, ["relevance"]).features["relevance"]
    columns = torch.arange(K).expand(2, -1)
    torch.testing.assert_close(found, UnrolledLRP().by_modality(record(network.encoder, x, []), columns))
    gradient = torch.autograd.grad(found.square().sum(), network.encoder[4].weight)[0]
    assert gradient.abs().max() > 0


def test_one_step_counts_every_weight_once() -> None:
    """The step of SGD is the gradient of the loss: finite differences along it."""
    rules = LRPRules(Epsilon(0.1), None, None)
    network, x = make(rules=rules, normalize=False).double(), image().double()
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(loss_of(network, x), parameters)
    norm = sum(g.square().sum().item() for g in gradients)
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.add_(step * g)
            values.append(loss_of(network, x).item())
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(step * g)
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(norm, rel=1e-5)


def test_frozen_scale_gives_the_same_gradient_as_finite_differences_do_not() -> None:
    """``r`` is a constant for the gradient, so weights can't win by shrinking all relevance."""
    network, x = make().double().eval(), image().double()
    maps = record(network, x, ["relevance", "segmentation"]).features
    found = torch.autograd.grad(maps["segmentation"].sum(), network.encoder[0].weight, retain_graph=True)[0]
    total = maps["relevance"].sum(2)
    brain = (x != 0).any(1, keepdim=True)
    size = (total.abs() * brain).sum((2, 3, 4), keepdim=True) / brain.sum((2, 3, 4), keepdim=True)
    expected = torch.autograd.grad((total / size.detach()).sum(), network.encoder[0].weight)[0]
    torch.testing.assert_close(found, expected)


def test_subset_of_classes_is_the_full_map_restricted() -> None:
    network, x = make().double().eval(), image().double()
    class_idx = torch.tensor([[2, 0], [2, 1]])
    full = record(network, x, ["segmentation"]).features["segmentation"]
    part = record(network, x, ["segmentation"], class_idx=class_idx).features["segmentation"]
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(part, full[rows, class_idx])
    first, second = (
        torch.autograd.grad(maps.square().sum(), list(network.encoder.parameters()))
        for maps in (part, full[rows, class_idx])
    )
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def test_untied_copy_starts_equal_and_trains_apart() -> None:
    tied, untied, x = make(), make(tied=False), image()
    first, second = (record(n, x, ["segmentation"]).features["segmentation"] for n in (tied, untied))
    torch.testing.assert_close(first, second)
    gradients = torch.autograd.grad(second.square().sum(), [untied.decoder[4].weight, untied.encoder[0].weight])
    assert all(g.abs().max() > 0 for g in gradients)
    assert torch.autograd.grad(first.square().sum(), tied.encoder[4].weight)[0].abs().max() > 0
    for before, after in zip(untied.encoder.buffers(), untied.decoder.buffers(), strict=True):
        assert torch.equal(before, after)


def test_statistics_move_once_per_step() -> None:
    network, x = make(), image()
    plain = copy.deepcopy(network.encoder)
    plain(x)
    loss_of(network, x).backward()
    assert network.encoder[1].num_batches_tracked == 1
    torch.testing.assert_close(network.encoder[1].running_mean, plain[1].running_mean)


def test_checkpointing_changes_nothing() -> None:
    results = []
    for checkpointing in (False, True):
        network = make(checkpointing=checkpointing)
        loss = loss_of(network, image())
        loss.backward()
        results.append([loss, *(p.grad for p in network.parameters()), *network.buffers()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_bfloat16_trunk_gives_float32_maps() -> None:
    network, x = make(), image()
    network.eval()
    expected = record(network, x, ["segmentation"]).features["segmentation"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = record(network, x, ["segmentation", "relevance"])
    found = trace.features["segmentation"]
    assert trace.logits.dtype == torch.bfloat16
    assert found.dtype == trace.features["relevance"].dtype == torch.float32
    correlation = torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1]
    assert correlation > 0.98
    found.square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_compiled_step_is_the_eager_one() -> None:
    """Second derivatives can't be compiled: that this works shows that there are none."""
    network, x = make(), image()
    expected = torch.autograd.grad(network_loss(network, x), list(network.parameters()))
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(network_loss(compiled, x), list(network.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def network_loss(network: Callable[..., Tensor], x: Tensor) -> Tensor:
    inner = getattr(network, "_orig_mod", network)
    inner.output = "segmentation"
    return network(x, class_idx=torch.tensor([[0, 2], [1, 2]])).square().mean()


def test_nothing_is_left_behind() -> None:
    network, x = make(), image()
    trace = record(network, x, ["segmentation"])
    graph = weakref.ref(trace.features["segmentation"])
    assert all(not module._forward_hooks for module in network.modules())
    assert all(p.grad is None for p in network.parameters())
    assert network.training
    del trace
    gc.collect()
    assert graph() is None


def test_absent_modality_is_zero_and_gets_no_relevance() -> None:
    network, x = make(rules=LRPRules(first=None)), image()
    network.eval()
    present = torch.tensor([[True, False], [True, True]])
    trace = record(network, x, ["relevance"], present=present)
    assert trace.features["relevance"][0, :, 1].abs().max() == 0
    assert trace.features["relevance"][1, :, 1].abs().max() > 0
    x[0, 1] = 0
    torch.testing.assert_close(trace.logits, network(x))


def test_empty_image_is_finite() -> None:
    network, x = make(), torch.zeros(1, 2, *SIZE)
    loss = loss_of(network, x)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def resnet() -> nn.Module:
    return resnet18(spatial_dims=3, n_input_channels=2, num_classes=K, widen_factor=0.125, conv1_t_stride=1)


def dense() -> nn.Module:
    return DenseNet(2, 2, K, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2)


def segres() -> nn.Module:
    return SegmenterClassifier(SegResNet(3, 8, 2, 3, blocks_down=(1, 2), blocks_up=(1,), dropout_prob=0.1), K)


def unet() -> nn.Module:
    return SegmenterClassifier(UNet(3, 2, K, (4, 8, 8), (2, 2), num_res_units=2), K)


def plain_unet() -> nn.Module:
    return SegmenterClassifier(UNet(2, 2, K, (4, 8), (2,), dropout=0.1), K)


def dynunet() -> nn.Module:
    norm = ("instance", {"affine": True})
    network = DynUNet(3, 2, K, [3] * 3, [1, 2, 2], [2, 2], filters=(4, 6, 8), norm_name=norm)
    return SegmenterClassifier(network, K)


ENCODERS = [resnet, dense, segres, unet, plain_unet, dynunet]


@pytest.mark.parametrize("build", ENCODERS, ids=lambda build: build.__name__)
def test_encoders_of_monai(build: Callable[[], nn.Module]) -> None:
    """Out of the box: maps of the image's size, logits of the encoder itself, gradient to every weight."""
    encoder = build()
    size = (16, 16) if build in (dense, plain_unet) else (16, 16, 8)
    network, x = TiedAutoencoder(encoder, K), torch.rand(2, 2, *size)
    assert all(torch.equal(a, b) for a, b in zip(network.eval()(x)[:1], encoder(x)[:1], strict=True))
    network.train()
    trace = record(network, x, ["segmentation", "relevance"])
    maps = trace.features["segmentation"]
    assert trace.features["relevance"].shape == (2, K, 2, *size)
    assert maps.isfinite().all()
    assert maps.detach().flatten(2).std(2).min() > 0
    (maps.square().mean() + trace.logits.square().mean()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.:DeprecationWarning")
@pytest.mark.parametrize("build", ENCODERS, ids=lambda build: build.__name__)
def test_traced_network_runs_at_other_sizes(build: Callable[[], nn.Module]) -> None:
    """Nothing of the size is written into the program, not even where a stride cuts an odd one."""
    network = TiedAutoencoder(build(), K, output="segmentation").eval()
    sizes = [(2, 2, 16, 16), (1, 2, 24, 17)] if build in (dense, plain_unet) else [(2, 2, 16, 16, 8), (1, 2, 24, 17, 9)]
    with torch.no_grad():
        traced = torch.jit.trace(network, torch.rand(sizes[0]), check_trace=False)
        for size in sizes:
            x = torch.rand(size)
            torch.testing.assert_close(traced(x), network(x), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("output", ["segmentation", "logits"])
@pytest.mark.parametrize(
    "rules", [None, LRPRules(Epsilon(), None, None), LRPRules(Gamma())], ids=["zplus", "eps", "gamma"]
)
def test_exported_program_runs_at_other_sizes(rules: LRPRules | None, output: str) -> None:
    """Sizes that the strides divide; for others a guard of the program may raise."""
    network = TiedAutoencoder(unet(), K, rules, output=output).eval()
    auto = torch.export.Dim.AUTO
    axes = ({0: auto, 2: auto, 3: auto, 4: auto},)
    program = torch.export.export(network, (torch.rand(2, 2, 16, 16, 8),), dynamic_shapes=axes).module()
    for size in ((1, 2, 24, 16, 12), (3, 2, 8, 20, 16)):
        x = torch.rand(size)
        torch.testing.assert_close(program(x), network(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("build", [resnet, dense, segres, unet], ids=lambda build: build.__name__)
def test_relevance_of_monai_encoders_adds_up(build: Callable[[], nn.Module]) -> None:
    """z+ loses only what an offset alone switched on: the sum stays close to the score without the head's bias."""
    encoder = build().double().eval()
    x = torch.rand(2, 2, *((16, 16) if build is dense else (16, 16, 8)), dtype=torch.float64)
    trace = record(encoder, x, [])
    columns = torch.arange(K).expand(2, -1)
    total = UnrolledLRP()(trace, columns).flatten(2).sum(2)
    bias = next(m.bias for m in reversed(list(encoder.modules())) if isinstance(m, nn.Linear))
    torch.testing.assert_close(total, trace.logits - bias, rtol=0.05, atol=1e-3)


def _worker(rank: int, folder: str, find_unused: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    network = DistributedDataParallel(make(), find_unused_parameters=find_unused)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(network, image(4)[2 * rank : 2 * rank + 2], torch.tensor([[0, 1], [2, 1]])).backward()
        if _ == 0:
            torch.save([p.grad for p in network.parameters()], f"{folder}/grad{rank}.pt")
        optimizer.step()
    torch.save(network.module.state_dict(), f"{folder}/state{rank}.pt")
    # before the group ends: a reducer that is freed last waits for its thread, which may wait for the interpreter
    del network
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    mp.spawn(_worker, (str(tmp_path), False), nprocs=2)
    state = [torch.load(tmp_path / f"state{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in make().encoder.state_dict():
        if "running" not in name:
            assert torch.equal(state[0][f"encoder.{name}"], state[1][f"encoder.{name}"])
    expected = []
    for rank in (0, 1):
        network = make()
        loss = loss_of(network, image(4)[2 * rank : 2 * rank + 2], torch.tensor([[0, 1], [2, 1]]))
        expected.append(torch.autograd.grad(loss, list(network.parameters())))
    found = torch.load(tmp_path / "grad0.pt", weights_only=True)
    for one, (a, b) in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(one, (a + b) / 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TiedAutoencoder(small_encoder(), K, output="maps"), "output must be logits or segmentation"),
        (lambda: TiedAutoencoder(small_encoder(), 0), "num_classes must be at least 1, got 0"),
        (lambda: TiedAutoencoder(small_encoder(), 4)(image()), r"must return logits B 4, got \(2, 3\)"),
        (lambda: make()(image(), present=torch.ones(2, 3)), r"present must be \(2, 2\), got \(2, 3\)"),
        (lambda: make()(image(), class_idx=torch.tensor([[3], [0]])), r"class_idx must be in 0..2, got \[0, 3\]"),
        (
            lambda: TiedAutoencoder(nn.Sequential(nn.Conv3d(2, 2, 1), nn.Softmax(1)), 2),
            r"no relevance rule for layer '1' \(Softmax\): pass layer_rules=\{Softmax: rule\}",
        ),
    ],
)
def test_wrong_arguments(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_encoder_of_another_kind() -> None:
    with pytest.raises(TypeError, match="expected a SegResNet, UNet or DynUNet of MONAI, got Linear"):
        SegmenterClassifier(nn.Linear(1, 1), 2)


def test_encoder_classifier_runs_the_encoding_layers() -> None:
    segres = SegResNet(3, 8, 2, 3, blocks_down=(1, 1), blocks_up=(1,))
    x = torch.rand(1, 2, 8, 8, 8)
    torch.testing.assert_close(SegmenterClassifier(segres, K).features(x), segres.encode(x)[0])
