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

"""Run in the environment of MONAI Label: send a case to a DICOM archive, one MR series per modality.

    python dicom_series.py http://127.0.0.1:8142 t1=a_t1.nii.gz t1c=a_t1ce.nii.gz t2=... flair=...

prints the StudyInstanceUID and, for each modality, the SeriesInstanceUID, as JSON. Values are scaled to 0..4095, with 0
where the file has 0 or less.
"""

import io
import json
import sys
import urllib.request

import nibabel as nib
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

DESCRIPTIONS = {"t1": "T1 axial", "t1c": "T1 axial post contrast", "t2": "T2 axial", "flair": "T2 FLAIR axial"}


def slices(path, modality, number, study, frame):
    """Yield the series of one modality, slice by slice, in DICOM's world (left, posterior, superior)."""
    image = nib.load(path)
    values = np.clip(np.asarray(image.dataobj, dtype=np.float64), 0, None)
    pixels = np.round(values / max(values.max(), 1e-9) * 4095).astype(np.uint16)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    size = np.linalg.norm(lps[:3, :3], axis=0)
    axes = lps[:3, :3] / size
    series = generate_uid()
    for k in range(pixels.shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        one = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        one.is_little_endian, one.is_implicit_VR = True, False
        one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        one.PatientID = one.PatientName = "synthetic"
        one.PatientBirthDate, one.PatientSex = "", "O"
        one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
        one.StudyDate = one.SeriesDate = "20260101"
        one.StudyTime = one.SeriesTime = "120000"
        one.AccessionNumber = one.StudyID = "1"
        one.ReferringPhysicianName = one.PositionReferenceIndicator = ""
        one.StudyDescription, one.SeriesDescription = "synthetic brain", DESCRIPTIONS[modality]
        one.SeriesNumber, one.InstanceNumber = number, k + 1
        one.Modality, one.Manufacturer, one.ImageType = "MR", "synthetic", ["ORIGINAL", "PRIMARY", "M"]
        one.ScanningSequence, one.SequenceVariant, one.ScanOptions, one.MRAcquisitionType = "SE", "NONE", "", "3D"
        one.EchoTime, one.RepetitionTime, one.EchoTrainLength, one.PatientPosition = "10", "500", "1", "HFS"
        # one file per slice of the third axis; its rows are the second axis
        one.ImagePositionPatient = [float(x) for x in (lps @ [0, 0, k, 1])[:3]]
        one.ImageOrientationPatient = [float(x) for x in (*axes[:, 0], *axes[:, 1])]
        one.PixelSpacing = [float(size[1]), float(size[0])]
        one.SliceThickness = one.SpacingBetweenSlices = float(size[2])
        one.Rows, one.Columns = pixels.shape[1], pixels.shape[0]
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PixelRepresentation = 1, "MONOCHROME2", 0
        one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
        one.WindowCenter, one.WindowWidth, one.RescaleIntercept, one.RescaleSlope = 1500, 3000, 0, 1
        one.PixelData = np.ascontiguousarray(pixels[:, :, k].T).tobytes()
        yield one


def main(archive, files):
    study, frame, found = generate_uid(), generate_uid(), {}
    for number, word in enumerate(files, start=1):
        modality, _, path = word.partition("=")
        for one in slices(path, modality, number, study, frame):
            buffer = io.BytesIO()
            one.save_as(buffer, write_like_original=False)
            request = urllib.request.Request(f"{archive}/instances", data=buffer.getvalue(), method="POST")
            urllib.request.urlopen(request, timeout=60).read()
            found[modality] = one.SeriesInstanceUID
    print(json.dumps({"study": study, "series": found}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
