"""The SVG file of a comparison's charts stands alone."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from everlearn.report.page.figure_file import figure_file
from everlearn.report.versions.figures import quality_against_cost

ARM = {
    "label": "a < b",
    "versions": ["v1", "v2"],
    "steps_at_release": {"v1": 10, "v2": 30},
    "seen": {"v1": {"mean": 2.0, "interval": None}, "v2": {"mean": 2.5, "interval": [2.4, 2.6]}},
}


def test_the_file_is_one_well_formed_drawing_without_script_or_links() -> None:
    panel = quality_against_cost([ARM], "seen", "Quality")
    text = figure_file("Title", [("One", panel), ("Two", panel), ("Three", panel)])
    root = ET.fromstring(text)
    charts = [child for child in root if child.tag.endswith("}svg")]
    places = {(chart.get("x"), chart.get("y")) for chart in charts}
    assert len(places) == len(charts) == 3
    width, height = (float(value) for value in str(root.get("viewBox")).split()[2:])
    assert all(float(x) + 360 <= width and float(y) + 212 <= height for x, y in places)
    assert "a &lt; b" in text
    assert not re.search(r"<script|href=|url\(|@import", text)


def test_every_colour_that_the_drawing_uses_is_defined_in_it() -> None:
    text = figure_file("Title", [("One", quality_against_cost([ARM], "seen", "Quality"))])
    assert set(re.findall(r"var\((--\w+)\)", text)) <= set(re.findall(r"(--\w+):", text))
