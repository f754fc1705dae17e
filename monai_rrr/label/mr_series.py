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

"""A case as MR series of one DICOM study, for archives and viewers."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import nibabel as nib
import numpy as np

from monai_rrr.data.datalist import Case

if find_spec("pydicom") is not None:  # the extra "label"
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

__all__ = ["DESCRIPTIONS", "mr_series"]

DESCRIPTIONS = {"t1": "T1 axial", "t1c": "T1 axial post contrast", "t2": "T2 axial", "flair": "T2 FLAIR axial"}
"""As :func:`~monai_rrr.label.dicom.series_modalities` reads them."""


def mr_series(case: Case) -> Iterator[Any]:
    """Make the slices of all modalities, one MR series each, in DICOM's world (left, posterior, superior).

    Values are scaled to 0..4095 per series, with 0 where the file has 0 or less; the window holds 98 % of the others.
    Name and id of the patient are the id of the case, which is all that is told of anybody. The UIDs are a function of
    it: the same case is the same study wherever it is made.

    Args:
        case: with ``modalities``.
    """
    frame = generate_uid(entropy_srcs=[str(case["case_id"]), "frame"])
    for number, (modality, path) in enumerate(case["modalities"].items(), start=1):
        image: Any = nib.load(path)
        values = np.clip(np.asarray(image.dataobj, dtype=np.float64), 0, None)
        pixels = np.round(values / max(float(values.max()), 1e-9) * 4095).astype(np.uint16)
        low, high = np.percentile(pixels[pixels > 0], (1, 99)) if pixels.any() else (0, 1)
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
        for k in range(pixels.shape[2]):
            one = _described(str(case["case_id"]), modality, number, k)
            one.FrameOfReferenceUID = frame
            _placed(one, lps, k)
            one.WindowCenter, one.WindowWidth = float(low + high) / 2, max(1.0, float(high - low))
            one.Rows, one.Columns = pixels.shape[1], pixels.shape[0]
            # rows of the picture are the second axis of the file
            one.PixelData = np.ascontiguousarray(pixels[:, :, k].T).tobytes()
            yield one


def _described(case_id: str, modality: str, number: int, k: int) -> Any:
    """A slice that says what it is, without pixels."""
    meta: Any = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[case_id, modality, str(k)])
    one: Any = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    one.is_little_endian, one.is_implicit_VR = True, False
    one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    one.PatientID = one.PatientName = case_id[:64]
    one.PatientBirthDate, one.PatientSex = "", "O"
    one.StudyInstanceUID = generate_uid(entropy_srcs=[case_id])
    one.SeriesInstanceUID = generate_uid(entropy_srcs=[case_id, modality])
    one.StudyDate = one.SeriesDate = "20260101"
    one.StudyTime = one.SeriesTime = "120000"
    one.AccessionNumber = one.StudyID = "1"
    one.ReferringPhysicianName = one.PositionReferenceIndicator = ""
    one.StudyDescription, one.SeriesDescription = "brain", DESCRIPTIONS[modality]
    one.SeriesNumber, one.InstanceNumber = number, k + 1
    one.Modality, one.Manufacturer, one.ImageType = "MR", "monai_rrr", ["DERIVED", "SECONDARY", "M"]
    one.ScanningSequence, one.SequenceVariant, one.ScanOptions, one.MRAcquisitionType = "SE", "NONE", "", "3D"
    one.EchoTime, one.RepetitionTime, one.EchoTrainLength, one.PatientPosition = "10", "500", "1", "HFS"
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 0
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
    one.RescaleIntercept, one.RescaleSlope = 0, 1
    return one


def _placed(one: Any, lps: Any, k: int) -> None:
    """Say where slice ``k`` of the third axis lies."""
    size = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / size
    one.ImagePositionPatient = [float(x) for x in (lps @ [0, 0, k, 1])[:3]]
    one.ImageOrientationPatient = [float(x) for x in (*axes[:, 0], *axes[:, 1])]
    one.PixelSpacing = [float(size[1]), float(size[0])]
    one.SliceThickness = one.SpacingBetweenSlices = float(size[2])
