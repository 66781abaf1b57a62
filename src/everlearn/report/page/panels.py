"""Charts: lines over stages or steps, and values with intervals by row, both with direct labels.

A panel's title and description are for screen readers; what all see stands in the figure's caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everlearn.report.page.markup import Html, el, join
from everlearn.report.page.numbers import THIN, score
from everlearn.report.page.svg import (
    BOTTOM,
    DASHES,
    HEIGHT,
    LABEL_GAP,
    LEFT,
    STYLES,
    TOP,
    WIDTH,
    Axis,
    Frame,
    Rule,
    apart,
    axes,
    marker,
    nice_axis,
    rule_across,
    short,
    width_of,
)

LONGEST = 24
"""Letters of a label beside a row of values."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line: `points` are (x, y), y None where not measured.

    Attributes:
        label: Written at the line's end; empty for none.
        points: In order of x.
        style: Chooses colour, dash and marker.
        band: Lower and upper end of the interval at each point, or empty.
        quiet: Drawn thin and grey, as context.
        markers: Whether points are marked.
        thin: A level to compare with rather than a course.
    """

    label: str
    points: Sequence[tuple[float, float | None]]
    style: int = 0
    band: Sequence[tuple[float | None, float | None]] = ()
    quiet: bool = False
    markers: bool = True
    thin: bool = False


def line_panel(
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    rules: Sequence[Rule] = (),
    shade_until: float | None = None,
) -> Html:
    """A line chart.

    Args:
        title: For screen readers (the visible caption is the figure's).
        description: The numbers in words, for screen readers.
        x: Horizontal axis.
        y: Vertical axis.
        series: Lines; the quiet ones are drawn first.
        rules: Lines across the plot.
        shade_until: The plot left of this x is shaded (the time before a task was learnt).
    """
    named = [line for line in series if line.label]
    right = 10 + (max((width_of(line.label) for line in named), default=0) + 6 if named else 6)
    right = min(right, 156)
    frame = Frame(x, y, LEFT, WIDTH - right, TOP, HEIGHT - BOTTOM)
    drawn = sorted(series, key=lambda line: not line.quiet)
    return el(
        "svg",
        el("title", title),
        el("desc", description),
        _shade(frame, shade_until),
        axes(frame),
        *(rule_across(frame, rule) for rule in rules),
        *(_band(frame, line) for line in drawn if line.band),
        *(_line(frame, line) for line in drawn),
        _end_labels(frame, named),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart",
    )


@dataclass(frozen=True, slots=True)
class Dot:
    """One row of a dot panel: its label, its value with interval, further single values (seeds)."""

    label: str
    value: float | None
    low: float | None
    high: float | None
    singles: Sequence[float] = ()
    style: int = 0
    hollow: bool = False


def dot_panel(title: str, description: str, dots: Sequence[Dot], unit: str, rules: Sequence[Rule] = ()) -> Html:
    """Values with intervals, one row each, over one scale."""
    values = [value for dot in dots for value in (dot.value, dot.low, dot.high, *dot.singles) if value is not None] + [
        rule.at for rule in rules
    ]
    axis = nice_axis(min(values, default=0), max(values, default=1), unit, ticks=4)
    names = apart([dot.label for dot in dots])
    left, row = 14 + max((width_of(name, LONGEST) for name in names), default=0), 26
    height = TOP + row * len(dots) + BOTTOM + (10 if rules else 0)
    frame = Frame(axis, Axis(0, 1, ()), left, WIDTH - 16, TOP + (10 if rules else 0), height - BOTTOM)
    rows = []
    for number, dot in enumerate(dots):
        at = frame.top + row * (number + 0.5)
        rows.append(_dot_row(frame, dot, names[number], at))
    return el(
        "svg",
        el("title", title),
        el("desc", description),
        axes(frame),
        *(rule_across(frame, rule) for rule in rules),
        *rows,
        viewBox=f"0 0 {WIDTH} {height}",
        role="img",
        class_="chart",
    )


def key_of(style: int, *, hollow: bool = False) -> Html:
    """A small sample of a series' line and marker, for tables and legends."""
    return el(
        "svg",
        el("path", d="M1 7H25", class_=f"line s{style % STYLES}", stroke_dasharray=DASHES[style % STYLES] or None),
        marker(13, 7, style, hollow=hollow),
        viewBox="0 0 26 14",
        class_="key",
        aria_hidden="true",
    )


def _shade(frame: Frame, until: float | None) -> Html | None:
    if until is None or until <= frame.x.low:
        return None
    return el(
        "rect",
        x=frame.left,
        y=frame.top,
        width=round(frame.px(until) - frame.left, 1),
        height=round(frame.bottom - frame.top, 1),
        class_="unseen",
    )


def _band(frame: Frame, line: Series) -> Html | None:
    upper, lower = [], []
    for (at, value), (low, high) in zip(line.points, line.band, strict=True):
        if value is None or low is None or high is None:
            continue
        upper.append(f"{frame.px(at):.1f} {frame.py(min(high, frame.y.high)):.1f}")
        lower.append(f"{frame.px(at):.1f} {frame.py(max(low, frame.y.low)):.1f}")
    if len(upper) < 2:
        return None
    return el("path", d=f"M{'L'.join(upper)}L{'L'.join(reversed(lower))}Z", class_=f"band s{line.style % STYLES}")


def _line(frame: Frame, line: Series) -> Html:
    path, pen_down = [], False
    for at, value in line.points:
        if value is None:
            pen_down = False
            continue
        path.append(f"{'L' if pen_down else 'M'}{frame.px(at):.1f} {frame.py(value):.1f}")
        pen_down = True
    css = "line quiet" if line.quiet else f"line{' thin' if line.thin else ''} s{line.style % STYLES}"
    dash = None if line.quiet else DASHES[line.style % STYLES] or None
    parts = [el("path", d="".join(path) or "M0 0", class_=css, stroke_dasharray=dash)]
    if line.markers and not line.quiet:
        names = dict(frame.x.ticks)
        for at, value in line.points:
            if value is not None:
                tip = f"{line.label or 'score'} at {frame.x.title or 'x'} {names.get(at, f'{at:g}')}: {score(value)}"
                parts.append(marker(frame.px(at), frame.py(value), line.style, tip=tip))
    return join(parts)


def _end_labels(frame: Frame, lines: Sequence[Series]) -> Html:
    """Labels beside the last points, moved apart where they would overlap."""
    ends = []
    for line in lines:
        known = [(at, value) for at, value in line.points if value is not None]
        if known:
            ends.append((frame.py(known[-1][1]), line, known[-1]))
    ends.sort(key=lambda end: end[0])
    places = [end[0] for end in ends]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + LABEL_GAP)
    if places and places[-1] > frame.bottom:
        places[-1] = frame.bottom
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - LABEL_GAP)
    parts = []
    for place, (y, line, (at, _)) in zip(places, ends, strict=True):
        x = frame.px(at)
        if x < frame.right - 1:  # inside the plot: clear of the axis
            place = min(place, frame.bottom - 7)
        if abs(place - y) > 3:
            parts.append(el("path", d=f"M{x + 4:.1f} {y:.1f}L{x + 9:.1f} {place:.1f}", class_="leader"))
        parts.append(
            el(
                "text",
                short(line.label),
                x=round(x + 10, 1),
                y=round(place + 4, 1),
                class_=f"label s{line.style % STYLES}",
            )
        )
    return join(parts)


def _dot_row(frame: Frame, dot: Dot, name: str, at: float) -> Html:
    style = dot.style % STYLES
    name = short(name, LONGEST)
    parts = [el("text", name, x=frame.left - 8, y=round(at + 4, 1), class_="label ink", text_anchor="end")]
    if dot.low is not None and dot.high is not None:
        low, high = frame.px(dot.low), frame.px(dot.high)
        parts.append(
            el(
                "path",
                d=f"M{low:.1f} {at:.1f}H{high:.1f}M{low:.1f} {at - 4:.1f}v8M{high:.1f} {at - 4:.1f}v8",
                class_=f"whisker s{style}",
            )
        )
    for single in dot.singles:
        parts.append(
            el("circle", cx=round(frame.px(single), 1), cy=round(at + 7, 1), r=1.8, class_=f"single s{style}")
        )
    if dot.value is not None:
        tip = f"{dot.label}: {score(dot.value)}{THIN}{frame.x.title}"
        parts.append(marker(frame.px(dot.value), at, dot.style, hollow=dot.hollow, tip=tip))
    return join(parts)
