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


"""F5: random configurations with what MONAI gives a meaning at random depths: refused by key, or harmless."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monai_rrr.bundle import check_content, read_document
from monai_rrr.errors import ConfigError

HARMLESS = ["$1 + 1", "@a", "@a::b", "%a", "text", "$torch.float32", "$[x for x in @a]", "", "$", "@", "%"]
ATTACKS = ["$__import__('os').mkdir('canary')", "$open('canary', 'w')", "$().__class__", "$import subprocess"]
TARGETS: list[Any] = ["os.mkdir", "eval", "builtins.open", "monai.bundle.run", "@x", "%x", "$x", "", 3, None, [], {}]
KEYS = st.sampled_from(
    ["_target_", "_mode_", "_desc_", "_disabled_", "a", "a::b", "+a", "a#_target_", "imports", "reader"]
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
LEAVES |= st.sampled_from(HARMLESS) | st.sampled_from(["torch.nn.ReLU", "LoadImaged", "callable", "debug"])
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=3)
)


def put(tree: Any, attack: Any, way: list[int]) -> tuple[Any, str]:
    """Put an attack somewhere into a tree; return the tree and the JSON pointer."""
    if way and isinstance(tree, list) and tree:
        index = way[0] % len(tree)
        inner, key = put(tree[index], attack, way[1:])
        return [*tree[:index], inner, *tree[index + 1 :]], f"/{index}{key}"
    if way and isinstance(tree, dict) and tree:
        name = sorted(tree)[way[0] % len(tree)]
        inner, key = put(tree[name], attack, way[1:])
        return {**tree, name: inner}, f"/{name.replace('~', '~0').replace('/', '~1')}{key}"
    return attack, ""


@settings(max_examples=80, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(tree=st.dictionaries(KEYS | st.text(max_size=4), TREES, min_size=1, max_size=3), data=st.data())
def test_f5_an_attack_anywhere_is_refused_by_its_key(tree: dict[str, Any], data: st.DataObject) -> None:
    way = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    attack, inside = data.draw(
        st.sampled_from(ATTACKS).map(lambda text: (text, ""))
        | st.sampled_from(TARGETS).map(lambda target: ({"_target_": target, "path": "canary"}, "/_target_"))
    )
    config, key = put(tree, attack, way)
    refusals = check_content(config, "train.json")
    assert key + inside in [refusal.key for refusal in refusals]
    assert not Path("canary").exists()


@settings(max_examples=80, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(tree=st.dictionaries(KEYS | st.text(max_size=4), TREES, max_size=3))
def test_f5_any_configuration_ends_in_an_answer(tree: dict[str, Any]) -> None:
    for refusal in check_content(tree, "train.json"):
        assert refusal.key.startswith("/")
        assert refusal.reason


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text(alphabet="{}[]:,\"'&*!-? \n\t#a1$@%", max_size=60).map(str.encode))
@pytest.mark.parametrize("name", ["x.json", "x.yaml"])
def test_f5_any_bytes_are_read_or_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        found = read_document(tmp_path / name)
    except ConfigError as error:
        code = error.code
    else:
        code = "read" if found == parsed(name, content.decode()) else "read as something else"
    assert code in ("read", "config-unreadable")


def parsed(name: str, text: str) -> Any:
    return json.loads(text) if name.endswith("json") else yaml.safe_load(text)
