"""How the numbers came about: the recipe, versions, machine, the time of each step and its fingerprint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from everlearn.errors import RunError
from everlearn.report.facts.reading import Run, Step
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.machine import facts
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import NONE, THIN, count, duration
from everlearn.report.page.tables import scrolling_table

KINDS = {
    "training": "training",
    "synthesis": "synthesis",
    "predictions": "evaluation",
    "answers": "evaluation",
    "general": "general ability",
    "benchmarks": "benchmarks",
    "judge": "asking the judge",
    "state": "method's state",
    "data": "keeping rows",
}
MOST_RECIPE = 60_000


def provenance(study: Study) -> Html:
    """Times, recipe, versions and fingerprints."""
    run = study.methods[0].first
    return el(
        "div",
        _times(study),
        *(_steps(method, study) for method in study.methods),
        el("h3", "Versions and machine"),
        facts(run.manifest),
        *(_recipe(method.first, study) for method in study.methods),
    )


def _times(study: Study) -> Html | None:
    kinds = list(dict.fromkeys(_kind(step) for method in study.methods for run in method.runs for step in run.steps))
    kinds.sort(key=lambda kind: list(KINDS.values()).index(kind) if kind in KINDS.values() else len(KINDS))
    if not kinds:
        return None
    if study.is_comparison:
        rows = [(name_of(method.title), _by_kind(method)) for method in study.methods]
        first = "Method"
    else:
        run = study.methods[0].first
        places = list(dict.fromkeys(step.stage for step in run.steps))
        rows = [
            (name_of(place or "whole run"), _sum_by_kind([step for step in run.steps if step.stage == place]))
            for place in places
        ]
        first = "Stage"
    most = max((sum(found.values()) for _, found in rows), default=0) or 1
    body = []
    for head, found in rows:
        total = sum(found.values())
        cells = [el("td", duration(found[kind]) if kind in found else NONE, class_="num") for kind in kinds]
        body.append(
            el(
                "tr",
                el("th", head, scope="row"),
                *cells,
                el("td", el("strong", duration(total)), class_="num"),
                el("td", _stacked(found, kinds, most), class_="bars"),
            )
        )
    heads: list[Child] = [first]
    heads += [
        el("th", el("span", class_=f"swatch k{place % 5}"), f" {kind}", scope="col")
        for place, kind in enumerate(kinds)
    ]
    heads += ["all", el("th", el("span", "share", class_="hidden"), scope="col")]
    return el(
        "div",
        el("h3", "Time of each step"),
        el("p", _reuse(study), class_="soft"),
        scrolling_table("Time of each step", heads, body, css="numbers times"),
    )


def _stacked(found: Mapping[str, float], kinds: list[str], most: float) -> Html:
    parts = [
        el(
            "span",
            class_=f"part k{place % 5}",
            style=f"--share:{found[kind] / most:.4f}",
            title=f"{kind}: {duration(found[kind])}",
        )
        for place, kind in enumerate(kinds)
        if kind in found
    ]
    return el("span", *parts, class_="stack thin", aria_hidden="true")


def _reuse(study: Study) -> str:
    steps = [step for method in study.methods for run in method.runs for step in run.steps]
    reused = [step for step in steps if step.reused]
    if not reused:
        return "Every step was computed in this run."
    saved = duration(sum(step.seconds for step in reused))
    return (
        f"{count(len(reused))} of {count(len(steps))} steps were found in the cache and not computed again; they are "
        f"counted here with the {saved} they took when first made, and marked ↺ in the list of steps."
    )


def _by_kind(method: MethodRuns) -> dict[str, float]:
    """Seconds by kind, mean over seeds."""
    total = _sum_by_kind([step for run in method.runs for step in run.steps])
    return {kind: seconds / len(method.runs) for kind, seconds in total.items()}


def _sum_by_kind(steps: list[Step]) -> dict[str, float]:
    found: dict[str, float] = {}
    for step in steps:
        found[_kind(step)] = found.get(_kind(step), 0.0) + step.seconds
    return found


def _kind(step: Step) -> str:
    return KINDS.get(step.kind, step.kind)


def _steps(method: MethodRuns, study: Study) -> Html | None:
    run = method.first
    if not run.steps:
        return None
    rows = [
        el(
            "tr",
            el("th", name_of(step.place.removeprefix("stages/")), scope="row"),
            el("td", duration(step.seconds), class_="num"),
            el("td", "↺ reused" if step.reused else "computed"),
            el("td", step.finished.replace("T", " ").removesuffix("Z"), class_="num"),
            el("td", size(step.size_bytes), class_="num"),
            el("td", el("code", step.fingerprint[:12])),
        )
        for step in run.steps
    ]
    heads = ("Step", "Took", "How", "Finished (UTC)", "Size", "Fingerprint")
    title: list[Child] = [f"All {len(run.steps)} steps with fingerprints"]
    if study.is_comparison:
        title = [
            el("strong", name_of(method.title)),
            f", seed {run.seed}: all {len(run.steps)} steps with fingerprints",
        ]
    return el(
        "details",
        el("summary", *title),
        scrolling_table("Steps", heads, rows, css="numbers steps"),
    )


def _recipe(run: Run, study: Study) -> Html | None:
    path = run.folder / "recipe.yaml"
    text = _read(path)
    if text is None:
        return None
    return el(
        "details",
        el(
            "summary",
            "The recipe, defaults written out",
            *([" (", name_of(run.label), ")"] if study.is_comparison else []),
        ),
        el("pre", text, tabindex="0"),
        class_="recipe",
        open=not study.is_comparison,
    )


def _read(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"cannot read {path} ({error.strerror or error}): check its permissions.") from None
    return (
        text
        if len(text) <= MOST_RECIPE
        else f"{text[:MOST_RECIPE]}\n… cut here; the file has {len(text):,} characters"
    )


def size(size_bytes: int) -> str:
    """`1.2 MB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f}{THIN}{unit}"
    return f"{size_bytes}{THIN}B"
