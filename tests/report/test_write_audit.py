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


from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.nets import resnet10

from monai_rrr.data import load_datalist
from monai_rrr.errors import DataError
from monai_rrr.report import Evidence, NetworkUnderAudit, mri_preprocessing, read_image, write_audit
from monai_rrr.report.audit_network import lesion_of

SHAPE = (20, 24, 16)


def evidence_of(case: dict[str, Any]) -> Evidence:
    """A brain and a lesion; how much of the evidence lies in the lesion is said by the case."""
    grid = np.indices(SHAPE).T - np.array([10, 12, 8])
    brain = ((grid / np.array([8, 9, 6])) ** 2).sum(-1).T <= 1
    lesion = np.zeros(SHAPE, bool)
    lesion[8:11, 10:13, 6:9] = True
    heatmap = np.where(lesion, case["inside"], 0.1).astype(np.float32) * case.get("scale", 1.0)
    effects = {"flair": case["inside"], "t1": 0.0}
    given = (case["case_id"], heatmap, {"flair": brain * 9.0, "t1": brain * 5.0}, lesion if case["mask"] else None)
    return Evidence(*given, (2.0, 2.0, 2.0), case.get("class_name", "class 1"), 0.75, effects)


CASES = [
    {"case_id": "good", "inside": 50.0, "mask": True},
    {"case_id": "<bad>", "inside": 0.0, "mask": True},
    {"case_id": "unmasked", "inside": 1.0, "mask": False},
    {"case_id": "silent", "inside": 1.0, "mask": True, "scale": 0.0},
]
SANITY = {"good": {0.0: 1.0, 1.0: 0.1}}


def text_of(path: Path) -> str:
    text = re.sub(r'src="data:[^"]+"', "", path.read_text("utf-8"))
    return " ".join(re.sub(r"<[^>]+>", " ", text[text.index("<body>") :]).split())


def test_page(tmp_path: Path) -> None:
    facts = [("weights", "net.pt")]
    path = write_audit(CASES, evidence_of, tmp_path, title="Where?", record=facts, sanity=SANITY)
    assert path == tmp_path / "index.html"
    html, text = path.read_text("utf-8"), text_of(path)
    assert "http" not in html.replace("http-equiv", "")
    assert str(tmp_path) not in html
    assert "<bad>" not in html
    order = re.findall(r"<h3>\d+\. ([^<\s]+)", html)
    assert order == ["silent", "&lt;bad&gt;", "good", "unmasked"]
    assert len(re.findall(r'src="data:image/jpeg', html)) == 4
    assert "3 cases with a lesion mask" in text
    assert "1 cases without a lesion or without a mask" in text
    assert "no evidence 1 of 4 cases" in text
    assert "pointing game 1 of 2 cases" in text
    assert "FLAIR +13.000" in text
    assert "passed: with all weights randomized the similarity is 0.10" in text
    assert "Evidence for class 1: none; probability of the class 0.75." in text
    assert "weights net.pt" in text
    assert "software monai-rrr" in text


def test_numbers_of_the_lead(tmp_path: Path) -> None:
    text = text_of(write_audit(CASES[:1], evidence_of, tmp_path / "one.html", title="Where?"))
    total = 27 * 50 + (np.prod(SHAPE) - 27) * 0.1
    assert f"{100 * 27 * 50 / total:.0f} % of the evidence lies in the lesion" in text
    assert "Sanity check The weights are destroyed" in text
    assert "Not done." in text


def test_only_cases_without_masks(tmp_path: Path) -> None:
    text = text_of(write_audit(CASES[2:3], evidence_of, tmp_path, title="Where?"))
    assert "1 cases without lesion masks" in text
    assert "pointing game" not in text
    assert "lift " not in text


def test_warnings_and_limits(tmp_path: Path) -> None:
    cases = [{**CASES[0], "case_id": str(number), "class_name": f"class {number % 2}"} for number in range(3)]
    path = write_audit(cases, evidence_of, tmp_path, title="Where?", max_cases=2, sanity={"0": {0.0: 1.0, 1.0: 0.9}})
    text = text_of(path)
    assert "The explained class differs between cases (class 0, class 1)" in text
    assert "The 2 worst of 3 cases are shown." in text
    assert "FAILED: with all weights randomized the similarity is 0.90" in text
    assert len(re.findall(r"<h3>", path.read_text("utf-8"))) == 2

    def unstripped(case: dict[str, Any]) -> Evidence:
        found = evidence_of(case)
        return Evidence(**{**vars(found), "images": {"t1": np.ones(SHAPE, np.float32)}})

    assert "1 of 1 cases have no background of 0" in text_of(
        write_audit(CASES[:1], unstripped, tmp_path, title="Where?")
    )


def test_progress_and_exceptions(tmp_path: Path) -> None:
    calls = []
    write_audit(CASES[:2], evidence_of, tmp_path, title="x", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]
    with pytest.raises(DataError, match="expected at least one case, got none"):
        write_audit([], evidence_of, tmp_path, title="x")
    with pytest.raises(ValueError, match="expected at least one case to show, got 0"):
        write_audit(CASES, evidence_of, tmp_path, title="x", max_cases=0)


@pytest.fixture(scope="module")
def audited() -> NetworkUnderAudit:
    network = resnet10(spatial_dims=3, n_input_channels=2, num_classes=2, widen_factor=0.125).eval()
    return NetworkUnderAudit(network, "layer2", ("t1c", "flair"), 1, mri_preprocessing(10.0, divisible=16))


class TestNetwork:
    def test_evidence(self, audited: NetworkUnderAudit, phantom_cohort: Path) -> None:
        case = load_datalist(phantom_cohort)[0]
        before = {name: value.clone() for name, value in audited.network.state_dict().items()}
        found = audited.evidence(case)
        assert found.case_id == case["case_id"]
        assert found.class_name == "class 1"
        assert found.lesion is not None
        assert found.heatmap.shape == found.images["flair"].shape == found.lesion.shape
        assert found.spacing == pytest.approx((5.0, 5.0, 5.0))
        assert 0 < found.probability < 1
        assert found.lesion.any()
        assert (found.images["flair"][found.lesion] > 0).all()
        assert all(torch.equal(value, before[name]) for name, value in audited.network.state_dict().items())

    def test_leave_one_out_is_what_it_says(self, audited: NetworkUnderAudit, phantom_cohort: Path) -> None:
        case = load_datalist(phantom_cohort)[0]
        image = audited._seen(read_image(case, audited.modalities))
        with torch.no_grad():
            full = audited.network(image).softmax(1)[0, 1].logit()
            image[:, 1] = 0
            without = audited.network(image).softmax(1)[0, 1].logit()
        assert audited.evidence(case).modalities["flair"] == pytest.approx(float(full - without), abs=1e-4)

    def test_sanity(self, audited: NetworkUnderAudit, phantom_cohort: Path) -> None:
        found = audited.sanity(load_datalist(phantom_cohort)[0], steps=2)
        assert next(iter(found)) == 0.0
        assert list(found)[-1] == 1.0
        assert found[0.0] == 1.0
        assert all(-1 <= value <= 1 for value in found.values())

    def test_regions(self, phantom_cohort: Path) -> None:
        case = load_datalist(phantom_cohort)[0]
        shape = (48, 48, 31)
        whole = lesion_of(case, None, None, shape)
        assert whole is not None
        np.testing.assert_array_equal(whole, lesion_of(case, "WT", "brats2018", shape))
        core = lesion_of(case, "TC", "brats2018", shape)
        assert core is not None
        assert core.sum() < whole.sum()
        assert lesion_of({"case_id": "a"}, None, None, shape) is None
        with pytest.raises(DataError, match=r"shape-mismatch.*expected shape"):
            lesion_of(case, None, None, (1, 2, 3))
