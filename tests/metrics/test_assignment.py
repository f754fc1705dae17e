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

"""Who drew this: the accuracy of names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_rrr.metrics import prototype_purity, set_accuracy, top_one


def test_top_one() -> None:
    posteriors = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.4, 0.3, 0.3]])
    assert top_one(posteriors, torch.tensor([0, 1, 0])) == 1.0
    assert top_one(posteriors, torch.tensor([0, 1, 2])) == pytest.approx(2 / 3)
    assert np.isnan(top_one(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)))
    with pytest.raises(ValueError, match="expected N R and N"):
        top_one(posteriors, torch.tensor([0, 1]))


def test_set_accuracy_equals_a_count_voxel_by_voxel() -> None:
    generator = torch.Generator().manual_seed(0)
    who = torch.rand(4, 6, 5, 4, generator=generator)
    annotations = torch.randint(-1, 3, (4, 6, 5, 4), generator=generator)
    emitted = torch.randint(0, 3, (6, 5, 4), generator=generator)
    right, chance = [], []
    for place in np.ndindex(6, 5, 4):
        said = [int(annotations[(r, *place)]) for r in range(4)]
        same = {r for r in range(4) if said[r] == int(emitted[place])}
        if same and len(same) < sum(one >= 0 for one in said):
            right.append(int(who[(slice(None), *place)].argmax()) in same)
            chance.append(len(same) / 4)
    found = set_accuracy(who, annotations, emitted)
    assert found.voxels == len(right) > 20
    assert found.accuracy == pytest.approx(np.mean(right))
    assert found.chance == pytest.approx(np.mean(chance))
    assert found.lift == pytest.approx(np.mean(right) / np.mean(chance))


def test_naming_the_one_who_drew_it_is_always_right() -> None:
    annotations = torch.randint(0, 3, (4, 6, 6, 6), generator=torch.Generator().manual_seed(0))
    who = torch.nn.functional.one_hot(torch.full((6, 6, 6), 2), 4).movedim(-1, 0)
    found = set_accuracy(who, annotations, annotations[2])
    assert found.accuracy == 1.0
    assert found.lift > 1.5
    assert np.isnan(set_accuracy(who, annotations[:1].expand(4, -1, -1, -1), annotations[0]).lift)


def test_purity_equals_a_search() -> None:
    generator = torch.Generator().manual_seed(0)
    prototypes, embeddings = (torch.randn(n, 8, generator=generator) for n in (5, 60))
    names, embedding_names = (torch.randint(0, 3, (n,), generator=generator) for n in (5, 60))
    found = prototype_purity(prototypes, names, 7 * embeddings, embedding_names)
    for index in range(5):
        cosine = [float(torch.cosine_similarity(prototypes[index], one, dim=0)) for one in embeddings]
        nearest = np.argsort(cosine)[-10:]
        assert float(found[index]) == pytest.approx(np.mean([embedding_names[n] == names[index] for n in nearest]))
    with pytest.raises(ValueError, match="expected 1 to 60 neighbors, got 61"):
        prototype_purity(prototypes, names, embeddings, embedding_names, 61)
    with pytest.raises(ValueError, match="expected P E, P, N E and N"):
        prototype_purity(prototypes, names, embeddings[:, :4], embedding_names)
