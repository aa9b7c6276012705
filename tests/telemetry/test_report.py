"""report.html: well-formed, self-contained, and deaf to what a model or a data set wrote."""

import html.parser
import json
import re
import subprocess
import sys

import pytest

from opd_jax.errors import InputError
from opd_jax.telemetry import plots
from opd_jax.telemetry.page import write_comparison, write_report
from opd_jax.telemetry.record import RunRecord, read_run

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
  """Reads a page strictly: every element closed in order, every id once."""

  def __init__(self, text: str):
    super().__init__(convert_charrefs=True)
    self.tags, self.open, self.ids, self.references, self.labels, self.text = [], [], [], [], [], ""
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    for name, value in attributes:
      if name == "id":
        self.ids.append(value)
      if name == "aria-label":
        self.labels.append(value)
      if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
        self.references.append(value)
      self.references += re.findall(r"url\(([^)]*)\)", value or "")
      assert not name.startswith("on")
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.handle_starttag(tag, attributes)
    if tag not in VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def charts(page: Page) -> int:
  return page.tags.count("svg")


def test_one_run_is_one_self_contained_page(make_run):
  workdir = make_run()
  path = write_report(workdir)
  assert path == workdir / "report.html"
  text = path.read_text()
  page = Page(text)
  assert charts(page) == page.tags.count("figure") == 7
  assert len(page.ids) == len(set(page.ids))
  assert page.references and all(reference.startswith("#") for reference in page.references)
  assert {reference[1:] for reference in page.references} <= set(page.ids)
  assert not {"script", "link", "iframe", "img", "object", "embed", "base", "foreignobject"} & set(page.tags)
  # The only addresses left are those that the hostile run wrote, as text.
  assert re.findall(r"https?://[\w.]+", text) == ["http://evil.example"] * text.count("evil.example")
  assert "@import" not in text


def test_what_a_model_wrote_is_shown_and_not_obeyed(make_run, hostile):
  page = Page(write_report(make_run()).read_text())
  for shown in (f"user: question 1 {hostile}", f"answer 1 of step 0 {hostile}", f"answer 1 of step 12 {hostile}"):
    assert shown in page.text
  assert any(label.startswith(f"{hostile} greedy: accuracy against") for label in page.labels)
  assert "{{ 7*7 }}" in page.text  # nor is it a template


def test_samples_that_changed_come_first_and_long_ones_are_cut(make_run):
  workdir = make_run()
  lines = (workdir / "samples.jsonl").read_text()
  (workdir / "samples.jsonl").write_text(lines.replace("answer 2 of step 12", "x" * 5000))
  page = Page(write_report(workdir).read_text())
  assert re.findall(r"question (\d)", page.text) == ["1", "2", "3", "4"]  # 0 was wrong before and after
  assert page.text.count("✗ wrong") == page.text.count("✓ right") == 4
  assert "x" * 4000 in page.text and "x" * 4001 not in page.text and "more characters)" in page.text


def test_charts_follow_the_page_into_the_dark(make_run):
  text = write_report(make_run()).read_text()
  drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
  assert not re.findall(r"#[0-9a-fA-F]{6}\b", drawn)  # every colour is the page's to choose
  used = set(re.findall(r"var\((--[\w-]+)\)", text))
  light, dark = (set(re.findall(r"(--[\w-]+):", block)) for block in re.findall(r":root \{(.*?)\}", text, re.S)[:2])
  assert used <= light == dark


def test_several_runs_stand_on_one_page(make_run, tmp_path):
  runs = [make_run("first"), make_run("second", kind="full"), make_run("below/second", steps=40)]
  page = Page(write_comparison(runs, tmp_path / "all.html").read_text())
  for name in ("first", "second (2)", "second (3)", "3 runs compared"):
    assert name in page.text
  assert charts(page) == 7
  assert len(page.ids) == len(set(page.ids))
  settings = page.text[page.text.index("Settings") :]
  assert settings.index("horizon.kind") < settings.index("seed")  # what differs stands first


def test_many_runs_each_have_a_line(make_run):
  run = read_run(make_run())
  drawn = plots.loss([run] * 20)
  assert drawn.count("stroke-dasharray") >= 12  # colours start again after 8 runs, dashed


@pytest.mark.parametrize("missing", ["metrics.jsonl", "eval.jsonl", "samples.jsonl", "config.json", "command.sh"])
def test_a_page_without_one_of_the_files(make_run, missing):
  workdir = make_run()
  (workdir / missing).unlink()
  page = Page(write_report(workdir).read_text())
  assert charts(page) == {"metrics.jsonl": 3, "eval.jsonl": 5}.get(missing, 7)


def cells(drawn: str) -> list[tuple[float, int]]:
  """(opacity, rectangles) of every shade of a heat map; a full one has no opacity."""
  paths = re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--run-0\)(?:; opacity: ([\d.]+))?"', drawn)
  return sorted((float(opacity or 1), path.count("M ")) for path, opacity in paths)


def test_a_heat_map_has_a_cell_for_every_number_and_none_for_what_is_missing():
  columns = [[4.0, 1.0, None, 0.0], [4.0, None, None, -1.0]]
  rows = tuple({"step": step, "loss_by_position": column} for step, column in enumerate(columns, start=1))
  drawn = plots.positions([RunRecord("run", {}, "", rows, (), ())])
  scale = [(round(24 * ((part + 0.5) / plots._SHADES) ** 0.5) / 24, 1) for part in range(plots._SHADES)]
  expected = sorted([(1.0, 2), (0.5, 1), *scale])  # opacity is the root of a value's share of the largest
  assert cells(drawn) == [(pytest.approx(opacity, abs=1e-3), count) for opacity, count in expected]


def test_a_long_run_s_heat_map_is_of_means():
  rows = [{"step": step, "loss_by_position": [1.0, None if step % 2 else 3.0]} for step in range(1, 1001)]
  edges, columns = plots._map(*RunRecord("run", {}, "", tuple(rows), (), ()).by_position("loss_by_position"))
  assert len(edges) == len(columns) + 1 <= plots._COLUMNS + 1
  assert (edges[0], edges[-1]) == (0.5, 1000.5) and edges == sorted(edges)
  assert columns == [[1.0, 3.0]] * len(columns)


def test_the_kl_of_each_token_is_shown_behind_its_text(make_run, hostile):
  workdir = make_run()
  rows = [json.loads(line) for line in (workdir / "samples.jsonl").read_text().splitlines()]
  for row in rows:
    tokens = ["a", "b", hostile, "c" * 5000]
    row |= {"completion": "".join(tokens), "tokens": tokens, "kl": [0.0, 0.0, 2.0, 1.0]}
  (workdir / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  text = write_report(workdir).read_text()
  page = Page(text)
  assert "ab" + hostile + "c" * 1000 in page.text and "full colour from 2 nats" in " ".join(page.text.split())
  assert "c" * 4000 not in page.text  # as long as any sample may be
  assert len(re.findall(r'<span class="kl kl-8">&lt;script&gt;', text)) == 8
  assert len(re.findall(r'<span class="kl kl-4">c+</span>', text)) == 8
  assert "<pre>ab<span" in text  # what has no KL to speak of has no colour


def test_marks_of_any_model_stand_on_the_page(make_run, hostile):
  workdir = make_run()
  more = {"low": 0.31, "high": 0.54, "pass_at": {"1": 0.4, "4": 0.75}, "maj": 0.5, "length": 1234.0, "truncated": 0.25}
  row = {"step": 0, "set": hostile, "model": hostile, "k": 4, "temperature": 0.7, "accuracy": 0.425, "stderr": 0.1}
  with open(workdir / "eval.jsonl", "a") as file:
    file.write(json.dumps(row | more) + "\n")
  page = Page(write_report(workdir).read_text())
  marks = "".join(page.text[page.text.index("Latest marks") :].split())
  texts = f"{hostile} T=0.7 avg@4 {hostile} 42.5% 31.0-54.0 75.0% 50.0% 1.2k 25%"
  assert "".join(texts.split()) in marks


def test_a_running_mean_keeps_a_straight_line_straight():
  line = [3.0 * at + 1 for at in range(50)]
  assert plots.running_mean(line, 7) == pytest.approx(line)


def test_a_chart_of_nothing_is_no_chart():
  empty = [RunRecord("empty", {}, "", (), (), ())]
  assert [draw(empty) for draw in (plots.loss, plots.positions, plots.horizon, plots.lengths, plots.time_split)] == [
    None
  ] * 5
  assert plots.accuracy(empty, "s", seconds=True) is None


def test_the_command(make_run, tmp_path):
  def report(*arguments):
    command = [sys.executable, "-m", "opd_jax.report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)

  done = report(make_run("one"), make_run("two"), f"--out={tmp_path / 'both.html'}")
  assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "both.html"))
  (tmp_path / "empty").mkdir()
  failed = report(tmp_path / "one", tmp_path / "empty")
  assert failed.returncode == 2
  assert re.fullmatch(r"error: .*empty has no metrics\.jsonl or eval\.jsonl with a row.*\n", failed.stderr)


def test_a_page_that_cannot_be_written_is_one_line(make_run, tmp_path):
  with pytest.raises(InputError, match="cannot write"):
    write_comparison([make_run()], tmp_path / "no" / "such" / "folder.html")
