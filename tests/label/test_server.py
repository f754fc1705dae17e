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

"""The whole way over REST: info, inference, heatmap, scores, strategy, labels, training, inference again."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

SPEC = importlib.util.spec_from_file_location("served", Path(__file__).with_name("served.py"))
helpers = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(helpers)

pytestmark = pytest.mark.slow

GUIDED, TENDENCY = "brats_mri_guided_attention", "brats_mri_annotator_tendency"
FLAGSHIP = "brats_mri_right_reasons"
CASE, HEALTHY = "Phantom_0_0001", "Phantom_0_0000"


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any], studies: Path, untrained: Callable[[str], Path]) -> Any:
    return serve(studies, [untrained(name) for name in helpers.BUNDLES])


def image_of(server: Any, model: str, case: str = CASE, **params: Any) -> Any:
    answer = server.call("POST", f"/infer/{model}?image={case}&output=image", data={"params": json.dumps(params)})
    assert answer.status_code == 200, answer.text
    return nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))


def hand_in(server: Any, studies: Path, case: str, annotator: str, tag: str = "final") -> Any:
    values, affine = helpers.served_values(studies / case / f"{case}_seg.nii.gz")
    return server.json(
        "PUT",
        f"/datastore/label?image={case}&tag={tag}",
        data={"params": json.dumps({"annotator": annotator})},
        files={"label": ("label.nii.gz", helpers.as_file(values, affine))},
    )


def test_info_names_all_bundles(server: Any) -> None:
    info = server.json("GET", "/info/")
    assert set(info["models"]) == {*helpers.BUNDLES, *(f"{name}_heatmap" for name in helpers.BUNDLES)}
    assert set(info["trainers"]) == set(helpers.BUNDLES)
    assert {"evidence_outside", "modality_disagreement", "annotator_disagreement", "inconsistency"} <= set(
        info["strategies"]
    )
    assert info["datastore"] == {"total": 5, "completed": 0, "label_tags": {}}
    assert all("Research only" in model["description"] for model in info["models"].values())


@pytest.mark.parametrize("name", helpers.BUNDLES)
def test_mask_and_heatmap_lie_on_the_image(server: Any, studies: Path, name: str) -> None:
    image = nib.load(studies / CASE / f"{CASE}_flair.nii.gz")
    mask, levels = image_of(server, name), image_of(server, f"{name}_heatmap", levels=7)
    volume = image_of(server, f"{name}_heatmap", levels=0)
    for one in (mask, levels, volume):
        assert one.shape == image.shape
        assert np.array_equal(one.affine, image.affine)
    assert mask.get_data_dtype() == levels.get_data_dtype() == np.uint8
    assert volume.get_data_dtype() == np.float32
    assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 3}
    heat, shown = np.asarray(volume.dataobj), np.asarray(levels.dataobj)
    assert heat.min() >= 0
    assert heat.any() or name == TENDENCY, "an untrained network knows of no disagreement"
    assert np.array_equal(shown, np.floor(heat.astype(np.float64) * 7 + 1e-6).clip(0, 7))
    details = server.json("POST", f"/infer/{name}?image={CASE}&output=json")
    assert details["case_id"] == CASE
    assert details["intended_use"] == "Research only, not for diagnostic purposes"
    assert details["scores"]


def test_viewers_get_their_format(server: Any, studies: Path) -> None:
    """What OHIF sends: an uncompressed .nrrd of bytes, and a field of its own."""
    params = {
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "restore_label_idx": False,
    }
    path = f"/infer/{GUIDED}_heatmap?image={CASE}&output=image"
    answer = server.call("POST", path, data={"params": json.dumps(params)})
    assert answer.content.startswith(b"NRRD")
    assert b"encoding: raw" in answer.content[:1000]
    file = server.work / "answer.nrrd"
    file.write_bytes(answer.content)
    shown, image = sitk.ReadImage(str(file)), sitk.ReadImage(str(studies / CASE / f"{CASE}_t1.nii.gz"))
    assert shown.GetSize() == image.GetSize()
    assert np.allclose(shown.GetOrigin(), image.GetOrigin())
    assert np.allclose(shown.GetDirection(), image.GetDirection())
    both = server.call("POST", f"/infer/{GUIDED}?image={CASE}&output=all")
    assert b'"case_id": "Phantom_0_0001"' in both.content


def test_uploads_of_every_form_give_the_same(server: Any, studies: Path) -> None:
    """Four files, and one 4-D file: the voxels that the data set's case gives."""
    expected = np.asarray(image_of(server, f"{GUIDED}_heatmap", levels=0).dataobj)
    names = {"t1": "t1", "t1c": "t1ce", "t2": "t2", "flair": "flair"}
    paths = [studies / CASE / f"{CASE}_{alias}.nii.gz" for alias in names.values()]
    stack = np.stack([np.asarray(nib.load(path).dataobj) for path in paths], -1)
    packed = io.BytesIO(nib.Nifti1Image(stack, nib.load(paths[0]).affine).to_bytes())
    siblings = [("file", (path.name, path.read_bytes())) for path in paths]
    for files in (siblings, [("file", ("case.nii", packed.getvalue()))]):
        answer = server.call(
            "POST", f"/infer/{GUIDED}_heatmap?output=image", data={"params": '{"levels": 0}'}, files=files
        )
        assert answer.status_code == 200, answer.text
        found = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
        assert np.array_equal(np.asarray(found.dataobj), expected)


def test_one_annotators_version(server: Any) -> None:
    info = server.json("GET", "/info/")["models"][TENDENCY]
    names = info["config"]["annotator"]
    assert names[0] == "consensus"
    assert len(names) == 7
    details = server.json("POST", f"/infer/{TENDENCY}?image={CASE}&output=json")
    assert details["annotators"] == names[1:]
    assert set(details["volumes_ml"]) == set(names)
    assert image_of(server, TENDENCY, annotator=names[1]).shape == image_of(server, TENDENCY).shape


def test_one_bundle_says_where_who_and_why(server: Any) -> None:
    models = server.json("GET", "/info/")["models"]
    names = models[f"{FLAGSHIP}_heatmap"]["config"]["heatmap"]
    assert {"WT", "t1c_ET", "disagreement", "deviation_a1"} <= set(names)
    details = server.json("POST", f"/infer/{FLAGSHIP}?image={CASE}&output=json")
    assert set(names) == set(details["heatmaps"])
    assert {"class_scores", "regions", "note", "disputed_ml"} <= set(details)
    assert {"evidence_outside", "modality_disagreement", "annotator_disagreement"} <= set(details["scores"])
    shown = image_of(server, f"{FLAGSHIP}_heatmap", heatmap="disagreement", levels=0)
    assert shown.shape == image_of(server, FLAGSHIP, annotator="a1").shape


def test_scores_choose_the_next_case(server: Any) -> None:
    assert server.call("POST", "/activelearning/evidence_outside").status_code == 409
    server.json("POST", "/scoring/explanations")
    assert server.wait("scoring")["status"] == "DONE", server.tail()
    for score in ("evidence_outside", "modality_disagreement", "annotator_disagreement", "inconsistency"):
        chosen = server.json("POST", f"/activelearning/{score}")
        infos = {name: server.json("GET", f"/datastore/image/info?image={name}") for name in cases_of(server)}
        assert chosen["score"] == max(info[f"score_{score}"] for info in infos.values())
        following = server.json("POST", f"/activelearning/{score}")
        assert following["id"] != chosen["id"]


def test_answers_for_many_cases_are_kept(server: Any) -> None:
    server.json("POST", f"/batch/infer/{GUIDED}?images=unlabeled", json={"max_batch_size": 2})
    assert server.wait("batch/infer")["status"] == "DONE", server.tail()
    assert server.json("GET", "/info/")["datastore"]["label_tags"]["original"] == 2
    assert not list((server.work / "tmp").glob("*.nii.gz"))


def cases_of(server: Any) -> list[str]:
    return list(server.json("GET", "/datastore/?output=all")["objects"])


@pytest.mark.parametrize("name", helpers.BUNDLES)
def test_labels_train_the_bundle(server: Any, studies: Path, name: str) -> None:
    shown = np.asarray(image_of(server, f"{name}_heatmap", levels=0).dataobj)
    for case in cases_of(server):
        hand_in(server, studies, case, "reader_a")
        hand_in(server, studies, case, "reader_b")
    assert server.json("GET", "/info/")["datastore"]["completed"] == 5
    server.json("POST", f"/train/{name}", json={"max_epochs": 2, "val_split": 0.3})
    task = server.wait("train")
    assert task["status"] == "DONE", f"{list(task['details'])}\n{server.tail()}"
    record = json.loads((server.work / "bundles" / name / "models" / "model.pt.json").read_text())
    assert record["trained"]["cases"] == 5
    details = server.json("POST", f"/infer/{name}?image={CASE}&output=json")
    if name in (TENDENCY, FLAGSHIP):
        assert record["trained"]["annotators"] == ["reader_a", "reader_b"]
        assert details["annotators"] == ["reader_a", "reader_b"]
        assert {"regions", "note"} <= set(details)
    if name != TENDENCY:
        after = np.asarray(image_of(server, f"{name}_heatmap", levels=0).dataobj)
        assert not np.array_equal(shown, after), "new weights are served without a restart"


@pytest.mark.parametrize("name", [GUIDED, FLAGSHIP])
def test_evidence_labels_guide_the_heatmap(server: Any, studies: Path, name: str) -> None:
    values, affine = helpers.served_values(studies / CASE / f"{CASE}_seg.nii.gz")
    marks = np.zeros_like(values)
    marks[:10] = 2
    marks[values > 0] = 1
    answer = server.json(
        "PUT",
        f"/datastore/label?image={CASE}&tag=evidence",
        data={"params": '{"annotator": "reader_a"}'},
        files={"label": ("marks.nii.gz", helpers.as_file(marks, affine))},
    )
    assert answer == {"image": CASE, "label": CASE, "tag": "evidence"}
    for case in cases_of(server):
        hand_in(server, studies, case, "reader_a")
    server.json("POST", f"/train/{name}", json={"max_epochs": 1, "val_split": 0.0})
    assert server.wait("train")["status"] == "DONE", server.tail()
    record = json.loads((server.work / "bundles" / name / "models" / "model.pt.json").read_text())
    assert record["trained"]["evidence_masks"] == 1
    rows = (server.work / "training" / name / "eval" / "training.csv").read_text().splitlines()
    assert any(float(row.split(",")[-1]) > 0 for row in rows if ",guidance," in row), "the term saw the marks"


@pytest.mark.parametrize(
    "image",
    ["/etc/passwd", "..", "../secret", "%2e%2e%2fx", "a%00b", "no_such_case", "", "x" * 500, "C:%5Cboot.ini"],
)
def test_v2_hostile_ids(server: Any, image: str) -> None:
    answer = server.call("POST", f"/infer/{GUIDED}?image={image}&output=json")
    assert answer.status_code in (400, 404), answer.text
    assert str(server.work) not in answer.text
    label = server.call("GET", f"/datastore/label?label={image}&tag=final")
    assert 400 <= label.status_code < 500


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ('{"image": "/etc/passwd"}', "image"),
        ('{"model_path": "/tmp/x.pt"}', "model_path"),
        ('{"levels": -1}', "levels"),
        ('{"levels": 1e9}', "levels"),
        ('{"result_extension": "/../../x.py"}', "result_extension"),
        ('{"heatmap": ["no", {}]}', "heatmap"),
        ("[1, 2]", "params"),
        ("{", "params"),
        ('{"levels": NaN}', "params"),
    ],
)
def test_v2_hostile_parameters(server: Any, params: str, named: str) -> None:
    answer = server.call("POST", f"/infer/{GUIDED}_heatmap?image={CASE}&output=json", data={"params": params})
    assert answer.status_code == 400, answer.text
    assert named in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/logs/", "/datastore/?image=x", "/session/?uncompress=true"])
def test_v2_closed_routes(server: Any, path: str) -> None:
    method = "GET" if path == "/logs/" else "PUT"
    assert server.call(method, path, files={"file": ("x.nii.gz", b"x")}).status_code == 400


def test_v2_pages_from_elsewhere(server: Any) -> None:
    assert server.call("GET", "/info/", headers={"Origin": "http://elsewhere.example"}).status_code == 400
    assert server.call("GET", "/info/", headers={"Origin": server.url}).status_code == 200


def bad_uploads() -> dict[str, tuple[str, bytes, str]]:
    whole = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_bytes()
    bomb = gzip.compress(whole[:352] + bytes(50 << 20))
    return {
        "empty": ("a.nii.gz", b"", "file-empty"),
        "text": ("a.nii.gz", b"<html>", "file-kind"),
        "cut": ("a.nii.gz", gzip.compress(whole)[:-9], "gzip-truncated"),
        "bomb": ("a.nii.gz", bomb, "file-length"),
        "name": ("../../a.nii.gz", b"x", "request"),
        "kind": ("a.py", b"x", "request"),
    }


@pytest.mark.parametrize("kind", sorted(bad_uploads()))
def test_v3_bad_uploads(server: Any, kind: str) -> None:
    name, content, code = bad_uploads()[kind]
    before = set((server.work / "tmp").iterdir())
    answer = server.call("POST", f"/infer/{GUIDED}?output=json", files={"file": (name, content)})
    assert answer.status_code == 400
    assert answer.json()["code"] == code
    label = server.call("PUT", f"/datastore/label?image={CASE}&tag=final", files={"label": (name, content)})
    assert label.status_code == 400
    assert set((server.work / "tmp").iterdir()) == before, "nothing of it stays"


def test_v3_labels_of_another_place(server: Any, studies: Path) -> None:
    values, affine = helpers.served_values(studies / CASE / f"{CASE}_seg.nii.gz")
    moved, strange = affine.copy(), values.copy()
    moved[0, 3] += 5
    strange[0, 0, 0] = 9
    for content, code in (
        (helpers.as_file(values[:-1], affine), "shape-mismatch"),
        (helpers.as_file(values, moved), "affine-mismatch"),
        (helpers.as_file(strange, affine), "label-values"),
    ):
        files = {"label": ("label.nii.gz", content)}
        answer = server.call("PUT", f"/datastore/label?image={HEALTHY}&tag=final", files=files)
        assert (answer.status_code, answer.json()["code"]) == (400, code)


def test_v4_parallel_requests_and_disconnects(server: Any) -> None:
    import requests

    expected = image_of(server, GUIDED).get_fdata()

    def ask(index: int) -> Any:
        if index % 3 == 2:  # a client that goes away
            with pytest.raises(requests.exceptions.ReadTimeout):
                requests.post(f"{server.url}/infer/{GUIDED}?image={CASE}&output=image", timeout=0.01)
            return None
        return image_of(server, GUIDED).get_fdata()

    with ThreadPoolExecutor(6) as pool:
        answers = [answer for answer in pool.map(ask, range(12)) if answer is not None]
    assert len(answers) == 8
    assert all(np.array_equal(answer, expected) for answer in answers)
    assert server.call("GET", "/info/").status_code == 200
    assert not list((server.work / "tmp").glob("*.nii.gz")), "answers that nobody fetched stay nowhere"
