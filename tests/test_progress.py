"""Progress: what is shown where, and what is logged."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.errors import RunError
from everlearn.progress import LineProgress, RichProgress, make_progress


def work(progress: LineProgress, steps: int = 3) -> None:
    with progress.step("training 01-a", steps) as tick:
        for done in range(1, steps + 1):
            tick(done, steps, "loss 1.234")
    progress.say("after 01-a: a 50.0")


def test_a_line_says_what_how_far_and_how_long_still(tmp_path: Path) -> None:
    lines: list[str] = []
    work(LineProgress(lines.append, interval_s=0.0))
    assert lines[0].startswith("  training 01-a: 1/3, loss 1.234, ")
    assert lines[0].endswith(" s left")
    assert lines[-1] == "after 01-a: a 50.0"


def test_the_time_left_is_judged_by_what_this_run_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    clock = iter([0.0, 0.0, 10.0, 10.0, 10.0])
    monkeypatch.setattr("everlearn.progress.time.monotonic", lambda: next(clock))
    with LineProgress(lines.append, interval_s=0.0).step("training 01-a", 100) as tick:
        tick(80, resumed=True)
        tick(90)
    assert lines == ["  training 01-a: 80/100", "  training 01-a: 90/100, 10 s left"]


def test_lines_of_one_step_keep_their_distance() -> None:
    lines: list[str] = []
    work(LineProgress(lines.append, interval_s=60.0), steps=50)
    assert lines == ["after 01-a: a 50.0"]


def test_quiet_shows_nothing_and_logs_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work(make_progress(quiet=True, log=tmp_path / "run.log"))
    shown = capsys.readouterr()
    assert shown.out + shown.err == ""
    log = (tmp_path / "run.log").read_text()
    assert "training 01-a: done in" in log
    assert "after 01-a: a 50.0" in log


def test_without_a_terminal_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    work(make_progress())
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "after 01-a: a 50.0\n"


@pytest.mark.parametrize("columns", [50, 60, 80, 100, 160])
def test_no_figure_is_cut_on_a_narrow_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = RichProgress()
    with progress.step("answering micro-tasks after 05-booking", 200) as tick:
        tick(81, 200, "12,345 tokens written, 45.2/s")
        with progress.console.capture() as shown:
            progress.console.print(progress._bars.get_renderable())
    assert {"81/200", "-:--:--", "12,345", "45.2/s", "05-booking"} <= set(shown.get().split())


def test_a_log_that_cannot_be_written_is_one_sentence() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(RunError, match="the disk is full while writing /dev/full"):
        LineProgress(None, Path("/dev/full")).say("x")
