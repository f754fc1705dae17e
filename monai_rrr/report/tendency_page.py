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

"""The page of one case: who and why, region by region."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from monai_rrr.report.html import render_html
from monai_rrr.report.page import document

__all__ = ["why_page"]

_BODY = """
<header>
<h1>{{ title }}</h1>
<p class="lead">{{ record.regions|length }} regions in which annotators draw differently are explained,
the largest first.</p>
<p>{{ record.note }}</p>
<p class="notice"><strong>For research only.</strong> Not a medical device; not for diagnosis or treatment.</p>
</header>
{% for region in record.regions %}
<section class="case">
<h2>Region {{ region.region }}, {{ '%.2f' % (region.volume_mm3 / 1000) }} ml</h2>
<p>{{ region.sentence }} {{ region.counterfactual }}</p>
<table><thead><tr><th>Annotator</th><th>Like this annotator (%)</th></tr></thead>
<tbody>{% for name, share in region.who.items() %}<tr><td>{{ name }}</td><td>{{ '%.0f' % (100 * share) }}</td></tr>
{% endfor %}</tbody></table>
<figure><img src="{{ pictures[region.region] }}" alt="region {{ region.region }} beside training patches">
<figcaption>Axial slices in radiological view: the patient's right is on the left of the picture. Training patches are
the places that the most similar prototypes of {{ region.most_like }} stand for.</figcaption></figure>
</section>
{% endfor %}
"""


def why_page(record: Mapping[str, Any], pictures: Mapping[int, bytes]) -> str:
    """Return the page as self-contained HTML.

    Args:
        record: content of ``why.json``.
        pictures: number of the region -> PNG.
    """
    inside = {k: f"data:image/png;base64,{base64.b64encode(v).decode('ascii')}" for k, v in pictures.items()}
    content = {"title": f"Who and why: {record['case']}", "record": record, "pictures": inside}
    return render_html(document(_BODY), content)
