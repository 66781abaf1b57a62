from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from everlearn.cli.main import main
from everlearn.errors import RunError
from everlearn.report.page.numbers import score
from everlearn.report.text import matrix_table, print_tables
from tests.report import run_folders


def printed(folder: Path, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_tables(folder, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_run_shows_its_matrix_and_metrics(single: Path):
    text = printed(single)
    matrix = json.loads((single / "matrix.json").read_text())
    metrics = json.loads((single / "metrics.json").read_text())
    line = next(line for line in text.splitlines() if "03-routing" in line)
    assert line.split()[1:] == [
        f"[{score(value)}]" if place == 2 else score(value) for place, value in enumerate(matrix["values"][2])
    ]
    ar = next(line for line in text.splitlines() if "(AR)" in line)
    assert score(metrics["AR"]["value"]) in ar
    assert f"{score(metrics['AR']['low'])}\u00a0to\u00a0{score(metrics['AR']['high'])}" in ar
    assert ar.rstrip().endswith("higher")


def with_metrics(folder: Path, *metrics: str) -> Path:
    """Gives the first tasks other main metrics."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for task, metric in zip(manifest["tasks"], metrics, strict=False):
        task["metric"] = metric
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_heading_of_the_matrix_names_the_metric(single: Path, tmp_path: Path):
    assert "SSR: exact match after each stage, in %, higher is better" in printed(single)
    copy = Path(shutil.copytree(single, tmp_path / "copy"))
    all_alike = with_metrics(copy, *["rouge_l_unicode"] * 5)
    assert "SSR: ROUGE-L (Unicode words) after each stage, in %" in printed(all_alike)


def test_where_metrics_differ_each_column_names_its_own(single: Path, tmp_path: Path):
    copy = with_metrics(Path(shutil.copytree(single, tmp_path / "copy")), "accuracy", "rouge_l")
    lines = printed(copy).splitlines()
    assert "SSR: score after each stage, in %" in lines[0]
    head = next(at for at, line in enumerate(lines) if line.strip().startswith("after"))
    assert "accuracy" in " ".join(lines[head - 1 : head + 2])
    assert "ROUGE-L" in " ".join(lines[head - 1 : head + 2])


def test_an_unfinished_run_shows_what_is_there(unfinished: Path):
    text = printed(unfinished)
    assert "03-routing" in text
    assert "04-delivery" not in text
    assert text.startswith("Unfinished: 3 of 5 stages measured.")


def test_a_finished_run_is_not_called_unfinished(single: Path, compared: Path):
    assert "Unfinished" not in printed(single) + printed(compared)


def test_a_comparison_shows_methods_side_by_side(compared: Path):
    text = printed(compared, 90)
    summary = json.loads((compared / "comparison.json").read_text())["summary"]
    row = next(line for line in text.splitlines() if line.strip().startswith("AR ↑"))
    assert row.replace("\u202f", " ").split()[2::2] == [
        score(summary[label]["AR"]["mean"]) for label in ("sequential", "random_rehearsal", "ssr", "multitask")
    ]
    assert text.count("after ") >= 4
    assert "upper bound" in text
    assert max(map(len, text.splitlines())) <= 90


@pytest.mark.parametrize("width", [36, 44, 60])
def test_a_narrow_terminal_cuts_no_figure_of_the_matrix(single: Path, width: int):
    text = printed(single, width)
    matrix = json.loads((single / "matrix.json").read_text())
    rows = [line.split()[1:] for line in text.splitlines() if "03-routing" in line]
    assert [figure for row in rows for figure in row] == [
        f"[{score(value)}]" if place == 2 else score(value) for place, value in enumerate(matrix["values"][2])
    ]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_a_narrow_terminal_cuts_no_figure_and_no_name_of_a_comparison(compared: Path):
    text = printed(compared, 56)
    summary = json.loads((compared / "comparison.json").read_text())["summary"]
    rows = [line.replace("\u202f", " ").split()[2::2] for line in text.splitlines() if line.startswith(" AR ↑")]
    assert len(rows) > 1
    assert [figure for row in rows for figure in row] == [score(found["AR"]["mean"]) for found in summary.values()]
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 56


def test_a_comparison_says_which_method_is_unfinished(compared: Path, tmp_path: Path):
    folder = tmp_path / "compared"
    shutil.copytree(compared, folder)
    for run in folder.glob("ssr*"):
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    assert "unfinished:" in printed(folder, 120)
    assert "unfinished:" not in printed(compared, 120)


def test_names_cannot_inject_terminal_codes_or_markup(tmp_path: Path):
    folder = run_folders.make_run(tmp_path / "run", tasks=("sentiment", "ruvian"))
    for path in (folder / "manifest.json", folder / "matrix.json"):
        path.write_text(path.read_text().replace('"ruvian"', '"[red]\\u001b[31mr"'))
    text = printed(folder)
    assert "\x1b" not in text
    assert "[red]␛[31mr" in text


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match="is no run folder"):
        matrix_table(tmp_path)


def test_output_that_knows_no_arrows_keeps_the_signs_and_powers_of_its_numbers(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = run_folders.without_records(Path(shutil.copytree(single, tmp_path / "copy")))
    path = folder / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "BWT": {"value": -5.6, "low": -6, "high": 1}}))
    (folder / "stages/05-booking/general/scores.json").write_text('{"perplexity": {"value": 5.6e6}}')
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["report", str(folder)]) == 0
    assert b" -5.6 " in raw.getvalue()
    assert b" 5.6 x 10^6" in raw.getvalue()
