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

"""The page about a run with several annotators, as a Jinja template."""

from __future__ import annotations

from monai_rrr.report.page import FACTS, TRAINING, document

__all__ = ["ANNOTATOR_REPORT"]

ANNOTATOR_REPORT = document(
    """
<header>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<p class="notice"><strong>For research only.</strong> Not a medical device; not for diagnosis or treatment.
<strong>"Who" is never blame.</strong> It says whose habit of outlining a place is like. A habit is not an error, the
consensus is not the truth, and annotators are pseudonyms: judge nobody by it.</p>
<p>Method: annotator tendency and assignment, TAX-style, re-derived from the abstract of that paper; not a reproduction
of it.</p>
<nav><a href="#results">Results</a><a href="#drawn">Habits as drawn</a><a href="#predicted">Habits as predicted</a>
<a href="#cases">Cases: who and why</a><a href="#training">Training</a><a href="#record">Run record</a></nav>
</header>

<h2 id="results">Does the network know each annotator?</h2>
<p>{{ count }} cases that training never saw. <strong>Own version</strong>: Dice of the network's version for an
annotator with what this annotator drew; 1 is best. <strong>Gain</strong>: by how much it is better than the consensus
at that. A gain of 0 means that the name of the annotator tells the network nothing. Means over cases, with 95 %
bootstrap intervals. WT: whole tumor, TC: tumor core, ET: enhancing tumor.</p>
<figure><img src="{{ dice_picture }}" alt="Dice of every case, own version and consensus of each annotator"></figure>
<div class="scroll"><table>
<caption>Own version and gain.</caption>
<thead><tr><th>Annotator</th>{% for region in regions %}<th>{{ region }}: own version</th><th>{{ region }}: gain</th>
{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr><td>{{ row.name }}</td>{% for cell in row.cells %}<td>{{ cell.text }}
<small>{{ cell.ends }}</small></td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
{% if consensus %}<div class="scroll"><table>
<caption>All together.</caption>
<thead><tr><th></th>{% for region in regions %}<th>{{ region }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in consensus %}<tr><td>{{ row.name }}</td>{% for cell in row.cells %}<td>{{ cell.text }}
<small>{{ cell.ends }}</small></td>{% endfor %}</tr>{% endfor %}</tbody></table></div>{% endif %}

{{ drawn | safe }}
{{ predicted | safe }}

<h2 id="cases">Cases: who and why</h2>
<p>Ordered by the volume in which annotators disagree.{% if hidden %} The first {{ shown|length }} of {{ count }} cases
are shown.{% endif %} Axial slices in radiological view: the patient's right is on the left of the picture. Regions
are places in which the network's versions for two annotators differ. Single voxels can't be attributed: judge
regions.</p>
{% for case in shown %}
<section class="case">
<h3>{{ loop.index }}. {{ case.case_id }}</h3>
<p class="soft">Annotators disagree in {{ case.volume }} ml.</p>
<figure><img src="{{ case.picture }}" alt="Case {{ case.case_id }}: consensus, versions, who, disagreement"></figure>
{% for region in case.regions %}
<h4>Region {{ region.number }}, {{ region.volume }} ml</h4>
<p>{{ region.sentence }} {{ region.counterfactual }}</p>
<p class="soft">Like: {{ region.who }}.</p>
<figure><img src="{{ region.picture }}" alt="region {{ region.number }} beside training patches"></figure>
{% endfor %}
{% if case.more %}<p class="soft">{{ case.more }} smaller regions are in the case's why.html.</p>{% endif %}
</section>
{% endfor %}

"""
    + TRAINING
    + """<h2 id="record">Run record</h2>
{% set run = record %}
"""
    + FACTS
)
"""Template; ``drawn`` and ``predicted`` are markup that was rendered already, all other values are escaped."""
