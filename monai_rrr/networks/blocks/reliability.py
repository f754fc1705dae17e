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

"""How far each modality can be trusted for each class, learned from the tags."""

import torch
from torch import Tensor, nn

__all__ = ["Reliability"]


class Reliability(nn.Module):
    r"""Weights of the modalities per class, from a running mean of their tag losses.

    .. math:: w_{mc} = \exp(-l_{mc} / \tau) / \sum_j \exp(-l_{jc} / \tau), \quad
              l \leftarrow \mu l + (1 - \mu)\, \mathrm{BCE}

    A modality that tells the tags of a class better counts more for that class, in cross-modal equivariance and in
    the fusion of maps: T1c teaches ET, FLAIR and T2 teach WT. Only tags enter. Uniform until the first update.

    Args:
        count: modalities.
        classes: classes.
        temperature: ``tau``, in nats; infinity gives equal weights.
        momentum: ``mu``.

    Shape:
        - output: ``M K``, columns sum to 1.
    """

    tag_loss: Tensor

    def __init__(self, count: int, classes: int, temperature: float = 0.1, momentum: float = 0.98) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("tag_loss", torch.full((count, classes), 0.6931))

    def forward(self) -> Tensor:
        """Return the weights."""
        return torch.softmax(-self.tag_loss / self.temperature, 0)

    @torch.no_grad()
    @torch.jit.unused
    def update(self, loss: Tensor, count: Tensor) -> None:
        """Move the running mean towards ``loss`` (``M K``, mean tag loss) where ``count`` (``M K``) is above 0."""
        if loss.shape != self.tag_loss.shape or count.shape != self.tag_loss.shape:
            raise ValueError(f"expected {self.tag_loss.shape}, got loss {loss.shape} and count {count.shape}")
        moved = self.momentum * self.tag_loss + (1 - self.momentum) * loss.to(self.tag_loss)
        self.tag_loss.copy_(torch.where(count > 0, moved, self.tag_loss))
