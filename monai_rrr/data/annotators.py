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

"""Multi-annotator cohorts on disk: masks of simulated annotators with known habits, and a manifest that replays."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from monai_rrr.data.annotator_field import MixedNormals, NormalSource
from monai_rrr.data.annotator_rules import AnnotatorSettings, simulate_annotator
from monai_rrr.data.annotator_team import (
    ADAPTATION,
    TEST,
    TRAINING,
    CasePlan,
    Member,
    TeamSettings,
    make_team,
    plan_cases,
)
from monai_rrr.data.datalist import duplicate_cases
from monai_rrr.data.geometry import MAX_DISPLACEMENT, corner_displacement
from monai_rrr.data.nifti import NiftiVolume, locate, read_verified
from monai_rrr.errors import DataError, DatasetError
from monai_rrr.utils.class_map import from_classes, to_classes
from monai_rrr.utils.conventions import LabelConvention, get_convention, round_labels
from monai_rrr.utils.files import atomic_write, safe_name, whole_folder
from monai_rrr.utils.nifti_file import header_geometry, nifti_bytes

__all__ = ["ANNOTATORS_VERSION", "make_annotators", "read_annotators", "replay_annotators"]

ANNOTATORS_VERSION = 1
_MANIFEST, _DATALIST = "annotators.json", "datalist.json"

Progress = Callable[[int, int], None]


def make_annotators(
    cases: Sequence[Mapping[str, Any]],
    convention: str | LabelConvention,
    out: str | Path,
    settings: TeamSettings | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the masks that a team of simulated annotators would have drawn. Sources are read, never written to.

    Patients are split first. ``out`` receives ``masks/<case>/<case>_<annotator>.nii.gz`` in the convention and on the
    grid of the labels, ``datalist.json`` with the sections ``training``, ``adaptation`` (L5) and ``test`` for
    :func:`~monai_rrr.data.load_annotated`, and ``annotators.json``: who has which habits, and what was drawn for
    every mask. Images stay where they are. Only ``test`` names the true label; nothing else shows it to a training.

    Args:
        cases: entries of a datalist with ``label``; for L2 also with FLAIR.
        convention: label convention of the labels.
        out: new or empty folder, outside of the folders of the cases. Appears whole, or not at all.
        settings: which team; see :class:`~monai_rrr.data.annotator_team.TeamSettings`.
        progress: called with (done, total) cases.

    Returns:
        The folder.

    Raises:
        ConfigError: ``label-convention``, when the convention is unknown.
        DataError: When ``out`` has content or lies among the sources, there are too few patients, or a file is damaged.
        DatasetError: All cases without a label, without FLAIR where it is needed, or listed twice.

    Example:
        >>> make_annotators(cases, "brats2018", "team", TeamSettings(level="L3"))  # doctest: +SKIP
        PosixPath('team')
    """
    settings = settings or TeamSettings()
    team = make_team(settings)
    _check_cases(cases, settings)
    plans = plan_cases([str(case["case_id"]) for case in cases], team, settings)
    entries = [{"case_id": case_id, **asdict(plan)} for case_id, plan in plans.items()]
    return _build(cases, entries, team, settings, get_convention(convention), Path(out), progress)


def replay_annotators(
    manifest: str | Path, cases: Sequence[Mapping[str, Any]], out: str | Path, progress: Progress | None = None
) -> Path:
    """Write a multi-annotator cohort again, bit for bit, from its manifest and the same sources.

    Args:
        manifest: ``annotators.json`` of the first one.
        cases: entries of a datalist with (at least) the cases of the manifest.
        out: new or empty folder.
        progress: called with (done, total) cases.

    Raises:
        DataError: ``annotators-manifest`` when the manifest can't be used; ``annotators-source`` when a source file is
            missing or another one; ``annotators-replay`` when a mask came out differently, as another version of
            scipy may round it; and as :func:`make_annotators`.
    """
    content = read_annotators(manifest)
    listed = {str(case["case_id"]): case for case in cases}
    for entry in content["cases"]:
        if entry["case_id"] not in listed:
            message = "expected this case of the manifest, found none"
            raise DataError("annotators-source", message, case_id=entry["case_id"], path=manifest)
    chosen = [listed[entry["case_id"]] for entry in content["cases"]]
    team = {name: Member.from_dict(fields) for name, fields in content["annotators"].items()}
    settings = TeamSettings(**content["settings"])
    _check_cases(chosen, settings)
    convention = get_convention(content["convention"])
    return _build(chosen, content["cases"], team, settings, convention, Path(out), progress)


def read_annotators(manifest: str | Path) -> dict[str, Any]:
    """Read the manifest of a multi-annotator cohort: what is true of it. For evaluation, never for training.

    Args:
        manifest: ``annotators.json``, or the folder that holds it.

    Returns:
        ``settings``, ``convention``, ``annotators`` (id -> kind, habits) and ``cases`` (section, site, and for each
        mask the offset that was drawn and its digest).

    Raises:
        DataError: ``annotators-manifest``.
    """
    path = Path(manifest)
    path = path / _MANIFEST if path.is_dir() else path
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        hint = "monai-rrr annotators writes it"
        raise DataError("annotators-manifest", "expected a manifest, found none", path=path, hint=hint) from None
    except ValueError as error:
        raise DataError("annotators-manifest", f"expected JSON, got {error}", path=path) from error
    if not isinstance(content, dict) or content.get("version") != ANNOTATORS_VERSION or "annotators" not in content:
        got = content.get("version") if isinstance(content, dict) else type(content).__name__
        message = f"expected a manifest of version {ANNOTATORS_VERSION}, got {got}"
        raise DataError("annotators-manifest", message, path=path)
    return content


def _build(
    cases: Sequence[Mapping[str, Any]],
    entries: Sequence[Mapping[str, Any]],
    team: Mapping[str, Member],
    settings: TeamSettings,
    convention: LabelConvention,
    out: Path,
    progress: Progress | None,
) -> Path:
    """Write everything beside ``out`` and move it there at the end."""
    out = Path(os.path.abspath(out.expanduser()))
    _check_out(out, cases)
    listed = {str(case["case_id"]): case for case in cases}
    with whole_folder(out) as work:
        done, datalist = [], {name: [] for name in (TRAINING, ADAPTATION, TEST)}  # type: ignore[var-annotated]
        for number, entry in enumerate(entries):
            case, plan = listed[entry["case_id"]], CasePlan(entry["section"], entry["site"], list(entry["annotators"]))
            record = _write_case(case, plan, entry, team, settings, convention, work)
            done.append(record)
            datalist[plan.section].append(_listing(case, plan, team, out))
            if progress is not None:
                progress(number + 1, len(entries))
        manifest = {
            "version": ANNOTATORS_VERSION,
            "settings": asdict(settings),
            "convention": convention.name,
            "annotators": {name: asdict(member) for name, member in team.items()},
            "cases": done,
        }
        filled = {name: listing for name, listing in datalist.items() if listing}
        for name, content in ((_DATALIST, filled), (_MANIFEST, manifest)):
            atomic_write(work / name, (json.dumps(content, indent=1) + "\n").encode())
    return out


def _write_case(
    case: Mapping[str, Any],
    plan: CasePlan,
    entry: Mapping[str, Any],
    team: Mapping[str, Member],
    settings: TeamSettings,
    convention: LabelConvention,
    work: Path,
) -> dict[str, Any]:
    case_id = str(case["case_id"])
    label, flair, sources = _read(case, settings)
    if entry.get("sources", sources) != sources:
        raise DataError("annotators-source", "expected the files of the manifest, got other ones", case_id=case_id)
    turned = label.canonical()
    try:
        classes = to_classes(round_labels(turned.array), convention)
    except DataError as error:
        raise locate(error, case_id, "label", case["label"]) from None
    x, y, z = (float(size) for size in np.linalg.norm(turned.affine[:3, :3], axis=0))
    back = nib.orientations.ornt_transform([[0, 1], [1, 1], [2, 1]], nib.io_orientation(label.affine))
    masks: dict[str, dict[str, Any]] = {}
    for name in plan.annotators:
        habit, generator = _hand(case_id, team[name], settings)
        drawn = simulate_annotator(classes, (x, y, z), habit, generator, flair)
        stored = nib.apply_orientation(from_classes(drawn, convention), back)
        content = nifti_bytes(np.ascontiguousarray(stored), header_geometry(label.header))
        masks[name] = {"offset_mm": habit.offset_mm, "sha256": hashlib.sha256(gzip.decompress(content)).hexdigest()}
        atomic_write(work / _mask_path(case_id, name), content)
    if entry.get("masks", masks) != masks:
        message = "expected the masks of the manifest, got other ones"
        raise DataError("annotators-replay", message, case_id=case_id, hint="use the versions of the first run")
    return {"case_id": case_id, **asdict(plan), "sources": sources, "masks": masks}


def _hand(case_id: str, member: Member, settings: TeamSettings) -> tuple[AnnotatorSettings, NormalSource]:
    """Return the habits of one case and what its mask is drawn from: a function of seed, case and annotator alone."""
    own = _state(settings.seed, case_id, f"{member.kind}:{member.leans_on}")
    generator: NormalSource = own
    if member.leans_on:
        generator = MixedNormals(own, _state(settings.seed, case_id, f"{member.leans_on}:"), member.share)
    return member.settings.drawn(generator), generator


def _state(seed: int, case_id: str, name: str) -> np.random.RandomState:
    digest = hashlib.sha256(f"{seed}:{case_id}:{name}".encode("utf-8", "surrogatepass")).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "big"))


def _read(case: Mapping[str, Any], settings: TeamSettings) -> tuple[NiftiVolume, NDArray[Any] | None, dict[str, str]]:
    """Read the label, and FLAIR (canonical) where the annotators look at it; return the SHA-256 of both files too."""
    case_id = str(case["case_id"])
    label = read_verified(case["label"], case_id=case_id, field="label")
    if settings.level != "L2":
        return label, None, {"label": label.sha256}
    path, volume = case["modalities"]["flair"], (case.get("volumes") or {}).get("flair")
    flair = read_verified(path, volume, case_id=case_id, field="flair")
    same = flair.array.shape == label.array.shape
    if not same or corner_displacement(flair.affine, label.affine, label.array.shape) > MAX_DISPLACEMENT:
        message = f"expected the grid of the label, {label.array.shape}, got another one, {flair.array.shape}"
        raise DataError("affine-mismatch" if same else "shape-mismatch", message, case_id=case_id, field="flair")
    return label, flair.canonical().array, {"label": label.sha256, "flair": flair.sha256}


def _mask_path(case_id: str, name: str) -> str:
    stem = safe_name(case_id)
    return f"masks/{stem}/{stem}_{name}.nii.gz"


def _listing(case: Mapping[str, Any], plan: CasePlan, team: Mapping[str, Member], out: Path) -> dict[str, Any]:
    case_id = str(case["case_id"])
    drawn = {name: _mask_path(case_id, name) if name in plan.annotators else None for name in team}
    entry: dict[str, Any] = {
        "case_id": case_id,
        "modalities": {name: _relative(path, out) for name, path in case["modalities"].items()},
        "annotations": drawn,
    }
    if case.get("volumes"):
        entry["volumes"] = dict(case["volumes"])
    if plan.section == TEST:
        entry["label"] = _relative(case["label"], out)
    return entry


def _relative(path: str | Path, out: Path) -> str:
    try:
        return os.path.relpath(path, out)
    except ValueError:  # another drive of Windows
        return os.path.abspath(path)


def _check_cases(cases: Sequence[Mapping[str, Any]], settings: TeamSettings) -> None:
    faults = duplicate_cases(cases)
    for case in cases:
        case_id = str(case["case_id"])
        if case.get("label") is None:
            message = "expected a label, which the annotators draw again, found none"
            faults.append(DataError("label-missing", message, case_id=case_id, field="label"))
        if settings.level == "L2" and "flair" not in case["modalities"]:
            message = f"expected flair, whose edges L2 depends on, found only {', '.join(case['modalities'])}"
            faults.append(DataError("modality-missing", message, case_id=case_id, field="flair"))
    if faults:
        raise DatasetError(faults)


def _check_out(out: Path, cases: Sequence[Mapping[str, Any]]) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("annotators-out", "expected a new or empty folder, got one with content", path=out)
    place = out.resolve()
    for case in cases:
        for path in (*case["modalities"].values(), case["label"]):
            file = Path(path).resolve()
            if file.is_relative_to(place) or place.is_relative_to(file.parent):
                message = "expected a folder outside of those of the cases, which are never changed"
                raise DataError("annotators-out", message, case_id=str(case["case_id"]), path=out)
