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

"""From a trained network to what people look at."""

from __future__ import annotations

from .case_picture import case_figure, write_case_picture
from .case_view import CaseView, load_case_view
from .explain import Explanation, explain_network, mri_preprocessing, read_image
from .explanation_files import write_explanation
from .load_network import load_network, load_weights
from .run_folder import Run, read_run
from .write import write_report

__all__ = [
    "CaseView",
    "Explanation",
    "Run",
    "case_figure",
    "explain_network",
    "load_case_view",
    "load_network",
    "load_weights",
    "mri_preprocessing",
    "read_image",
    "read_run",
    "write_case_picture",
    "write_explanation",
    "write_report",
]
