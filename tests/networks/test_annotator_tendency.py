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

"""The annotator-tendency network: starts at the consensus, pools to it, and leaves absent annotators alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.networks.nets import SegResNet, UNet
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_rrr.attribution import record
from monai_rrr.errors import CheckpointError
from monai_rrr.networks import AnnotatorTendencyNet, TendencyOutput
from monai_rrr.objectives import AnnotatorSegmentation
from monai_rrr.utils.tensor_file import write_tensors
from monai_rrr.utils.weights import load_weights

C, R, SIZE = 4, 3, (6, 5, 4)
LAYERS = ("annotator_logits", "embedding", "signed_distance", "kernels", "scale")
LAYERS += ("shared_prototypes", "tendency_prototypes", "prior")


def make(annotators: str = "abc", **options: Any) -> AnnotatorTendencyNet:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
    options = {"width": 8, "slots": 2, "queue": 1024, **options}
    return AnnotatorTendencyNet(list(annotators), backbone=backbone, features=8, **options)


def awake(network: AnnotatorTendencyNet) -> AnnotatorTendencyNet:
    """Annotators who differ, and don't count the same."""
    torch.manual_seed(2)
    for index, tendency in enumerate(network.tendencies):
        nn.init.constant_(tendency.gamma, 0.5 + index)
    network.set_reliability(torch.arange(1.0, 1 + len(network.tendencies)))
    return network


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, *SIZE, generator=torch.Generator().manual_seed(1))


def drawn(batch: int = 2, annotators: int = R) -> Tensor:
    return torch.randint(0, C, (batch, annotators, *SIZE), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("stride", [1, 2])
def test_starts_exactly_at_the_consensus(stride: int) -> None:
    output = make(stride=stride)(image())
    assert isinstance(output, TendencyOutput)
    assert output.consensus.shape == (2, C, *SIZE)
    assert output.annotators.shape == (2, R, C, *SIZE)
    assert torch.equal(output.annotators, output.consensus[:, None].expand_as(output.annotators))


@pytest.mark.parametrize("stride", [1, 2])
def test_consensus_is_the_pool_of_the_annotators(stride: int) -> None:
    network = awake(make(stride=stride)).double()
    consensus, annotators = network(image().double())
    departure = annotators - consensus[:, None]
    assert departure.abs().max() > 0.1
    assert torch.einsum("r,brcdhw->bcdhw", network.rho, departure).abs().max() < 1e-6


def test_departure_as_the_equation_says() -> None:
    network = awake(make(temperature=0.7)).double().eval()
    trace = record(network, image().double(), LAYERS)
    g, s = trace.features["embedding"], float(trace.features["scale"].detach())
    assert torch.allclose(g.norm(dim=1), torch.ones_like(g[:, 0]))
    assert torch.allclose(trace.features["kernels"].norm(dim=-1), torch.ones(R, C, 2).double())
    voxel = (1, slice(None), 3, 2, 1)
    delta = torch.zeros(R, C, dtype=torch.float64)
    for r, tendency in enumerate(network.tendencies):
        for c in range(C):
            a = [s * float((k / k.norm() @ g[voxel]).detach()) for k in tendency.weight[c]]
            delta[r, c] = 0.7 * torch.tensor([x / 0.7 for x in a]).exp().mean().log()
        delta[r] = float(tendency.gamma.detach()) * (delta[r] - delta[r].mean())
    expected = trace.logits[voxel] + delta - (network.rho[:, None] * delta).sum(0)
    assert torch.allclose(trace.features["annotator_logits"][1, :, :, 3, 2, 1], expected, atol=1e-6)


def test_kernels_of_three_voxels_start_as_those_of_one_and_see_the_neighborhood() -> None:
    network, one = awake(make(kernel_size=3)).double(), awake(make()).double()
    one.load_state_dict({k: v for k, v in network.state_dict().items() if "around" not in k})
    assert torch.equal(network(image().double()).annotators, one(image().double()).annotators)
    around = network.tendencies[1].around
    around.data[0, :, 2, 1, 1] = 0.5 * network.tendencies[1].kernels()[0, 0].detach()  # one voxel further
    features = torch.randn(1, 8, *SIZE, dtype=torch.float64)
    embedding = one.embed(features)
    here = torch.einsum("e,edhw->dhw", network.tendencies[1].kernels()[0, 0], embedding[0])
    there = torch.cat([here[1:], torch.zeros_like(here[:1])])
    scale = torch.tensor(8.0, dtype=torch.float64)
    changed, before = (net.tendencies[1](embedding, scale)[0] for net in (network, one))
    pair = torch.stack(
        [here + 0.5 * there, torch.einsum("e,edhw->dhw", network.tendencies[1].kernels()[0, 1], embedding[0])]
    )
    best = (8 * pair).exp().mean(0).log()
    plain = (8 * torch.stack([here, pair[1]])).exp().mean(0).log()
    assert torch.allclose((changed - before)[0], 1.5 * 0.75 * (best - plain), atol=1e-6)
    assert sum(p.numel() for p in make(kernel_size=3).add_annotator("d")) == 28 * C * 2 * 8 + 1


def test_temperatures_divide_the_logits_and_come_with_the_weights() -> None:
    network = awake(make())
    before = network(image())
    network.temperatures.copy_(torch.tensor([2.0, 1.0, 0.5, 4.0]))
    after = network(image())
    assert torch.allclose(after.consensus, before.consensus / 2)
    divided = before.annotators / torch.tensor([1.0, 0.5, 4.0])[:, None, None, None, None]
    assert torch.allclose(after.annotators, divided)
    other = make()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.temperatures, network.temperatures)
    network.add_annotator("d")
    assert network.temperatures.tolist() == [2, 1, 0.5, 4, 1]


def test_absent_annotators_get_no_gradient_and_values_stay() -> None:
    network = awake(make())
    annotated = torch.tensor([[True, False, False], [False, True, False]])
    batch = {"annotations": drawn(), "annotated": annotated}
    trace = record(network, image(), LAYERS, annotated=annotated)
    assert torch.equal(
        trace.features["annotator_logits"], record(network, image(), LAYERS).features["annotator_logits"]
    )
    AnnotatorSegmentation()(trace, batch).backward()
    grown = [float(t.weight.grad.abs().sum()) for t in network.tendencies]
    assert grown[0] > 0
    assert grown[1] > 0
    assert grown[2] == 0
    assert float(network.tendencies[2].gamma.grad) == 0
    assert float(network.consensus_head.weight.grad.abs().sum()) > 0


def test_without_the_centering_note_absent_annotators_would_get_gradient() -> None:
    network = awake(make())
    batch = {"annotations": drawn(), "annotated": torch.tensor([[True, False, False]] * 2)}
    AnnotatorSegmentation()(record(network, image(), LAYERS), batch).backward()
    assert float(network.tendencies[2].gamma.grad) != 0


def test_annotators_may_be_permuted() -> None:
    network, other = awake(make()).eval(), awake(make()).eval()
    order = [2, 0, 1]
    for place, source in enumerate(order):
        other.tendencies[place].load_state_dict(network.tendencies[source].state_dict())
    other.set_reliability(network.rho[order])
    (one, theirs), (two, ours) = network(image()), other(image())
    assert torch.equal(one, two)
    assert torch.allclose(theirs[:, order], ours, atol=1e-6)


def test_checkpointing_changes_no_gradient() -> None:
    batch = {"annotations": drawn(), "annotated": torch.ones(2, R, dtype=torch.bool)}
    grads = []
    for checkpointing in (False, True):
        network = awake(make(checkpointing=checkpointing))
        AnnotatorSegmentation()(record(network, image(), LAYERS), batch).backward()
        grads.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all(torch.allclose(one, two, atol=1e-7) for one, two in zip(*grads, strict=True))


def test_gradients_by_finite_differences() -> None:
    network = awake(make("ab")).double().eval()
    x, label = image(1).double(), drawn(1, 2)
    batch = {"annotations": label, "annotated": torch.ones(1, 2, dtype=torch.bool)}

    def loss() -> Tensor:
        return AnnotatorSegmentation()(record(network, x, ["annotator_logits"]), batch)

    parameters = dict(network.named_parameters())
    grads = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
    for (path, parameter), grad in zip(parameters.items(), grads, strict=True):
        if path.startswith("distance_head"):
            assert grad is None
            continue
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(1e-5 * direction)
            up = loss()
            parameter.sub_(2e-5 * direction)
            down = loss()
            parameter.add_(1e-5 * direction)
        assert float((up - down) / 2e-5) == pytest.approx(float((grad * direction).sum()), abs=1e-6, rel=1e-4), path


def test_finite_and_full_precision_under_autocast() -> None:
    network = awake(make())
    with torch.autocast("cpu", torch.bfloat16):
        trace = record(network, 100 * image(), LAYERS)
    assert {value.dtype for value in trace.features.values()} == {torch.float32}
    value = AnnotatorSegmentation()(trace, {"annotations": drawn(), "annotated": torch.ones(2, R, dtype=torch.bool)})
    value.backward()
    assert bool(torch.isfinite(value))
    assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters() if p.grad is not None)


def test_state_goes_round(tmp_path: Path) -> None:
    network = awake(make()).eval()
    network.tendency_bank.prototype.normal_()
    torch.save(network.state_dict(), tmp_path / "net.pt")
    other = make().eval()
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    expected = network(image()).annotators
    for same in (other, copy.deepcopy(network)):
        assert torch.equal(same(image()).annotators, expected)
        assert torch.equal(same.tendency_bank.prototype, network.tendency_bank.prototype)


def test_weights_of_other_annotators_are_refused(tmp_path: Path) -> None:
    network, other = awake(make()), make("abx")
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(
        CheckpointError, match=r"checkpoint-annotators.*of the annotators a, b, x, got those of a, b, c"
    ):
        other.load_state_dict(network.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items()), "nothing was loaded"
    write_tensors(tmp_path / "model.pt", network.state_dict())
    with pytest.raises(CheckpointError, match=r"checkpoint-annotators\] file .*model.pt: .*Hint: give the annotators"):
        load_weights(other, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint-mismatch.*has besides tendencies\.2\.gamma"):
        load_weights(make("ab"), tmp_path / "model.pt")
    late = make("ab")
    late.add_annotator("c")
    late.load_state_dict(network.state_dict())
    assert torch.equal(late.annotator_ids, network.annotator_ids)
    with pytest.raises(ValueError, match="ids of at most 64 bytes, got ddd"):
        late.add_annotator("d" * 65)
    assert late.annotators == ("a", "b", "c")


def test_another_annotator_later() -> None:
    network = awake(make()).train()
    network.eval()
    before = network(image())
    added = network.add_annotator("d")
    after = network(image())
    assert network.annotators == ("a", "b", "c", "d")
    assert torch.equal(before.consensus, after.consensus)
    assert torch.equal(before.annotators, after.annotators[:, :R])
    assert sum(p.numel() for p in added) == C * 2 * 8 + 1
    assert {id(p) for p in network.parameters() if p.requires_grad} == {id(p) for p in added}
    assert float(network.prior_weight.sum()) == pytest.approx(1)
    assert network.tendency_bank.prototype.shape == (4 * C, 2, 8)
    optimizer = torch.optim.Adam(added, lr=0.1)
    batch = {"annotations": drawn(annotators=4), "annotated": torch.tensor([[False] * 3 + [True]] * 2)}
    network.train()
    values = []
    statistics = network.backbone[1].running_mean.clone()
    for _ in range(20):
        optimizer.zero_grad()
        loss = AnnotatorSegmentation()(record(network, image(), LAYERS, annotated=batch["annotated"]), batch)
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < values[0] - 0.01
    network.eval()
    assert torch.equal(network.backbone[1].running_mean, statistics)
    assert torch.equal(network(image()).annotators[:, :R], before.annotators)
    with pytest.raises(ValueError, match="annotator 'd' is there already"):
        network.add_annotator("d")


@pytest.mark.parametrize(
    ("backbone", "stride"),
    [
        (SegResNet(init_filters=8, in_channels=2, out_channels=8, blocks_down=(1, 1), blocks_up=(1,)), 2),
        (UNet(3, in_channels=2, out_channels=8, channels=(4, 8), strides=(2,)), 1),
    ],
    ids=["SegResNet", "UNet"],
)
def test_backbones_of_monai(backbone: nn.Module, stride: int) -> None:
    network = AnnotatorTendencyNet(["a", "b"], backbone=backbone, features=8, stride=stride, queue=1024)
    output = network(torch.rand(1, 2, 8, 8, 4))
    assert output.annotators.shape == (1, 2, 4, 8, 8, 4)


def test_default_backbone_and_one_tensor() -> None:
    network = AnnotatorTendencyNet(list("abcdef"), output="consensus")
    backbone = sum(p.numel() for p in network.backbone.parameters())
    more = sum(p.numel() for p in network.parameters()) - backbone
    assert more / backbone < 0.05, "the card allows 5 % more parameters"
    with torch.no_grad():
        assert network(torch.rand(1, 4, 8, 8, 8)).shape == (1, 4, 8, 8, 8)


@pytest.mark.slow
def test_compiles_as_one_graph() -> None:
    network = awake(make()).eval()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    annotated = torch.ones(2, R, dtype=torch.bool)
    assert torch.allclose(compiled(image(), annotated).annotators, network(image(), annotated).annotators, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotators": "ba"}, "annotators must be sorted ids"),
        ({"annotators": "aa"}, "annotators must be sorted ids"),
        ({"annotators": ""}, "annotators must be sorted ids"),
        ({"output": "all"}, "output must be tendency or consensus"),
        ({"stride": 4}, "stride must be 1 or 2"),
        ({"kernel_size": 2}, "size must be 1 or 3"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"queue": 4}, "expected 1 <= least <= newest <= queue"),
    ],
)
def test_exception(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_exception_of_a_call() -> None:
    with pytest.raises(ValueError, match=r"annotated must be \(2, 3\), got \(2, 2\)"):
        make()(image(), torch.ones(2, 2, dtype=torch.bool))
    network = AnnotatorTendencyNet(["a"], backbone=nn.Conv3d(2, 4, 1), features=8)
    with pytest.raises(ValueError, match="backbone must return features B 8 D H W, got"):
        network(image())
    for rho in (torch.ones(2), torch.zeros(3), torch.tensor([1.0, -1, 1])):
        with pytest.raises(ValueError, match="rho must be 3 numbers"):
            make().set_reliability(rho)
    with pytest.raises(ValueError, match=r"shared must be in \[0, 1\)"):
        make().set_reliability(torch.ones(3), shared=1.0)


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.set_num_threads(1)
    network = awake(make()).eval()
    wrapped = DistributedDataParallel(network)
    annotated = torch.tensor([[True, False, False], [False, True, False]])[rank : rank + 1]
    batch = {"annotations": drawn()[rank : rank + 1], "annotated": annotated}
    for _ in range(2):  # a second pass fails where parameters were left out of the first
        network.zero_grad()
        trace = record(wrapped, image()[rank : rank + 1], LAYERS, annotated=annotated)
        (AnnotatorSegmentation()(trace, batch) + trace.features["signed_distance"].mean()).backward()
    if rank == 0:
        torch.save([p.grad for p in network.parameters()], f"{folder}/grads.pt")
    # before the group ends: a reducer that is freed last waits for its thread, which may wait for the interpreter
    del wrapped, trace
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_mean_gradient(tmp_path: Path) -> None:
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)
    network = awake(make()).eval()
    annotated = torch.tensor([[True, False, False], [False, True, False]])
    trace = record(network, image(), LAYERS, annotated=annotated)
    batch = {"annotations": drawn(), "annotated": annotated}
    (AnnotatorSegmentation()(trace, batch) + trace.features["signed_distance"].mean()).backward()
    for found, parameter in zip(torch.load(tmp_path / "grads.pt"), network.parameters(), strict=True):
        assert torch.allclose(found, parameter.grad, atol=1e-6)
