"""The page that `page.py` fills: one Jinja template, with its style inside, for a phone, a wide screen and paper.

No script and nothing from a network: the page is a file that can be mailed. Jinja escapes every value; only the SVG of
`plots.py` goes in as it is.
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }} · opd_jax</title>
<style>
:root {
  --page: #f6f6f4; --surface: #ffffff; --ink: #16181d; --muted: #5f6570; --grid: #e2e3e0; --alarm: #c8102e;
  --good: #16794c; --good-wash: #e5f4ec; --bad: #b3261e; --bad-wash: #fbeae8; --kl: 230 140 0;
  --run-0: #2a6fdb; --run-1: #e0662a; --run-2: #159c74; --run-3: #c78a00;
  --run-4: #6d4fc4; --run-5: #d6457f; --run-6: #0f8aa8; --run-7: #6f7a1e;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #121316; --surface: #1b1d21; --ink: #eceef1; --muted: #a3a9b4; --grid: #33363d; --alarm: #ff6b78;
    --good: #63d39f; --good-wash: #17332a; --bad: #ff9088; --bad-wash: #3b2120; --kl: 230 150 20;
    --run-0: #5c9bff; --run-1: #ff8d57; --run-2: #3ac79c; --run-3: #e6b032;
    --run-4: #a58cf5; --run-5: #f57fae; --run-6: #45bcd8; --run-7: #b3bf57;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 28px 20px 48px; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1240px; margin: 0 auto; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 36px 0 12px; break-after: avoid; }
h2 + p { break-after: avoid; }
p { margin: 0 0 8px; }
.muted, figcaption small, th, dt { color: var(--muted); }
.card { background: var(--surface); border: 1px solid var(--grid); border-radius: 10px; }
.tiles, .charts { display: grid; gap: 14px; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(min(100%, 210px), 1fr)); margin-top: 20px; }
.tile { padding: 12px 16px; }
.tile b { display: block; font-size: 1.55rem; line-height: 1.3; font-weight: 650; font-variant-numeric: tabular-nums; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 350px), 1fr)); }
figure { margin: 0; padding: 12px 12px 8px; break-inside: avoid; }
figcaption { font-weight: 600; padding: 0 4px 4px; }
figcaption small { display: block; font-weight: 400; font-size: .82rem; line-height: 1.35; }
svg { display: block; width: 100%; height: auto; max-width: 560px; margin: 0 auto; }
svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0 0 12px; padding: 0; list-style: none; }
.legend li { overflow-wrap: anywhere; }
.key { display: inline-block; width: 18px; border-top: 4px solid; border-radius: 2px; margin-right: 7px; }
.key { vertical-align: middle; }
.key.line-1 { border-top-style: dashed; } .key.line-2 { border-top-style: dotted; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 14px; border-top: 1px solid var(--grid); vertical-align: top; }
thead th { border-top: 0; font-weight: 500; font-size: .85rem; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
tbody th { font-weight: 500; color: var(--ink); }
th.run { overflow-wrap: anywhere; white-space: normal; min-width: 7em; }
td.value { overflow-wrap: anywhere; font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .85rem; }
tr.differs td.value { font-weight: 700; }
.settings { columns: 3 330px; column-gap: 28px; padding: 8px 16px 14px; }
.settings section { break-inside: avoid; padding-top: 10px; }
.settings h3 { font-size: .85rem; margin: 0 0 2px; }
dl { display: grid; grid-template-columns: minmax(0, 14em) minmax(0, 1fr); gap: 0 12px; margin: 0; font-size: .88rem; }
dt, dd { padding: 2px 0; overflow-wrap: anywhere; }
dd { margin: 0; font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .82rem; }
pre {
  margin: 0; font: .82rem/1.5 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
}
pre.command { padding: 12px 16px; }
.sample { padding: 14px 16px; margin-bottom: 14px; break-inside: avoid; }
.sample pre { max-height: 17em; overflow: auto; }
.sides { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
.sides { margin-top: 10px; }
.side { border-radius: 7px; padding: 8px 12px 10px; }
.right { background: var(--good-wash); } .wrong { background: var(--bad-wash); }
.mark { font-weight: 650; font-size: .88rem; margin-bottom: 4px; }
.note { margin-top: 8px; font-size: .85rem; }
.kl { border-radius: 2px; }
{% for shade in range(1, shades + 1) %}
.kl-{{ shade }} { background: rgb(var(--kl) / {{ "%.2f" | format(0.08 * shade) }}); }
{% endfor %}
.right .mark { color: var(--good); } .wrong .mark { color: var(--bad); }
@media (max-width: 480px) {
  body { padding: 18px 12px 32px; }
  h1 { font-size: 1.4rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 10px; }
  .tile { padding: 10px 12px; } .tile b { font-size: 1.25rem; }
  figure { padding: 10px 6px 4px; }
  th, td { padding: 6px 10px; }
  .tile:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .outcomes thead { display: none; }
  .outcomes tr { display: grid; grid-template-columns: 1fr 1fr; gap: 0 12px; padding: 8px 12px; }
  .outcomes tr { border-top: 1px solid var(--grid); }
  .outcomes tbody tr:first-child { border-top: 0; }
  .outcomes th, .outcomes td, .outcomes td.n { border: 0; padding: 2px 0; text-align: left; }
  .outcomes th, .outcomes .set { grid-column: 1 / -1; font-weight: 600; }
  .outcomes td[data-name]::before { content: attr(data-name) " "; color: var(--muted); font-size: .85rem; }
}
@page { margin: 14mm 12mm; }
@media print {
  :root { --page: #ffffff; }
  body { padding: 0; font-size: 10pt; }
  .charts { grid-template-columns: 1fr 1fr; }
  .sides { grid-template-columns: 1fr 1fr; } .settings { columns: 2; font-size: .9em; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(115px, 1fr)); gap: 8px; }
  .tile { padding: 8px 10px; } .tile b { font-size: 1.2rem; }
  .wide { overflow: visible; }
  th, td { padding: 4px 7px; }
  .sample pre { max-height: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
</style>
</head>
<body>
<main>
<header>
<h1>{{ title }}</h1>
<p class="muted">{{ subtitle }}</p>
</header>

{% if tiles %}
<div class="tiles">
{% for tile in tiles %}
<div class="card tile"><span class="muted">{{ tile.name }}</span><b>{{ tile.value }}</b>
<span class="muted">{{ tile.detail }}</span></div>
{% endfor %}
</div>
{% endif %}

{% if outcomes %}
<h2>Accuracy</h2>
<div class="card wide"><table class="outcomes">
<thead><tr>{% if several %}<th>run</th>{% endif %}<th>set</th>
{% for name in outcomes[0].cells %}<th class="n">{{ name }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in outcomes %}
<tr>{% if several %}<th class="run">{{ key(row.run) }}{{ names[row.run] }}</th>{% endif %}
<td class="set">{{ row.label }}</td>
{% for name, value in row.cells.items() %}<td class="n" data-name="{{ name }}">{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}

{% if marks %}
<h2>Latest marks</h2>
<div class="card wide"><table class="outcomes">
<thead><tr>{% if several %}<th>run</th>{% endif %}<th>set</th><th>model</th>
{% for name in marks[0].cells %}<th class="n">{{ name }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in marks %}
<tr>{% if several %}<th class="run">{{ key(row.run) }}{{ names[row.run] }}</th>{% endif %}
<td class="set">{{ row.label }}</td>
<td data-name="model">{{ row.model }}</td>
{% for name, value in row.cells.items() %}<td class="n" data-name="{{ name }}">{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p class="muted note">95 %: normal interval of the accuracy, clustered by question. cut: ended by the horizon.</p>
{% endif %}

{% if charts %}
<h2>Curves</h2>
{% if several %}
<ul class="legend">{% for name in names %}<li>{{ key(loop.index0) }}{{ name }}</li>{% endfor %}</ul>
{% endif %}
<div class="charts">
{% for chart in charts %}
<figure class="card"><figcaption>{{ chart.title }}<small>{{ chart.note }}</small></figcaption>{{ chart.svg }}</figure>
{% endfor %}
</div>
{% endif %}

{% if samples %}
<h2>Samples</h2>
{% if full_kl %}
<p class="muted">Behind each token of the student's: its KL from student to teacher,
<span class="kl kl-{{ shades }}">full colour</span> from {{ full_kl }} nats.</p>
{% endif %}
{% for sample in samples %}
<article class="card sample">
<p class="muted">{% if several %}{{ names[sample.run] }} · {% endif %}{{ sample.set }}
{%- if sample.answer %} · reference answer {{ sample.answer }}{% endif %}</p>
<pre>{{ sample.prompt }}</pre>
<div class="sides">
{% for side in sample.sides %}
<div class="side {{ 'right' if side.correct else 'wrong' }}">
<p class="mark">step {{ side.step }} · {{ '✓ right' if side.correct else '✗ wrong' }}</p>
<pre>{% if side.spans %}{% for text, shade in side.spans %}
{%- if shade %}<span class="kl kl-{{ shade }}">{{ text }}</span>{% else %}{{ text }}{% endif %}
{%- endfor %}{% else %}{{ side.completion }}{% endif %}</pre></div>
{% endfor %}
</div>
</article>
{% endfor %}
{% endif %}

{% if settings %}
<h2>Settings</h2>
{% if several %}
<p class="muted">What differs between the runs stands first.</p>
<div class="card wide"><table>
<thead><tr><th>field</th>
{% for name in names %}<th class="run">{{ key(loop.index0) }}{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in settings %}
<tr class="{{ 'differs' if row.differs }}"><td>{{ row.field }}</td>
{% for value in row.values %}<td class="value">{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% else %}
<div class="card settings">
{% for section, fields in settings | groupby('section') %}
<section><h3>{{ section or 'run' }}</h3><dl>
{% for row in fields %}<dt>{{ row.name }}</dt><dd>{{ row.values[0] }}</dd>{% endfor %}
</dl></section>
{% endfor %}
</div>
{% endif %}
{% endif %}

{% for run in runs if run.command %}
{% if loop.first %}<h2>Command{{ 's' if several }}</h2>{% endif %}
<pre class="card command">{{ run.command }}</pre>
{% endfor %}
</main>
</body>
</html>
"""
