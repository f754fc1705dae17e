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

"""Score the masks of the consensus and of every annotator against what was drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, isnan, nan
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.metrics import CalibrationErrorMetric
from torch import Tensor

from monai_rrr.data.load_annotations import LoadAnnotationsd
from monai_rrr.handlers.score_table import write_score_table
from monai_rrr.metrics.annotator_scores import AnnotatorScores, class_regions
from monai_rrr.metrics.disagreement import generalized_energy_distance, threshold_dice
from monai_rrr.metrics.lesion_recall import found_lesions
from monai_rrr.metrics.segmentation import region_scores
from monai_rrr.transforms.drawn_place import drawn_place
from monai_rrr.transforms.source_grid import to_source_grid
from monai_rrr.utils.conventions import LabelConvention
from monai_rrr.utils.enums import REGIONS
from monai_rrr.utils.provenance import Provenance

__all__ = ["AnnotatorEvaluation", "annotator_regions"]

COLUMNS = (
    *("case_id", "annotator", "region", "dice", "gain", "hd95", "nsd", "lesions", "lesion_recall", "brier", "ece"),
    *("ged", "q_dice", "truth_ml", "pred_ml"),
)
CALIBRATION_MM = 8.0
BINS = 20
_TRUTH = "(truth)"  # no id of an annotator has brackets


class AnnotatorEvaluation:
    """Collect masks in source geometry and write ``metrics.csv``, one row per case, annotator and region.

    - each annotator who drew the case: the annotator's own prediction against what the annotator drew. ``dice``,
      ``hd95`` (mm) and ``nsd`` at 2 mm (:func:`~monai_rrr.metrics.region_scores`, with its rule for empty regions);
      ``gain`` in Dice over the consensus (:class:`~monai_rrr.metrics.AnnotatorScores`); ``lesions`` drawn, and
      ``lesion_recall``, the share of them that is touched (:func:`~monai_rrr.metrics.found_lesions`); ``brier`` and
      ``ece``, how far probabilities are from what was drawn, over the voxels within 8 mm of what anybody drew (ECE of
      MONAI's ``CalibrationErrorMetric``, 20 bins);
    - ``consensus``: the same but for ``gain``, against the label of the case, if there is one;
    - ``all``: the predictions for those who drew against what they drew, as sets. ``ged``
      (:func:`~monai_rrr.metrics.generalized_energy_distance`) and ``q_dice`` of the mean masks
      (:func:`~monai_rrr.metrics.threshold_dice`).

    Volumes in ml. What has no value, such as the recall without a lesion, is empty. Masks by annotators who leave
    regions out, which do not tell all classes, are not scored.

    Args:
        cases: datalist with ``annotations``, and ``label`` where the truth is known.
        annotators: ids, in the order of the masks.
        convention: label convention of the files.
        path: CSV file to write.
        provenance: what to record beside the table, in ``<name>_provenance.json``.

    Raises:
        DataError: When a file is damaged or of another convention.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        annotators: Sequence[str],
        convention: str | LabelConvention,
        path: str | Path,
        provenance: Provenance | None = None,
    ) -> None:
        self.cases = {str(case["case_id"]): case for case in cases}
        self.annotators, self.path, self.provenance = tuple(annotators), Path(path), provenance or Provenance()
        self._load = LoadAnnotationsd([*self.annotators, _TRUTH], convention)
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def reset(self, engine: Engine | None = None) -> None:
        """Forget everything collected."""
        self.rows = []

    def __call__(self, engine: Engine) -> None:
        """Collect the masks of one batch: ``pred``, ``probability`` if any, of the output; ``case_id`` of the batch."""
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            self.add(str(item["case_id"]), output["pred"], output.get("probability"), item.get("geometry"))

    def add(
        self,
        case_id: str,
        classes: MetaTensor,
        probability: Tensor | None = None,
        geometry: Mapping[str, Any] | None = None,
    ) -> None:
        """Collect one case.

        Args:
            case_id: of the case.
            classes: ``1+R X Y Z``, the consensus first, on the grid of the case's files.
            probability: ``1+R C`` on the grid of the network; None: calibration is not scored.
            geometry: of the grid of the network, as :func:`~monai_rrr.transforms.to_source_grid` takes it.
        """
        case = self.cases[case_id]
        full = {name: None if isinstance(entry, Mapping) else entry for name, entry in case["annotations"].items()}
        entries = {**full, _TRUTH: case.get("label")}
        read = self._load({"case_id": case_id, "image": classes, "annotations": entries})
        drawn, annotated = read["annotations"].as_tensor(), read["annotated"]
        plain = classes.as_tensor().to(drawn.device)
        spacing = [float(size) for size in classes.affine[:3, :3].square().sum(0).sqrt()]
        calibration: list[dict[str, list[float]]] = [{} for _ in annotated]
        if probability is not None and geometry is not None:
            calibration = _calibration(probability, geometry, drawn, annotated, spacing)
        box: tuple[Any, ...] = (..., *_bounding_box((plain > 0).any(0) | (drawn > 0).any(0)))
        found, truth = class_regions(plain[box]), class_regions(drawn[box])
        scores = AnnotatorScores(self.annotators)
        scores(found[None, 1:], truth[None, :-1], consensus=found[None, 0], annotated=annotated[None, :-1])
        for index, name in enumerate((*self.annotators, "consensus")):
            if annotated[index]:
                pred = 0 if name == "consensus" else 1 + index
                whole = _surface_columns(plain[pred], drawn[index], spacing)  # uncropped: a miss is its diagonal off
                columns = {**whole, **calibration[index]}
                columns |= _lesion_columns(found[pred], truth[index], spacing)
                if name != "consensus":
                    columns["gain"] = scores.values("gain", name)[0].tolist()
                self._rows(case_id, name, columns)
        who = annotated[:-1]
        if bool(who.any()):
            said, told = found[1:][who], truth[:-1][who]
            ged, q_dice = generalized_energy_distance(said, told), threshold_dice(_share(said), _share(told))
            self._rows(case_id, "all", {"ged": ged.tolist(), "q_dice": q_dice.tolist()})

    def finish(self, engine: Engine | None = None) -> None:
        """Write the table."""
        if not self.rows:
            return
        write_score_table(self.path, COLUMNS, self.rows, self.provenance, {})

    def _rows(self, case_id: str, name: str, columns: Mapping[str, Sequence[float]]) -> None:
        for index, region in enumerate(REGIONS):
            values = {column: round(float(value[index]), 5) for column, value in columns.items()}
            known = {column: value for column, value in values.items() if not isnan(value)}
            self.rows.append({"case_id": case_id, "annotator": name, "region": region, **known})


def _share(masks: Tensor) -> Tensor:
    return masks.float().mean(0)


def _surface_columns(pred: Tensor, truth: Tensor, spacing: Sequence[float]) -> dict[str, list[float]]:
    """Scores by region of one prediction, both as classes of the whole image."""
    names = ("dice", "hd95", "nsd")
    scores = region_scores(class_regions(pred), class_regions(truth), spacing, REGIONS, names)
    return {name: [scores[region][name] for region in REGIONS] for name in names}


def _lesion_columns(pred: Tensor, truth: Tensor, spacing: Sequence[float]) -> dict[str, list[float]]:
    """Lesions and volumes by region of one prediction, ``K XYZ``, cropped."""
    pairs = zip(pred.cpu().numpy(), truth.cpu().numpy(), strict=True)
    lesions = [[hit for _, hit in found_lesions(mask, true, spacing)] for mask, true in pairs]
    columns: dict[str, list[float]] = {"lesions": [len(hits) for hits in lesions]}
    columns["lesion_recall"] = [sum(hits) / len(hits) if hits else nan for hits in lesions]
    milliliter = spacing[0] * spacing[1] * spacing[2] / 1000
    for name, masks in (("truth_ml", truth), ("pred_ml", pred)):
        columns[name] = (masks.flatten(1).sum(1) * milliliter).tolist()
    return columns


def _calibration(
    probability: Tensor, geometry: Mapping[str, Any], drawn: Tensor, annotated: Tensor, spacing: Sequence[float]
) -> list[dict[str, list[float]]]:
    """Brier score and ECE by region for each of ``drawn``, the truth last, near to what anybody drew."""
    room = [ceil(CALIBRATION_MM / size) for size in spacing]
    box: tuple[Any, ...] = (..., *_bounding_box((drawn > 0).any(0), room))
    place = drawn_place(drawn[box], spacing, CALIBRATION_MM)
    truth = class_regions(drawn[box]).flatten(2)[..., place].float()
    columns: list[dict[str, list[float]]] = [{} for _ in annotated]
    for index in range(len(annotated) if len(place) else 0):
        if annotated[index]:
            own = probability[1 + index if index < len(annotated) - 1 else 0]
            inside = torch.stack([own[1:].sum(0), own[1] + own[3], own[3]])  # WT, TC, ET
            said = torch.from_numpy(to_source_grid(inside, geometry)[box]).to(truth).flatten(1)[:, place].clamp(0, 1)
            metric = CalibrationErrorMetric(num_bins=BINS, include_background=True, metric_reduction="none")
            ece = torch.as_tensor(metric(said[None], truth[index][None]))
            columns[index] = {"brier": (said - truth[index]).square().mean(1).tolist(), "ece": ece[0].tolist()}
    return columns


def _bounding_box(mask: Tensor, room: Sequence[int] = (0, 0, 0)) -> tuple[slice, ...]:
    """The part of a volume that holds a mask, with some voxels around; one voxel where it is empty."""
    if not bool(mask.any()):
        return (slice(0, 1),) * 3
    places = [mask.any(a).any(b).nonzero()[:, 0] for a, b in ((2, 1), (2, 0), (1, 0))]
    return tuple(
        slice(max(int(place[0]) - more, 0), int(place[-1]) + 1 + more) for place, more in zip(places, room, strict=True)
    )


def annotator_regions(output: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
    """``output_transform`` for MONAI's ``MeanDice``: masks of all annotators and regions as channels, ``RK XYZ``.

    Reads ``pred`` (probabilities ``1+R C XYZ``, the consensus first) and ``label`` (classes ``R XYZ``, negative where
    not known) of a decollated evaluator output. Who did not draw has empty masks, which ``MeanDice`` leaves out.
    """
    found = [class_regions(torch.as_tensor(item["pred"])[1:].argmax(1)).flatten(0, 1).float() for item in output]
    truth = [class_regions(torch.as_tensor(item["label"])).flatten(0, 1).float() for item in output]
    return found, truth
