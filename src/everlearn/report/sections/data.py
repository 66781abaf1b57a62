"""What the data held: of each task what was read, left out, held out and cut, and the sentences on it."""

from __future__ import annotations

from everlearn.data.account import TaskAccount
from everlearn.report.facts.parsing import form_of, items
from everlearn.report.facts.reading import Run
from everlearn.report.facts.study import Study
from everlearn.report.page.markup import Child, Html, el, name_of
from everlearn.report.page.numbers import NONE, count
from everlearn.report.page.tables import scrolling_table

HEADS = ("Task", "Read", "Set aside", "Left out", "Held out", "Trained on", "Cut", "Evaluated", "Metric")


def data(study: Study) -> Html | None:
    """Table and sentences; None for runs that kept no account and have no notes."""
    accounts, notes = _accounts(study.methods[0].first), _notes(study.methods[0].first)
    if not accounts and not notes:
        return None
    sentences = [sentence for account in accounts for sentence in account.sentences()]
    told: list[Html] = [el("li", name_of(text)) for text in (*notes, *sentences)]
    for method in study.methods[1:]:
        others = [text for account in _accounts(method.first) for text in account.sentences()]
        told += [el("li", name_of(f"{method.title}: {text}")) for text in others if text not in sentences]
    return el(
        "div",
        scrolling_table("What the data held", HEADS, map(_row, accounts), css="numbers") if accounts else None,
        el("p", _help(study), class_="soft") if accounts else None,
        el("ul", *told, class_="told") if told else el("p", "Every row is used as it stands."),
    )


def _row(account: TaskAccount) -> Html:
    parts = account.parts.values()
    too_long = account.too_long
    cells = (
        sum(part.rows for part in parts),
        sum(part.set_aside for part in parts),
        sum(part.limited for part in parts) + too_long,
        account.held_out,
        account.trained - too_long,
        account.cut_prompts + account.cut_answers,
        account.evaluated,
    )
    metric: list[Child] = [account.metric.replace("_", " ")]
    if account.metric_reason:
        metric.append(el("span", account.metric_reason, class_="tag"))
    sources = dict.fromkeys(f"{part.source} ({part.format})" if part.format else part.source for part in parts)
    return el(
        "tr",
        el("th", name_of(account.task), *(el("span", source, class_="tag") for source in sources), scope="row"),
        *(el("td", count(cell) if cell else NONE, class_="num") for cell in cells),
        el("td", *metric),
    )


def _help(study: Study) -> str:
    seed = f" Shown: seed {study.methods[0].first.seed}." if study.has_seeds else ""
    return (
        "Read: rows of all files. Set aside: rows that cannot be used. Left out: by a limit or for their length. Held "
        "out: training rows kept for evaluation. Trained on and evaluated: instances, of which a conversation gives "
        f"one an answer. Cut: prompts and answers that lose their end.{seed}"
    )


def _accounts(run: Run) -> list[TaskAccount]:
    from pydantic import TypeAdapter

    with form_of(run.folder / "manifest.json"):
        return TypeAdapter(list[TaskAccount]).validate_python(items(run.manifest.get("data") or []))


def _notes(run: Run) -> list[str]:
    """What the user was told while the data was read."""
    notes = run.manifest.get("notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []
