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

from .annotator_card import AnnotatorCard, annotator_cards
from .annotator_picture import annotator_figure
from .annotator_run import AnnotatorRun, is_annotator_run, read_annotator_run
from .annotator_view import AnnotatorView, load_annotator_view
from .audit_case import CaseAudit, Evidence, brain_mask, measure
from .audit_files import evidence_of_files
from .audit_network import NetworkUnderAudit
from .case_picture import case_figure, write_case_picture
from .case_view import CaseView, load_case_view
from .explain import Explanation, explain_network, mri_preprocessing, read_image
from .explanation_files import write_explanation
from .load_network import load_network, load_weights
from .pareto import ParetoPoint, pareto_figure, pareto_front, write_pareto_picture
from .run_folder import Run, read_run
from .save_tendency import SaveTendencyd
from .tendency_files import RegionChoice, write_tendency
from .write import write_report
from .write_annotator_report import write_annotator_report
from .write_annotators import annotator_section, write_annotators
from .write_audit import write_audit

__all__ = [
    "AnnotatorCard",
    "AnnotatorRun",
    "AnnotatorView",
    "CaseAudit",
    "CaseView",
    "Evidence",
    "Explanation",
    "NetworkUnderAudit",
    "ParetoPoint",
    "RegionChoice",
    "Run",
    "SaveTendencyd",
    "annotator_cards",
    "annotator_figure",
    "annotator_section",
    "brain_mask",
    "case_figure",
    "evidence_of_files",
    "explain_network",
    "is_annotator_run",
    "load_annotator_view",
    "load_case_view",
    "load_network",
    "load_weights",
    "measure",
    "mri_preprocessing",
    "pareto_figure",
    "pareto_front",
    "read_annotator_run",
    "read_image",
    "read_run",
    "write_annotator_report",
    "write_annotators",
    "write_audit",
    "write_case_picture",
    "write_explanation",
    "write_pareto_picture",
    "write_report",
    "write_tendency",
]
