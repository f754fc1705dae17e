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


"""The page of a report, as a Jinja template."""

from __future__ import annotations

__all__ = ["CSS", "FACTS", "PAGE", "TRAINING", "document"]

CSS = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --band: #f6f8fa; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1120px; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
p { max-width: 80ch; } p.lead { font-size: 1.1rem; } .soft, figcaption, caption { color: var(--soft); }
.notice { border-left: 4px solid #d55e00; background: #fff6f0; padding: .5rem .9rem; max-width: none; }
nav { margin: .8rem 0 0; } nav a { margin-right: 1.1rem; } a { color: var(--accent); }
table { border-collapse: collapse; margin: .4rem 0 1rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; font-size: .9rem; }
th, td { padding: .28rem .8rem .28rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
thead th { font-weight: 600; border-bottom: 2px solid var(--ink); vertical-align: bottom; }
tr.own td { background: var(--band); font-weight: 600; }
tr.bound td { color: var(--soft); font-style: italic; }
td small { color: var(--soft); font-weight: 400; font-size: .82rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.4rem; margin: .4rem 0; }
dt { color: var(--soft); } dd { margin: 0; }
img { max-width: 100%; height: auto; display: block; } figure { margin: .6rem 0 1rem; }
section.case { margin: 1.2rem 0 2rem; page-break-inside: avoid; break-inside: avoid; }
iframe { width: 100%; height: 460px; border: 1px solid var(--line); background: #000; }
.scroll { overflow-x: auto; } .pair { display: flex; flex-wrap: wrap; gap: 0 4rem; } .pair caption { height: 3.6rem; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } nav, .screen { display: none; } }
"""

TRAINING = """\
<h2 id="training">Training</h2>
{% if curves %}<figure><img src="{{ curves }}" alt="training curves, one panel per term"><figcaption>Terms of the
objective before weighting, and their weighted total. A term of weight 0 is not computed.</figcaption></figure>
{% else %}<p>There is no training.csv.</p>{% endif %}

"""
"""Part of a page: ``curves``."""

FACTS = """\
{% if run.facts %}<dl>{% for key, value in run.facts %}<dt>{{ key }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
{% else %}<p>There is no run.json.</p>{% endif %}
{% for table in run.tables %}<div class="scroll"><table><caption>{{ table.caption }}</caption>
<thead><tr>{% for cell in table.head %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>{% endfor %}
"""
"""Part of a page: what :func:`~monai_rrr.report.record_text.describe_record` says about a ``run``."""

_BODY = (
    """
<header>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<p class="notice"><strong>For research only.</strong> Not a medical device; not for diagnosis or treatment.</p>
<nav><a href="#results">Results</a><a href="#viewer">Viewer</a><a href="#cases">Cases</a>
<a href="#training">Training</a><a href="#record">Run record</a></nav>
</header>

<h2 id="results">Results on {{ count }} held-out cases</h2>
<p>Mean over cases with the 95 % bootstrap interval [low, high]. Dice: 1 is best. HD95 and ASSD in mm: 0 is best.
Regions are nested: WT (whole tumor) contains TC (tumor core) contains ET (enhancing tumor).</p>
<dl>
<dt>tag-calibrated</dt><dd>threshold chosen on the slice tags of the training cases: the result to look at</dd>
<dt>label-free</dt><dd>Otsu's threshold on each heatmap alone</dd>
<dt>oracle</dt><dd>best threshold on the very masks it is scored on: an upper bound, never a result</dd>
</dl>
<figure><img src="{{ dice_picture }}" alt="Dice of every case by region and method">
<figcaption>Dice of every case (dots) and their mean (bar and number).</figcaption></figure>
{% for region, methods in tables.items() %}
<div class="scroll"><table>
<caption><strong>{{ region }}</strong>: {{ names[region] }}, present
in {{ present[region] }} of {{ count }} cases</caption>
<thead><tr><th>Method</th><th class="text">Threshold</th><th>Dice</th><th>HD95 (mm)</th><th>ASSD (mm)</th>
<th>Missed<br>(of {{ present[region] }})</th><th>Invented<br>(of {{ count - present[region] }})</th></tr></thead>
<tbody>{% for row in methods %}
<tr class="{{ 'bound' if row.threshold == 'oracle' else 'own' if row.own else '' }}"><td>{{ row.method }}</td>
<td class="text">{{ row.threshold_text }}</td>{% for cell in row.cells %}
<td>{% if cell %}{{ cell[0] }} <small>{{ cell[1] }}</small>{% else %}n/a{% endif %}</td>{% endfor %}
<td>{{ row.missed }}</td><td>{{ row.invented }}</td></tr>{% endfor %}</tbody>
</table></div>
{% endfor %}
<p class="soft">Missed: the region is there and the prediction is empty. Invented: the region is absent and the
prediction is not empty. Empty regions count as follows: both empty, Dice 1 and distances 0; exactly one empty, Dice 0
and both distances the diagonal of the image, so that no case is dropped.</p>

<h3>Paired differences in Dice</h3>
{% if differences %}
<div class="scroll"><table>
<caption>{{ own }} (tag-calibrated) minus the other, over the same cases, with the 95 % bootstrap interval. Above 0:
{{ own }} is better.</caption>
<thead><tr><th>Region</th><th class="text">Compared with</th><th class="text">Threshold</th>
<th>Difference</th></tr></thead>
<tbody>{% for row in differences %}<tr><td>{{ row.region }}</td><td class="text">{{ row.other }}</td>
<td class="text">{{ row.threshold_text }}</td><td>{{ row.mean }} <small>{{ row.ends }}</small></td></tr>{% endfor %}
</tbody></table></div>
{% else %}<p>No other method was scored on these cases.</p>{% endif %}

{% if viewer %}
<h2 id="viewer">Three-plane viewer</h2>
<p>{{ viewer_text }}</p>
<iframe class="screen" title="three-plane viewer" srcdoc="{{ viewer }}"></iframe>
{% endif %}

<h2 id="cases">Held-out cases, worst first</h2>
<p>Ordered by WT Dice of {{ own }} at the tag-calibrated threshold.{% if hidden %} The {{ shown|length }} worst of
{{ count }} cases are shown.{% endif %} Slices are axial, counted from 0 at the inferior end, in radiological view: the
patient's right is on the left of the picture. The slice shown for a region is that of its largest true area, or, where
there is no truth, the one with most evidence. Training never saw a mask.</p>
{% for case in shown %}
<section class="case">
<h3>{{ loop.index }}. {{ case.case_id }}{% if case.control %} <span class="soft">(no tumor)</span>{% endif %}</h3>
<table><thead><tr><th>Region</th><th>Dice</th><th>HD95 (mm)</th><th>ASSD (mm)</th><th>Truth (ml)</th>
<th>Prediction (ml)</th></tr></thead><tbody>{% for row in case.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>
{% endfor %}</tr>{% endfor %}</tbody></table>
<figure><img src="{{ case.picture }}" alt="Case {{ case.case_id }}: modalities, heatmaps, contours"></figure>
</section>
{% endfor %}

"""
    + TRAINING
    + """<h2 id="record">Run record</h2>
{% for run in records %}
<h3>{{ run.name }}</h3>
"""
    + FACTS
    + """{% endfor %}
"""
)


def document(body: str, css: str = CSS) -> str:
    """Put the body of a page into a whole HTML document, as a template that asks for ``title``."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{{ title }}</title>\n'
        f"<style>{css}</style>\n</head>\n<body>{body}</body>\n</html>\n"
    )


PAGE = document(_BODY)
"""Template; all values are escaped by the environment that renders it."""
