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

"""Prototypes: typical embeddings of groups of voxels, kept up to date without gradient."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import Tensor, nn

from monai_rrr.networks.blocks.prototype_push import NEAREST, SOURCE, nearest_embeddings, pushed
from monai_rrr.networks.blocks.sinkhorn import sinkhorn

__all__ = ["PrototypeBank"]


class PrototypeBank(nn.Module):
    r"""``K`` prototypes for each of ``G`` groups, all of it in buffers.

    .. math:: p_k \leftarrow \mathrm{normalize}\Big(\mu\, p_k + (1 - \mu) \frac{\sum_n Q_{nk} g_n}{\sum_n Q_{nk}}\Big)

    with :math:`Q` of :func:`~monai_rrr.networks.blocks.sinkhorn.sinkhorn` within the group, over the newest embeddings
    of its queue. A prototype of zeros is one that is not there yet. Nothing waits for the device: groups without
    samples are left out by masks.

    Args:
        groups: ``G``.
        slots: ``K``.
        width: dimensions ``E`` of an embedding.
        queue: embeddings of a group that are remembered, first in, first out.
        newest: of them, those that move the prototypes.
        least: embeddings that a group needs for that.
        epsilon: softness of the assignment.
        patience: updates of its group after which a prototype that was nearest to no embedding is replaced by the
            embedding that is least like any prototype of its group.

    Attributes:
        prototype: ``G K E``.
        source: ``G K S`` whole numbers, see :data:`~monai_rrr.networks.blocks.prototype_push.SOURCE`; -1: none.
        nearest_source, nearest_similarity: ``G K N S`` and ``G K N``, the training embeddings most like a prototype.
        frozen: ``G`` boolean, groups that were pushed.
    """

    prototype: Tensor
    source: Tensor
    nearest_source: Tensor
    nearest_similarity: Tensor
    unused: Tensor
    queue: Tensor
    entered: Tensor
    frozen: Tensor

    def __init__(
        self,
        groups: int,
        slots: int,
        width: int,
        queue: int = 4096,
        newest: int = 1024,
        least: int = 8,
        epsilon: float = 0.05,
        patience: int = 500,
    ) -> None:
        super().__init__()
        if not 1 <= least <= newest <= queue:
            raise ValueError(f"expected 1 <= least <= newest <= queue, got {least}, {newest} and {queue}")
        self.newest, self.least, self.epsilon, self.patience = newest, least, epsilon, patience
        self.register_buffer("prototype", torch.zeros(groups, slots, width))
        self.register_buffer("source", torch.full((groups, slots, len(SOURCE)), -1))
        self.register_buffer("nearest_source", torch.full((groups, slots, NEAREST, len(SOURCE)), -1))
        self.register_buffer("nearest_similarity", torch.full((groups, slots, NEAREST), -1.0))
        self.register_buffer("unused", torch.zeros(groups, slots, dtype=torch.int64))
        # the entry after the last takes what is not to be kept
        self.register_buffer("queue", torch.zeros(groups, queue + 1, width))
        self.register_buffer("entered", torch.zeros(groups, dtype=torch.int64))
        self.register_buffer("frozen", torch.zeros(groups, dtype=torch.bool))

    @property
    def capacity(self) -> int:
        """Embeddings of a group that are remembered."""
        return self.queue.shape[1] - 1

    @torch.no_grad()
    def observe(self, embedding: Tensor, member: Tensor, momentum: float | None = None, most: int = 256) -> None:
        """Remember embeddings, and move the prototypes of the groups that got some.

        Args:
            embedding: ``n E``, of norm 1.
            member: ``G n`` boolean: which embeddings belong to which group; any number of groups each.
            momentum: ``mu``; ``None`` only remembers.
            most: new embeddings of a group, the first ones.

        Raises:
            ValueError: When the shapes do not fit.
        """
        groups, _, width = self.prototype.shape
        if embedding.shape[1:] != (width,) or member.shape != (groups, len(embedding)):
            raise ValueError(
                f"expected embedding n {width} and member {groups} n, got {tuple(embedding.shape)}, "
                f"{tuple(member.shape)}"
            )
        member = member & ~self.frozen[:, None]
        most = min(most, len(embedding), self.capacity)
        # a stable order: the first members come first, then those that are none
        index = (~member).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        entering = member.gather(1, index)
        position = (self.entered[:, None] + torch.arange(most, device=index.device)) % self.capacity
        position = torch.where(entering, position, self.capacity)
        rows = torch.arange(groups, device=index.device)[:, None]
        self.queue[rows, position] = embedding.to(self.queue.dtype)[index]
        self.queue[:, -1] = 0
        self.entered += entering.sum(1)
        if momentum is not None:
            self._move(entering.any(1), momentum)

    def _move(self, fresh: Tensor, momentum: float) -> None:
        back = torch.arange(self.newest, device=fresh.device)
        count = self.entered.clamp(max=self.newest)
        valid = back < count[:, None]
        index = (self.entered[:, None] - 1 - back) % self.capacity
        recent = self.queue.gather(1, index[..., None].expand(-1, -1, self.queue.shape[2]))
        there = self.prototype.square().sum(-1) > 0
        moving = fresh & there.all(1) & (count >= self.least)
        similarity = torch.einsum("gne,gke->gnk", recent, self.prototype)
        share = sinkhorn(similarity, valid, self.epsilon)
        mean = torch.einsum("gnk,gne->gke", share, recent) / share.sum(1).clamp(min=1e-12)[..., None]
        moved = F.normalize(momentum * self.prototype + (1 - momentum) * mean, dim=-1)
        nearest = F.one_hot(similarity.argmax(2), self.prototype.shape[1]).bool() & valid[..., None]
        unused = torch.where(nearest.any(1), 0, self.unused + 1)
        # one prototype of a group at a time: two would land on the same embedding
        late = unused.argmax(1)
        due = unused.gather(1, late[:, None])[:, 0] >= self.patience
        odd = torch.where(valid, similarity.amax(2), torch.inf).argmin(1)
        replaced = F.one_hot(late, self.prototype.shape[1]).bool() & due[:, None]
        moved = torch.where(replaced[..., None], recent.gather(1, odd[:, None, None].expand_as(recent[:, :1])), moved)
        self.prototype.copy_(torch.where(moving[:, None, None], moved, self.prototype))
        self.unused.copy_(torch.where(moving[:, None], torch.where(replaced, 0, unused), self.unused))

    @torch.no_grad()
    def initialize(self, seed: int = 0) -> int:
        """Start the groups that have no prototypes yet, by k-means of what they remember; waits for the device.

        Returns:
            how many groups were started: those that remember enough.
        """
        started = 0
        slots = self.prototype.shape[1]
        there = ((self.prototype.square().sum(-1) > 0).all(1) | self.frozen).tolist()
        for group, entered in enumerate(self.entered.tolist()):
            if there[group] or entered < max(self.least, slots):
                continue
            points = self.queue[group, : min(entered, self.capacity)].double().cpu().numpy()
            centers = KMeans(slots, n_init=1, random_state=seed).fit(points).cluster_centers_
            self.prototype[group] = F.normalize(torch.as_tensor(centers).to(self.prototype), dim=-1)
            started += 1
        return started

    @torch.no_grad()
    def randomize(self, seed: int = 0) -> None:
        """Put random directions in place of all prototypes and freeze them: a control. They stand for no place."""
        generator = torch.Generator().manual_seed(seed)
        self.prototype.copy_(F.normalize(torch.randn(self.prototype.shape, generator=generator), dim=-1))
        self.source.fill_(-1)
        self.nearest_source.fill_(-1)
        self.frozen.fill_(True)

    @torch.no_grad()
    def push(self, candidates: Iterable[tuple[Tensor, Tensor, Tensor]], apart: int = 2) -> None:
        """Replace every prototype by the most similar real embedding of its group, and freeze the groups.

        Two prototypes of a group never become the same place: candidates of the same case within ``apart`` voxels of
        one that is taken are passed over. A prototype for which none is left is cleared, so that each one that stays
        can be shown. Groups that are frozen already stay as they are.

        Args:
            candidates: of all training cases: embeddings ``n E``, groups ``n``, sources ``n S``.
            apart: voxels.
        """
        best = nearest_embeddings(self.prototype, candidates, apart)
        prototype, source = pushed(best, apart)
        open_groups = ~self.frozen
        for buffer, found in (
            (self.prototype, prototype),
            (self.source, source),
            (self.nearest_source, best.source),
            (self.nearest_similarity, best.similarity),
        ):
            buffer[open_groups] = found[open_groups]
        self.frozen.fill_(True)

    @torch.no_grad()
    def extend(self, groups: int) -> None:
        """Add empty groups at the end."""
        fills = {"source": -1, "nearest_source": -1, "nearest_similarity": -1}
        for name, buffer in list(self.named_buffers(recurse=False)):
            more = buffer.new_full((groups, *buffer.shape[1:]), fills.get(name, 0))
            self.register_buffer(name, torch.cat([buffer, more]))
