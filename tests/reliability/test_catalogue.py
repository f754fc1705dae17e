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


"""The fault catalogue is complete: every row has a test of its name, or a reason why not yet."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location("rows", Path(__file__).with_name("rows.py"))
rows = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(rows)


def test_every_row_has_a_test_or_a_reason():
    found = rows.tests_by_row()
    missing = [row for row in rows.CATALOGUE["rows"] if not found[row] and row not in rows.CATALOGUE["not_yet"]]
    assert not missing, f"rows without a test named test_<row>_...: {missing}"


def test_no_test_is_named_after_an_unknown_row():
    assert set(rows.tests_by_row()) == set(rows.CATALOGUE["rows"])


def test_a_reason_is_not_given_where_there_is_a_test():
    found = rows.tests_by_row()
    assert [row for row in rows.CATALOGUE["not_yet"] if found.get(row)] == []
