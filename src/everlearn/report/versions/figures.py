"""The figures of a report on version updates: rates over the data, the perplexity matrix, quality against cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import count
from everlearn.report.page.panels import Series, line_panel
from everlearn.report.page.svg import Axis, nice_axis
from everlearn.report.page.tables import scrolling_table

MOST_POINTS = 120
MAIN_STYLE = 7
STEPS = 10

Rates = Sequence[tuple[float, float | None]]


def rates_figure(title: str, segments: Sequence[Mapping[str, Any]], rates: Mapping[str, Sequence[float]]) -> Html:
    """Learning rate over the position in the data: one line per release, and the main path.

    Args:
        title: Of the figure.
        segments: As in `plan.json`.
        rates: For each segment that has any, the rate of each of its steps.
    """
    lines: list[Series] = []
    main: list[tuple[float, float | None]] = []
    for segment in segments:
        values = rates.get(segment["id"], ())
        if segment["kind"] == "main":
            main += _points(segment["from"], values)
        elif values:
            style = (segment["releases"] - 1) % MAIN_STYLE
            lines.append(Series(_label(segment), _points(segment["from"], values), style, markers=False))
    if main:
        lines.insert(0, Series("main path", main, MAIN_STYLE, markers=False))
    peak = max((max(values, default=0.0) for values in rates.values()), default=1.0) or 1.0
    end = max((segment["to"] for segment in segments if segment["data"] == "versions"), default=1)
    return el(
        "figure",
        el("figcaption", el("strong", title)),
        line_panel(
            title,
            f"{len(lines)} lines; the highest rate is {peak:.3g}; {count(end)} steps of data.",
            nice_axis(0, end, "position in the data (steps)", ticks=4),
            Axis(0, peak * 1.04, [(0, "0"), (peak / 2, short_rate(peak / 2)), (peak, short_rate(peak))]),
            lines,
        ),
        class_="panel",
    )


def perplexity_matrix(title: str, quality: Mapping[str, Any], scale: tuple[float, float]) -> Html:
    """Releases by held-out versions as a heat map; stronger is better. Versions still to come have no colour.

    Args:
        title: Of the figure.
        quality: With `versions`, `releases`, `perplexity` and, where known, `intervals`.
        scale: Lowest and highest perplexity on versions that were learnt, of all maps shown together.
    """
    versions = quality["versions"]
    heads: list[Child] = ["release"]
    heads += [el("th", el("span", name_of(version)), scope="col") for version in versions]
    rows = []
    for at, release in enumerate(quality["releases"]):
        cells = []
        for place, value in enumerate(quality["perplexity"][at]):
            ends = quality["intervals"][at][place] if quality.get("intervals") else None
            note = f"{short_perplexity(ends[0])}\u2013{short_perplexity(ends[1])}" if ends else None
            own = " learnt" if versions[place] == release else ""
            colour = f"h{level_of(value, scale)}" if place <= at else "missing"
            cells.append(
                el(
                    "td",
                    short_perplexity(value),
                    el("span", note, class_="ends") if note else None,
                    class_=f"{colour}{own}",
                )
            )
        rows.append(el("tr", el("th", name_of(release), scope="row"), *cells))
    return el(
        "figure",
        el("figcaption", el("strong", name_of(title))),
        scrolling_table(
            f"Perplexity matrix of {title}",
            heads,
            rows,
            css=f"heat{' many' if len(versions) > 7 else ''}",
            style=f"--columns:{len(versions)}",
        ),
        class_="map",
    )


def quality_against_cost(arms: Sequence[Mapping[str, Any]], measure: str, title: str) -> Html:
    """One line per arm: executed steps until each release, and its perplexity with the interval over seeds."""
    lines, values = [], []
    for style, arm in enumerate(arms):
        points, band = [], []
        for version in arm["versions"]:
            entry = arm[measure][version]
            low, high = entry["interval"] or (entry["mean"], entry["mean"])
            points.append((arm["steps_at_release"][version], entry["mean"]))
            band.append((low, high))
            values += [low, high]
        lines.append(Series(arm["label"], points, style, band=band))
    furthest = max(point[0] for line in lines for point in line.points)
    x = nice_axis(0, furthest, "optimizer steps executed until the release", ticks=4)
    x = Axis(x.low, x.high, [(value, count(int(value))) for value, _ in x.ticks], x.title)
    described = "; ".join(
        f"{arm['label']}: " + ", ".join(f"{arm[measure][version]['mean']:.2f}" for version in arm["versions"])
        for arm in arms
    )
    return el(
        "figure",
        el("figcaption", el("strong", title)),
        line_panel(title, described, x, nice_axis(min(values), max(values), ticks=5), lines),
        class_="panel",
    )


def level_of(value: float, scale: tuple[float, float]) -> int:
    """The step of the colour scale: the lowest perplexity is darkest."""
    low, high = (math.log(end) for end in scale)
    return round(STEPS * (high - math.log(value)) / (high - low)) if high > low else STEPS


def short_perplexity(value: float) -> str:
    """A perplexity in five characters: `1.97`, `70.59`, `812.4`, `1.2e4`."""
    return f"{value:.2f}" if value < 99.995 else f"{value:.1f}" if value < 999.95 else short_rate(value)


def short_rate(rate: float) -> str:
    """A rate in a few characters: `3e-4`, `1.5e-3`."""
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "\u2212")


def _label(segment: Mapping[str, Any]) -> str:
    return str(segment.get("version") or f"version {segment['releases']}")


def _points(start: int, values: Sequence[float]) -> list[tuple[float, float | None]]:
    """At most `MOST_POINTS` of a segment's steps, first and last among them."""
    wanted = min(len(values), MOST_POINTS)
    chosen = sorted({round(at * (len(values) - 1) / max(1, wanted - 1)) for at in range(wanted)})
    return [(start + at, values[at]) for at in chosen]
