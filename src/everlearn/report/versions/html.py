"""The report of a run of version updates or of a comparison: one self-contained HTML file from the folder alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everlearn.errors import RunError
from everlearn.files import read_jsonl, read_text, read_vouched
from everlearn.report.facts.forms import Form, in_form
from everlearn.report.facts.parsing import form_of
from everlearn.report.page.document import document, write_page
from everlearn.report.page.machine import facts
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import NONE, count, duration
from everlearn.report.page.tables import scrolling_table
from everlearn.report.versions.account import account_section
from everlearn.report.versions.figures import perplexity_matrix, quality_against_cost, rates_figure
from everlearn.report.versions.forms import ComparisonForm, LedgerForm, PlanForm, QualityForm, read_checked
from everlearn.report.versions.last_release import last_releases
from everlearn.training.schedules import Schedule

NAMES = {"ptfs": "Pre-training from scratch", "cpt": "Continual pre-training", "path_switching": "Path switching"}


def write_report(folder: Path) -> Path:
    """Writes `report.html` into the folder of a run or of a comparison.

    Raises:
        RunError: it is neither, or a file in it is corrupt.
    """
    if (folder / "comparison.json").exists():
        with form_of(folder / "comparison.json"):
            title, lead, sections = _comparison(folder)
    elif (folder / "plan.json").exists():
        with form_of(folder / "plan.json"):
            title, lead, sections = _run(folder)
    else:
        raise RunError(f"{folder} is no run folder of version updates: give the folder of a run or comparison.")
    return write_page(folder, _page(folder.name, title, lead, sections))


def verdict(comparison: Mapping[str, Any]) -> str:
    """Whether path switching reached the quality of training from scratch, in one sentence with the figures."""
    arm = next((arm for arm in comparison["arms"] if arm["label"] == "path_switching" and "difference" in arm), None)
    if arm is None:
        return f"{len(comparison['arms'])} arms over {len(comparison['arms'][0]['versions'])} versions."
    last = arm["versions"][-1]
    entry, own = arm["difference"]["seen"][last], arm["difference"]["own"][last]
    low, high = entry["interval"]
    share, margin = arm["executed"]["ratio_to_ptfs"], comparison["margin_percent"]
    reached = "reached" if round(entry["percent"], 1) <= margin else "did not reach"
    seen, bounds = _signed(entry["percent"]), f"{_signed(low)} to {_signed(high)}"
    return (
        f"Path switching {reached} the quality of pre-training from scratch at {100 * share:.0f} % of its steps: the "
        f"last release's perplexity over all versions differs by {seen} % ({bounds}; lower is better, up to "
        f"{margin:.0f} % counts as reached), on its own version by {_signed(own['percent'])} %."
    )


def _signed(percent: float) -> str:
    """One decimal with its sign; what is shown as nothing is not below it."""
    return f"{round(percent, 1) + 0.0:+.1f}"


def _run(folder: Path) -> tuple[str, str, list[tuple[str, Html | None]]]:
    plan = read_checked(folder / "plan.json", PlanForm)
    manifest = read_vouched(folder / "manifest.json")
    names = [version["id"] for version in plan["versions"]]
    segments = _named(plan["segments"], names)
    paradigm = NAMES[plan["paradigm"]]
    title = f"{paradigm}: {len(names)} versions of one model"
    quality = _optional(folder / "quality.json", QualityForm)
    ledger = _optional(folder / "ledger.json", LedgerForm)
    lead = "Unfinished: this page shows what is there so far."
    if ledger:
        done = ledger["executed"]
        lead = (
            f"{count(done['steps'])} optimizer steps, {count(done['tokens'])} tokens: "
            f"{100 * done['ratio_to_ptfs']:.0f} % of what training every version from scratch takes."
        )
    rates = el(
        "div",
        rates_figure("Planned rates", segments, _planned(segments, plan["maximal_rate"])),
        rates_figure("Executed rates", segments, _executed(folder, segments)),
        class_="panels two",
    )
    return (
        title,
        lead,
        [
            ("Learning rates", rates),
            ("Perplexity of every release on every version", _matrices([(paradigm, quality)]) if quality else None),
            ("Cost", _costs(ledger) if ledger else None),
            ("What the text held", _text(manifest)),
            ("How it was made", _origin(folder, manifest)),
        ],
    )


def _comparison(folder: Path) -> tuple[str, str, list[tuple[str, Html | None]]]:
    comparison = read_vouched(folder / "comparison.json")
    if comparison.get("status") != "complete":
        raise RunError(f"{folder} is not finished: go on with 'everlearn resume {folder}', then ask for its report.")
    in_form(folder / "comparison.json", comparison, ComparisonForm)
    arms = comparison["arms"]
    first: dict[str, Path] = {}
    for run in comparison["runs"]:
        first.setdefault(run["label"], folder / run["folder"])
    plots = el(
        "div",
        quality_against_cost(arms, "seen", "Perplexity over all versions so far"),
        quality_against_cost(arms, "own", "Perplexity on the release's own version"),
        class_="panels two",
    )
    rates = []
    for label, path in first.items():
        plan = read_checked(path / "plan.json", PlanForm)
        segments = _named(plan["segments"], [version["id"] for version in plan["versions"]])
        rates.append(rates_figure(f"{label}: executed rates", segments, _executed(path, segments)))
    matrices = [(label, read_checked(path / "quality.json", QualityForm)) for label, path in first.items()]
    seeds = comparison["seeds"]
    note = el("p", f"Shown: seed {seeds[0]}.", class_="soft") if len(seeds) > 1 else None
    manifest = read_vouched(next(iter(first.values())) / "manifest.json")
    return (
        f"{folder.name}: {len(arms)} ways to {len(arms[0]['versions'])} versions",
        verdict(comparison),
        [
            (
                "Quality against cost",
                el("div", plots, _summary(comparison), el("p", _words(arms, seeds), class_="soft")),
            ),
            ("Learning rates", el("div", note, el("div", *rates, class_="panels"))),
            ("Perplexity of every release on every version", el("div", note, _matrices(matrices))),
            ("What the text held", _text(manifest)),
            ("How it was made", _origin(next(iter(first.values())), manifest)),
        ],
    )


def _page(name: str, title: str, lead: str, sections: Sequence[tuple[str, Html | None]]) -> str:
    kicker = el("p", "everlearn · ", name_of(name), class_="kicker")
    header = el("header", kicker, el("h1", title), el("p", lead, class_="lead"))
    shown = (el("section", el("h2", head), body) for head, body in sections if body is not None)
    return document(name, header, el("main", *shown))


def _matrices(found: Sequence[tuple[str, Mapping[str, Any]]]) -> Html:
    values = [value for _, quality in found for at, row in enumerate(quality["perplexity"]) for value in row[: at + 1]]
    scale = (min(values), max(values))
    maps = [perplexity_matrix(title, quality, scale) for title, quality in found]
    return el(
        "div",
        el(
            "p",
            "Rows: releases; columns: on whose held-out text; lower is better, and the stronger in colour. Outlined: "
            "the release's own version; left of it: what is kept of older versions; right of it, grey: versions still "
            "to come. Small figures: bootstrap interval over blocks.",
            class_="soft",
        ),
        el("div", *maps, class_="maps" if len(maps) > 1 else "maps one"),
    )


def _costs(ledger: Mapping[str, Any]) -> Html:
    done = ledger["executed"]
    planned = [(f"{NAMES[cost['paradigm']]}, planned", cost) for cost in ledger["costs"]]
    rows = [
        (
            name,
            f"{100 * cost['ratio_to_ptfs']:.0f} %",
            count(cost["steps"]),
            count(cost["tokens"]),
            f"{cost['flops']:.3g}",
        )
        for name, cost in [*planned, (f"{NAMES[done['paradigm']]}, executed", done)]
    ]
    segments = [
        (
            name_of(row["id"]),
            row["kind"],
            count(row["planned_steps"]),
            count(row["executed_steps"]),
            count(row["repeated_steps"]),
            duration(row["seconds"]),
        )
        for row in ledger["segments"]
    ]
    return el(
        "div",
        _table("Cost of the paradigms", ("Paradigm", "of from scratch", "steps", "tokens", "FLOPs"), rows),
        el(
            "details",
            el("summary", "Every segment"),
            _table("Segments", ("Segment", "kind", "planned", "executed", "done again", "time"), segments),
        ),
        el(
            "p",
            f"Kept states: {done['state_bytes'] / 2**20:.1f} MiB; releases: {done['release_bytes'] / 2**20:.1f} MiB.",
        ),
    )


def _summary(comparison: Mapping[str, Any]) -> Html:
    rows = [
        (
            name_of(last.label),
            last.seen.text(".3f"),
            last.own.text(".3f"),
            last.difference.text("+.1f", " %") if last.difference else NONE,
            count(last.steps),
            f"{100 * last.ratio_to_ptfs:.0f} %",
            duration(last.seconds),
        )
        for last in last_releases(comparison["arms"])
    ]
    heads = (
        "Last release",
        "all versions",
        "own version",
        "against its reference",
        "steps",
        "of from scratch",
        "time",
    )
    return _table("Quality and cost of the last release", heads, rows)


def _words(arms: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """What the labels and figures of a comparison mean."""
    names = [f"{arm['label']}: {NAMES[arm['label']].lower()}" for arm in arms if arm["label"] in NAMES]
    over = "the seeds" if len(seeds) > 1 else "blocks of the held-out text"
    return "; ".join(["Perplexity: lower is better", *names, f"in brackets: interval over {over}"]) + "."


def _table(label: str, heads: Sequence[str], rows: Sequence[Sequence[Child]]) -> Html:
    body = [
        el("tr", el("th", row[0], scope="row"), *(el("td", cell, class_="num") for cell in row[1:])) for row in rows
    ]
    return scrolling_table(label, heads, body, css="numbers")


def _origin(folder: Path, manifest: Mapping[str, Any]) -> Html:
    recipe = read_text(folder / "recipe.yaml")
    return el(
        "div",
        facts(manifest),
        el("details", el("summary", "Recipe"), el("pre", recipe, tabindex="0")),
    )


def _text(manifest: Mapping[str, Any]) -> Html | None:
    accounts = manifest.get("updates")
    return account_section(accounts) if accounts else None


def _planned(segments: Sequence[Mapping[str, Any]], peak: float) -> dict[str, list[float]]:
    rates = {}
    for segment in segments:
        values = dict(segment["schedule"])
        if values.get("cycle") == "inf":
            values["cycle"] = float("inf")
        schedule = Schedule(**values)
        rates[segment["id"]] = [peak * schedule(step) for step in range(segment["steps"])]
    return rates


def _executed(folder: Path, segments: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    rates = {}
    for segment in segments:
        path = folder / "segments" / segment["id"] / "history.jsonl"
        if path.exists():
            rates[segment["id"]] = [float(str(row["learning_rate"])) for row in read_jsonl(path)]
    return rates


def _named(segments: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {**segment, "version": names[segment["releases"] - 1] if segment["releases"] else None} for segment in segments
    ]


def _optional(path: Path, kind: type[Form]) -> dict[str, Any] | None:
    return read_checked(path, kind) if path.exists() else None
