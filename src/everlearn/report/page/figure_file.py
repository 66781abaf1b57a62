"""The report's figures as one SVG file that stands alone, for a README or a paper: light and dark, no script.

A chart of the report is drawn by the page's style sheet; here the part of it that charts need goes into the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from everlearn.report.page.document import style_sheet
from everlearn.report.page.markup import Html, el
from everlearn.report.page.svg import HEIGHT, WIDTH

GAP, HEAD = 16, 28
_OWN_RULES = """
.paper { fill: var(--paper); }
.chart { font-family: var(--sans); overflow: visible; }
.head { font: 650 13px var(--sans); fill: var(--ink); }
"""


def figure_file(title: str, panels: Sequence[tuple[str, Html]], *, columns: int = 2) -> str:
    """The text of an SVG file with charts side by side.

    Args:
        title: For screen readers.
        panels: Heading and figure of each chart, as the functions of `figures` make them.
        columns: Charts in a row.
    """
    rows = -(-len(panels) // columns)
    width = GAP + columns * (WIDTH + GAP)
    height = GAP + rows * (HEAD + HEIGHT + GAP)
    parts = []
    for number, (heading, figure) in enumerate(panels):
        x = GAP + number % columns * (WIDTH + GAP)
        y = GAP + number // columns * (HEAD + HEIGHT + GAP)
        chart = re.search(r"<svg.*</svg>", figure, re.DOTALL)
        assert chart, "a figure holds a chart"
        place = f'<svg x="{x}" y="{y + HEAD}" width="{WIDTH}" height="{HEIGHT}" '
        parts += [el("text", heading, x=x, y=y + 14, class_="head"), place + chart[0].removeprefix("<svg ")]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" width="{width}">',
            el("title", title),
            f"<style>{_style()}{_OWN_RULES}</style>",
            el("rect", class_="paper", width=width, height=height),
            *parts,
            "</svg>\n",
        ]
    )


def _style() -> str:
    """The colours of the report's style sheet and its rules for charts."""
    sheet = style_sheet()
    colours = sheet.partition("/* Text */")[0]
    charts = sheet.partition("/* Charts */")[2].partition("/*")[0]
    kept = [line for line in charts.splitlines() if not line.startswith((".panel", ".scroll", ".chart {", ".keyed"))]
    assert kept, "the style sheet has a part for charts"
    return colours + "\n".join(kept)
