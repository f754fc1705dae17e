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


"""The preset against section 2 of the method card, written again as loops over samples, modalities and pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from monai_rrr.attribution.trace import Trace
from monai_rrr.objectives import official2d
from monai_rrr.transforms.warp import RandomWarp, Warp

N, SIZE, T = 3, (6, 5), 10.0


def make(modalities: int) -> tuple[Trace, dict, Tensor]:
    generator = torch.Generator().manual_seed(modalities)
    maps = torch.randn(2 * N, modalities, 2, *SIZE, generator=generator)
    maps[0, 0, 1] = -maps[0, 0, 1].abs()  # an all-negative map: relu makes it flat
    maps.requires_grad_(True)
    theta = torch.eye(2, 3).repeat(N, 1, 1)
    theta[0, 0, 0] = -1
    theta[2] = RandomWarp(seed=1, exact=0.0)(torch.zeros(1, 1, *SIZE)).theta[0]
    batch = {"warp": Warp(theta, (True, True, False)), "class_label": torch.tensor([1, 0, 1] * 2)}
    logits = maps.mean((3, 4))
    return (
        Trace(nn.Identity(), ("class_maps",), torch.zeros(2 * N, 1, *SIZE), logits, {"class_maps": maps}),
        batch,
        maps,
    )


def norm(s: Tensor) -> Tensor:
    a = torch.relu(s)
    return torch.relu(a - a.min() - 1e-8) / (a.max() - a.min() + 1e-8)


def softmax(z: Tensor) -> list[Tensor]:
    total = sum(v.exp() for v in z)
    return [v.exp() / total for v in z]


def reference(trace: Trace, batch: dict) -> dict[str, Tensor]:
    maps, y = trace.features["class_maps"], batch["class_label"]
    count = maps.shape[1]
    z = [[[maps[n, i, c].sum() / (SIZE[0] * SIZE[1]) for c in range(2)] for i in range(count)] for n in range(2 * N)]
    moved = [[None] * count for _ in range(N)]
    second = [[norm(maps[N + n, i, 1]) for i in range(count)] for n in range(N)]
    for i in range(count):
        warped = batch["warp"](torch.stack([norm(maps[n, i, 1]) for n in range(N)])[:, None])
        for n in range(N):
            moved[n][i] = warped[n, 0]
    terms = {name: torch.zeros(()) for name in ("classification", "mutual_learning", "within_modal", "cross_modal")}
    pixels = SIZE[0] * SIZE[1]

    def ell(p, q, m):
        total = torch.zeros(())
        for n in range(N):
            a, b = p[n] / p[n].norm().clamp(min=1e-8), q[n] / q[n].norm().clamp(min=1e-8)
            total = total + m[n] * ((a - b) ** 2).sum()
        return total / (N * pixels)

    for i in range(count):
        for view in (0, N):
            ce = sum(-softmax(torch.stack(z[view + n][i]))[int(y[n])].log() for n in range(N)) / N
            terms["classification"] = terms["classification"] + 0.5 * ce
        within = sum(float(y[n]) * ((moved[n][i] - second[n][i]) ** 2).sum() for n in range(N))
        terms["within_modal"] = terms["within_modal"] + within / (N * pixels)
        for j in range(count):
            if i == j:
                continue
            right = [[float(y[n] == 1 and z[v + n][j][1] > z[v + n][j][0]) for n in range(N)] for v in (0, N)]
            one = ell([moved[n][i] for n in range(N)], [second[n][j].detach() for n in range(N)], right[1])
            two = ell([second[n][i] for n in range(N)], [moved[n][j].detach() for n in range(N)], right[0])
            terms["cross_modal"] = terms["cross_modal"] + 0.5 / (count - 1) * (one + two)
            for view in (0, N):
                for n in range(N):
                    p = softmax(torch.stack(z[view + n][j]).detach() / T)
                    q = softmax(torch.stack(z[view + n][i]) / T)
                    kl = sum(a * (a / b).log() for a, b in zip(p, q, strict=True))
                    terms["mutual_learning"] = terms["mutual_learning"] + 0.5 / (count - 1) * T**2 * kl / N
    return terms


@pytest.mark.parametrize("modalities", [2, 4])
def test_reproduces_the_card(modalities):
    trace, batch, maps = make(modalities)
    total, values = official2d()(trace, batch)
    expected = reference(trace, batch)
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value.detach(), rtol=1e-4, atol=1e-7, msg=name)
    weighted = (
        expected["classification"]
        + 0.5 * expected["mutual_learning"]
        + expected["within_modal"]
        + expected["cross_modal"]
    )
    torch.testing.assert_close(total, weighted)
    one, two = (torch.autograd.grad(v, maps)[0] for v in (total, weighted))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-7)


def test_terms_are_not_trivially_zero():
    trace, batch, _ = make(4)
    _, values = official2d()(trace, batch)
    assert all(float(v) > 0 for v in values.values())
    assert values["cross_modal"] < 12 * 2 * 4 / (SIZE[0] * SIZE[1]), "the factor 2 / HW of the card"


def test_one_modality_and_no_positive():
    trace, batch, _ = make(1)
    _, values = official2d()(trace, batch)
    assert values["mutual_learning"] == 0
    assert values["cross_modal"] == 0
    trace, batch, maps = make(2)
    total, values = official2d()(trace, {**batch, "class_label": torch.zeros(2 * N, dtype=torch.long)})
    assert values["within_modal"] == 0
    assert values["cross_modal"] == 0
    total.backward()
    assert torch.isfinite(maps.grad).all()


def test_weights_and_layers():
    objective = official2d("head")
    assert objective.layers == ("head",)
    expected = {"classification": 1.0, "mutual_learning": 0.5, "within_modal": 1.0, "cross_modal": 1.0}
    assert objective.weights_at(0.0) == objective.weights_at(1.0) == expected


def test_margin_regression_at_temperature_ten():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 2.0]]]).repeat(2, 1, 1)
    trace = Trace(nn.Identity(), (), torch.zeros(2, 1, 4, 4), logits, {})
    term = official2d().terms["mutual_learning"]
    assert float(term(trace, {})) == pytest.approx(2 * 4 / 8, rel=0.02)
    assert math.isclose(term.temperature, 10.0)
