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

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from torch import Tensor

from monai_rrr.data.load_annotations import LoadAnnotationsd
from monai_rrr.metrics.annotator_scores import AnnotatorScores, class_regions
from monai_rrr.metrics.disagreement import generalized_energy_distance
from monai_rrr.metrics.segmentation import region_scores
from monai_rrr.utils.conventions import LabelConvention
from monai_rrr.utils.enums import REGIONS
from monai_rrr.utils.files import atomic_write
from monai_rrr.utils.provenance import Provenance

__all__ = ["AnnotatorEvaluation", "annotator_regions"]

COLUMNS = ("case_id", "annotator", "region", "dice", "gain", "ged", "truth_ml", "pred_ml")


class AnnotatorEvaluation:
    """Collect masks in source geometry and write ``metrics.csv``, one row per case, annotator and region.

    - each annotator who drew the case: ``dice`` of the annotator's own prediction, and its ``gain`` over the consensus
      (:class:`~monai_rrr.metrics.AnnotatorScores`);
    - ``consensus``: ``dice`` with the label of the case, if there is one;
    - ``all``: ``ged``, how far the predictions for those who drew are from what they drew, as sets
      (:func:`~monai_rrr.metrics.generalized_energy_distance`).

    Volumes in ml. Masks by annotators who leave regions out, which do not tell all classes, are not scored.

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
        """Collect the masks of one batch: ``pred`` of the output, ``case_id`` of the batch."""
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            self.add(str(item["case_id"]), output["pred"])

    def add(self, case_id: str, classes: MetaTensor) -> None:
        """Collect one case: ``1+R X Y Z``, the consensus first, on the grid of its files."""
        case = self.cases[case_id]
        whole = {name: None if isinstance(entry, Mapping) else entry for name, entry in case["annotations"].items()}
        entries = {**whole, _TRUTH: case.get("label")}
        read = self._load({"case_id": case_id, "image": classes, "annotations": entries})
        drawn, annotated = read["annotations"].as_tensor(), read["annotated"]
        plain = classes.as_tensor().to(drawn.device)
        spacing = [float(size) for size in classes.affine[:3, :3].square().sum(0).sqrt()]
        milliliter = spacing[0] * spacing[1] * spacing[2] / 1000
        box: tuple[Any, ...] = (..., *_bounding_box((plain > 0).any(0) | (drawn > 0).any(0)))
        found, truth = class_regions(plain[box]), class_regions(drawn[box])
        scores = AnnotatorScores(self.annotators)
        scores(found[None, 1:], truth[None, :-1], consensus=found[None, 0], annotated=annotated[None, :-1])
        size = [masks.flatten(2).sum(2) * milliliter for masks in (truth, found)]
        for index, name in enumerate(self.annotators):
            if annotated[index]:
                dice, gain = (scores.values(what, name)[0].tolist() for what in ("dice", "gain"))
                self._rows(case_id, name, dice=dice, gain=gain, truth_ml=size[0][index], pred_ml=size[1][1 + index])
        if annotated[-1]:
            true = region_scores(found[0], truth[-1], spacing, REGIONS, ["dice"])
            dice = [true[region]["dice"] for region in REGIONS]
            self._rows(case_id, "consensus", dice=dice, truth_ml=size[0][-1], pred_ml=size[1][0])
        who = annotated[:-1]
        if bool(who.any()):
            self._rows(case_id, "all", ged=generalized_energy_distance(found[1:][who], truth[:-1][who]))

    def finish(self, engine: Engine | None = None) -> None:
        """Write the table."""
        if not self.rows:
            return
        table = io.StringIO()
        writer = csv.DictWriter(table, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        digest = atomic_write(self.path, table.getvalue().encode())
        record = self.provenance.record({}, {self.path.name: digest})
        side_car = self.path.with_name(f"{self.path.stem}_provenance.json")
        atomic_write(side_car, json.dumps(record, indent=2).encode() + b"\n")

    def _rows(self, case_id: str, name: str, **columns: Any) -> None:
        for index, region in enumerate(REGIONS):
            values = {column: round(float(value[index]), 5) for column, value in columns.items()}
            self.rows.append({"case_id": case_id, "annotator": name, "region": region, **values})


_TRUTH = "(truth)"  # no id of an annotator has brackets


def _bounding_box(mask: Tensor) -> tuple[slice, ...]:
    """The part of a volume that holds a mask; one voxel where it is empty."""
    if not bool(mask.any()):
        return (slice(0, 1),) * 3
    places = [mask.any(a).any(b).nonzero()[:, 0] for a, b in ((2, 1), (2, 0), (1, 0))]
    return tuple(slice(int(place[0]), int(place[-1]) + 1) for place in places)


def annotator_regions(output: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor], list[Tensor]]:
    """``output_transform`` for MONAI's ``MeanDice``: masks of all annotators and regions as channels, ``RK XYZ``.

    Reads ``pred`` (probabilities ``1+R C XYZ``, the consensus first) and ``label`` (classes ``R XYZ``, negative where
    not known) of a decollated evaluator output. Who did not draw has empty masks, which ``MeanDice`` leaves out.
    """
    found = [class_regions(torch.as_tensor(item["pred"])[1:].argmax(1)).flatten(0, 1).float() for item in output]
    truth = [class_regions(torch.as_tensor(item["label"])).flatten(0, 1).float() for item in output]
    return found, truth
