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

import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai_rrr.data.case_check import CaseCheck, Rules, check_case
from monai_rrr.data.datalist import duplicate_cases, list_cases, relative
from monai_rrr.data.dataset_check import absent_modalities, check_tag_table, duplicate_content
from monai_rrr.data.nifti import MAX_BYTES
from monai_rrr.data.tags import Tags, read_tags
from monai_rrr.data.verified_cache import VerifiedCache
from monai_rrr.errors import DataError, DatasetError
from monai_rrr.utils.conventions import LabelConvention, get_convention

__all__ = ["VerifyReport", "verify_cases", "verify_dataset"]

SCHEMA = "monai_rrr verify report 1"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerifyReport:
    """Result of :func:`verify_cases` and :func:`verify_dataset`.

    Args:
        cases: number of cases.
        files: number of files that could be read.
        faults: what makes cases unusable.
        notes: what is legal, but worth knowing, such as a label without tumor.
        hashes: case id to field to SHA-256 of the file on disk.
        seconds: wall-clock time of the pass.
        unchanged: files that were not decoded again, because the cache knows their content to be intact.
        ignored: files and folders that were left out.
    """

    cases: int
    files: int
    faults: tuple[DataError, ...]
    notes: tuple[DataError, ...]
    hashes: dict[str, dict[str, str]]
    seconds: float
    unchanged: int = 0
    ignored: tuple[DataError, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        return not self.faults

    def raise_if_faulty(self) -> None:
        """Raise all faults at once; the notes go to the log as warnings.

        Raises:
            DatasetError: When there is a fault.
        """
        for note in self.notes:
            _LOG.warning("%s", note)
        if self.faults:
            raise DatasetError(self.faults)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as ``docs/verification.md`` describes them."""
        return {
            "schema": SCHEMA,
            "ok": self.ok,
            "cases": self.cases,
            "files": self.files,
            "unchanged": self.unchanged,
            "faults": [fault.as_dict() for fault in self.faults],
            "notes": [note.as_dict() for note in self.notes],
            "ignored": [item.as_dict() for item in self.ignored],
            "hashes": {case_id: dict(fields) for case_id, fields in self.hashes.items()},
            "seconds": self.seconds,
        }


def verify_dataset(
    source: str | Path,
    convention: str | LabelConvention | None = None,
    tags: str | Path | None = None,
    *,
    modalities: Sequence[str] | None = None,
    sections: Sequence[str] = ("training",),
    with_labels: bool | None = None,
    require: Sequence[str] = (),
    **options: Any,
) -> VerifyReport:
    """Verify a folder or a datalist: the list of cases, the table of tags and every file, in one report.

    Args:
        source: as :func:`load_datalist` takes it.
        convention: see :func:`verify_cases`.
        tags: file of slice tags; every case must then have some.
        modalities: keep only these; see :func:`load_datalist`.
        sections: sections of a JSON datalist; together, so that a case in two of them is seen.
        with_labels: True demands a label of every case, False leaves labels out, None takes what there is.
        require: modalities that every case must have.
        **options: of :func:`verify_cases`.

    Raises:
        ConfigError: ``label-convention``, when a case has a label and no convention is given.
        DataError: When there is no list of cases at all.
    """
    found = list_cases(source, modalities, sections, with_labels)
    table, faults = None, list(found.faults)
    if tags is not None:
        try:
            table = read_tags(tags)
        except DatasetError as error:
            faults += error.faults
        except DataError as error:
            faults.append(error)
    # A case without any image was listed as a fault already.
    cases = [case for case in found.cases if case["modalities"]]
    report = verify_cases(cases, convention, table, require=require, root=found.root, **options)
    listed = {(fault.code, fault.case_id, fault.field) for fault in report.faults}
    faults = [f for f in faults if (f.code, f.case_id, f.field) not in listed]
    notes = [note for note in found.notes if note.code != "ignored"]
    return VerifyReport(
        cases=len(found.cases),
        files=report.files,
        faults=tuple(relative(fault, found.root) for fault in faults) + report.faults,
        notes=tuple(relative(note, found.root) for note in notes) + report.notes,
        hashes=report.hashes,
        seconds=report.seconds,
        unchanged=report.unchanged,
        ignored=tuple(relative(note, found.root) for note in found.notes if note.code == "ignored"),
    )


def verify_cases(
    cases: Sequence[Mapping[str, Any]],
    convention: str | LabelConvention | None = None,
    tags: Mapping[str, Tags] | None = None,
    *,
    require: Sequence[str] = (),
    allow_absent: Collection[str] = (),
    partial: bool = False,
    tag_tolerance: int = 0,
    root: str | Path | None = None,
    workers: int | None = None,
    max_bytes: int = MAX_BYTES,
    cache: str | Path | None = None,
    rehash: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read every file of every case once and report everything that is wrong.

    Bytes (gzip checksum and size), header, affine, finiteness, content; shape and position of a case's files against
    each other; label values against the convention; slice tags against the number of slices and against the label;
    case ids, images and labels that occur twice; regions that no case has. Cases are checked in threads: decompression,
    hashing and NumPy release the interpreter's lock, and threads need neither pickling nor a start-up time, and work in
    notebooks and on Windows.

    Args:
        cases: cases as :func:`load_datalist` lists them.
        convention: label convention; required when a case has a label.
        tags: slice tags of the cases; every case must then have some, unless ``partial``.
        require: modalities that every case must have.
        allow_absent: regions that no case needs to be tagged with; any other region without a tag is a fault.
        partial: cases without tags are unlabeled; one of them must have some.
        tag_tolerance: slices by which tags and label may differ at either end of a region.
        root: folder of the data; paths inside it are reported relative to it.
        workers: number of threads; by default one per CPU, at most 4. Each holds one file in memory.
        max_bytes: refuse files that declare more decoded bytes.
        cache: file that remembers what was found in intact files, see :class:`VerifiedCache`; None reads everything.
        rehash: do not trust size and times of files that the cache knows, but read their bytes.
        progress: called with the number of cases done and in total.

    Raises:
        ConfigError: ``label-convention``, when a case has a label and no convention is given.
    """
    start = time.perf_counter()
    labeled = any(isinstance(case, Mapping) and case.get("label") is not None for case in cases)
    checked = get_convention(convention) if convention is not None or labeled else None
    rules = Rules(checked, tuple(require), tag_tolerance, max_bytes)
    memory = None if cache is None else VerifiedCache(cache, rehash=rehash)
    try:
        checks = _run(cases, tags, rules, memory, workers, progress)
    finally:
        if memory is not None:
            memory.save()
    faults = [fault for check in checks for fault in check.faults]
    notes = [note for check in checks for note in check.notes]
    cases = [case for case in cases if isinstance(case, Mapping)]
    faults += duplicate_cases(cases) + duplicate_content(checks)
    notes += absent_modalities(cases, require)
    if not cases:
        faults.append(DataError("no-cases", "expected at least one case, got none"))
    if tags is not None:
        found = check_tag_table([str(case.get("case_id")) for case in cases], tags, allow_absent, partial)
        faults, notes = faults + found[0], notes + found[1]
    if memory is not None and memory.problem is not None:
        hint = "everything was read; remove the file if this comes again"
        notes.append(DataError("cache-damaged", f"the cache {memory.problem}", path=memory.path, hint=hint))
    return VerifyReport(
        cases=len(cases),
        files=sum(len(check.hashes) for check in checks),
        faults=tuple(relative(fault, root) for fault in faults),
        notes=tuple(relative(note, root) for note in notes),
        hashes={check.case_id: check.hashes for check in checks},
        seconds=time.perf_counter() - start,
        unchanged=sum(check.unchanged for check in checks),
    )


def _run(
    cases: Sequence[Mapping[str, Any]],
    tags: Mapping[str, Tags] | None,
    rules: Rules,
    cache: VerifiedCache | None,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[CaseCheck]:
    def tags_of(case: Any) -> Tags | None:
        return None if tags is None or not isinstance(case, Mapping) else tags.get(str(case.get("case_id")))

    with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(check_case, case, tags_of(case), rules, cache) for case in cases]
        try:
            for done, _ in enumerate(as_completed(futures), start=1):
                if progress is not None:
                    progress(done, len(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]
