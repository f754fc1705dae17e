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

"""Score heatmaps of held-out cases against their masks, beside baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor, nn

from monai_rrr.data.nifti import read_images, read_verified
from monai_rrr.errors import DataError
from monai_rrr.handlers.score_table import write_score_table
from monai_rrr.metrics.baseline import empty_mask, flair_otsu
from monai_rrr.metrics.calibration import oracle_threshold
from monai_rrr.metrics.segmentation import SCORES, region_scores
from monai_rrr.metrics.threshold import OperatingPoint, apply_threshold, label_free_threshold
from monai_rrr.transforms.regions import to_regions
from monai_rrr.utils.checks import check_heatmaps
from monai_rrr.utils.enums import REGIONS
from monai_rrr.utils.provenance import Provenance

__all__ = ["HeatmapEvaluation"]

COLUMNS = ("case_id", "method", "threshold", "region", *SCORES, "truth_ml", "pred_ml", "level", "min_area_mm2")
BASELINES: dict[str, dict[str, Any]] = {
    "flair_otsu": {},
    "flair_heuristic": {"classes": 4, "smooth_mm": 3.0, "largest_component": True},
}


class HeatmapEvaluation:
    """Collect heatmaps in source geometry and write ``metrics.csv``, one row per case, method, threshold and region.

    Thresholds: ``label_free`` (Otsu on the heatmap), ``tag_calibrated`` (the network's ``operating_point``) and
    ``oracle`` (best mean Dice on the very masks it is scored on: an upper bound, never a result); on demand ``fixed``,
    for maps that are probabilities of a segmentation. Baselines: the empty mask, Otsu on FLAIR, and a stronger FLAIR
    heuristic (four classes, smoothed, largest component), for WT. Masks are nested before they are scored. The rule for
    empty regions is that of :func:`~monai_rrr.metrics.segmentation.region_scores`.

    Args:
        cases: datalist with ``label`` of every case.
        convention: label convention of the masks.
        network: has ``operating_point``.
        path: CSV file to write.
        method: name of the method in the table.
        scores: which scores to compute; distances take most of the time.
        baselines: whether to add the baselines.
        provenance: what to record beside the table, in ``<name>_provenance.json``, with the SHA-256 of the masks.
        fixed: threshold of ``fixed``, such as 0.5, without a least area. None: there are no such rows.
        key: of the heatmaps in the output.

    Raises:
        DataError: When a case has no label.
        InferenceError: When a heatmap is not finite.
    """

    def __init__(
        self,
        cases: Sequence[Mapping[str, Any]],
        convention: str,
        network: nn.Module,
        path: str | Path,
        method: str = "full",
        scores: Sequence[str] = SCORES,
        baselines: bool = True,
        provenance: Provenance | None = None,
        fixed: float | None = None,
        key: str = "pred",
    ) -> None:
        self.provenance = provenance or Provenance()
        self._masks: dict[str, str] = {}
        self.cases = {str(case["case_id"]): case for case in cases}
        self.convention, self.network, self.path = convention, network, Path(path)
        self.method, self.scores, self.baselines = method, tuple(scores), baselines
        self.fixed, self.key = fixed, key
        self.rows: list[dict[str, Any]] = []
        self._kept: list[_Case] = []

    def attach(self, engine: Engine) -> None:
        """Register the handler."""
        engine.add_event_handler(Events.STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def reset(self, engine: Engine | None = None) -> None:
        """Forget everything collected."""
        self.rows, self._kept, self._masks = [], [], {}

    def __call__(self, engine: Engine) -> None:
        """Collect the heatmaps of one batch, from the output, and ``case_id`` of the batch."""
        batch: Any = engine.state.batch
        outputs: Any = engine.state.output
        for item, output in zip(batch, outputs, strict=True):
            self.add(str(item["case_id"]), torch.as_tensor(output[self.key]), np.asarray(output[self.key].affine))

    def add(self, case_id: str, heatmap: Tensor, affine: NDArray[np.float64]) -> None:
        """Collect one case: ``K X Y Z`` or ``(1+M) K X Y Z`` on the grid of its files."""
        check_heatmaps(heatmap, case_id=case_id)
        fused = heatmap[0] if heatmap.ndim == 5 else heatmap
        case = self._load(case_id, fused.numpy(), affine)
        points = [OperatingPoint(label_free_threshold(fused, case.brain), 0.0, 0.0) for fused in case.heatmap]
        self._score(case, "label_free", points, case.heatmap)
        calibrated = cast(Tensor, self.network.operating_point).detach().cpu().tolist()
        self._score(case, "tag_calibrated", [OperatingPoint(t, area, 0.0) for t, area in calibrated], case.heatmap)
        if self.fixed is not None:
            self._score(case, "fixed", [OperatingPoint(self.fixed, 0.0, 0.0)] * len(case.heatmap), case.heatmap)
        if self.baselines:
            for name, options in BASELINES.items():
                if case.flair is not None:
                    mask = flair_otsu(case.flair, case.brain, case.spacing, **options)[None]
                    self._row(case, name, "label_free", mask, case.truth[:1], [None])
            self._row(case, "empty", "label_free", np.stack([empty_mask(case.brain.shape)] * 3), case.truth, [None] * 3)
        case.flair = None
        case.heatmap = case.heatmap.astype(np.float16)
        self._kept.append(case)

    def finish(self, engine: Engine | None = None) -> None:
        """Add the oracle's rows and write the table."""
        if not self._kept:
            return
        points = []
        for index in range(len(self._kept[0].truth)):
            points.append(
                oracle_threshold(
                    (case.heatmap[index] for case in self._kept),
                    (case.truth[index] for case in self._kept),
                    (case.brain for case in self._kept),
                    (case.spacing for case in self._kept),
                )
            )
        for case in self._kept:
            self._score(case, "oracle", points, case.heatmap)
        write_score_table(self.path, COLUMNS, self.rows, self.provenance, self._masks)

    def _load(self, case_id: str, fused: NDArray[np.float32], affine: NDArray[np.float64]) -> _Case:
        entry = self.cases[case_id]
        if "label" not in entry:
            raise DataError("label-missing", "expected a mask to score against", case_id=case_id, field="label")
        label = read_verified(entry["label"], case_id=case_id, field="label").canonical()
        self._masks[f"{case_id} label"] = label.sha256
        truth = np.asarray(to_regions(np.ascontiguousarray(label.array), self.convention)).astype(bool)
        images = {name: image.canonical().array for name, image in read_images(entry).items()}
        brain = np.any([image != 0 for image in images.values()], axis=0)
        turn = nib.orientations.io_orientation(affine)
        heatmap = np.stack([nib.orientations.apply_orientation(one, turn) for one in fused])
        if heatmap.shape[1:] != brain.shape:
            raise ValueError(f"heatmap {heatmap.shape[1:]} of case {case_id} does not match its files {brain.shape}")
        spacing = tuple(float(s) for s in np.linalg.norm(label.affine[:3, :3], axis=0))
        return _Case(case_id, heatmap, truth, brain, images.get("flair"), spacing)

    def _score(self, case: _Case, threshold: str, points: Sequence[OperatingPoint], heatmap: NDArray[Any]) -> None:
        masks = np.stack(
            [
                apply_threshold(one.astype(np.float32), point.threshold, point.min_area_mm2, case.spacing, case.brain)
                for one, point in zip(heatmap, points, strict=True)
            ]
        )
        masks = np.logical_and.accumulate(masks)
        self._row(case, self.method, threshold, masks, case.truth, list(points))

    def _row(
        self,
        case: _Case,
        method: str,
        threshold: str,
        masks: NDArray[np.bool_],
        truth: NDArray[np.bool_],
        points: Sequence[OperatingPoint | None],
    ) -> None:
        names = REGIONS[: len(masks)]
        found = region_scores(torch.from_numpy(masks), torch.from_numpy(truth), case.spacing, names, self.scores)
        milliliter = float(np.prod(case.spacing)) / 1000
        for index, (name, point) in enumerate(zip(names, points, strict=True)):
            row: dict[str, Any] = {"case_id": case.case_id, "method": method, "threshold": threshold, "region": name}
            row.update({score: round(found[name][score], 5) for score in self.scores})
            row["truth_ml"] = round(float(truth[index].sum()) * milliliter, 3)
            row["pred_ml"] = round(float(masks[index].sum()) * milliliter, 3)
            if point is not None:
                row["level"], row["min_area_mm2"] = round(point.threshold, 4), point.min_area_mm2
            self.rows.append(row)


class _Case:
    """Arrays of one case in canonical orientation."""

    def __init__(
        self,
        case_id: str,
        heatmap: NDArray[Any],
        truth: NDArray[np.bool_],
        brain: NDArray[np.bool_],
        flair: NDArray[Any] | None,
        spacing: Sequence[float],
    ) -> None:
        self.case_id, self.heatmap, self.truth, self.brain = case_id, heatmap, truth, brain
        self.flair, self.spacing = flair, tuple(spacing)
