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

"""The report cards of annotators as a part of a page, and the page, as Jinja templates."""

from __future__ import annotations

from monai_rrr.report.page import document

__all__ = ["ANNOTATOR_PAGE", "ANNOTATOR_SECTION"]

ANNOTATOR_SECTION = """
<h2 id="{{ anchor }}">{{ title }}</h2>
<p>What each annotator tends to do compared with the consensus of all. Names are pseudonyms. A habit is not an error:
the consensus is not the truth, and what most annotators share can't be seen here.</p>
<figure><img src="{{ picture }}" alt="offset of the contour and volume of each annotator">
<figcaption>Left: distance of the contour from that of the consensus, mean over cases and standard deviation from case
to case; positive lies outside. Right: volume relative to the consensus, a dot per case, the bar is the mean.
</figcaption></figure>
<div class="scroll"><table>
<caption>Whole tumor; distances and roughness in mm.</caption>
<thead><tr><th>Annotator</th><th>Cases</th><th>Weight rho</th><th>Volume (ml)</th><th>Volume (%)</th><th>Offset</th>
<th>Along the contour</th><th>Roughness</th><th>of the consensus</th></tr></thead>
<tbody>{% for card in cards %}<tr><td>{{ card.name }}</td><td>{{ card.cases }}</td>
{% for cell in card.cells %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
<p class="soft">Offset: mean signed distance of the contour from the consensus and its standard deviation from case to
case. Along the contour: standard deviation within a case; the grid alone makes about 0.4 voxels of it. Roughness:
distance of the contour from its own smoothed version.</p>
{% for card in cards %}
<section class="case">
<h3>{{ card.name }}</h3>
<ul>{% for text in card.sentences %}<li>{{ text }}</li>{% endfor %}</ul>
{% if card.left_out %}<p class="soft">{{ card.left_out }} cases that are drawn in part only are left out.</p>{% endif %}
<div class="pair">
{% if card.confusion %}<div class="scroll"><table>
<caption>Where the consensus has the class of the row, {{ card.name }} draws (%); the first row is what is drawn outside
of the consensus.</caption>
<thead><tr><th>Consensus</th>{% for name in classes %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in card.confusion %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>{% endif %}
<div class="scroll"><table><caption>Lesions of the consensus that {{ card.name }} draws, by size.</caption>
<thead><tr><th>Size (mm<sup>3</sup>)</th><th>Drawn</th><th>Lesions</th><th>Recall</th></tr></thead>
<tbody>{% for row in card.recall %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>
</div>
</section>
{% endfor %}
"""
"""Part of a page; all values are escaped by the environment that renders it."""

ANNOTATOR_PAGE = document(
    """
<header>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<p class="notice"><strong>For research only.</strong> Not a medical device; not for diagnosis or treatment.</p>
</header>
{{ section | safe }}
"""
)
"""Template; ``section`` is markup that was rendered already."""
