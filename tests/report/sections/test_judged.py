"""Win rates in page and terminal: the judge named, seeds averaged, doubts told."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.report.text import print_tables
from tests.report import run_folders
from tests.report.pages import Element, parse


def said(rate: float | None) -> dict[str, Any]:
    rates = {
        name: None if rate is None else {"value": rate + more, "low": rate - 5, "high": rate + 5}
        for name, more in (("win_rate", 0.0), ("length_controlled", 1.0))
    }
    counts = {"judged": 20, "won": 9, "tied": 6, "lost": 5, "equal": 2, "differing": 3, "unreadable": 1}
    return {**counts, **rates}


def judged(stage: Path, rate: float | None) -> None:
    scores = {"judge": "owl<b>", "against": "gold", "all": said(rate), "tasks": {"sentiment": said(rate)}}
    run_folders.write_json(stage / "judge" / "scores.json", scores)


def section(folder: Path) -> Element | None:
    tree = parse(page(read_study(folder)))
    return next((part for part in tree.all("section") if part.attributes.get("id") == "judged"), None)


def printed(folder: Path) -> str:
    out = io.StringIO()
    print_tables(folder, Console(file=out, width=160))
    return out.getvalue()


def test_a_run_shows_its_judge_and_what_is_to_be_doubted(tmp_path: Path) -> None:
    folder = run_folders.make_run(tmp_path / "run", tasks=("sentiment", "ruvian"), rows=4)
    assert section(folder) is None
    judged(folder / "stages" / "02-ruvian", 60.0)
    shown = section(folder)
    assert shown is not None
    text = " ".join(shown.text.split())
    for words in ("owl<b>, against the test rows' outputs", "60.0", "55.0 to 65.0", "61.0", "in 3 of 20 rows"):
        assert words in text.replace("\u00a0", " ")
    assert "in 1 a reply could not be read" in text
    assert "win rate controlled for length (judge owl<b>)" in printed(folder)


def test_a_run_without_a_readable_reply_has_no_rate(tmp_path: Path) -> None:
    folder = run_folders.make_run(tmp_path / "run", tasks=("sentiment", "ruvian"), rows=4)
    judged(folder / "stages" / "02-ruvian", None)
    assert section(folder) is not None
    assert "win rate (judge owl<b>)" in printed(folder)


def test_a_comparison_takes_means_over_seeds(tmp_path: Path) -> None:
    folder = run_folders.make_comparison(tmp_path / "all", labels=("ssr", "sequential"), seeds=(1, 2), rows=4)
    for label, found in (("ssr", (60.0, 70.0)), ("sequential", (20.0, 30.0))):
        for seed, rate in zip((1, 2), found, strict=True):
            judged(folder / f"{label}-s{seed}" / "stages" / "05-booking", rate)
    shown = section(folder)
    assert shown is not None
    rows = [" ".join(row.text.split()) for row in shown.all("tr")]
    assert any(row.startswith("SSR") and "65.0" in row and "66.0" in row for row in rows)
    assert any(row.startswith("sequential") and "25.0" in row for row in rows)
    assert "66.0" in printed(folder)
