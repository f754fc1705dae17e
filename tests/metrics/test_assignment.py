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

"""Who drew this: posteriors against Bayes' rule voxel by voxel, and the accuracy of names."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from monai_rrr.metrics import (
    annotator_posterior,
    disputed_voxels,
    prototype_purity,
    region_posteriors,
    set_accuracy,
    top_one,
)


def probabilities(annotators: int = 3, shape: tuple[int, ...] = (5, 4, 3), seed: int = 0) -> torch.Tensor:
    logits = 2 * torch.randn(annotators, 4, *shape, generator=torch.Generator().manual_seed(seed))
    return logits.softmax(1)


def test_disputed_voxels_equal_those_of_all_pairs() -> None:
    p = probabilities()
    for place in np.ndindex(5, 4, 3):
        tv = [float((p[a][(slice(None), *place)] - p[b][(slice(None), *place)]).abs().sum() / 2)
              for a, b in itertools.combinations(range(3), 2)]  # fmt: skip
        assert bool(disputed_voxels(p, 0.5)[place]) == (max(tv) > 0.5)


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_posterior_is_bayes_on_disputed_voxels(temperature: float) -> None:
    p, prior = probabilities(), torch.tensor([0.5, 0.2, 0.3])
    mask = torch.randint(-1, 4, (5, 4, 3), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    where = disputed_voxels(p, 0.6)
    logs = prior.double().log().numpy()
    for place in np.ndindex(5, 4, 3):
        if where[place] and mask[place] >= 0:
            logs = logs + [float(p[(r, int(mask[place]), *place)].log()) / temperature for r in range(3)]
    expected = np.exp(logs - logs.max())
    found = annotator_posterior(p, mask, prior, threshold=0.6, temperature=temperature)
    np.testing.assert_allclose(found.numpy(), expected / expected.sum(), rtol=1e-5)


def test_whoever_draws_as_predicted_is_named() -> None:
    p = probabilities(6, (12, 12, 12))
    posteriors = torch.stack([annotator_posterior(p, p[r].argmax(0)) for r in range(6)])
    assert top_one(posteriors, torch.arange(6)) == 1.0
    assert top_one(posteriors, torch.arange(6).roll(1)) == 0.0


def test_where_nothing_is_disputed_the_prior_remains() -> None:
    same = probabilities(1).expand(3, -1, -1, -1, -1)
    prior = torch.tensor([0.5, 0.2, 0.3])
    mask = torch.zeros(5, 4, 3, dtype=torch.long)
    torch.testing.assert_close(annotator_posterior(same, mask, prior), prior.double())
    unknown = torch.full((5, 4, 3), -1)
    torch.testing.assert_close(annotator_posterior(probabilities(), unknown), torch.full((3,), 1 / 3).double())
    regions, posteriors = region_posteriors(same, mask)
    assert not regions.any()
    assert posteriors.shape == (0, 3)
    assert np.isnan(top_one(posteriors, torch.zeros(0, dtype=torch.long)))


def test_every_region_has_its_own_name() -> None:
    """Two annotators, who swap their habits between two regions; the mask is by the first one."""
    p = torch.zeros(2, 2, 9, 3, 3)
    p[:, 0] = 1.0
    for region, wide in ((slice(0, 3), 0), (slice(6, 9), 1)):
        p[wide, :, region] = torch.tensor([0.1, 0.9]).reshape(2, 1, 1, 1)
    mask = torch.zeros(9, 3, 3, dtype=torch.long)
    mask[:3] = 1
    regions, posteriors = region_posteriors(p, mask)
    assert regions[:3].unique().tolist() == [1]
    assert regions[3:6].unique().tolist() == [0]
    assert regions[6:].unique().tolist() == [2]
    assert posteriors.argmax(1).tolist() == [0, 0]
    assert region_posteriors(p, 1 - mask)[1].argmax(1).tolist() == [1, 1]
    assert region_posteriors(p, mask, min_voxels=28)[1].shape == (0, 2)


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


def test_names_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not match probabilities"):
        annotator_posterior(probabilities(), torch.zeros(2, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="temperature must be positive"):
        annotator_posterior(probabilities(), torch.zeros(5, 4, 3, dtype=torch.long), temperature=0.0)
    with pytest.raises(ValueError, match="a threshold in"):
        disputed_voxels(probabilities(), 1.0)
    with pytest.raises(ValueError, match="expected N R and N"):
        top_one(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="expected R X"):
        set_accuracy(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(4))


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
