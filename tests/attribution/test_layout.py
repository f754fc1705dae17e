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
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock

from monai_rrr.attribution import ChannelsLast, TokenGrid


def test_token_grid_is_the_order_of_monai() -> None:
    """A patch embedding that copies its patch leaves the first voxel of every patch at its place in the grid."""
    embed = PatchEmbeddingBlock(1, (4, 6, 8), (2, 2, 2), hidden_size=1, num_heads=1, proj_type="conv")
    image = torch.rand(1, 1, 4, 6, 8)
    with torch.no_grad():
        embed.patch_embeddings.weight.zero_()[..., 0, 0, 0] = 1
        embed.patch_embeddings.bias.zero_()
        embed.position_embeddings.zero_()
    tokens = embed(image)
    grid = TokenGrid((2, 3, 4))(tokens)
    assert torch.equal(grid[0, 0], image[0, 0, ::2, ::2, ::2])


def test_token_grid_skips_leading_tokens() -> None:
    tokens = torch.arange(5.0).reshape(1, 5, 1)
    assert TokenGrid((2, 2), skip=1)(tokens).flatten().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("shape", [(1, 8, 3), (1, 3, 3, 3)])
def test_tokens_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected tokens of shape B 9 C, got \(1, "):
        TokenGrid((2, 2, 2), skip=1)(torch.zeros(shape))


def test_channels_last() -> None:
    features = torch.rand(2, 3, 4, 5, 6)
    assert torch.equal(ChannelsLast()(features)[1, 5], features[1, ..., 5])
