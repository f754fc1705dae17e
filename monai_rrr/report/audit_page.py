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

"""The page of an audit, as a Jinja template."""

from __future__ import annotations

from monai_rrr.report.page import document

__all__ = ["AUDIT_PAGE"]

_BODY = """
<header>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
{% for text in warnings %}<p class="notice">{{ text }}</p>
{% endfor %}
<p class="notice"><strong>For research only.</strong> Not a medical device; not for diagnosis or treatment.</p>
<nav><a href="#evidence">Evidence</a><a href="#modalities">Modalities</a><a href="#sanity">Sanity check</a>
<a href="#cases">Cases</a><a href="#record">Record</a></nav>
</header>

<h2 id="evidence">Where the evidence lies</h2>
<p>Shares of the positive evidence in the heatmap, mean over cases with the 95 % bootstrap interval. Two maps that know
nothing stand beside it: one is uniform in the brain, one uniform in the box around the head. A network that looks at
the lesion must beat the first one in the lesion; a network with more evidence outside of the brain than none looks at
something that is no anatomy.</p>
{% for table in tables %}
<div class="scroll"><table>
<caption>{{ table.caption }}</caption>
<thead><tr><th>Place</th><th>Network</th><th>Uniform in the brain</th><th>Uniform in the box</th></tr></thead>
<tbody>{% for row in table.rows %}<tr><td>{{ row.place }}</td><td>{{ row.mean }} <small>{{ row.ends }}</small></td>
<td>{{ row.brain }}</td><td>{{ row.box }}</td></tr>{% endfor %}</tbody>
</table></div>
{% endfor %}
{% if facts %}<dl>{% for key, value in facts %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>{% endif %}
<figure><img src="{{ shares_picture }}" alt="shares of the evidence in every case">
<figcaption>Every case, worst first, below the means of the two maps that know nothing.</figcaption></figure>

<h2 id="modalities">What each modality contributes</h2>
{% if modalities %}<p>{{ modality_text }}</p>
<div class="scroll"><table>
<thead><tr><th>Modality</th><th>{{ modality_head }}</th><th>Cases</th></tr></thead>
<tbody>{% for row in modalities %}<tr><td>{{ row.name }}</td><td>{{ row.mean }} <small>{{ row.ends }}</small></td>
<td>{{ row.cases }}</td></tr>{% endfor %}</tbody></table></div>
{% else %}<p>Not measured.</p>{% endif %}

<h2 id="sanity">Sanity check</h2>
<p>The weights are destroyed, from the output down to the input, and the heatmap is made again. If it stays the same, it
shows the image and not what the network has learned, and nothing on this page may be believed. Similarity is the rank
correlation inside the brain: 1 is the same map, 0 an unrelated one.</p>
{% if sanity_picture %}<p><strong>{{ sanity_text }}</strong></p>
<figure><img src="{{ sanity_picture }}" alt="similarity of heatmaps against share of randomized layers"></figure>
{% else %}<p>Not done.</p>{% endif %}

<h2 id="cases">Cases, worst first</h2>
<p>Cases with a lesion come first, ordered by the share of the evidence that lies beside it; then those without, ordered
by the share outside of the brain. Axial slices are counted from 0 at the inferior end; the patient's right is on the
left of the picture. The heatmap is scaled to its maximum and drawn above a tenth of it.
{% if hidden %}The {{ shown|length }} worst of {{ count }} cases are shown.{% endif %}</p>
{% for case in shown %}
<section class="case">
<h3>{{ loop.index }}. {{ case.case_id }}{% if not case.has_lesion %}
<span class="soft">(no lesion or no mask)</span>{% endif %}</h3>
<p>{{ case.text }}</p>
<figure><img src="{{ case.picture }}" alt="Case {{ case.case_id }}: slices, outlines and heatmap"></figure>
</section>
{% endfor %}

<h2 id="record">Record</h2>
<dl>{% for key, value in record %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
"""

AUDIT_PAGE = document(_BODY)
"""Template; all values are escaped by the environment that renders it."""
