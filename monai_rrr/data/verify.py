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

"""One pass over a data set that names every fault."""

from __future__ import annotations

import os
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_rrr.data.case_check import CaseCheck, check_case
from monai_rrr.data.nifti import MAX_BYTES
from monai_rrr.data.tags import Tags
from monai_rrr.errors import DataError, DatasetError
from monai_rrr.utils.conventions import LabelConvention, get_convention
from monai_rrr.utils.enums import MODALITIES, REGIONS

__all__ = ["VerifyReport", "verify_cases"]


@dataclass(frozen=True)
class VerifyReport:
    """Result of :func:`verify_cases`.

    Args:
        cases: number of cases.
        files: number of files that could be read.
        faults: what makes cases unusable.
        notes: what is legal, but worth knowing, such as a label without tumor.
        hashes: case id to field to SHA-256 of the file on disk.
        seconds: wall-clock time of the pass.
    """

    cases: int
    files: int
    faults: tuple[DataError, ...]
    notes: tuple[DataError, ...]
    hashes: dict[str, dict[str, str]]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        return not self.faults

    def raise_if_faulty(self) -> None:
        """Raise all faults at once.

        Raises:
            DatasetError: When there is a fault.
        """
        if self.faults:
            raise DatasetError(self.faults)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "ok": self.ok,
            "cases": self.cases,
            "files": self.files,
            "faults": [fault.as_dict() for fault in self.faults],
            "notes": [note.as_dict() for note in self.notes],
            "hashes": {case_id: dict(fields) for case_id, fields in self.hashes.items()},
            "seconds": self.seconds,
        }


def verify_cases(
    cases: Sequence[Mapping[str, Any]],
    convention: str | LabelConvention | None = None,
    tags: Mapping[str, Tags] | None = None,
    *,
    require: Sequence[str] = (),
    root: str | Path | None = None,
    workers: int | None = None,
    max_bytes: int = MAX_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read every file of every case once and report everything that is wrong.

    Bytes (gzip checksum and size), header, affine, finiteness, content; shape and position of a case's files against
    each other; label values against the convention; slice tags against the number of slices; case ids and images that
    occur twice. Cases are checked in threads: decompression, hashing and NumPy release the interpreter's lock, and
    threads need neither pickling nor a start-up time, and work in notebooks and on Windows.

    Args:
        cases: cases as :func:`load_datalist` lists them.
        convention: label convention; required when a case has a label.
        tags: slice tags of the cases; every case must then have some.
        require: modalities that every case must have.
        root: folder of the data; paths inside it are reported relative to it.
        workers: number of threads; by default one per CPU, at most 4. Each holds one file in memory.
        max_bytes: refuse files that declare more decoded bytes.
        progress: called with the number of cases done and in total.

    Raises:
        ConfigError: ``label-convention``, when a case has a label and no convention is given.
    """
    start = time.perf_counter()
    needs_convention = convention is not None or any(case.get("label") is not None for case in cases)
    checked = get_convention(convention) if needs_convention else None
    checks = _run(cases, checked, tags, require, max_bytes, workers, progress)
    faults = [fault for check in checks for fault in check.faults]
    notes = [note for check in checks for note in check.notes]
    faults += _duplicate_cases(cases) + _duplicate_content(checks)
    notes += _absent_modalities(cases, require)
    if tags is not None:
        ids = [str(case.get("case_id")) for case in cases]
        faults += [
            DataError("tags-missing", "expected slice tags, found none", case_id=case_id, field="tags")
            for case_id in ids
            if case_id not in tags
        ]
        notes += _tag_notes({case_id: tags[case_id] for case_id in ids if case_id in tags}, set(tags) - set(ids))
    return VerifyReport(
        cases=len(cases),
        files=sum(len(check.hashes) for check in checks),
        faults=tuple(_relative(fault, root) for fault in faults),
        notes=tuple(_relative(note, root) for note in notes),
        hashes={check.case_id: check.hashes for check in checks},
        seconds=time.perf_counter() - start,
    )


def _run(
    cases: Sequence[Mapping[str, Any]],
    convention: LabelConvention | None,
    tags: Mapping[str, Tags] | None,
    require: Sequence[str],
    max_bytes: int,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[CaseCheck]:
    with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
        futures = [
            pool.submit(
                check_case, case, convention, None if tags is None else tags.get(case["case_id"]), require, max_bytes
            )
            for case in cases
        ]
        try:
            for done, _ in enumerate(as_completed(futures), start=1):
                if progress is not None:
                    progress(done, len(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _duplicate_cases(cases: Sequence[Mapping[str, Any]]) -> list[DataError]:
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for case in cases:
        groups[_normal(str(case.get("case_id")))].append(case)
    faults = []
    for group in groups.values():
        if len(group) > 1:
            places = [f"{c['case_id']!r} in {next(iter(dict(c['modalities']).values()), 'no file')}" for c in group]
            message = f"expected each case id once (capitals do not count), got {' and '.join(places)}"
            faults.append(DataError("duplicate-case", message, case_id=str(group[0]["case_id"]), field="case_id"))
    return faults


def _normal(case_id: str) -> str:
    return unicodedata.normalize("NFC", case_id).casefold()


def _duplicate_content(checks: Sequence[CaseCheck]) -> list[DataError]:
    """Find the same voxels under two names; labels are left out, since controls may share an empty one."""
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for check in checks:
        for name, digest in check.fingerprints.items():
            places[digest].append((check.case_id, name))
    shared: dict[tuple[str, ...], list[str]] = defaultdict(list)
    faults = []
    for group in places.values():
        case_ids = tuple(dict.fromkeys(case_id for case_id, _ in group))
        if len({_normal(case_id) for case_id in case_ids}) > 1:
            shared[case_ids].append(group[0][1])
        elif len({name for _, name in group}) > 1:
            names = [name for _, name in group]
            message = f"expected different images, got the same voxels in {' and '.join(names)}"
            faults.append(DataError("duplicate-modality", message, case_id=case_ids[0], field=names[1]))
    for case_ids, names in shared.items():
        message = f"expected different images, got the same voxels in the cases {' and '.join(case_ids)}"
        hint = "one patient under two ids makes results look better than they are; keep one"
        faults.append(DataError("duplicate-content", message, case_id=case_ids[1], field=", ".join(names), hint=hint))
    return faults


def _absent_modalities(cases: Sequence[Mapping[str, Any]], require: Sequence[str]) -> list[DataError]:
    """Note the modalities that only some cases lack."""
    have = {name for case in cases for name in case.get("modalities") or ()}
    return [
        DataError(
            "modality-missing",
            f"expected a file for {name} as in other cases, found none",
            case_id=str(case.get("case_id")),
            field=name,
            hint="fine, if this contrast was not acquired",
        )
        for case in cases
        for name in MODALITIES
        if name in have and name not in (case.get("modalities") or ()) and name not in require
    ]


def _tag_notes(tags: Mapping[str, Tags], unused: set[str]) -> list[DataError]:
    notes = [
        DataError("tags-unused", "expected tags only of the cases given, got more", case_id=case_id, field="tags")
        for case_id in sorted(unused)
    ]
    for region in REGIONS:
        if tags and all(spans.get(region) is None for spans in tags.values()):
            message = f"expected {region} in at least one of {len(tags)} cases, found none; it can't be learned"
            notes.append(DataError("region-absent", message, field=region))
    return notes


def _relative(fault: DataError, root: str | Path | None) -> DataError:
    if root is None or fault.path is None:
        return fault
    base, path = os.path.abspath(root), os.path.abspath(fault.path)
    if os.path.commonpath([base, path]) != base:
        return fault
    return DataError(
        fault.code,
        fault.message,
        case_id=fault.case_id,
        field=fault.field,
        path=os.path.relpath(path, base),
        hint=fault.hint,
    )
