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

"""Cases of a folder and what annotators hand in for them, in files that are never half written."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_rrr.data.datalist import Case
from monai_rrr.data.geometry import corner_displacement
from monai_rrr.data.nifti import read_verified
from monai_rrr.errors import DataError
from monai_rrr.utils.conventions import round_labels
from monai_rrr.utils.files import atomic_write, safe_name, sha256

__all__ = ["EVIDENCE", "FINAL", "CaseStore", "Submission"]

FINAL, EVIDENCE = "final", "evidence"
ANONYMOUS = "anonymous"
MAX_LABEL_BYTES = 64 << 20
MAX_DISPLACEMENT = 0.1  # mm
TUMOR_VALUES, EVIDENCE_VALUES = (0, 1, 2, 3), (0, 1, 2)

_PSEUDONYM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}\Z")
_TAG = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")
_KEY = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_MAX_INFO = 1 << 20


@dataclass(frozen=True)
class Submission:
    """A label map that was handed in.

    Args:
        case_id: the case.
        tag: ``final`` (a tumor label map), ``evidence`` (1 allowed, 2 not allowed), or another one.
        annotator: pseudonym.
        path: the file.
        info: what came with it: JSON values, and ``ts``, seconds since 1970.
    """

    case_id: str
    tag: str
    annotator: str
    path: Path
    info: Mapping[str, Any]


class CaseStore:
    """Cases, the labels handed in for them, and notes such as scores.

    A label is one file named by its content; a small JSON file, which is replaced whole, says which one counts. A
    process that is killed in between leaves the label before or the label after. Several processes may read and write.
    The folder of the images is never written to.

    Args:
        cases: as of :func:`~monai_rrr.data.load_datalist`.
        folder: for labels and notes; made when missing.
    """

    def __init__(self, cases: Sequence[Case], folder: str | Path) -> None:
        self.cases: dict[str, Case] = {str(case["case_id"]): dict(case) for case in cases}
        self.folder = Path(folder)
        self._turn = threading.Lock()

    def case(self, case_id: str) -> Case:
        """Return a case.

        Raises:
            DataError: ``case-unknown``.
        """
        if not isinstance(case_id, str) or case_id not in self.cases:
            shown = str(case_id)[:80]
            hint = "GET /datastore/?output=all lists the ids"
            raise DataError("case-unknown", f"expected the id of a case, got {shown!r}", field="image", hint=hint)
        return self.cases[case_id]

    def image(self, case_id: str) -> Path:
        """Return the file that a viewer shows: contrast-enhanced T1 where there is one."""
        files = self.case(case_id)["modalities"]
        return Path(next(files[name] for name in ("t1c", "flair", "t2", "t1") if name in files))

    def submit(self, case_id: str, label: str | Path, tag: str, info: Mapping[str, Any]) -> Submission:
        """Keep a label map; one that the same annotator handed in before under this tag is replaced.

        Args:
            case_id: the case.
            label: file, NIfTI, on the voxels of the case's images.
            tag: see :class:`Submission`.
            info: JSON values; ``annotator`` is the pseudonym of who drew it.

        Raises:
            DataError: ``case-unknown``; ``label-tag``; ``annotator-id``; ``label-values``; ``shape-mismatch``;
                ``affine-mismatch``; ``label-info``; as :func:`~monai_rrr.data.read_verified`. Nothing is kept then.
        """
        case = self.case(case_id)
        annotator = str(info.get("annotator") or ANONYMOUS)
        if not _PSEUDONYM.match(annotator):
            message = f"expected a pseudonym of up to 32 letters, digits, _ and -, got {annotator[:80]!r}"
            raise DataError("annotator-id", message, case_id=case_id, field="annotator")
        self._check_tag(tag, case_id)
        _check_label(Path(label), self._reference(case), tag, case_id)
        kept = {**info, "annotator": annotator, "ts": time.time()}
        try:
            json.dumps(kept, allow_nan=False)
        except (TypeError, ValueError) as error:
            message = f"expected JSON values, got {error}"
            raise DataError("label-info", message, case_id=case_id, field="params") from None
        content = Path(label).read_bytes()
        digest = sha256(label)
        folder = self._labels(case_id, tag)
        path = folder / f"{annotator}-{digest[:16]}{'.nii.gz' if str(label).lower().endswith('.gz') else '.nii'}"
        record = {"file": path.name, "sha256": digest, "info": kept}
        with self._turn:
            atomic_write(path, content)
            atomic_write(folder / f"{annotator}.json", json.dumps(record, indent=1).encode())
            for old in folder.glob(f"{annotator}-*.nii*"):
                if old.name != path.name:
                    old.unlink(missing_ok=True)
        return Submission(case_id, tag, annotator, path, kept)

    def submissions(self, tag: str, case_id: str | None = None) -> list[Submission]:
        """Return the labels of a tag, of one case or of all, the newest of a case last."""
        self._check_tag(tag, case_id)
        found = []
        for name in self.cases if case_id is None else [case_id]:
            self.case(name)
            records = self._labels(name, tag).glob("*.json")
            found += sorted((self._read(name, tag, path) for path in records), key=lambda s: float(s.info["ts"]))
        return found

    def newest(self, case_id: str, tag: str) -> Submission | None:
        """Return the label of a case that was handed in last, or None."""
        found = self.submissions(tag, case_id)
        return found[-1] if found else None

    def remove(self, case_id: str, tag: str) -> None:
        """Remove all labels of a case under a tag."""
        for one in self.submissions(tag, case_id):
            (one.path.parent / f"{one.annotator}.json").unlink(missing_ok=True)
            one.path.unlink(missing_ok=True)

    def tags(self, case_id: str) -> list[str]:
        """Return the tags under which a case has a label."""
        self.case(case_id)
        folders = sorted(self.folder.glob(f"labels/*/{safe_name(case_id)}"))
        return [path.parent.name for path in folders if any(path.glob("*.json"))]

    def note(self, case_id: str, notes: Mapping[str, Any]) -> None:
        """Keep notes about a case, one file for each, so that processes do not undo each other's.

        Raises:
            DataError: ``case-unknown``; ``label-info``, when a note has no simple name or is no JSON of sensible size.
        """
        self.case(case_id)
        contents = {}
        for key, value in notes.items():
            try:
                contents[key] = json.dumps(value, allow_nan=False).encode()
            except (TypeError, ValueError) as error:
                raise DataError("label-info", f"expected JSON values, got {error}", case_id=case_id) from None
            if not isinstance(key, str) or not _KEY.match(key) or len(contents[key]) > _MAX_INFO:
                message = f"expected a short note with a simple name, got {str(key)[:80]!r}"
                raise DataError("label-info", message, case_id=case_id, field="info")
        for key, content in contents.items():
            atomic_write(self.folder / "notes" / safe_name(case_id) / f"{key}.json", content)

    def notes(self, case_id: str) -> dict[str, Any]:
        """Return the notes about a case."""
        self.case(case_id)
        found = {}
        for path in sorted((self.folder / "notes" / safe_name(case_id)).glob("*.json")):
            with suppress(OSError, ValueError):
                found[path.stem] = json.loads(path.read_text("utf-8"))
        return found

    def _labels(self, case_id: str, tag: str) -> Path:
        return self.folder / "labels" / tag / safe_name(case_id)

    def _check_tag(self, tag: str, case_id: str | None) -> None:
        if not isinstance(tag, str) or not _TAG.match(tag):
            message = f"expected a tag of up to 32 small letters, digits, _ and -, got {str(tag)[:80]!r}"
            raise DataError("label-tag", message, case_id=case_id, field="tag")

    def _reference(self, case: Case) -> tuple[Path, int | None]:
        name = next(iter(case["modalities"]))
        return Path(case["modalities"][name]), (case.get("volumes") or {}).get(name)

    def _read(self, case_id: str, tag: str, record: Path) -> Submission:
        try:
            content = json.loads(record.read_text("utf-8"))
            path = record.parent / str(content["file"])
            intact = path.parent == record.parent and sha256(path) == content["sha256"]
            float(content["info"]["ts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"expected a label and its record, got {type(error).__name__}: {error}"
            raise DataError("label-missing", message, case_id=case_id, field=tag, path=record) from error
        if not intact:
            message = "expected the label that was handed in, the file has another content"
            raise DataError("file-changed", message, case_id=case_id, field=tag, path=path)
        return Submission(case_id, tag, record.stem, path, content["info"])


def _check_label(path: Path, reference: tuple[Path, int | None], tag: str, case_id: str) -> None:
    """Refuse a label that is damaged, lies elsewhere than the images, or has other values."""
    found = read_verified(path, case_id=case_id, field=tag, max_bytes=MAX_LABEL_BYTES)
    image = read_verified(reference[0], reference[1], case_id=case_id, field="image")
    if found.array.shape != image.array.shape:
        message = f"expected the shape of the image, {image.array.shape}, got {found.array.shape}"
        raise DataError("shape-mismatch", message, case_id=case_id, field=tag)
    moved = corner_displacement(found.affine, image.affine, image.array.shape)
    if moved > MAX_DISPLACEMENT:
        message = f"expected the position of the image within {MAX_DISPLACEMENT} mm, got {moved:.4g} mm"
        raise DataError("affine-mismatch", message, case_id=case_id, field=tag)
    allowed = EVIDENCE_VALUES if tag == EVIDENCE else TUMOR_VALUES
    strays = sorted({int(value) for value in np.unique(round_labels(found.array))} - set(allowed))
    if strays and tag in (FINAL, EVIDENCE):
        meaning = "1 allowed, 2 not allowed" if tag == EVIDENCE else "1 necrotic core, 2 edema, 3 enhancing tumor"
        message = f"expected the values 0 ({meaning}), got {strays[:8]} too"
        raise DataError("label-values", message, case_id=case_id, field=tag)
