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

"""Evidence of any MONAI network for an audit: heatmap, what each modality contributes, sanity check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor, nn

from monai_rrr.attribution.gradcam import GradCAM
from monai_rrr.data.nifti import read_verified
from monai_rrr.errors import DataError
from monai_rrr.inferers.heatmap import explain_image
from monai_rrr.inferers.randomization import randomization_check
from monai_rrr.report.audit_case import Evidence, canonical, canonical_spacing
from monai_rrr.report.explain import explain_network, read_image
from monai_rrr.transforms.regions import to_regions
from monai_rrr.utils.conventions import get_convention
from monai_rrr.utils.enums import REGIONS

__all__ = ["NetworkUnderAudit", "lesion_of"]


@dataclass(frozen=True)
class NetworkUnderAudit:
    """A network with all that it takes to explain it on a case.

    Args:
        network: in evaluation mode.
        layer: layer to explain by Grad-CAM.
        modalities: names of the input channels, in order.
        class_idx: class to explain. None: the predicted one of each case.
        preprocessing: invertible, see :func:`~monai_rrr.report.mri_preprocessing`.
        region: lesion in which evidence should lie, ``"WT"``, ``"TC"`` or ``"ET"``. None: all labels but 0.
        convention: label convention; needed with a region.
        device: where to compute; the network is moved there.
    """

    network: nn.Module
    layer: str
    modalities: tuple[str, ...]
    class_idx: int | None
    preprocessing: Compose
    region: str | None = None
    convention: str | None = None
    device: str = "cpu"

    def evidence(self, case: Mapping[str, Any]) -> Evidence:
        """Explain one case.

        ``modalities`` of the result: by how much the log-odds of the class fall when the modality is replaced by its
        mean inside the brain (0 after z-scoring), which is how far the decision rests on it. Any network can be asked
        so, whether or not its features keep modalities apart, and the answer is an effect and not a picture.

        Args:
            case: entry of a datalist; its label is used when there is one.

        Raises:
            DataError: When a file is damaged, a modality is missing, or grids differ.
            ValueError: When layer or class don't fit the network.
        """
        image = read_image(case, self.modalities)
        found = explain_network(
            self.network,
            image,
            self.layer,
            self.class_idx,
            normalize=None,
            preprocessing=self.preprocessing,
            device=self.device,
        )
        index = found.class_idx[0]
        logits, effects = self._leave_one_out(image, index)
        channels = image.numpy()
        return Evidence(
            case_id=str(case["case_id"]),
            heatmap=canonical(found.heatmap[0], found.affine),
            images={
                name: canonical(channel, found.affine) for name, channel in zip(self.modalities, channels, strict=True)
            },
            lesion=lesion_of(case, self.region, self.convention, image.shape[1:]),
            spacing=canonical_spacing(found.affine),
            class_name=f"class {index}",
            probability=float(torch.sigmoid(logits)) if found.logits.ndim == 1 else None,
            modalities=effects,
        )

    def sanity(self, case: Mapping[str, Any], steps: int = 4) -> dict[float, float]:
        """Return share of randomized layers -> similarity of the heatmap, see :func:`randomization_check`."""
        batch = self._seen(read_image(case, self.modalities))
        attribute = GradCAM(self.layer)
        classes = None if self.class_idx is None else [self.class_idx]
        explained = explain_image(batch, self.network, attribute, classes)[1][0].tolist()

        def explain(network: nn.Module) -> Tensor:
            return explain_image(batch, network, attribute, explained)[0]

        return randomization_check(self.network, batch, explain, steps=steps, brain=(batch != 0).any(1, keepdim=True))

    def _seen(self, image: Any) -> Tensor:
        self.network.to(self.device)
        copy = type(image)(image.as_tensor().clone(), affine=image.affine.clone())
        seen: Tensor = self.preprocessing(copy).as_tensor()[None].to(self.device)
        return seen

    def _leave_one_out(self, image: Any, index: int) -> tuple[Tensor, dict[str, float]]:
        batch = self._seen(image)
        with torch.no_grad():
            full = _logits(self.network, batch)
            where = full.argmax(1) == index if full.ndim > 2 else None
            score = _log_odds(full, index, where)
            effects = {}
            for channel, name in enumerate(self.modalities):
                without = batch.clone()
                without[:, channel] = 0
                effects[name] = float(score - _log_odds(_logits(self.network, without), index, where))
        return score.cpu(), effects


def lesion_of(
    case: Mapping[str, Any], region: str | None, convention: str | None, shape: Sequence[int]
) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """Read where evidence should lie: a region of the label or all of it; None for a case without a label.

    Args:
        case: entry of a datalist.
        region: ``"WT"``, ``"TC"``, ``"ET"`` or None for every label but 0.
        convention: label convention; needed with a region.
        shape: of the images.

    Returns:
        ``XYZ``, axes running right, anterior, superior.
    """
    if "label" not in case:
        return None
    label = read_verified(case["label"], case_id=str(case["case_id"]), field="label")
    if label.array.shape != tuple(shape):
        message = f"expected shape {tuple(shape)} as the images, got {label.array.shape}"
        case_id, path = str(case["case_id"]), case["label"]
        raise DataError("shape-mismatch", message, case_id=case_id, field="label", path=path)
    array = np.ascontiguousarray(label.canonical().array)
    if region is None:
        return np.asarray(array > 0)
    regions = np.asarray(to_regions(array, get_convention(convention)))
    return np.asarray(regions[REGIONS.index(region)] > 0)


def _logits(network: Callable[[Tensor], Any], batch: Tensor) -> Tensor:
    found = network(batch)
    logits: Tensor = found[0] if isinstance(found, (tuple, list)) else found
    # one head per modality: their mean
    return logits.float().mean(1) if logits.ndim == 3 and batch.ndim == 5 else logits.float()


def _log_odds(logits: Tensor, index: int, where: Tensor | None) -> Tensor:
    """Log-odds of a class against all others; of a dense output their mean over the voxels where the class won."""
    if logits.shape[1] == 1:
        odds = logits[:, 0]
    else:
        others = [k for k in range(logits.shape[1]) if k != index]
        odds = logits[:, index] - torch.logsumexp(logits[:, others], dim=1)
    if where is not None and bool(where.any()):
        odds = odds[where]
    return odds.mean()
