"""The parts of a chart as inline SVG, without any library: scales, axes, rules across the plot, markers.

Panels are small (about a phone's width), so that their text keeps its size when the page reflows them. A series is
told apart by colour, by dash and marker, and by the label at its end; all three come from its `style` number.
Colours are classes, so that the style sheet can change them for dark screens and for paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from everlearn.report.page.markup import Html, el, join
from everlearn.report.page.numbers import power_of_ten

STYLES = 8
WIDTH, HEIGHT = 360, 212
LEFT, TOP, BOTTOM = 34, 10, 36
LABEL_GAP = 13.0
CHARACTER = 7.0  # width of an average letter of the labels, in SVG units
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 2.5", "12 3", "4 2 1 2")


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: its range, its ticks as (value, text), what it measures."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str = ""
    is_log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1."""
        low, high = (math.log(self.low), math.log(self.high)) if self.is_log else (self.low, self.high)
        return ((math.log(value) if self.is_log else value) - low) / (high - low)


@dataclass(frozen=True, slots=True)
class Rule:
    """An upright line across the plot at x, with a small label."""

    at: float
    label: str


def nice_axis(low: float, high: float, title: str = "", ticks: int = 5, unit: str = "") -> Axis:
    """An axis with round ticks that covers the range."""
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    raw = (high - low) / max(1, ticks - 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if raw <= power * factor * 1.0001)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step) + 1e-9) + (1 if step / power == 2.5 and power < 10 else 0))
    values = [i * step for i in range(first, last + 1)]
    return Axis(
        values[0], values[-1], [(value, f"{value:.{digits}f}{unit}".replace("-", "\u2212")) for value in values], title
    )


def log_axis(low: float, high: float) -> Axis:
    """Powers of ten that cover a range of positive values; with few of them also 3, 30, 300."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    powers = range(first, last + 1, math.ceil((last - first) / 5))
    ticks = [10.0**power for power in powers]
    if last - first <= 2:
        ticks += [3 * 10.0**power for power in range(first, last)]
    return Axis(10.0**first, 10.0**last, [(tick, power_of_ten(tick)) for tick in sorted(ticks)], is_log=True)


def percent_axis(title: str = "") -> Axis:
    """0 to 100 per cent."""
    return Axis(0, 100, [(value, f"{value}") for value in (0, 25, 50, 75, 100)], title)


@dataclass(frozen=True, slots=True)
class Frame:
    """The plot area and the two scales."""

    x: Axis
    y: Axis
    left: float
    right: float
    top: float
    bottom: float

    def px(self, value: float) -> float:
        """Horizontal place of a value."""
        return self.left + self.x.share(value) * (self.right - self.left)

    def py(self, value: float) -> float:
        """Vertical place of a value."""
        return self.bottom - self.y.share(value) * (self.bottom - self.top)


def axes(frame: Frame) -> Html:
    """Grid lines, tick labels, the base line and the title of the horizontal axis."""
    parts = []
    for value, text in frame.y.ticks:
        at = frame.py(value)
        parts.append(el("path", d=f"M{frame.left:.1f} {at:.1f}H{frame.right:.1f}", class_="grid"))
        parts.append(el("text", text, x=frame.left - 6, y=round(at + 4, 1), class_="tick", text_anchor="end"))
    for value, text in frame.x.ticks:
        at = frame.px(value)
        if not frame.y.ticks:
            parts.append(el("path", d=f"M{at:.1f} {frame.top:.1f}V{frame.bottom:.1f}", class_="grid"))
        parts.append(
            el("text", text, x=round(at, 1), y=round(frame.bottom + 15, 1), class_="tick", text_anchor="middle")
        )
    parts.append(el("path", d=f"M{frame.left:.1f} {frame.bottom:.1f}H{frame.right:.1f}", class_="axis"))
    if frame.x.title:
        middle = round((frame.left + frame.right) / 2, 1)
        parts.append(
            el("text", frame.x.title, x=middle, y=round(frame.bottom + 30, 1), class_="what", text_anchor="middle")
        )
    return join(parts)


def rule_across(frame: Frame, rule: Rule) -> Html:
    """A line across the plot with its label."""
    at = frame.px(rule.at)
    anchor = "start" if at < frame.left + 40 else "end" if at > frame.right - 40 else "middle"
    label = el("text", rule.label, x=round(at, 1), y=round(frame.top - 3, 1), class_="note", text_anchor=anchor)
    line = el("path", d=f"M{at:.1f} {frame.top:.1f}V{frame.bottom:.1f}", class_="rule", stroke_dasharray="3 3")
    return join((line, label if rule.label else None))


def marker(x: float, y: float, style: int, *, hollow: bool = False, tip: str | None = None) -> Html:
    """A point's mark: its shape and colour by style, hollow for an upper bound, with a tip to hover over."""
    shape = style % STYLES
    css = f"mark s{shape}{' hollow' if hollow or style >= STYLES else ''}"
    title = el("title", tip) if tip else None
    if shape == 0:
        return el("circle", title, cx=round(x, 1), cy=round(y, 1), r=3.4, class_=css)
    offsets = {
        1: ((-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)),
        2: ((0, -4.2), (4, 3.2), (-4, 3.2)),
        3: ((0, -4.5), (4.5, 0), (0, 4.5), (-4.5, 0)),
        4: ((-4, -3.2), (4, -3.2), (0, 4.2)),
        5: ((-4.2, -1.6), (4.2, -1.6), (4.2, 1.6), (-4.2, 1.6)),
        6: ((-1.6, -4.2), (1.6, -4.2), (1.6, 4.2), (-1.6, 4.2)),
        7: ((-2, -4), (2, -4), (4, 0), (2, 4), (-2, 4), (-4, 0)),
    }[shape]
    path = "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in offsets)
    return el("path", title, d=f"M{path}Z", class_=css)


def width_of(text: str, most: int = 19) -> float:
    """Width of a label, about; fonts differ."""
    return len(short(text, most)) * CHARACTER


def apart(labels: Sequence[str]) -> list[str]:
    """Each label without the options (`key=value`) at its end that it needs not to be told from the others."""
    words = [label.split(" ") for label in labels]
    found = []
    for at, mine in enumerate(words):
        others = words[:at] + words[at + 1 :]
        least = next((count for count, word in enumerate(mine) if "=" in word), len(mine))
        needed = (count for count in range(least, len(mine)) if all(other[:count] != mine[:count] for other in others))
        found.append(" ".join(mine[: next(needed, len(mine))]))
    return found


def short(text: str, most: int = 19) -> str:
    """The text, shortened in its middle: names of variants differ at their end."""
    if len(text) <= most:
        return text
    tail = most // 2
    return f"{text[: most - tail - 1]}…{text[-tail:]}"
