from __future__ import annotations

import re
from itertools import pairwise

import pytest

from everlearn.report.page.panels import Dot, Series, dot_panel, line_panel
from everlearn.report.page.svg import LABEL_GAP, Axis, apart, log_axis, nice_axis, percent_axis
from everlearn.report.sections.curves import thinned
from tests.report.pages import Element, parse

STAGES = Axis(0, 5, [(float(at), str(at)) for at in range(6)], "stage")


def panel(*series: Series) -> Element:
    return parse(line_panel("title", "description", STAGES, percent_axis(), series))


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 52, ["0", "20", "40", "60"]),
        (0, 2.71, ["0", "1", "2", "3"]),
        (0, 0.9, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (-93, 0, ["−100", "−75", "−50", "−25", "0"]),
        (0, 12_000, ["0", "5000", "10000", "15000"]),
        (3, 3, ["2.0", "2.5", "3.0", "3.5", "4.0"]),
    ],
)
def test_axes_have_round_ticks_that_cover_the_range(low: float, high: float, ticks: list[str]):
    axis = nice_axis(low, high)
    assert [text for _, text in axis.ticks] == ticks
    assert axis.low <= low
    assert axis.high >= high


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (3.5, 457, ["1", "10", "100", "1 000"]),
        (8.0, 61.0, ["1", "3", "10", "30", "100"]),
        (2.0, 3e9, ["1", "100", "10 000", "10⁶", "10⁸", "10¹⁰"]),
    ],
)
def test_logarithmic_axes_have_powers_of_ten(low: float, high: float, ticks: list[str]):
    axis = log_axis(low, high)
    assert [text.replace("\u202f", " ") for _, text in axis.ticks] == ticks
    assert axis.low <= low < high <= axis.high
    assert axis.share(axis.low) == 0
    assert axis.share((axis.low * axis.high) ** 0.5) == pytest.approx(0.5)


def test_a_missing_score_breaks_the_line():
    tree = panel(Series("a", [(0, 1.0), (1, 2.0), (2, None), (3, 4.0), (4, 5.0)]))
    path = tree.one("path", "line").attributes["d"] or ""
    assert path.count("M") == 2
    assert path.count("L") == 2
    assert len(tree.all(css="mark")) == 4


def test_labels_that_would_overlap_are_moved_apart_and_stay_inside():
    tree = panel(*(Series(f"method {i}", [(0, 0.0), (5, 1.0 + i / 10)], i) for i in range(8)))
    places = sorted(float(label.attributes["y"] or "") for label in tree.all("text", "label"))
    assert all(later - earlier >= LABEL_GAP - 0.1 for earlier, later in pairwise(places))
    assert places[0] > 0


def test_marks_carry_their_value_as_a_tip():
    tree = panel(Series("SSR", [(0, 2.5), (1, 98.0)]))
    assert [mark.one("title").text for mark in tree.all(css="mark")] == ["SSR at stage 0: 2.5", "SSR at stage 1: 98.0"]


def test_a_series_without_points_is_drawn_as_nothing():
    tree = panel(Series("a", []), Series("b", [(0, None)]))
    assert not tree.all(css="mark")
    assert not tree.all("text", "label")


def test_dots_lie_within_their_whiskers():
    tree = parse(dot_panel("t", "d", [Dot("a", 50, 40, 60, (45, 55)), Dot("b", 20, None, None, style=1)], "%"))
    assert len(tree.all("path", "whisker")) == 1
    ends = re.match(r"M([\d.]+) [\d.]+H([\d.]+)", tree.one("path", "whisker").attributes["d"] or "")
    assert ends is not None
    assert float(ends[1]) < float(tree.one("circle", "mark").attributes["cx"] or "") < float(ends[2])
    assert len(tree.all("circle", "single")) == 2


def test_long_losses_are_thinned_to_means():
    points = [(float(step), float(step)) for step in range(1000)]
    short = thinned(points, 100)
    assert len(short) == 100
    assert short[0] == (4.5, 4.5)
    assert thinned(points[:10], 100) == points[:10]


def test_names_beside_values_are_cut_where_they_are_told_apart():
    names = ["SEQ preset=seq_lin rate=0.03", "SEQ preset=p_w_fixbc_cos rate=0.03", "SSR", "SSR ratio=0.1 count=30"]
    names.append("random rehearsal ratio=0.1")
    assert apart(names) == [
        "SEQ preset=seq_lin",
        "SEQ preset=p_w_fixbc_cos",
        "SSR",
        "SSR ratio=0.1",
        "random rehearsal",
    ]
    shown = dot_panel("t", "d", [Dot(name, 50, 40, 60) for name in names], "%")
    assert ">SEQ preset=p_w_fixbc_cos<" in str(shown)
