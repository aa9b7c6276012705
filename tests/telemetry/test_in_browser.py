"""report.html in headless Chromium, on a wide screen, a phone and paper, of runs whose every text is hostile.

Skipped where there is no Chromium: `apt-get install chromium`, or `playwright install chromium`.
"""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from opd_jax.telemetry.page import write_comparison, write_report

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
A4 = 794  # pixels of CSS


@pytest.fixture(scope="module")
def browser():
  with sync_playwright() as playwright:
    path = next(filter(None, map(shutil.which, NAMES)), playwright.chromium.executable_path)
    if not Path(path).exists():
      pytest.skip("no Chromium here")
    browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture
def show(browser):
  """show(path, width, scheme) -> the page, on which nothing has run, failed or been asked of a network."""
  contexts = []

  def open_page(path: Path, width: int, scheme: str):
    contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
    page, heard, asked = contexts[-1].new_page(), [], []
    for event in ("console", "pageerror", "dialog", "requestfailed"):
      page.on(event, lambda what: heard.append(what))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert heard == [] and asked == [path.as_uri()]
    return page

  yield open_page
  for context in contexts:
    context.close()


def fits(page) -> bool:
  return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def pixels_of(svg, colour: str) -> int:
  """How many of a chart's pixels have a colour, `#rrggbb`, or nearly."""
  shown = np.asarray(Image.open(io.BytesIO(svg.screenshot())).convert("RGB"), np.int32)
  wanted = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])
  return int((np.abs(shown - wanted).max(axis=-1) <= 24).sum())


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_every_chart_is_drawn_and_legible_and_nothing_is_cut_off(make_run, show, width, scheme):
  page = show(write_report(make_run()), width, scheme)
  assert fits(page)
  colour = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--run-0')").strip()
  charts = page.locator("figure svg").all()
  assert len(charts) == 7
  for chart in charts:
    assert pixels_of(chart, colour) >= 100, chart.get_attribute("aria-label")
  smallest = page.evaluate(
    """Math.min(...[...document.querySelectorAll('figure svg')].flatMap(svg => {
      const scale = svg.clientWidth / svg.viewBox.baseVal.width
      return [...svg.querySelectorAll('text')].map(text => scale * parseFloat(getComputedStyle(text).fontSize))
    }))"""
  )
  assert smallest >= 8.5  # pixels


def test_several_runs_fit_a_phone(make_run, show, tmp_path):
  runs = [make_run("first"), make_run("second", kind="full"), make_run("third" * 20)]
  page = show(write_comparison(runs, tmp_path / "all.html"), 390, "light")
  assert fits(page)
  colours = [
    page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--run-{i}')").strip() for i in range(3)
  ]
  assert all(pixels_of(page.locator("figure svg").last, colour) >= 100 for colour in colours)


def test_paper_is_white_and_wide_enough(make_run, show):
  page = show(write_report(make_run()), A4, "dark")
  page.emulate_media(media="print")
  assert fits(page)
  assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
  assert page.evaluate("getComputedStyle(document.body).color") == "rgb(22, 24, 29)"
  assert page.pdf(format="A4").startswith(b"%PDF-")
