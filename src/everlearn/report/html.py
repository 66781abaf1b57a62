"""The report: one self-contained HTML file made from a run or comparison folder alone.

No script, no network: a content security policy forbids both, styles and charts are inline, fonts are the system's.
The order is that of a reader who wants the answer first: headline and key numbers, comparison, matrix, entities,
curves, translations, probing, rehearsal, what else acted while training, what methods found, forgotten instances, what
the data held, costs, and last how it all came about. Parts whose files are absent are left out, so an unfinished run
has a report too.
"""

from __future__ import annotations

from pathlib import Path

from everlearn.report.facts.empty import doubt
from everlearn.report.facts.study import Study, read_study
from everlearn.report.page.document import document, write_page
from everlearn.report.page.markup import Html, el, name_of
from everlearn.report.page.numbers import plural
from everlearn.report.sections.acting import acting
from everlearn.report.sections.answered import answered, scenario
from everlearn.report.sections.benchmarks import benchmarks
from everlearn.report.sections.comparison import comparison
from everlearn.report.sections.cost import cost
from everlearn.report.sections.curves import average_curve, curves
from everlearn.report.sections.data import data
from everlearn.report.sections.entities import entities
from everlearn.report.sections.findings import findings
from everlearn.report.sections.forgotten import forgotten
from everlearn.report.sections.headline import headline, metrics_line, unfinished
from everlearn.report.sections.heatmap import any_measured, heat_maps, matrix_title
from everlearn.report.sections.judged import judged
from everlearn.report.sections.lineage import lineage
from everlearn.report.sections.probing import probing
from everlearn.report.sections.provenance import provenance
from everlearn.report.sections.rehearsal import rehearsal
from everlearn.report.sections.tiles import legend, tiles
from everlearn.report.sections.translating import translating

NAVIGATION = {
    "comparison": "Comparison",
    "matrix": "Matrix",
    "entities": "Entities",
    "curves": "Curves",
    "benchmarks": "Benchmarks",
    "translating": "Translations",
    "judged": "Judged",
    "probing": "Probing",
    "rehearsal": "Rehearsal",
    "acting": "While training",
    "findings": "Found",
    "forgotten": "Forgotten",
    "data": "Data",
    "lineage": "Lineage",
    "cost": "Cost",
    "origin": "Recipe and times",
}


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run or comparison folder.

    Args:
        folder: What `everlearn run` or `everlearn compare` made, finished or not.

    Returns:
        The file.

    Raises:
        RunError: the folder is no run folder, or a file in it is corrupt.
    """
    return write_page(folder, page(read_study(folder)))


def page(study: Study) -> str:
    """The whole document."""
    sections = [part for part in _sections(study) if part[2] is not None]
    links = [el("li", el("a", NAVIGATION[name], href=f"#{name}")) for name, _, _ in sections]
    main, second = headline(study)
    header = el(
        "header",
        el("p", *_kicker(study), class_="kicker"),
        _unfinished(study),
        el(
            "div",
            el("div", el("h1", main), el("p", second, class_="lead") if second else None),
            average_curve(study),
            class_="hero",
        ),
        *_doubts(study),
        tiles(study) if study.methods else None,
        metrics_line(study),
        el("p", el("strong", known[0]), f": {known[1]}.", class_="soft") if (known := scenario(study)) else None,
        legend(study),
        el("nav", el("ul", *links), aria_label="Sections") if links else None,
    )
    return document(study.name, header, el("main", *(_section(name, title, body) for name, title, body in sections)))


def _sections(study: Study) -> list[tuple[str, str, Html | None]]:
    if not study.methods:
        return []
    several = len(study.methods) > 1
    return [
        ("comparison", "Comparison of methods", comparison(study) if several else None),
        (
            "matrix",
            matrix_title(study),
            heat_maps(study) if any(any_measured(method, study) for method in study.methods) else None,
        ),
        ("entities", "Entities by type", entities(study)),
        ("curves", "Learning and forgetting", curves(study)),
        ("benchmarks", "Benchmarks before and after", benchmarks(study)),
        ("translating", "Translations by direction", translating(study)),
        ("judged", "What a judge preferred", judged(study)),
        ("probing", "What the features still tell apart", probing(study)),
        ("rehearsal", "What was rehearsed", rehearsal(study)),
        ("acting", "What acted while training", acting(study)),
        ("findings", "What the methods found", findings(study)),
        ("forgotten", "Once right, now wrong", forgotten(study)),
        ("data", "What the data held", data(study)),
        ("lineage", "Which weights came from which", lineage(study)),
        ("cost", "What it cost" if not several else "What each method cost", cost(study)),
        ("origin", "How it was made", provenance(study)),
    ]


def _section(name: str, title: str, body: Html | None) -> Html:
    return el("section", el("h2", title), body, id=name)


def _kicker(study: Study) -> list[Html | str]:
    words: list[Html | str] = ["everlearn · ", name_of(study.name)]
    if study.is_comparison:
        seeds = max((len(method.runs) for method in study.methods), default=0)
        words.append(f" · {plural(len(study.methods), 'method')}, {plural(seeds, 'seed')}")
    elif study.methods:
        words += [" · ", name_of(study.methods[0].title), f" · seed {study.methods[0].first.seed}"]
    days = sorted(step.finished[:10] for method in study.methods for run in method.runs for step in run.steps)
    if days and days[-1]:
        words += [" · ", el("time", days[-1], datetime=days[-1])]
    return words


def _doubts(study: Study) -> list[Html]:
    """Which headline figures are not what they seem."""
    found = [doubt(method, study) for method in study.methods]
    return [note for method in study.methods if (note := answered(method)) is not None] + [
        el("p", el("strong", "Empty answers"), f": {told}", class_="banner", role="note") for told in found if told
    ]


def _unfinished(study: Study) -> Html | None:
    what = unfinished(study)
    if what is None:
        return None
    return el(
        "p",
        el("strong", "Unfinished"),
        f": {what}. This page shows what is there so far.",
        class_="banner",
        role="status",
    )
