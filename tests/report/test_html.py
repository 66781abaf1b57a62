from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from everlearn.report.html import write_report
from everlearn.report.page.document import POLICY
from tests.report import run_folders
from tests.report.pages import parse

HEAVY = ("torch", "transformers", "datasets", "peft", "sklearn", "scipy", "matplotlib", "jieba", "rich")


@pytest.fixture(params=["single", "hostile", "unfinished", "compared"])
def page(request: pytest.FixtureRequest) -> str:
    return write_report(request.getfixturevalue(request.param)).read_text(encoding="utf-8")


def test_the_page_is_well_formed(page: str):
    tree = parse(page)
    html = tree.one("html")
    assert page.startswith("<!doctype html>\n")
    assert html.attributes["lang"] == "en"
    assert len(tree.all("h1")) == 1
    assert all(heading.text.strip() for heading in tree.all("h2") + tree.all("h3") + tree.all("h4"))


def test_the_heading_of_the_matrix_names_the_metric_or_each_task_s_own(single: Path, tmp_path: Path):
    def matrix(folder: Path) -> tuple[str, str]:
        sections = parse(write_report(folder).read_text(encoding="utf-8")).all("section")
        (part,) = (section for section in sections if section.attributes.get("id") == "matrix")
        return part.one("h2").text, part.text

    assert matrix(single)[0] == "Exact match after every stage"
    copy = Path(shutil.copytree(single, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["tasks"][0]["metric"] = "rouge_l"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    title, text = matrix(copy)
    assert title == "Scores after every stage"
    assert "sentiment ROUGE-L (published form: jieba tokens), ruvian exact match" in text


def test_no_level_of_headings_is_skipped(page: str):
    levels = [int(element.tag[1]) for element in parse(page).all() if re.fullmatch("h[1-6]", element.tag)]
    assert all(now <= before + 1 for before, now in itertools.pairwise(levels))


def test_every_table_has_a_name_and_every_column_a_head(page: str):
    for table in parse(page).all("table"):
        frame = table.parent.attributes if table.parent else {}
        assert table.all("caption") or frame.get("aria-label")
        assert all(head.text.strip() for head in table.all("th"))


def test_the_page_loads_nothing_and_runs_nothing(page: str):
    tree = parse(page)
    assert not [
        element.tag
        for element in tree.all()
        if element.tag
        in {"script", "link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "use"}
    ]
    for element in tree.all():
        for name, value in element.attributes.items():
            assert not name.startswith("on"), f"<{element.tag} {name}>"
            assert name not in ("src", "srcset", "action", "data", "poster", "xlink:href")
            if name == "href":
                assert re.fullmatch(r"#[\w.-]+", value or "")
            if name == "style":
                assert re.fullmatch(r"--share:[01]\.\d{4}|--columns:\d+", value or "")
    style = tree.one("style").text
    assert "url(" not in style
    assert "@import" not in style
    policy = [meta.attributes["content"] for meta in tree.all("meta") if "http-equiv" in meta.attributes]
    assert policy == [POLICY]
    assert "default-src 'none'" in POLICY
    assert "script-src" not in POLICY, "scripts fall under default-src 'none'"


def test_links_lead_somewhere_and_identifiers_are_unique(page: str):
    tree = parse(page)
    names = [element.attributes["id"] for element in tree.all() if "id" in element.attributes]
    assert len(names) == len(set(names))
    targets = {(element.attributes["href"] or "")[1:] for element in tree.all("a")}
    assert targets <= set(names)


def test_every_chart_describes_itself(page: str):
    for chart in parse(page).all("svg", "chart"):
        assert chart.attributes["role"] == "img"
        assert chart.one("title").text
        assert chart.one("desc").text


def test_hostile_text_is_shown_as_text(hostile: Path):
    tree = parse(write_report(hostile).read_text(encoding="utf-8"))
    text = tree.text
    for nasty in run_folders.HOSTILE[:2]:
        assert nasty in text
    assert "</style></pre><h1>out</h1>" in text
    assert "␀␇␛[31mred" in text
    assert "\x00" not in text
    assert "\x1b" not in text


def test_hostile_names_are_shown_as_text(tmp_path: Path):
    folder = run_folders.make_run(tmp_path / "named", tasks=("sentiment", "ruvian"))
    nasty = "x'\"><script>alert(1)</script>"
    for path in [folder / "manifest.json", folder / "matrix.json"]:
        text = path.read_text().replace('"ruvian"', '"x\'\\"><script>alert(1)</script>"')
        path.write_text(text.replace('"label": "ssr"', '"label": "<b onclick=x>l</b>"'))
    tree = parse(write_report(folder).read_text(encoding="utf-8"))
    assert not tree.all("script")
    assert not tree.all("b")
    assert nasty in tree.text
    assert nasty in tree.one("main").all("svg", "chart")[1].one("title").text


def test_samples_bound_the_size_of_the_page(tmp_path: Path):
    small = run_folders.make_run(tmp_path / "small", rows=100, label="sequential")
    large = run_folders.make_run(tmp_path / "large", rows=1000, label="sequential")
    sizes = [write_report(folder).stat().st_size for folder in (small, large)]
    assert sizes[1] < 1.2 * sizes[0]


def test_a_comparison_of_four_methods_and_three_seeds_is_written_in_seconds(tmp_path: Path):
    folder = run_folders.make_comparison(tmp_path / "compared", rows=100)
    began = time.process_time()
    write_report(folder)
    assert time.process_time() - began < 5.0  # 0.5 where nothing else runs


def test_writing_a_report_imports_no_heavy_package(single: Path):
    code = (
        "import sys; from pathlib import Path; from everlearn.report.html import write_report; "
        f"write_report(Path(sys.argv[1])); print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(single)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_same_folder_gives_the_same_page(single: Path):
    assert write_report(single).read_bytes() == write_report(single).read_bytes()


def css_rules(page: str) -> dict[str, dict[str, str]]:
    """Custom properties of the light, dark and print schemes."""
    style = parse(page).one("style").text
    roots = re.findall(r":root \{(.*?)\}", style, flags=re.S)
    schemes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6})", root)) for root in roots]
    light, dark, paper = schemes
    return {"light": light, "dark": light | dark, "print": light | paper}


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_colours_have_enough_contrast(single: Path, scheme: str):
    colours = css_rules(write_report(single).read_text(encoding="utf-8"))[scheme]
    for step in range(11):
        assert contrast(colours[f"h{step}"], colours[f"t{step}"]) >= 4.5, f"heat {step}"
    for name in ("ink", "soft", "accent", *(f"s{style}" for style in range(8))):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    for name in ("ink", "soft"):
        assert contrast(colours[name], colours["shade"]) >= 4.5, name
    assert contrast(colours["warn"], colours["warn-ink"]) >= 4.5
    assert contrast(colours["bad"], colours["paper"]) >= 4.5


def test_paper_has_no_dark_backgrounds(single: Path):
    colours = css_rules(write_report(single).read_text(encoding="utf-8"))["print"]
    assert all(luminance(colours[name]) > 0.35 for name in ["paper", "card", "shade", *(f"h{i}" for i in range(11))])
