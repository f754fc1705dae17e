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

"""Bundles of others: checked before MONAI parses them. It is a gate, no sandbox; see ``docs/bundle_gate.md``."""

from __future__ import annotations

from .document import read_document, walk
from .folder import content_hash
from .gate import Refusal, check_bundle, check_content, check_network, pass_gate
from .process import end_of_log, start_bundle

__all__ = [
    "Refusal",
    "check_bundle",
    "check_content",
    "check_network",
    "content_hash",
    "end_of_log",
    "pass_gate",
    "read_document",
    "start_bundle",
    "walk",
]
