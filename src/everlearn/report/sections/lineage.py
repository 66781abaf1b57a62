"""Which weights came from which: by which method and phase, on which rows, and when each stage was added."""

from __future__ import annotations

from collections.abc import Mapping

from everlearn.report.facts.forms import AddedForm, LineageForm, WeightsForm, read_form
from everlearn.report.facts.reading import Run
from everlearn.report.facts.study import Study
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import NONE, count
from everlearn.report.page.tables import scrolling_table

HEADS = ("Weights", "Come from", "Made by", "Own rows", "Rehearsed rows", "Stage added (UTC)", "Fingerprint")


def lineage(study: Study) -> Html | None:
    """One table a method; None for runs that kept no lineage."""
    tables = [table for method in study.methods if (table := _table(method.first, study)) is not None]
    return el("div", *tables) if tables else None


def _table(run: Run, study: Study) -> Html | None:
    path = run.folder / "lineage.json"
    if not path.exists():
        return None
    stages = read_form(path, LineageForm).stages
    rows = [_row(run, stage, weights) for stage in stages for weights in stage.weights]
    if not rows:
        return None
    if not study.is_comparison:
        return scrolling_table("Lineage", HEADS, rows, css="numbers steps")
    title = (el("strong", name_of(run.label)), f", seed {run.seed}")
    return el(
        "details",
        el("summary", *title),
        scrolling_table(f"Lineage of {run.label}", HEADS, rows, css="numbers steps"),
    )


def _row(run: Run, stage: AddedForm, weights: WeightsForm) -> Html:
    released: list[Child] = [el("span", "released", class_="tag")] if weights.place == stage.released else []
    origins = ", ".join(origin.removeprefix("stages/") for origin in weights.origins)
    is_trained = weights.by != "merge"
    return el(
        "tr",
        el("th", name_of(weights.place.removeprefix("stages/")), *released, scope="row"),
        el("td", name_of(origins)),
        el("td", name_of(f"{run.label}, {weights.by}")),
        el("td", _rows(stage.tasks) if is_trained else NONE),
        el("td", _rows(stage.rehearsed) if is_trained else NONE),
        el("td", stage.added.replace("T", " ").removesuffix("Z"), f" by everlearn {stage.everlearn}", class_="num"),
        el("td", el("code", weights.fingerprint[:12])),
    )


def _rows(tasks: Mapping[str, int]) -> Html | str:
    return name_of(", ".join(f"{name} {count(rows)}" for name, rows in tasks.items())) if tasks else NONE
