"""Scores of lm-evaluation-harness in page and terminal: its own names, scale, versions and standard errors."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from everlearn.errors import RunError
from everlearn.report.facts.study import read_study
from everlearn.report.html import page
from everlearn.report.text import print_tables
from tests.report import run_folders
from tests.report.pages import Element, parse


def scores(value: float, *, cut: int = 0) -> dict[str, Any]:
    def result(name: str, group: bool, number: float, questions: int) -> dict[str, Any]:
        metric = {"metric": "acc", "filter": "none", "value": number, "stderr": 0.0123, "rises": True}
        return {
            "name": name, "alias": name, "is_group": group, "version": "2", "questions": questions, "of": 900,
            "metrics": [metric],
        }  # fmt: skip

    results = [result("mmlu<b>", True, value, 300), result("mmlu_anatomy", False, 0.9, 300)]
    return {"task": "mmlu<b>", "lm_eval": "0.4.13", "shots": [5], "limit": 300, "prompts": 1200, "cut": cut,
            "results": results}  # fmt: skip


def asked(folder: Path, label: str, base: float, end: float, *, seed: int = 1, cut: int = 0) -> Path:
    run_folders.make_run(folder, label=label, seed=seed, tasks=("sentiment", "ruvian"), rows=4)
    for stage, value in (("00-base", base), ("02-ruvian", end)):
        run_folders.write_json(folder / "stages" / stage / "benchmarks" / "mmlu_b_-5-shot" / "scores.json",
                               scores(value, cut=cut))  # fmt: skip
    return folder


def section(folder: Path) -> Element | None:
    tree = parse(page(read_study(folder)))
    return next((part for part in tree.all("section") if part.attributes.get("id") == "benchmarks"), None)


def printed(folder: Path) -> str:
    out = io.StringIO()
    print_tables(folder, Console(file=out, width=140))
    return out.getvalue()


def test_a_run_shows_its_benchmarks_before_and_after(tmp_path: Path) -> None:
    shown = section(asked(tmp_path / "run", "ssr", 0.25, 0.3, cut=12))
    assert shown is not None
    text = " ".join(shown.text.split())
    for words in ("0.4.13", "mmlu<b> (acc, 5-shot)", "300 of 900", "0.2500 ± 0.0123", "0.3000 ± 0.0123"):
        assert words in text
    assert "24 of 2,400 prompts did not fit" in text
    assert "anatomy" not in text  # the parts of a group stand in its file
    assert "mmlu<b> (acc, 5-shot)" in printed(tmp_path / "run")
    assert "0.2500 ± 0.0123 to 0.3000 ± 0.0123" in printed(tmp_path / "run")


def test_a_run_without_benchmarks_has_no_such_section(tmp_path: Path) -> None:
    assert section(run_folders.make_run(tmp_path / "run", tasks=("sentiment", "ruvian"), rows=4)) is None


def test_a_comparison_sets_methods_side_by_side_and_takes_means_over_seeds(tmp_path: Path) -> None:
    folder = run_folders.make_comparison(tmp_path / "all", labels=("ssr", "sequential"), seeds=(1, 2), rows=4)
    for label, ends in (("ssr", (0.3, 0.4)), ("sequential", (0.1, 0.2))):
        for seed, end in zip((1, 2), ends, strict=True):
            for stage, value in (("00-base", 0.25), ("05-booking", end)):
                place = folder / f"{label}-s{seed}" / "stages" / stage / "benchmarks" / "mmlu" / "scores.json"
                run_folders.write_json(place, scores(value))
    shown = section(folder)
    assert shown is not None
    rows = [" ".join(row.text.split()) for row in shown.all("tr")]
    assert any(row.startswith("base model") and "0.2500" in row for row in rows)
    assert any(row.startswith("SSR") and "0.3500" in row and "±" not in row for row in rows)
    assert any(row.startswith("sequential") and "0.1500" in row for row in rows)
    assert "0.3500" in printed(folder)


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    folder = asked(tmp_path / "run", "ssr", 0.25, 0.3)
    place = folder / "stages" / "00-base" / "benchmarks" / "mmlu_b_-5-shot" / "scores.json"
    run_folders.write_json(place, {**scores(0.2), "results": []})
    with pytest.raises(RunError, match=r"scores\.json is corrupt"):
        read_study(folder)
