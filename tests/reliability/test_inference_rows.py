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

"""Inference: the same every time, never in training mode, and no mask of what is not finite; what is left beside it."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import PrepareBatchExtraInput, SupervisedEvaluator
from monai.handlers import TensorBoardImageHandler, TensorBoardStatsHandler
from monai.transforms import Compose
from torch import Tensor, nn

from monai_rrr.attribution import CAM, GradCAM
from monai_rrr.data import BrainBoxCache, LoadBrainBoxd, load_datalist
from monai_rrr.errors import CheckpointError, DataError, InferenceError
from monai_rrr.handlers import HeatmapEvaluation, TagCalibrationHandler
from monai_rrr.inferers import HeatmapInferer, SlabHeatmapInferer
from monai_rrr.metrics.threshold import apply_threshold
from monai_rrr.networks import MultimodalCAMNet
from monai_rrr.report import (
    Explanation,
    explain_network,
    load_case_view,
    mri_preprocessing,
    read_image,
    write_explanation,
)
from monai_rrr.transforms import HeatmapToLabeld, HeatmapToSourced, SaveHeatmapsd, WholeVolumed
from monai_rrr.utils.provenance import INTENDED_USE, Provenance

SPACING = 6.0
WRONG = [torch.nan, torch.inf, -torch.inf]
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def cases(phantom_cohort: Path) -> list[dict[str, Any]]:
    return load_datalist(phantom_cohort, with_labels=True)[:1]


def make_network(**options: Any) -> MultimodalCAMNet:
    torch.manual_seed(3)
    return MultimodalCAMNet(channels=(4,), **options)


def infer(
    cases: list[dict[str, Any]],
    network: nn.Module,
    folder: Path,
    inferer: Callable[..., Any] | None = None,
    provenance: Provenance | None = None,
    handlers: list[Any] | None = None,
) -> Path:
    """What the bundle's inference.yaml is wired as; return the folder of the results."""
    cache = BrainBoxCache(folder / "cache", spacing=SPACING)
    volumes = WholeVolumed((16, 16, 8), spacing=SPACING, multiple=(8, 8, 1))
    out = folder / "cases"
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases, Compose([LoadBrainBoxd(cache), volumes])), batch_size=1),
        network=network,
        inferer=inferer or SlabHeatmapInferer(depth=8, per_modality=True),
        prepare_batch=PrepareBatchExtraInput({"present": "present", "case_id": "case_id"}),
        postprocessing=Compose(
            [
                HeatmapToSourced("pred"),
                HeatmapToLabeld(network, "brats2018"),
                SaveHeatmapsd(str(out), provenance=provenance),
            ]
        ),
        val_handlers=handlers,
    ).run()
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def first_cause(error: BaseException | None, kind: type[BaseException]) -> BaseException:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    assert error is not None, f"no {kind.__name__} among the causes"
    return error


class Classifier(nn.Module):
    """A small classifier of one volume with dropout."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.features, self.drop = nn.Conv3d(channels, 4, 3, padding=1), nn.Dropout(0.5)
        self.norm, self.head = nn.BatchNorm3d(4), nn.Linear(4, 2)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.features(image)).flatten(2).mean(2)))


def test_z2_inference_twice(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    """Bytes of every file, compressed as they are, are the same in another folder and process state."""
    network = make_network()
    first = contents(infer(cases, network, tmp_path / "one"))
    torch.manual_seed(17)
    second = contents(infer(cases, network, tmp_path / "two"))
    assert len(first) == 1 + 3 + 4 * 3 + 1
    assert first == second


def test_z2_explain_twice(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    image, network = read_image(cases[0], ["flair"]), Classifier()
    for name in ("one", "two"):
        found = explain_network(network, image, "features", 1, preprocessing=mri_preprocessing(SPACING, divisible=8))
        write_explanation(found, image, "a", tmp_path / name, ["flair"])
    first, second = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert set(first) == {f"a/a{end}" for end in ("_heatmap_class1.nii.gz", "_mask_class1.nii.gz", ".png")} | {
        "a/a_provenance.json"
    }
    assert first == second


def test_z3_slabs_per_batch_and_threads() -> None:
    network, image = make_network(), torch.randn(1, 4, 16, 16, 21)
    before = torch.get_num_threads()
    found = {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for count in (1, 2, 4):
                found[count, threads] = SlabHeatmapInferer(6, slabs_per_batch=count)(image, network)
    finally:
        torch.set_num_threads(before)
    reference = found.pop((1, 1))
    threshold = float(reference.median())
    for key, heatmap in found.items():
        difference = (torch.logit(heatmap) - torch.logit(reference)).abs().max()
        assert difference <= 1e-4, f"{key}: {difference}"
        assert ((heatmap > threshold) != (reference > threshold)).float().mean() <= 1e-5, key


PREDICTORS: dict[str, Callable[[Tensor, nn.Module], Any]] = {
    "cam": lambda image, network: HeatmapInferer(CAM("norm", "head"), class_idx=1)(image, network),
    "gradcam": lambda image, network: HeatmapInferer(GradCAM("norm"), class_idx=1)(image, network),
    "explain": lambda image, network: torch.from_numpy(
        explain_network(network, MetaTensor(image[0]), "norm", 1, preprocessing=mri_preprocessing(divisible=2)).heatmap
    ),
}


@pytest.mark.parametrize("predict", PREDICTORS.values(), ids=PREDICTORS)
def test_z5_model_left_in_train_mode(predict: Callable[[Tensor, nn.Module], Any]) -> None:
    network, image = Classifier(), torch.rand(1, 1, 6, 6, 4)
    expected = predict(image, network.eval())
    network.train()
    network.norm.eval()
    assert torch.equal(predict(image, network), expected), "no dropout, statistics of the network"
    assert [network.training, network.drop.training, network.norm.training] == [True, True, False]
    with pytest.raises(InferenceError, match="heatmap-not-finite"):
        predict(image * torch.nan, network)
    assert [network.training, network.drop.training, network.norm.training] == [True, True, False]


def test_z5_slabs_of_a_model_left_in_train_mode() -> None:
    network, image = make_network(dropout=0.5), torch.randn(1, 4, 8, 8, 6)
    expected = SlabHeatmapInferer(4)(image, network.eval())
    assert torch.equal(SlabHeatmapInferer(4)(image, network.train()), expected)
    assert all(module.training for module in network.modules())


class Faulty(nn.Module):
    """Class maps of 0, but for one value in one voxel of ET of T2, or in a score."""

    def __init__(self, value: float, where: str) -> None:
        super().__init__()
        self.class_maps, self.reliability = nn.Identity(), nn.Identity()
        self.modalities = ("t1", "t1c", "t2", "flair")
        self.value, self.where = value, where
        self.register_buffer("operating_point", torch.tensor([[0.5, 0.0]]).repeat(3, 1))

    def forward(self, image: Tensor, present: Tensor) -> Tensor:
        self.reliability(torch.full((4, 3), 0.25))
        maps = image[:, :, None].repeat(1, 1, 3, 1, 1, 1)
        logits = maps.flatten(3).mean(3)
        if self.where == "maps":
            maps[:, 2, 2, 3, 3, 3] = self.value
        elif self.where == "logits":
            logits[:, 2, 2] = self.value
        self.class_maps(maps)
        return logits


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("where", ["maps", "logits"])
def test_z6_inference(cases: list[dict[str, Any]], tmp_path: Path, value: float, where: str) -> None:
    with pytest.raises(InferenceError, match=r"expected finite values, got \d+ NaN") as caught:
        infer(cases, Faulty(value, where), tmp_path)
    assert caught.value.code == "heatmap-not-finite"
    assert caught.value.case_id == cases[0]["case_id"]
    assert caught.value.field in ("ET", "WT"), "the fused map is the first one that shows it"
    assert not list(tmp_path.rglob("*.nii.gz"))
    assert not (tmp_path / "cases").exists()


def test_z6_names_modality_and_class() -> None:
    heatmap = torch.zeros(5, 3, 2, 2, 2)
    heatmap[3, 2, 0, 0, 0] = torch.inf
    data = {"case_id": "a", "pred": heatmap}
    data["geometry"] = {"affine": np.eye(4), "source_affine": np.eye(4), "source_shape": (2, 2, 2)}
    with pytest.raises(InferenceError, match=r"case a, field t2, ET: expected finite values, got 0 NaN and 1 infinite"):
        HeatmapToSourced("pred")(data)


@pytest.mark.parametrize("value", WRONG)
def test_z6_postprocessing(tmp_path: Path, value: float) -> None:
    """Each transform refuses on its own, whatever came before it."""
    heatmap = MetaTensor(torch.full((3, 2, 2, 2), 0.7), affine=torch.eye(4))
    heatmap[1, 1, 1, 1] = value
    network = Faulty(0.0, "nowhere")
    for step in (HeatmapToLabeld(network, "brats2018"), SaveHeatmapsd(str(tmp_path))):
        with pytest.raises(InferenceError, match=r"\[heatmap-not-finite\] case a, field TC"):
            step({"pred": heatmap, "case_id": "a"})
    assert not list(tmp_path.iterdir())
    network.operating_point[1] = value
    with pytest.raises(InferenceError, match=r"\[operating-point\] case a: expected finite thresholds"):
        HeatmapToLabeld(network, "brats2018")({"pred": torch.nan_to_num(heatmap, 0, 0, 0), "case_id": "a"})
    with pytest.raises(ValueError, match="threshold and least area expected finite numbers"):
        apply_threshold(np.ones((2, 2, 2)), value)


@pytest.mark.parametrize("value", WRONG)
def test_z6_calibration(value: float) -> None:
    network = Faulty(0.0, "nowhere")
    item = {
        "image": torch.rand(4, 6, 6, 6),
        "present": torch.ones(4, dtype=torch.bool),
        "slice_label": torch.ones(3, 6),
        "brain": torch.ones(1, 6, 6, 6, dtype=torch.bool),
        "case_id": "a",
    }

    def inferer(image: Tensor, network: nn.Module, present: Tensor) -> Tensor:
        heatmap = image[:, :3].clone()
        heatmap[0, 2, 0, 0, 0] = value
        return heatmap

    before = network.operating_point.clone()
    with pytest.raises(InferenceError, match=r"\[heatmap-not-finite\] case a, field ET"):
        TagCalibrationHandler(network, inferer, [item], 1.0)(None)
    assert torch.equal(network.operating_point, before)


@pytest.mark.parametrize("value", WRONG)
def test_z6_evaluation_and_report(cases: list[dict[str, Any]], tmp_path: Path, value: float) -> None:
    image = nib.load(cases[0]["modalities"]["flair"])
    case_id = cases[0]["case_id"]
    evaluation = HeatmapEvaluation(
        cases, "brats2018", Faulty(0.0, "nowhere"), tmp_path / "metrics.csv", scores=["dice"]
    )
    heatmap = torch.full((3, *image.shape), 0.5)
    heatmap[0, 0, 0, 0] = value
    with pytest.raises(InferenceError, match=rf"\[heatmap-not-finite\] case {case_id}, field WT"):
        evaluation.add(case_id, heatmap, image.affine)
    evaluation.finish()
    assert not (tmp_path / "metrics.csv").exists()

    folder = tmp_path / "cases" / case_id
    folder.mkdir(parents=True)
    for index, region in enumerate(("WT", "TC", "ET")):
        nib.save(nib.Nifti1Image(heatmap[index].numpy(), image.affine), folder / f"{case_id}_heatmap_{region}.nii.gz")
    with pytest.raises(DataError, match=rf"\[non-finite\] case {case_id}, file .*_heatmap_WT"):
        load_case_view(cases[0], tmp_path / "cases", "brats2018")


@pytest.mark.parametrize("value", WRONG)
def test_z6_explain(cases: list[dict[str, Any]], tmp_path: Path, value: float) -> None:
    image, network = read_image(cases[0], ["flair"]), Classifier()
    with torch.no_grad():
        network.head.bias[0] = value
    with pytest.raises(
        InferenceError, match=r"\[heatmap-not-finite\] case .*, field logits: expected finite"
    ) as caught:
        explain_network(network, image, "features", 1, preprocessing=mri_preprocessing(SPACING, divisible=8))
    assert caught.value.case_id == cases[0]["case_id"]
    heatmap = np.zeros((1, 3, 3, 3), np.float32)
    heatmap[0, 1, 1, 1] = value
    found = Explanation(heatmap, np.eye(4), (7,), np.zeros(9, np.float32))
    with pytest.raises(InferenceError, match=r"case a, field class 7: expected finite values"):
        write_explanation(found, torch.ones(1, 3, 3, 3), "a", tmp_path, ["flair"])
    assert not list(tmp_path.iterdir())


SECRETS = {"descrip": b"DOE^JOHN", "aux_file": b"MRN123456", "intent_name": b"1970-01-01", "db_name": b"ACME-HOSPITAL"}


def hide(path: Path) -> None:
    """Put identifiers into the free texts and an extension of a header."""
    image = nib.load(path)
    array = np.asarray(image.dataobj)
    header = image.header.copy()
    for name, text in SECRETS.items():
        header[name] = text
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JOHN MRN123456"))
    nib.save(nib.Nifti1Image(array, image.affine, header), path)
    assert b"DOE^JOHN" in nib.load(path).header.binaryblock


def test_h1_identifiers(cases: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Identifiers in headers and folders reach nothing; the case id stands where the documentation says, only."""
    home = tmp_path / "SMITH^JANE-MRN999"
    home.mkdir()
    files = {}
    for name, source in cases[0]["modalities"].items():
        files[name] = str(home / f"{name}.nii.gz")
        Path(files[name]).write_bytes(Path(source).read_bytes())
        hide(Path(files[name]))
    case = {"case_id": "CASE-ID-7", "modalities": files}
    logs = tmp_path / "events"
    with caplog.at_level(logging.DEBUG):
        statistics = TensorBoardStatsHandler(log_dir=str(logs), iteration_log=False)
        out = infer([case], make_network(), tmp_path / "out", handlers=[statistics])
        image = read_image(case, ["flair"])
        found = explain_network(
            Classifier(), image, "features", 1, preprocessing=mri_preprocessing(SPACING, divisible=8)
        )
        write_explanation(found, image, "CASE-ID-7", tmp_path / "explained", ["flair"])
    forbidden = [*SECRETS.values(), b"SMITH", b"MRN999", str(tmp_path).encode()]
    written = contents(out) | contents(tmp_path / "explained") | contents(logs) | contents(tmp_path / "out" / "cache")
    assert len(written) > 20
    for name, content in written.items():
        text = gzip.decompress(content) if name.endswith(".gz") else content
        assert not [secret for secret in forbidden if secret in text], name
        allowed = name.endswith((".json", ".png"))  # names of the files that a record is about
        assert allowed or b"CASE-ID-7" not in text, name
    assert not [secret for secret in forbidden if secret.decode() in caplog.text]
    assert "CASE-ID-7" not in caplog.text


def test_h3_images_in_tensorboard(tmp_path: Path) -> None:
    """No configuration logs an image; who adds MONAI's handler gets slices without a name."""
    for path in (REPOSITORY / "bundles").glob("*/configs/*.yaml"):
        text = path.read_text()
        assert "TensorBoardImageHandler" not in text
        assert "plot_2d_or_3d_image" not in text
    readme = (REPOSITORY / "bundles" / "brats_mri_equivariant_cam" / "docs" / "README.md").read_text()
    assert "TensorBoardImageHandler" in readme, "how to opt in is documented"
    network, image = make_network(), torch.rand(1, 4, 8, 8, 6)
    batch = {"image": image, "label": image[:, :3], "present": torch.ones(1, 4), "case_id": ["DOE-JOHN"]}
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[batch],
        network=network,
        inferer=SlabHeatmapInferer(depth=6),
        prepare_batch=PrepareBatchExtraInput({"present": "present", "case_id": "case_id"}),
        decollate=False,
    )
    handler = TensorBoardImageHandler(
        log_dir=str(tmp_path),
        batch_transform=lambda batch: (batch["image"], batch["label"]),
        output_transform=lambda output: output["pred"],
    )
    handler.attach(evaluator)
    evaluator.run()
    handler._writer.close()
    events = b"".join(contents(tmp_path).values())
    assert b"input_0" in events
    assert b"output" in events
    assert b"DOE" not in events


def check_record(folder: Path, case_id: str, weights: Path | None, inputs: dict[str, Path]) -> dict[str, Any]:
    record = json.loads((folder / case_id / f"{case_id}_provenance.json").read_text())
    assert record["intended_use"] == INTENDED_USE
    assert record["weights_sha256"] == (weights and hashlib.sha256(weights.read_bytes()).hexdigest())
    text = json.dumps(record["settings"], sort_keys=True)
    assert record["config_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert set(record["versions"]) == {"monai-rrr", "monai", "torch", "numpy", "nibabel", "python"}
    assert record["inputs"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in inputs.items()}
    others = {path.name for path in (folder / case_id).iterdir()} - {f"{case_id}_provenance.json"}
    assert set(record["outputs"]) == others
    for name, digest in record["outputs"].items():
        assert hashlib.sha256((folder / case_id / name).read_bytes()).hexdigest() == digest
    return record


def test_k2_provenance(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    case_id = cases[0]["case_id"]
    weights = tmp_path / "model.pt"
    network = make_network()
    torch.save(network.state_dict(), weights)
    files = {name: Path(path) for name, path in cases[0]["modalities"].items()}
    partial = {**cases[0], "modalities": {name: cases[0]["modalities"][name] for name in ("t1c", "flair")}}
    settings = {"spacing": SPACING, "modalities": ["t1c", "flair"]}
    out = infer([partial], network, tmp_path, provenance=Provenance(weights, settings, seed=5))
    record = check_record(out, case_id, weights, {name: files[name] for name in ("t1c", "flair")})
    assert record["settings"] == settings
    assert record["seed"] == 5
    assert (
        json.loads((REPOSITORY / "bundles" / "brats_mri_equivariant_cam" / "configs" / "metadata.json").read_text())[
            "intended_use"
        ]
        == INTENDED_USE
    )

    image = read_image(cases[0], ["flair"])
    found = explain_network(Classifier(), image, "features", 1, preprocessing=mri_preprocessing(SPACING, divisible=8))
    write_explanation(found, image, case_id, tmp_path / "explained", ["flair"])
    check_record(tmp_path / "explained", case_id, None, {"flair": files["flair"]})


def test_k2_scores(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    table, network = tmp_path / "metrics.csv", Faulty(0.0, "nowhere")
    provenance = Provenance(tmp_path / "model.pt", {"spacing": SPACING})
    evaluation = HeatmapEvaluation(
        cases, "brats2018", network, table, scores=["dice"], baselines=False, provenance=provenance
    )
    image = nib.load(cases[0]["label"])
    evaluation.add(cases[0]["case_id"], torch.rand(3, *image.shape), image.affine)
    evaluation.finish()
    record = json.loads((tmp_path / "metrics_provenance.json").read_text())
    assert record["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert record["outputs"] == {"metrics.csv": hashlib.sha256(table.read_bytes()).hexdigest()}
    mask = hashlib.sha256(Path(cases[0]["label"]).read_bytes()).hexdigest()
    assert record["inputs"] == {f"{cases[0]['case_id']} label": mask}


def test_k2_settings_must_be_plain() -> None:
    with pytest.raises(TypeError, match="Object of type Tensor is not JSON serializable"):
        Provenance(settings={"spacing": torch.ones(1)})


def test_k2_weights_that_are_gone(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    # MONAI's Compose wraps whatever a transform raises
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        infer(cases, make_network(), tmp_path, provenance=Provenance(tmp_path / "model.pt"))
    with pytest.raises(CheckpointError, match=r"\[checkpoint-missing\] file .*model.pt: expected the weights"):
        raise first_cause(caught.value, CheckpointError)
    assert not [path for path in (tmp_path / "cases").rglob("*") if path.is_file()]


def test_full_disk_leaves_results_as_they_were(
    cases: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_network()
    out = infer(cases, network, tmp_path)
    before, calls = contents(out), []

    def failing(path: Path, content: bytes) -> str:
        calls.append(path.name)
        if len(calls) == 5:
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(content)
        return "digest"

    monkeypatch.setattr("monai_rrr.utils.provenance.atomic_write", failing)
    with torch.no_grad():
        network.head.bias += 1
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        infer(cases, network, tmp_path)
    assert "No space left on device" in str(first_cause(caught.value, OSError))
    assert contents(out) == before
