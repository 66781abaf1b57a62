"""The report in a real browser: headless Chromium from the system's packages, driven through Playwright."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from everlearn.report.html import write_report
from tests.report import run_folders

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
FOLDERS = ("hostile", "unfinished", "compared")

CONTRASTS = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const weak = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.getClientRects().length || ['title', 'desc'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const front = parse(element instanceof SVGElement ? style.fill : style.color);
    const [low, high] = [luminance(front), luminance(behind(element))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) weak.push(`${element.tagName}.${element.getAttribute('class')}: ${ratio.toFixed(2)}`);
  }
  return [...new Set(weak)];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip(
            "no Chromium is installed (Debian: apt-get install chromium); the report was not tried in a browser"
        )
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu", *QUIET])
        yield browser
        browser.close()


@pytest.fixture(params=FOLDERS)
def report(request: pytest.FixtureRequest) -> Path:
    return write_report(request.getfixturevalue(request.param))


class Visit:
    """A page with all that it asked for and complained of."""

    def __init__(self, browser: Browser, report: Path, width: int = 1280, scheme: str = "light") -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page: Page = browser.new_page(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
            reduced_motion="reduce",
        )
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(report.as_uri())

    def unfold(self) -> None:
        self.page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()


def test_nothing_runs_nothing_is_fetched_nothing_complains(browser: Browser, report: Path):
    with Visit(browser, report) as visit:
        visit.unfold()
        visit.page.wait_for_timeout(50)
        assert visit.page.evaluate("() => window.__hacked") is None
        assert visit.page.evaluate("() => document.scripts.length") == 0
        assert visit.requests == [report.as_uri()]
        assert visit.complaints == []


def test_the_policy_stops_a_script_that_gets_in_all_the_same(browser: Browser, single: Path):
    with Visit(browser, write_report(single)) as visit:
        visit.page.evaluate(
            """() => {
              const script = document.createElement('script');
              script.textContent = 'window.__hacked = 1';
              document.body.append(script);
              const image = document.createElement('img');
              image.src = 'http://127.0.0.1:9/x.png';
              document.body.append(image);
            }"""
        )
        visit.page.wait_for_timeout(50)
        assert visit.page.evaluate("() => window.__hacked") is None
        assert len([text for text in visit.complaints if "Content Security Policy" in text]) == 2


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Browser, report: Path, width: int):
    with Visit(browser, report, width) as visit:
        visit.unfold()
        assert visit.page.evaluate("() => document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("width", [360, 1280])
def test_a_long_name_of_a_task_in_the_headline_wraps(browser: Browser, tmp_path: Path, width: int):
    folder = run_folders.make_run(tmp_path / "early", finished=1)
    for name in ("manifest.json", "matrix.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace('"sentiment"', f'"{"a" * 120}"'), encoding="utf-8")
    with Visit(browser, write_report(folder), width) as visit:
        assert "a" * 120 in visit.page.locator("h1").inner_text()
        assert visit.page.evaluate("() => document.documentElement.scrollWidth") == width


def test_the_names_of_methods_stay_whole_beside_the_balance(browser: Browser, compared: Path):
    with Visit(browser, write_report(compared), 768) as visit:
        visit.page.evaluate(
            "() => document.querySelectorAll('.balance .first th').forEach((task) => {"
            " if (task.rowSpan > 1) task.textContent = 'task07-sentiment_analysis_of_reviews'; })"
        )
        name = visit.page.locator(".balance .who bdi", has_text="sequential").first
        assert name.evaluate("(element) => element.getClientRects().length") == 1


def test_the_balance_names_itself_in_lines_on_a_phone(browser: Browser, single: Path):
    with Visit(browser, write_report(single), 360) as visit:
        box = visit.page.locator(".balance caption").bounding_box()
        assert box is not None
        assert box["width"] > 3 * box["height"]


def test_a_long_interval_wraps_within_its_cell_on_a_phone(browser: Browser, single: Path):
    with Visit(browser, write_report(single), 360) as visit:
        end = visit.page.locator(".heat td .ends").first
        end.evaluate("(element) => { element.textContent = '60.74\u201381.89'; }")
        assert end.evaluate("(element) => element.parentElement.scrollWidth <= element.parentElement.clientWidth")


def test_paper_has_room_for_the_figures_of_many_tasks(browser: Browser, tmp_path: Path):
    names = [f"task{place:02d}" for place in range(25)]
    folder = run_folders.make_run(tmp_path / "many", finished=0)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["stages"] = [{"index": i, "name": name, "tasks": [name]} for i, name in enumerate(names, 1)]
    manifest["tasks"] = [{**manifest["tasks"][0], "name": name} for name in names]
    run_folders.write_json(folder / "manifest.json", manifest)
    full, ends = [100.0] * 25, [[95.0, 100.0]] * 25
    stages = [stage["name"] for stage in manifest["stages"]]
    matrix = {"tasks": names, "stages": stages, "base": full, "values": [full] * 25, "intervals": [ends] * 25}
    run_folders.write_json(folder / "matrix.json", matrix)
    with Visit(browser, write_report(folder), 688) as visit:
        visit.page.emulate_media(media="print")
        cut = "() => [...document.querySelectorAll('.heat td')].filter((c) => c.scrollWidth > c.clientWidth).length"
        assert visit.page.locator(".heat td").count() == 26 * 25
        assert visit.page.evaluate(cut) == 0


def test_wide_tables_scroll_inside_their_box(browser: Browser, compared: Path):
    with Visit(browser, write_report(compared), 390) as visit:
        box = "document.querySelector('#comparison .scroll')"
        assert visit.page.evaluate(f"() => {box}.scrollWidth > {box}.clientWidth")
        assert visit.page.evaluate(f"() => {box}.getBoundingClientRect().right <= 390")


def test_a_table_that_goes_on_beyond_its_frame_fades_out_until_it_is_moved_to_its_end(
    browser: Browser, compared: Path
):
    fade = "(box) => getComputedStyle(box).getPropertyValue('--fade')"
    with Visit(browser, write_report(compared), 390) as visit:
        box = visit.page.locator("#comparison .scroll")
        assert box.evaluate(fade) == "40px"
        box.evaluate("(box) => { box.scrollLeft = box.scrollWidth; }")
        visit.page.wait_for_function("() => document.querySelector('#comparison .scroll').scrollLeft > 0")
        visit.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert box.evaluate(fade) == "0px"
    with Visit(browser, write_report(compared), 1280) as visit:
        assert visit.page.locator("#comparison .scroll").evaluate(fade) == "0px"


@pytest.mark.parametrize("width", [390, 1280])
def test_labels_of_charts_stay_within_the_page_and_are_legible(browser: Browser, compared: Path, width: int):
    with Visit(browser, write_report(compared), width) as visit:
        outside = visit.page.evaluate(
            """(width) => [...document.querySelectorAll('.chart text')].filter((text) => {
              const box = text.getBoundingClientRect();
              return box.width > 0 && (box.left < 0 || box.right > width || box.height < 8);
            }).map((text) => text.textContent)""",
            width,
        )
        assert outside == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(browser: Browser, report: Path, scheme: str):
    with Visit(browser, report, scheme=scheme) as visit:
        visit.unfold()
        assert visit.page.evaluate(CONTRASTS) == []


def test_the_dark_scheme_is_dark(browser: Browser, single: Path):
    shades = []
    for scheme in ("light", "dark"):
        with Visit(browser, write_report(single), scheme=scheme) as visit:
            colour = visit.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
            shades.append(sum(map(int, re.findall(r"\d+", colour)[:3])))
    light, dark = shades
    assert light > 700
    assert dark < 120


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_shows_everything_on_white(browser: Browser, compared: Path, scheme: str):
    with Visit(browser, write_report(compared), scheme=scheme) as visit:
        visit.page.emulate_media(media="print", color_scheme=scheme)  # type: ignore[arg-type]
        assert visit.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert visit.page.evaluate(CONTRASTS) == []
        hidden = visit.page.evaluate(
            """() => [...document.querySelectorAll('details')]
              .filter((part) => ![...part.children].every((child) => child.checkVisibility() && child.clientHeight))
              .map((part) => part.textContent.slice(0, 60))"""
        )
        assert hidden == []


def test_paper_takes_several_pages(browser: Browser, report: Path):
    with Visit(browser, report) as visit:
        pages = re.findall(rb"/Type\s*/Page\b(?!s)", visit.page.pdf(format="A4"))
        assert len(pages) >= 3


def test_every_heading_is_visible_and_reached_by_the_navigation(browser: Browser, report: Path):
    with Visit(browser, report) as visit:
        headings = visit.page.locator("h1, h2")
        assert headings.count() >= 4
        for place in range(headings.count()):
            assert headings.nth(place).is_visible()
        links = visit.page.locator("nav a")
        assert links.count() == headings.count() - 1
        for place in range(links.count()):
            links.nth(place).click()
            target = visit.page.url.split("#")[1]
            visit.page.wait_for_function(
                f"() => Math.abs(document.getElementById('{target}').getBoundingClientRect().top) < 900"
            )


def test_definitions_are_reached_by_a_tap(browser: Browser, single: Path):
    with Visit(browser, write_report(single), 390) as visit:
        visit.page.locator(".tile a").first.click()
        assert visit.page.locator("#is-AR").is_visible()


def test_folding_parts_open_by_keyboard(browser: Browser, single: Path):
    with Visit(browser, write_report(single)) as visit:
        part = visit.page.locator("details.definitions")
        part.locator("summary").focus()
        visit.page.keyboard.press("Enter")
        assert part.locator("dl").is_visible()
