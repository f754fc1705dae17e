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


"""An interactive three-plane viewer that needs no network."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
from nilearn.plotting import view_img

from monai_rrr.report.case_picture import background
from monai_rrr.report.case_view import CaseView
from monai_rrr.report.pictures import visible_from

__all__ = ["viewer_html"]

FINEST = 2.0
_OUTSIDE = re.compile(r"<link\b[^>]*>", re.IGNORECASE)


def viewer_html(view: CaseView, region: str = "WT", threshold: float | None = None) -> str:
    """Fused heatmap of a region over the modality that shows it best, as a page of its own, by nilearn.

    Scripts and pictures are inside the page. The patient's left is on the left, as marked. Finer images are thinned out
    to 2 mm to keep it small.

    Args:
        view: case with its results.
        region: heatmap to show.
        threshold: evidence below this is transparent. Default: that of the pictures.
    """
    step = [max(1, round(FINEST / s)) for s in view.spacing]
    thin = tuple(slice(None, None, n) for n in step)
    affine = view.affine @ np.diag([*step, 1.0])
    image, heatmap = view.images[background(view, region)][thin], view.heatmaps[region][thin]
    page = view_img(
        nib.Nifti1Image(heatmap, affine),
        bg_img=nib.Nifti1Image(image, affine),
        threshold=visible_from(view.heatmaps[region], view.brain) if threshold is None else threshold,
        vmin=0,
        vmax=1,
        symmetric_cmap=False,
        cmap="inferno",
        black_bg=True,
        dim=0,
        opacity=0.7,
        title=f"{region}, {view.case_id}",
        cut_coords=_center(heatmap, affine),
        resampling_interpolation="nearest",
        width_view=900,
    )
    return _OUTSIDE.sub("", str(page.get_standalone()))


def _center(
    heatmap: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    affine: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> tuple[float, ...]:
    evidence = heatmap * (heatmap >= 0.5 * heatmap.max())
    total = max(float(evidence.sum()), 1e-9)
    voxel = [float((np.indices(heatmap.shape)[axis] * evidence).sum()) / total for axis in range(3)]
    return tuple(float(v) for v in (affine @ [*voxel, 1.0])[:3])
