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


"""``monai-rrr audit``: evidence of a network in this process, or of a bundle in one of its own, and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bundle_run import find_bundle
from .console import counted, progress
from .explain_bundle import infer, weights_of

if TYPE_CHECKING:
    from monai_rrr.report import NetworkUnderAudit

__all__ = ["Source", "audit_bundle", "audit_network", "describe_network"]


@dataclass(frozen=True)
class Source:
    """What is audited, and where the page goes.

    Args:
        data: folder of cases or JSON datalist.
        section: of a JSON datalist.
        sanity: number of cases for the sanity check.
        folder: for the page.
    """

    data: Path
    section: str
    sanity: int
    folder: Path


def describe_network(
    config: Path, checkpoint: Path, layer: str, class_idx: int | None, region: str | None, spacing: float | None
) -> list[tuple[str, str]]:
    """Facts for the end of the page; names of files, never their folders."""
    from monai_rrr.utils.files import sha256

    return [
        ("network", config.name),
        ("weights", f"{checkpoint.name}, SHA-256 {sha256(checkpoint)}"),
        ("heatmap", f"Grad-CAM of layer {layer}"),
        ("explained class", "the predicted one" if class_idx is None else str(class_idx)),
        ("lesion", "every label but 0" if region is None else region),
        ("voxel size", "that of the files" if spacing is None else f"{spacing:g} mm"),
    ]


def audit_network(
    source: Source, audited: NetworkUnderAudit, facts: list[tuple[str, str]], options: Mapping[str, Any]
) -> Path:
    """Audit any network; return the page.

    Args:
        source: cases and folder.
        audited: the network with what explains it.
        facts: of :func:`describe_network`.
        options: of :func:`~monai_rrr.report.write_audit`.
    """
    import torch

    from monai_rrr.data import load_datalist
    from monai_rrr.report import write_audit

    if torch.cuda.is_available():
        audited = replace(audited, device="cuda")
    cases = load_datalist(source.data, section=source.section, require=audited.modalities)
    sanity = {}
    with progress("sanity check") as step:
        for case in counted(cases[: source.sanity], step):
            sanity[str(case["case_id"])] = audited.sanity(case)
    title = f"Where does {type(audited.network).__name__} look?"
    with progress("cases") as step:
        return write_audit(
            cases, audited.evidence, source.folder, title=title, record=facts, sanity=sanity, progress=step, **options
        )


def audit_bundle(
    source: Source,
    bundle: str,
    checkpoint: Path | None,
    region: str,
    convention: str,
    work: Path,
    options: Mapping[str, Any],
    trust_weights: bool = False,
) -> Path:
    """Audit a bundle of this project by what its inference writes; return the page.

    Args:
        source: cases and folder.
        bundle: folder or name.
        checkpoint: weights; by default those of the bundle.
        region: heatmap to look at, and lesion in which its evidence should lie.
        convention: label convention of the masks.
        work: folder for what is not kept.
        options: of :func:`~monai_rrr.report.write_audit`.
        trust_weights: accept weights without a manifest.
    """
    from monai_rrr.data import load_datalist
    from monai_rrr.report import evidence_of_files, write_audit
    from monai_rrr.report.write_audit import SHARE
    from monai_rrr.utils.conventions import get_convention
    from monai_rrr.utils.files import sha256

    home = find_bundle(bundle)
    weights = weights_of(home, checkpoint, trust_weights)
    get_convention(convention)
    cases = load_datalist(source.data, section=source.section)
    work.mkdir(parents=True, exist_ok=True)
    data = _datalist(cases, work / "cases.json")
    learned = work / "learned"
    folder = infer(data, home, weights, convention, learned, work / "learned.log", len(cases), trust_weights)
    sanity = _bundle_sanity(cases[: source.sanity], folder, home, weights, region, convention, work)
    facts = [
        ("bundle", home.name),
        ("weights", f"{weights.name}, SHA-256 {sha256(weights)}"),
        ("heatmap", f"fused heatmap of {region}, as the bundle's inference writes it"),
        ("lesion", region),
    ]
    with progress("cases") as step:
        return write_audit(
            cases,
            lambda case: evidence_of_files(case, folder, region, convention),
            source.folder,
            title=f"Where does {home.name} look?",
            record=facts,
            sanity=sanity,
            modality_words=SHARE,
            progress=step,
            **options,
        )


def _bundle_sanity(
    cases: list[dict[str, Any]], folder: Path, home: Path, weights: Path, region: str, convention: str, work: Path
) -> dict[str, dict[float, float]]:
    """Run inference once more with all learned weights destroyed."""
    if not cases:
        return {}
    import torch

    from monai_rrr.inferers import heatmap_similarity, randomized_copies
    from monai_rrr.report import load_network
    from monai_rrr.report.audit_files import written_heatmap
    from monai_rrr.utils.tensor_file import write_tensors

    # our own bundles, or ones that the inference has run already
    network = load_network(home / "configs" / "inference.yaml", weights, trust_code=True)
    _, destroyed = next(randomized_copies(network, steps=1))
    write_tensors(work / "destroyed.pt", destroyed.state_dict())
    data = _datalist(cases, work / "few.json")
    other = infer(data, home, work / "destroyed.pt", convention, work / "destroyed", work / "destroyed.log", len(cases))
    found = {}
    for case in cases:
        case_id = str(case["case_id"])
        first, second = (torch.from_numpy(written_heatmap(place, case_id, region)) for place in (folder, other))
        found[case_id] = {0.0: 1.0, 1.0: heatmap_similarity(first, second, (first != 0) | (second != 0))}
    return found


def _datalist(cases: list[dict[str, Any]], path: Path) -> Path:
    path.write_text(json.dumps({"training": cases}), encoding="utf-8")
    return path
