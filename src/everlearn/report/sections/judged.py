"""What a judge said of the final models' answers."""

from __future__ import annotations

from everlearn.report.facts.forms import JudgedForm, JudgeForm, RateForm
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Html, el, name_of
from everlearn.report.page.numbers import NONE, interval, mean, percent, plural
from everlearn.report.page.tables import scrolling_table
from everlearn.report.sections.blocks import block

_HEADS = ("rows", "won", "tied", "lost")
_HELP = (
    "Each pair was asked about twice, with either answer first: won or lost where both orders say so, else tied. "
    "Controlled for length: what a logistic regression on the difference in length predicts for answers of equal "
    "length, after AlpacaEval 2."
)


def judged(study: Study) -> Html | None:
    """The section's body; None where no judge was asked."""
    found = [(method, of_it) for method in study.methods if (of_it := judge_of(method))]
    if not found:
        return None
    judges = list(dict.fromkeys(f"{form.judge}, against {_against(form)}" for _, form in found))
    return el(
        "div",
        el("p", "Judge: ", el("strong", name_of("; ".join(judges))), f". {_HELP}", class_="soft"),
        _side_by_side(found) if len(found) > 1 else None,
        *(block(method, study, _table(form), _doubts(form), remark=" (the first seed)") for method, form in found),
    )


def judge_of(method: MethodRuns) -> JudgeForm | None:
    """What the judge said of the first seed that was judged."""
    return next((run.judge for run in method.runs if run.judge), None)


def rates(method: MethodRuns) -> list[str]:
    """Win rate, plain and controlled for length: over seeds their mean, of one run with its interval."""
    told = []
    for name in ("win_rate", "length_controlled"):
        found: list[RateForm | None] = [getattr(run.judge.all, name) for run in method.runs if run.judge]
        known = [rate for rate in found if rate is not None]
        told.append(_rate(known[0]) if len(known) == 1 else percent(mean([rate.value for rate in known])))
    return told


def _against(form: JudgeForm) -> str:
    return "the test rows' outputs" if form.against == "gold" else f"the run {form.against}"


def _side_by_side(found: list[tuple[MethodRuns, JudgeForm]]) -> Html:
    rows = [
        el(
            "tr",
            el("th", name_of(method.title), scope="row"),
            *(el("td", cell, class_="num") for cell in rates(method)),
        )
        for method, _ in found
    ]
    heads = ["Method", "Win rate ↑", "Controlled for length ↑"]
    return scrolling_table("Win rates of all methods", heads, rows, css="numbers")


def _table(form: JudgeForm) -> Html:
    rows = [_row(name_of(task), of_task) for task, of_task in form.tasks.items()]
    heads = ["Task", *_HEADS, "Win rate ↑", "Controlled for length ↑"]
    return scrolling_table("Win rates by task", heads, [*rows, _row("all", form.all)], css="numbers")


def _row(head: Html | str, of: JudgedForm) -> Html:
    numbers = [str(number) for number in (of.judged, of.won, of.tied, of.lost)]
    cells = [*numbers, _rate(of.win_rate), _rate(of.length_controlled)]
    return el("tr", el("th", head, scope="row"), *(el("td", cell, class_="num") for cell in cells))


def _rate(rate: RateForm | None) -> str:
    if rate is None:
        return NONE
    ends = interval(rate.low, rate.high)
    return percent(rate.value) + (f" ({ends})" if ends else "")


def _doubts(form: JudgeForm) -> Html:
    of = form.all
    words = [
        f"The judge changed its mind with the order in {of.differing} of {plural(of.judged, 'row')}",
        f"{of.equal} answers equal the reference and were not asked about",
        f"in {of.unreadable} a reply could not be read; these are left out",
    ]
    return el("p", "; ".join(words) + ".", class_="soft")
