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

"""Make the probabilities of consensus and annotators as sure as they are right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import exp, log
from typing import Any, cast

import torch
from ignite import distributed as idist
from ignite.engine import Engine, Events
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import one_hot

from monai_rrr.attribution.exclusive import evaluating
from monai_rrr.networks.nets.annotator_tendency import AnnotatorTendencyNet
from monai_rrr.transforms.vote_share import vote_share
from monai_rrr.utils.seeds import derive_seed

__all__ = ["AnnotatorTemperature", "best_temperature"]

_LIMIT = 10.0


class AnnotatorTemperature:
    r"""When training ends, choose the temperatures of the consensus and of every annotator.

    .. math:: T_r = \operatorname{argmin}_T -\operatorname{mean}_v \log \operatorname{softmax}_c(z_{r,c}(v) / T)
              [y_r(v)]

    over voxels ``v`` of the brain, of what the annotator drew; of the consensus, against the votes. Outlines do not
    change, as the most likely class stays; how sure they are does, and with it the mean probability and who is named.
    On training cases a network is surer than elsewhere: give cases that it did not see, and not those that it is tested
    on. An annotator who drew none of them keeps the temperature there is. Written to the network's buffer
    ``temperatures``, which is saved with the weights; with several processes the first one computes and the others
    receive.

    Args:
        network: unwrapped.
        inferer: probabilities ``B 1+R C XYZ``, the consensus first, from an image and the network:
            :class:`~monai_rrr.inferers.AnnotatorInferer`.
        data: batches of whole volumes with ``image``, ``annotations`` and ``annotated``.
        device: where to compute.
        voxels: drawn of each volume at most.
        seed: of the draw.

    Reference:
        Guo et al., On calibration of modern neural networks, ICML 2017: one temperature per network; one per annotator
        is that of our card.
    """

    def __init__(
        self,
        network: AnnotatorTendencyNet,
        inferer: Callable[..., Tensor],
        data: Iterable[Mapping[str, Any]],
        device: str | torch.device = "cpu",
        voxels: int = 65536,
        seed: int = 0,
    ) -> None:
        self.network, self.inferer, self.data = network, inferer, data
        self.device, self.voxels, self.seed = torch.device(device), voxels, seed

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Choose, and set."""
        temperatures = self.network.temperatures
        if idist.get_rank() == 0:
            temperatures.copy_(self.solve())
        if idist.get_world_size() > 1:
            temperatures.copy_(cast(Tensor, idist.broadcast(temperatures, src=0)))

    @torch.no_grad()
    def solve(self) -> Tensor:
        """Temperatures ``1+R`` of the network as it is."""
        found = self.network.temperatures.clone()
        with evaluating(self.network):
            parts = [part for index, batch in enumerate(self.data) for part in self._drawn(batch, index)]
        if not parts:
            return found
        logits, target = (torch.cat(values) for values in zip(*parts, strict=True))
        known = target.sum(2) > 0
        for row in range(len(found)):
            if bool(known[:, row].any()):
                # the probabilities come from logits that were divided by the temperature there is
                found[row] *= best_temperature(logits[known[:, row], row], target[known[:, row], row])
        return found

    def _drawn(self, batch: Mapping[str, Any], index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits and what was drawn, ``n 1+R C`` each, 0 where nobody drew: voxels of each volume of a batch."""
        image, annotated = batch["image"].to(self.device), batch["annotated"].to(self.device).bool()
        probability = self.inferer(image, self.network)
        drawn = torch.where(annotated[:, :, None, None, None], batch["annotations"].to(self.device).long(), -1)
        classes = probability.shape[2]
        own = one_hot(drawn.clamp(min=0), classes).movedim(-1, 2) * (drawn >= 0)[:, :, None]
        target = torch.cat([vote_share(drawn, annotated, classes)[:, None], own], 1)
        for b, brain in enumerate((image != 0).any(1)):
            places = brain.flatten().nonzero()[:, 0]
            generator = torch.Generator().manual_seed(derive_seed(self.seed, index, b))
            places = places[torch.randperm(len(places), generator=generator)[: self.voxels].to(places.device)]
            values = (probability[b].clamp(min=1e-12).log(), target[b])
            logits, drawn_here = (value.flatten(2)[..., places].permute(2, 0, 1).double().cpu() for value in values)
            yield logits, drawn_here


def best_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature in [0.1, 10] with the least cross-entropy.

    Args:
        logits: ``n C``.
        target: ``n C``, probabilities.
    """

    def cost(logarithm: float) -> float:
        return -float((target * (logits / exp(logarithm)).log_softmax(1)).sum(1).mean())

    return exp(float(minimize_scalar(cost, bounds=(-log(_LIMIT), log(_LIMIT)), method="bounded").x))
