"""Progress: what is shown where, and what is logged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from everlearn.errors import RunError
from everlearn.progress import LineProgress, RichProgress, TimeLeft, make_progress


def work(progress: LineProgress, steps: int = 3) -> None:
    with progress.step("training 01-a", steps) as tick:
        for done in range(1, steps + 1):
            tick(done, steps, "loss 1.234")
    progress.say("after 01-a: a 50.0")


def clocked(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    clock = iter(seconds)
    monkeypatch.setattr("everlearn.progress.time.monotonic", lambda: next(clock))


def test_a_line_says_what_how_far_and_how_long_still(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    clocked(monkeypatch, 0.0, 10.0, 20.0, 30.0, 30.0)
    work(LineProgress(lines.append, interval_s=0.0))
    assert lines == [
        "  training 01-a: 1/3, loss 1.234",
        "  training 01-a: 2/3, loss 1.234, 10 s left",
        "after 01-a: a 50.0",
    ]


def test_the_time_left_is_judged_by_what_this_run_has_done(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    clocked(monkeypatch, 0.0, 0.0, 5.0, 10.0, 10.0)
    with LineProgress(lines.append, interval_s=0.0).step("training 01-a", 100) as tick:
        tick(80, resumed=True)
        tick(85)
        tick(90)
    assert lines[1:] == ["  training 01-a: 85/100", "  training 01-a: 90/100, 10 s left"]


def figures(course: Callable[[float], float], total: int, seconds: int) -> list[tuple[int, float]]:
    """The moments at which a time left is told, and it."""
    left = TimeLeft(0.0)
    found = [(now, left.after(float(now), int(course(now)), total)) for now in range(1, seconds)]
    return [(now, told) for now, told in found if told is not None]


@pytest.mark.parametrize(
    ("course", "total", "ends"),
    [
        (lambda now: now / 2, 300, 600),
        (lambda now: max(0, now - 60) * 2, 1200, 660),  # the first step waits for a minute
        (lambda now: now // 20 * 128, 128 * 30, 600),  # rows of one batch are answered together
        (lambda now: 40 * max(0.0, now - 60) / 60 if now < 120 else 40 + (now - 120), 600, 680),  # a rising rate
    ],
)
def test_times_left_do_not_jump(course: Callable[[float], float], total: int, ends: int) -> None:
    told = figures(course, total, ends)
    assert told, "something is told"
    for now, left in told:
        assert (ends - now) / 2 - 20 <= left <= 2 * (ends - now) + 20, f"{left} s left after {now} s of {ends}"
    assert told[0][0] < ends / 2


def test_a_rate_that_changes_is_told_once_it_has_settled_again() -> None:
    told = figures(lambda now: now if now < 2000 else 2000 + 10 * (now - 2000), 100_000, 6000)
    assert all(abs(left - (98_000 - 10 * (now - 2000)) / 10) < 2 for now, left in told if now > 2900)


def test_many_ticks_cost_little_memory() -> None:
    left = TimeLeft(0.0)
    for at in range(1, 100_000):
        left.after(at / 100, at, 10**6)
    assert len(left._times) < 500


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
