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

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet
from monai.transforms import Compose, CropForeground, Orientation
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from monai_rrr.engines import PrepareAnnotations
from monai_rrr.errors import DataError
from monai_rrr.handlers import PrototypeUpdate
from monai_rrr.inferers import RegionTendency, tendency_maps
from monai_rrr.networks import AnnotatorTendencyNet, MultimodalCAMNet, RightReasonsNet
from monai_rrr.report import RegionChoice, SaveTendencyd, write_tendency
from monai_rrr.report.tendency_case import Departure, RegionWhy

SIDE, SPACING = 16, 2.0
NAMES = ("background", "core", "edema")
MODALITIES = ("t1c", "flair")
LAS = np.array([[-SPACING, 0, 0, 40.0], [0, SPACING, 0, -30.0], [0, 0, SPACING, 5.0], [0, 0, 0, 1]])


def toy_case(index: int) -> dict[str, Any]:
    """A ball in a ball in a brain; one annotator draws 3 mm more, one 3 mm less."""
    generator = torch.Generator().manual_seed(index)
    center = 7 + 2 * torch.rand(3, 1, 1, 1, generator=generator)
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(SIDE))] * 3, indexing="ij"))
    distance = (grid - center).square().sum(0).sqrt()
    radius = 4 + torch.rand(1, generator=generator)
    image = 1 + torch.stack([(distance < 0.6 * radius).float(), (distance < radius).float()])
    image = image + 0.1 * torch.randn(image.shape, generator=generator)

    def drawn(offset: float) -> Tensor:
        return torch.where(distance < 0.6 * radius, 1, torch.where(distance < radius + offset, 2, 0))

    image = MetaTensor(image - 1.4, affine=torch.diag(torch.tensor([SPACING, SPACING, SPACING, 1.0])))
    return {
        "image": image,
        "annotations": torch.stack([drawn(1.5), drawn(-1.5), drawn(0.0)]),
        "annotated": torch.ones(3, dtype=torch.bool),
        "case_id": f"t {index}",
    }


class Toy:
    """A network that has learned what annotators do, and the cases it learned from."""

    def __init__(self, classes: int = 3) -> None:
        torch.manual_seed(0)
        self.cases = [toy_case(index) for index in range(4)]
        backbone = UNet(3, in_channels=2, out_channels=8, channels=(8, 16), strides=(2,), norm="batch")
        self.network = AnnotatorTendencyNet(
            ["a_large", "b_small", "c_plain"],
            num_classes=classes,
            backbone=backbone,
            features=8,
            regions=2,
            width=16,
            slots=2,
            shared_slots=2,
            queue=1024,
        )
        images = torch.stack([case["image"].as_tensor() for case in self.cases])
        drawn = torch.stack([case["annotations"] for case in self.cases])
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.02)
        for _ in range(40):
            logits = self.network(images).annotators
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), drawn.flatten(0, 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.prepare = PrepareAnnotations(
            num_classes=classes, spacing=(SPACING,) * 3, regions=((1, 2), (1,)), voxels=64
        )
        plain = [{**case, "image": case["image"].as_tensor()} for case in self.cases]
        PrototypeUpdate(self.network, DataLoader(plain, batch_size=4), self.prepare).push()
        self.unseen = toy_case(100)
        # a file in another orientation, with air around it
        image = self.unseen["image"].as_tensor().flip(1)
        self.image = MetaTensor(
            torch.nn.functional.pad(image, (1, 2, 0, 3, 4, 0)),
            affine=torch.from_numpy(LAS),
            meta={"source_sha256": {"flair": "0" * 64}},
        )
        self.truth = [np.pad(mask.flip(0).numpy(), ((4, 0), (0, 3), (1, 2))) for mask in self.unseen["annotations"]]


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="module")
def files(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write(toy, tmp_path_factory.mktemp("tendency"))


def prepare() -> Compose:
    return Compose([Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))), CropForeground(lambda x: x != 0)])


def write(toy: Toy, out: Path, **more: Any) -> dict[str, Path]:
    options: dict[str, Any] = {"names": NAMES, "preprocessing": prepare(), "training_cases": toy.cases} | more
    written = write_tendency(toy.network, toy.image, "a/b", out, MODALITIES, **options)
    assert {path.parent.name for path in written} == {"a%2Fb"}
    return {path.name.removeprefix("a%2Fb_"): path for path in written}


def values(path: Path) -> Any:
    return np.asarray(nib.load(path).dataobj)


def dice(one: Any, other: Any) -> float:
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def test_all_files_are_there_and_lie_where_the_image_lies(toy: Toy, files: dict[str, Path]) -> None:
    names = [name for name in files if name.endswith(".nii.gz")]
    annotators = toy.network.annotators
    maps = ["prob_mean", "who", "who_prob", "disagreement_entropy", "disagreement_js", "disagreement_region"]
    segmentations = ["seg_consensus", "seg_mixture", *(f"seg_{name}" for name in annotators)]
    tendencies = [f"tendency_{name}" for name in annotators]
    assert sorted(names) == sorted(f"{name}.nii.gz" for name in (*maps, *segmentations, *tendencies))
    assert list(files)[-1] == "provenance.json"
    assert {"why.json", "why.html", "why_1.png"} <= set(files)
    for name in names:
        image = nib.load(files[name])
        assert image.shape[:3] == toy.image.shape[1:]
        np.testing.assert_allclose(image.affine, LAS)
    assert nib.load(files["prob_mean.nii.gz"]).shape[3:] == (3,)
    assert nib.load(files["who_prob.nii.gz"]).shape[3:] == (4,)
    seen = sitk.ReadImage(str(files["who_prob.nii.gz"]))
    assert seen.GetSize() == (*toy.image.shape[1:], 4)
    np.testing.assert_allclose(seen.GetOrigin()[:3], (-40.0, 30.0, 5.0), atol=1e-5)


def test_every_annotator_has_an_outline_of_its_own(toy: Toy, files: dict[str, Path]) -> None:
    outlines = [values(files[f"seg_{name}.nii.gz"]) > 0 for name in toy.network.annotators]
    for r, truth in enumerate(toy.truth):
        scores = [dice(outline, truth > 0) for outline in outlines]
        assert scores[r] == max(scores) > 0.8, (r, scores)
    larger, smaller = (values(files[f"tendency_{name}.nii.gz"]) for name in ("a_large", "b_small"))
    between = (toy.truth[0] > 0) & (toy.truth[1] == 0)
    assert larger[between].mean() > 0 > smaller[between].mean()


def test_maps_agree_with_each_other_and_with_the_network(toy: Toy, files: dict[str, Path]) -> None:
    mean, who = values(files["prob_mean.nii.gz"]), values(files["who_prob.nii.gz"])
    np.testing.assert_allclose(mean.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(who.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(values(files["who.nii.gz"]), who.argmax(-1))
    entropy, js = (values(files[f"disagreement_{name}.nii.gz"]) for name in ("entropy", "js"))
    assert (js <= entropy + 1e-6).all()
    assert js.min() >= 0
    assert js.max() > 0.1
    np.testing.assert_allclose(entropy, -(mean * np.log2(np.maximum(mean, 1e-30))).sum(-1), atol=1e-4)
    maps = tendency_maps(toy.network, toy.unseen["image"].as_tensor()[None])
    inside = values(files["seg_mixture.nii.gz"])[4:, :-3, 1:-2][::-1]
    np.testing.assert_array_equal(inside, maps.label[0].numpy())
    outside = np.ones(toy.image.shape[1:], bool)
    outside[4:, :-3, 1:-2] = False
    assert (mean[outside] == (1, 0, 0)).all()
    assert not values(files["who.nii.gz"])[outside].any()


def test_why_names_habits_and_their_sources(toy: Toy, files: dict[str, Path]) -> None:
    found = json.loads(files["why.json"].read_text("utf-8"))
    assert (found["case"], found["annotators"]) == ("a/b", list(toy.network.annotators))
    assert "not an error" in found["note"]
    regions = values(files["disagreement_region.nii.gz"])
    assert len(found["regions"]) == regions.max() >= 1
    for entry in found["regions"]:
        inside = regions == entry["region"]
        assert entry["volume_mm3"] == pytest.approx(inside.sum() * SPACING**3)
        assert inside[tuple(round(x) for x in entry["voxel"])]
        np.testing.assert_allclose(LAS[:3, :3] @ entry["voxel"] + LAS[:3, 3], entry["mm"], atol=1e-3)
        assert sum(entry["who"].values()) == pytest.approx(1, abs=1e-3)
        assert max(entry["who"], key=entry["who"].get) == entry["most_like"]
        assert entry["most_like"] in entry["sentence"]
        assert entry["counterfactual"].startswith(f"Without {entry['most_like']}, the label of most of the region")
        assert 1 <= len(entry["prototypes"]) <= 3
        for source in entry["prototypes"]:
            index, r = int(source["case"].split()[1]), list(toy.network.annotators).index(source["annotator"])
            assert source["annotator"] == entry["most_like"]
            assert NAMES[toy.cases[index]["annotations"][(r, *source["voxel"])]] == source["drawn"]
            assert source["drawn"] != source["consensus"]
            np.testing.assert_allclose(source["mm"], SPACING * np.asarray(source["voxel"]))
            assert -1 <= source["cosine"] <= 1
            assert len(source["nearest"]) >= 1
    text = json.dumps(found).lower()
    assert not [word for word in ("wrong", "blame", "mistake", "fault", "bad") if word in text]


def test_page_holds_sentences_and_pictures(files: dict[str, Path]) -> None:
    found, page = json.loads(files["why.json"].read_text("utf-8")), files["why.html"].read_text("utf-8")
    for entry in found["regions"]:
        assert entry["sentence"] in page
        assert entry["counterfactual"] in page
    assert page.count('src="data:image/png;base64,') == page.count("src=") == len(found["regions"])
    assert "http" not in page


def outlined(path: Path) -> int:
    """How many pixels have the color of an annotator's outline."""
    with Image.open(path) as picture:
        colors = np.asarray(picture.convert("RGB")).astype(int)
    return int((np.abs(colors - (0xE6, 0x9F, 0x00)).max(2) < 12).sum())


def test_pictures(toy: Toy, files: dict[str, Path], tmp_path: Path) -> None:
    with Image.open(files["why_1.png"]) as picture:
        colors = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    for color in ((0xE6, 0x9F, 0x00), (0x56, 0xB4, 0xE9)):
        assert (np.abs(colors - color).max(1) < 12).sum() > 300
    stale = tmp_path / "a%2Fb" / "a%2Fb_why_9.png"
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier run")
    again = write(toy, tmp_path, choice=RegionChoice(most=1))
    assert not stale.exists()
    assert [name for name in again if name.endswith(".png")] == ["why_1.png"]
    assert again["seg_a_large.nii.gz"].read_bytes() == files["seg_a_large.nii.gz"].read_bytes()


def test_label_values_and_a_case_without_disagreement(toy: Toy, tmp_path: Path) -> None:
    found = write(toy, tmp_path, values=(0, 4, 2), choice=RegionChoice(threshold=1.0))
    assert set(np.unique(values(found["seg_a_large.nii.gz"]))) == {0, 2, 4}
    assert json.loads(found["why.json"].read_text("utf-8"))["regions"] == []
    assert not [name for name in found if name.endswith(".png")]


def test_without_the_training_cases(toy: Toy, files: dict[str, Path], tmp_path: Path) -> None:
    found = write(toy, tmp_path, training_cases=None)
    known, alone = (json.loads(paths["why.json"].read_text("utf-8")) for paths in (files, found))
    for one, other in zip(known["regions"], alone["regions"], strict=True):
        for full, bare in zip(one["prototypes"], other["prototypes"], strict=True):
            assert (full["case"], bare["case"]) == (f"t {full['case_number']}", None)
            assert bare["case_number"] == full["case_number"]
            assert bare["voxel"] == full["voxel"]
            assert "mm" not in bare
    assert 0 < outlined(found["why_1.png"]) < outlined(files["why_1.png"]), "the case alone"


def sample_of(toy: Toy) -> dict[str, Any]:
    """The unseen case as a bundle has it: on the grid of the network, and where its file lies."""
    image = toy.unseen["image"].as_tensor()
    lies = np.diag([SPACING, SPACING, SPACING, 1.0])
    file = np.diag([-SPACING, SPACING, SPACING, 1.0])
    file[0, 3] = SPACING * (SIDE + 3)
    geometry = {"affine": lies, "source_affine": file, "source_shape": np.array([SIDE + 5, SIDE, SIDE])}
    return {"case_id": "b", "image": image, "geometry": geometry, "source_sha256": {"flair": "1" * 64, "t1": ""}}


def saver(toy: Toy, out: Path, **options: Any) -> SaveTendencyd:
    """Four classes, as bundles have: the third is never drawn."""
    return SaveTendencyd(str(out), toy.network, "brats2018", MODALITIES, **options)


def test_last_step_of_a_bundle(tmp_path: Path) -> None:
    toy = Toy(classes=4)
    sample = sample_of(toy)
    image = sample["image"]
    image[:, 0] = 0  # air
    cases = [{**case, "image": case["image"].as_tensor(), "geometry": {**sample["geometry"]}} for case in toy.cases]
    probability = tendency_maps(toy.network, image[None]).probability[0]
    averaged = 0.9 * probability + 0.1 * probability.mean(0)
    result = saver(toy, tmp_path, training_cases=cases)({**sample, "pred": averaged})
    assert result["pred"] is averaged
    found = {path.name.removeprefix("b_"): path for path in (tmp_path / "b").iterdir()}
    assert {"why.json", "why_1.png", "provenance.json"} <= set(found)
    assert json.loads(found["provenance.json"].read_text())["inputs"] == {"flair": "1" * 64}
    shape, there = (SIDE + 5, SIDE, SIDE), slice(4, SIDE + 4)
    for index, name in enumerate(("consensus", *toy.network.annotators)):
        label = values(found[f"seg_{name}.nii.gz"])
        assert label.shape == shape
        expected = averaged[index].argmax(0).numpy()[::-1]
        np.testing.assert_array_equal(label[there], np.array([0, 1, 2, 4])[expected])
        assert not label[:4].any()
    who = values(found["who_prob.nii.gz"])
    np.testing.assert_allclose(who.sum(-1), 1, atol=1e-5)
    assert (who[there][-1, :, :, 0] == 1).all(), "what lies outside of the brain is shared"
    case = json.loads(found["why.json"].read_text())["regions"][0]["prototypes"][0]
    assert case["case"] == f"t {case['case_number']}"
    np.testing.assert_allclose(case["mm"], SPACING * np.asarray(case["voxel"]))
    with pytest.raises(ValueError, match="expected probability"):
        saver(toy, tmp_path / "other")({**sample, "pred": averaged[1:]})
    assert not (tmp_path / "other").exists()


def test_random_prototypes_stand_for_no_patch(tmp_path: Path) -> None:
    toy = Toy(classes=4)
    for bank in (toy.network.shared_bank, toy.network.tendency_bank):
        bank.randomize(0)
    sample = sample_of(toy)
    maps = tendency_maps(toy.network, sample["image"][None])
    saver(toy, tmp_path)({**sample, "pred": maps.probability[0]})
    record = json.loads((tmp_path / "b" / "b_why.json").read_text())
    assert record["regions"]
    assert all(region["prototypes"] == [] for region in record["regions"])


def test_a_saver_needs_the_four_classes(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 3 names of classes"):
        saver(toy, tmp_path)


@pytest.mark.parametrize(
    ("departure", "kind", "words"),
    [
        (Departure(2, 0), "more", "draws edema where the consensus has background"),
        (Departure(0, 2), "less", "does not draw the edema of the consensus"),
        (Departure(1, 2), "class", "draws core where the consensus has edema"),
        (Departure(1, 1), "none", "as the consensus"),
    ],
)
def test_words(departure: Departure, kind: str, words: str) -> None:
    assert (departure.kind, departure.words(NAMES)) == (kind, words)


@pytest.mark.parametrize(
    ("posterior", "share", "words"),
    [
        ((0.61, 0.39), 0.5, "most like the outlines of a (61 %), who tends to draw larger here: draws edema where"),
        ((0.59, 0.41), 0.5, "No annotator stands out here; the result is slightly more like a (59 %), who tends to"),
        ((0.9, 0.1), 0.05, "who mostly draws the same as the consensus here and draws edema where"),
    ],
)
def test_sentences_claim_no_more_than_there_is(posterior: tuple[float, ...], share: float, words: str) -> None:
    found = RegionTendency(1, 8, posterior, 0, (), 2, 0)
    one = RegionWhy(found, (0, 0, 0), Departure(2, 0), share, 0.5, (), (), ((0, 1),) * 3)
    assert words in one.sentence(("a", "b"), NAMES)


def test_exception(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 3 values and 2 modalities"):
        write(toy, tmp_path, values=(0, 1))
    with pytest.raises(ValueError, match="expected 3 names of classes"):
        write(toy, tmp_path, names=("a",))
    with pytest.raises(ValueError, match="a prototype comes from training case"):
        write(toy, tmp_path, training_cases=[])
    with pytest.raises(ValueError, match="expected the cases of the training, in its order"):
        write(toy, tmp_path, training_cases=[toy.unseen] * 4)
    with pytest.raises(ValueError, match="expected 0 to 255 regions, got 256"):
        RegionChoice(most=256)
    fresh = Toy.__new__(Toy)
    fresh.network = AnnotatorTendencyNet(
        ["a", "b"], 3, toy.network.backbone, features=8, regions=2, width=16, queue=1024
    )
    fresh.cases, fresh.image = toy.cases, toy.image
    with pytest.raises(ValueError, match="expected prototypes that are training patches, got none"):
        write(fresh, tmp_path)
    fresh.network = AnnotatorTendencyNet(["a", "mixture"], 3, toy.network.backbone, features=8, queue=1024)
    fresh.network.tendency_bank.source.fill_(0)
    with pytest.raises(ValueError, match="annotators can't be called"):
        write(fresh, tmp_path)
    air = Toy.__new__(Toy)
    air.network, air.cases, air.image = toy.network, toy.cases, MetaTensor(torch.zeros(2, 4, 4, 4))
    with pytest.raises(DataError, match="image with values other than 0"):
        write(air, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_has_heatmaps_as_well_says_who_and_why(toy: Toy, tmp_path: Path) -> None:
    """Its layers have the same names, whatever it returns when it is called alone."""
    torch.manual_seed(0)
    decoder = UNet(3, in_channels=4, out_channels=8, channels=(4, 8), strides=(2,))
    sizes: dict[str, int] = {"num_classes": 3, "features": 8, "regions": 2, "width": 16, "slots": 2, "queue": 1024}
    tendency = AnnotatorTendencyNet(toy.network.annotators, backbone=decoder, shared_slots=2, **sizes)
    for one in tendency.tendencies:
        torch.nn.init.constant_(one.gamma, 2.0)
    cam = MultimodalCAMNet(modalities=MODALITIES, num_classes=2, channels=(4,))
    for output in ("all", "consensus"):
        network = RightReasonsNet(cam, tendency, features=4, output=output)
        plain = [{**case, "image": case["image"].as_tensor()} for case in toy.cases]
        PrototypeUpdate(network, DataLoader(plain, batch_size=4), toy.prepare).push()
        files = {
            path.name.removeprefix("a%2Fb_"): path
            for path in write_tendency(
                network, toy.image, "a/b", tmp_path / output, MODALITIES, toy.cases, preprocessing=prepare()
            )
        }
        why = json.loads(files["why.json"].read_text())
        assert why["regions"]
        shown = [source for region in why["regions"] for source in region["prototypes"]]
        assert {source["case"] for source in shown} <= {case["case_id"] for case in toy.cases}
        assert shown
        assert values(files["who_prob.nii.gz"]).shape == (*toy.image.shape[1:], 4)
