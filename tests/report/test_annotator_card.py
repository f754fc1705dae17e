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


"""Report cards find the habits that simulated annotators are known to have."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_rrr.data import simulate_annotator
from monai_rrr.data.annotator_rules import KINDS
from monai_rrr.report import AnnotatorCard, annotator_cards, annotator_section, write_annotators
from monai_rrr.report.annotator_card import surface_roughness

NCR, ED, ET = 1, 2, 3
ANNOTATORS = ("confuser", "expert", "misser", "over", "smoother", "under")
SPACING = (2.0, 2.0, 2.0)


def tumor(seed: int) -> np.ndarray[Any, Any]:
    """A ring-enhancing tumor with edema and a bumpy border, and two small lesions."""
    random = np.random.RandomState(seed)
    where = np.stack(np.meshgrid(*[(np.arange(32) + 0.5) * 2] * 3, indexing="ij"))
    waves = [np.sin(axis / 1.5 + phase) for axis, phase in zip(where, random.rand(3), strict=True)]
    ripple = 1 + 0.2 * np.prod(waves, 0)

    def ball(center: tuple[float, ...], radius: float) -> Any:
        return ((where - np.reshape(center, (3, 1, 1, 1))) ** 2).sum(0) < (radius * ripple) ** 2

    label = np.zeros(where.shape[1:], np.uint8)
    for center, radius, value in (
        ((32, 32, 32), 17 + random.rand(), ED),
        ((33, 32, 31), 12, ET),
        ((33, 32, 31), 8, NCR),
        ((58, 7, 7), 2.5, ED),
        ((7, 57, 58), 2.5, ED),
    ):
        label[ball(center, radius)] = value
    return label


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    found = []
    for index in range(3):
        label = tumor(index)
        random = np.random.RandomState(index)
        drawn = [simulate_annotator(label, SPACING, replace(KINDS[k], sigma_mm=0.0), random) for k in ANNOTATORS]
        found.append({"annotations": np.stack(drawn).astype(np.int8), "consensus": label, "spacing": SPACING})
    return found


@pytest.fixture(scope="module")
def cards(cases: list[dict[str, Any]]) -> dict[str, AnnotatorCard]:
    return {card.annotator: card for card in annotator_cards(cases, ANNOTATORS, [1 / 6] * 6)}


def test_cards_find_what_the_simulators_do(cards: dict[str, AnnotatorCard]) -> None:
    assert cards["over"].record()["offset_mm"] == pytest.approx(2.0, abs=0.6)
    assert cards["under"].record()["offset_mm"] == pytest.approx(-1.5, abs=0.6)
    assert cards["expert"].record()["offset_mm"] == pytest.approx(0.0, abs=1e-6)
    assert cards["over"].volume_bias_ml > 0 > cards["under"].volume_bias_ml
    assert cards["over"].volume_bias > 0.2
    assert cards["smoother"].roughness_mm < 0.8 * cards["expert"].roughness_mm
    assert cards["expert"].roughness_mm == cards["expert"].consensus_roughness_mm
    confusion = cards["confuser"].record()["confusion"]
    assert confusion[NCR][ET] > 0.1 < confusion[ET][ED]
    assert np.allclose(np.diag(cards["expert"].record()["confusion"])[1:], 1)
    _, small, _, large = cards["misser"].recall()
    assert small["lesions"] == 6
    assert small["found"] < 3
    assert large["recall"] == 1.0
    assert all(row["recall"] in (1.0, None) for row in cards["expert"].recall())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("over", "over tends to draw larger: contours lie"),
        ("under", "under tends to draw smaller: contours lie"),
        ("smoother", "smoother tends to draw smoother contours."),
        ("confuser", "confuser tends to draw ET in"),
        ("misser", "misser tends to leave out lesions below"),
        ("expert", "expert draws much like the consensus."),
    ],
)
def test_sentences(cards: dict[str, AnnotatorCard], kind: str, words: str) -> None:
    assert words in " ".join(cards[kind].sentences())


def test_cases_that_are_not_fully_known_are_left_out(cases: list[dict[str, Any]]) -> None:
    first = {**cases[0], "annotations": cases[0]["annotations"].copy()}
    first["annotations"][0] = -1
    first["annotations"][1][first["annotations"][1] == ET] = -1
    found = annotator_cards([first, cases[1]], ANNOTATORS)
    assert [(card.cases, card.left_out) for card in found[:3]] == [(1, 0), (1, 1), (2, 0)]
    assert found[0].record()["rho"] is None
    nobody = annotator_cards([{**first, "annotations": np.full_like(first["annotations"], -1)}], ANNOTATORS)[0]
    record = nobody.record()
    assert (record["cases"], record["offset_mm"], record["volume_bias"], record["confusion"]) == (0, None, None, None)
    assert record["sentences"] == ["There is no case to compare."]


def test_empty_masks_have_a_card() -> None:
    empty = np.zeros((6, 6, 6), np.int8)
    card = annotator_cards([{"annotations": empty[None], "consensus": empty, "spacing": (1, 1, 1)}], ["a"])[0]
    assert (card.cases, card.volume_bias_ml, card.record()["roughness_mm"]) == (1, 0.0, None)
    assert "a draws much like the consensus." in annotator_section([card])


def test_roughness_is_in_mm_and_grows_with_detail() -> None:
    bumps = np.indices((24, 24, 24))
    flat = bumps[2] < 12
    ragged = bumps[2] < 12 + 2 * ((bumps[0] // 2) % 2)
    assert surface_roughness(flat, (1.0, 1.0, 1.0)) == 0
    assert surface_roughness(ragged, (1.0, 1.0, 1.0)) > 0.5
    speck = flat.copy()
    speck[20, 20, 20] = True
    assert surface_roughness(speck, (1.0, 1.0, 1.0)) == 0
    assert np.isnan(surface_roughness(np.zeros_like(flat), (1.0, 1.0, 1.0)))


class Links(HTMLParser):
    """Everything that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found += [value for key, value in attrs if key in ("src", "href")]


def test_files(cards: dict[str, AnnotatorCard], tmp_path: Path) -> None:
    odd = replace(cards["over"], annotator="<b>x")
    files = write_annotators([*cards.values(), odd], tmp_path, title="Team & habits")
    assert [path.name for path in files] == ["annotators.json", "annotators.html", "annotators_provenance.json"]
    record = json.loads(files[0].read_text("utf-8"))
    assert [card["annotator"] for card in record["annotators"]] == [*ANNOTATORS, "<b>x"]
    page = files[1].read_text("utf-8")
    links = Links()
    links.feed(page)
    assert links.found
    assert all(link.startswith(("data:", "#")) for link in links.found)
    assert "<title>Team &amp; habits</title>" in page
    assert "<h3>&lt;b&gt;x</h3>" in page
    assert "<b>x" not in page
    text = re.sub(r"<[^>]+>|data:[^\"]+", " ", page).lower()
    assert "not an error" in text
    assert not [word for word in ("wrong", "blame", "mistake", "fault", "bad ") if word in text]


def test_exception(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one rho for each"):
        annotator_cards(cases, ANNOTATORS, [1.0])
    with pytest.raises(ValueError, match="case 0: expected annotations of 1 annotators on the grid"):
        annotator_cards(cases, ["a"])
    with pytest.raises(ValueError, match="expected at least one card, got none"):
        write_annotators([], tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
