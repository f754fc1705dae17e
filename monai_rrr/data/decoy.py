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

"""Decoy cohorts: copies of a data set in which a marker gives the class away, and test sets that show who uses it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_rrr.data.datalist import load_datalist
from monai_rrr.data.decoy_file import DecoySource, File
from monai_rrr.data.decoy_marker import LOCAL_MARKERS, draw_marker
from monai_rrr.data.decoy_plan import TEST_SETS, TRAINING, DecoySettings, patient_of, plan_markers
from monai_rrr.data.tags import Tags, write_tags
from monai_rrr.errors import DataError, DatasetError
from monai_rrr.utils.enums import MODALITIES
from monai_rrr.utils.files import atomic_write, safe_name, whole_folder

__all__ = ["DECOY_VERSION", "load_decoy", "make_decoy", "replay_decoy"]

DECOY_VERSION = 1
_MANIFEST, _DATALIST, _TAGS = "decoy.json", "datalist.json", "tags.csv"
_ONE_MODALITY = ("blur", "shift")

Progress = Callable[[int, int], None]


def make_decoy(
    cases: Sequence[Mapping[str, Any]],
    tags: Mapping[str, Tags],
    out: str | Path,
    settings: DecoySettings | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a copy of a data set with a marker that gives the class away, in training and in one of four test sets.

    Patients are split first. ``training`` and ``iid`` carry the marker with the same association to the class,
    ``removed`` never, ``random`` in half of the cases of each class, ``conflicting`` exactly where ``iid`` doesn't. The
    four test sets hold the same images and differ in the marker only. Sources are read, never written to.

    The folder holds one BraTS folder per set, ``datalist.json`` with the sets as sections, ``tags.csv``, the voxels of
    local markers in ``markers/`` and the manifest ``decoy.json``, which :func:`replay_decoy` follows.

    Args:
        cases: entries of a datalist, with any subset of the modalities.
        tags: case id -> slice tags; a case is of class 1 when it has the region of the settings.
        out: new or empty folder, outside of the folders of the cases. Appears whole, or not at all.
        settings: which marker, how strong; see :class:`~monai_rrr.data.decoy_plan.DecoySettings`.
        progress: called with (done, total) cases.

    Returns:
        The folder.

    Raises:
        DataError: When ``out`` has content or lies among the sources, a class is missing, a file is damaged, or a case
            has no place for the marker.
        DatasetError: All cases without tags or without a modality that should be marked.

    Example:
        >>> make_decoy(cases, tags, "decoy", DecoySettings(marker="zipper", q=0.9))  # doctest: +SKIP
        PosixPath('decoy')
    """
    settings = _with_modalities(settings or DecoySettings(), cases)
    _check_cases(cases, tags, settings)
    labels = {str(case["case_id"]): int(tags[str(case["case_id"])][settings.region] is not None) for case in cases}
    plan = plan_markers(labels, settings)
    entries = [
        {
            "case_id": case_id,
            "patient": patient_of(case_id),
            "class_label": labels[case_id],
            "sets": {name: {"marker": carries} for name, carries in sets.items()},
        }
        for case_id, sets in plan.items()
    ]
    return _build(cases, {case_id: tags[case_id] for case_id in labels}, entries, settings, Path(out), progress)


def replay_decoy(
    manifest: str | Path,
    cases: Sequence[Mapping[str, Any]],
    tags: Mapping[str, Tags],
    out: str | Path,
    progress: Progress | None = None,
) -> Path:
    """Write a decoy cohort again, bit for bit, from its manifest and the same sources; nothing is drawn anew.

    Args:
        manifest: ``decoy.json`` of the first one.
        cases: entries of a datalist with (at least) the cases of the manifest.
        tags: case id -> slice tags.
        out: new or empty folder.
        progress: called with (done, total) cases.

    Raises:
        DataError: ``decoy-manifest`` when the manifest can't be used; ``decoy-source`` when a source file is missing
            or another one; ``decoy-replay`` when a file came out differently, as another version of scipy may round
            it; and as :func:`make_decoy`.
    """
    content = _read_manifest(Path(manifest))
    settings = DecoySettings(**{**content["settings"], "modalities": tuple(content["settings"]["modalities"])})
    listed = {str(case["case_id"]): case for case in cases}
    for entry in content["cases"]:
        if entry["case_id"] not in listed or entry["case_id"] not in tags:
            message = "expected this case of the manifest with its tags, found none"
            raise DataError("decoy-source", message, case_id=entry["case_id"], path=manifest)
    chosen = [listed[entry["case_id"]] for entry in content["cases"]]
    kept = {entry["case_id"]: tags[entry["case_id"]] for entry in content["cases"]}
    return _build(chosen, kept, content["cases"], settings, Path(out), progress)


def load_decoy(folder: str | Path, section: str = TRAINING, with_labels: bool | None = None) -> list[dict[str, Any]]:
    """List the cases of one set of a decoy cohort, with what only the manifest knows.

    Args:
        folder: of :func:`make_decoy`.
        section: ``"training"``, ``"iid"``, ``"removed"``, ``"random"`` or ``"conflicting"``.
        with_labels: see :func:`~monai_rrr.data.load_datalist`.

    Returns:
        Cases as of :func:`~monai_rrr.data.load_datalist`, with ``class_label`` (0 or 1), ``marker`` (whether it is in
        the images) and, for local markers, ``marker_mask``: the file with its voxels, or with those where it would be.

    Raises:
        DataError: When the folder is no decoy cohort, or has no such set.
    """
    folder = Path(folder)
    entries = {entry["case_id"]: entry for entry in _read_manifest(folder / _MANIFEST)["cases"]}
    cases = load_datalist(folder / _DATALIST, section=section, with_labels=with_labels)
    for case in cases:
        entry = entries[case["case_id"]]
        case |= {"class_label": entry["class_label"], "marker": entry["sets"][section]["marker"]}
        mask = folder / "markers" / f"{safe_name(case['case_id'])}_marker.nii.gz"
        if mask.is_file():
            case["marker_mask"] = str(mask)
    return cases


def _build(
    cases: Sequence[Mapping[str, Any]],
    tags: Mapping[str, Tags],
    entries: Sequence[dict[str, Any]],
    settings: DecoySettings,
    out: Path,
    progress: Progress | None,
) -> Path:
    """Write everything beside ``out`` and move it there at the end."""
    out = Path(os.path.abspath(out.expanduser()))
    _check_out(out, cases)
    listed = {str(case["case_id"]): case for case in cases}
    with whole_folder(out) as work:
        done: list[dict[str, Any]] = []
        datalist: dict[str, list[dict[str, Any]]] = {name: [] for name in (TRAINING, *TEST_SETS)}
        for number, entry in enumerate(entries):
            record, listings = _write_case(listed[entry["case_id"]], entry, settings, work)
            done.append(record)
            for name, listing in listings.items():
                datalist[name].append(listing)
            if progress is not None:
                progress(number + 1, len(entries))
        write_tags(work / _TAGS, dict(sorted(tags.items())))
        manifest = {"version": DECOY_VERSION, "settings": settings.as_dict(), "cases": done}
        for name, content in ((_DATALIST, datalist), (_MANIFEST, manifest)):
            atomic_write(work / name, (json.dumps(content, indent=1) + "\n").encode())
    return out


def _write_case(
    case: Mapping[str, Any], entry: Mapping[str, Any], settings: DecoySettings, work: Path
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Write a case into its sets; return its record for the manifest, and its entry in the datalist of each set."""
    source = DecoySource(case)
    case_id, stem = source.case_id, safe_name(source.case_id)
    if entry.get("sources", source.digests) != source.digests:
        changed = sorted(name for name, digest in source.digests.items() if entry["sources"].get(name) != digest)
        message = f"expected the files of the manifest, got other ones for {', '.join(changed) or 'fewer files'}"
        raise DataError("decoy-source", message, case_id=case_id)
    scene = source.scene()
    parameters = entry.get("parameters")
    if parameters is None:
        try:
            parameters = draw_marker(settings.marker, _rng(settings.seed, case_id), scene, settings.strength)
        except LookupError as error:
            raise DataError("decoy-place", str(error), case_id=case_id, hint="choose another marker") from error
    plain = {name: source.plain(name) for name in source.digests}
    marked = {
        name: source.marked(name, settings.marker, parameters, scene)
        for name in source.modalities
        if name in (settings.modalities or source.modalities)
    }
    sets, listings = {}, {}
    for name, state in entry["sets"].items():
        files = {**plain, **marked} if state["marker"] else plain
        paths = {field: f"{name}/{stem}/{stem}_{file.name}" for field, file in files.items()}
        for field, file in files.items():
            atomic_write(work / paths[field], file.content)
        digests = {field: file.digest for field, file in files.items()}
        if state.get("files", digests) != digests:
            message = f"expected the files of the manifest in set {name}, got other ones"
            raise DataError("decoy-replay", message, case_id=case_id, hint="use the versions of the first run")
        sets[name] = {"marker": state["marker"], "files": digests}
        listings[name] = _listing(case_id, paths)
    if settings.marker in LOCAL_MARKERS:
        mask: File = source.mask(settings.marker, parameters, scene)
        atomic_write(work / "markers" / f"{stem}_{mask.name}", mask.content)
    known = {key: entry[key] for key in ("case_id", "patient", "class_label")}
    return {**known, "parameters": parameters, "sources": source.digests, "sets": sets}, listings


def _listing(case_id: str, paths: Mapping[str, str]) -> dict[str, Any]:
    modalities = {name: path for name, path in paths.items() if name != "label"}
    label = {"label": paths["label"]} if "label" in paths else {}
    return {"case_id": case_id, "modalities": modalities, **label}


def _rng(seed: int, case_id: str) -> np.random.RandomState:
    """Return the source of a case: it depends on the seed and the name only, not on the other cases."""
    return np.random.RandomState(int.from_bytes(hashlib.sha256(f"{seed}:{case_id}".encode()).digest()[:4], "big"))


def _with_modalities(settings: DecoySettings, cases: Sequence[Mapping[str, Any]]) -> DecoySettings:
    if settings.modalities or settings.marker not in _ONE_MODALITY:
        return settings
    shared = [name for name in MODALITIES if all(name in case["modalities"] for case in cases)]
    if not shared:
        raise DataError("modality-missing", "expected one modality that all cases have, got none", field="modalities")
    return replace(settings, modalities=(shared[0],))


def _check_cases(cases: Sequence[Mapping[str, Any]], tags: Mapping[str, Tags], settings: DecoySettings) -> None:
    faults, seen = [], set()
    for case in cases:
        case_id = str(case["case_id"])
        if case_id in seen:
            faults.append(DataError("duplicate-case", "expected each case id once, got it twice", case_id=case_id))
        seen.add(case_id)
        if case_id not in tags:
            message = "expected slice tags of this case, they give its class"
            faults.append(DataError("tags-missing", message, case_id=case_id, field="tags"))
        for name in settings.modalities:
            if name not in case["modalities"]:
                message = f"expected {name} to mark it, found only {', '.join(case['modalities'])}"
                faults.append(DataError("modality-missing", message, case_id=case_id, field=name))
        if settings.marker == "clip" and "label" not in case:
            message = "expected a mask, since a clip must lie outside the lesion"
            faults.append(DataError("label-missing", message, case_id=case_id, field="label"))
    if faults:
        raise DatasetError(faults)


def _check_out(out: Path, cases: Sequence[Mapping[str, Any]]) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("decoy-out", "expected a new or empty folder, got one with content", path=out)
    place = out.resolve()
    for case in cases:
        for path in (*case["modalities"].values(), *([case["label"]] if "label" in case else [])):
            file = Path(path).resolve()
            if file.is_relative_to(place) or place.is_relative_to(file.parent):
                message = "expected a folder outside of those of the cases, which are copied and never changed"
                raise DataError("decoy-out", message, case_id=str(case["case_id"]), path=out)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        hint = "monai-rrr decoy writes it"
        raise DataError("decoy-manifest", "expected a manifest, found none", path=path, hint=hint) from None
    except ValueError as error:
        raise DataError("decoy-manifest", f"expected JSON, got {error}", path=path) from error
    if not isinstance(content, dict) or content.get("version") != DECOY_VERSION or "cases" not in content:
        got = content.get("version") if isinstance(content, dict) else type(content).__name__
        raise DataError("decoy-manifest", f"expected a manifest of version {DECOY_VERSION}, got {got}", path=path)
    return content
