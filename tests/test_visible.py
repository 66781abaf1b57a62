"""Text from files on a terminal: seen, never obeyed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from everlearn.cli.main import main
from everlearn.progress import LineProgress, RichProgress
from everlearn.visible import visible
from tests.test_layers import FILES

HOSTILE = "a\x1b[31mred\x1b]0;title\x07\x9b2J\u202egnp.exe\u2066\u2028\u200e\x7f\ud800[/b]"


def test_nothing_that_a_terminal_obeys_is_left() -> None:
    text = visible(HOSTILE)
    assert text.startswith("a\u241b[31mred")
    assert "\\u202egnp" in text
    assert not set(text) & set("\x1b\x07\x9b\x7f\u202e\u2066\u2028\u200e\ud800")
    text.encode()


@pytest.mark.parametrize("text", ["naïve\tcafé\n", "שלום עולם", "مرحبا", "क्षि", "👩‍👩‍👧", "你好"])
def test_letters_of_all_scripts_stay(text: str) -> None:
    assert visible(text) == text


def test_an_error_shows_the_signs_of_a_file_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / HOSTILE[:-6])]) == 2
    assert "\u241b[31mred" in capsys.readouterr().err


def test_lines_and_log_show_the_signs_of_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    progress = LineProgress(lines.append, tmp_path / "run.log", interval_s=0)
    with progress.step(HOSTILE, 2) as tick:
        tick(1, note=HOSTILE)
    progress.say(HOSTILE)
    shown = (tmp_path / "run.log").read_text() + "".join(lines)
    assert shown.count("\u241b[31mred") == 7  # of the two shown lines in both, with the note, and of the end
    rich = RichProgress()
    with rich.step(HOSTILE, 2) as tick:
        tick(1, note=HOSTILE)
    rich.say(HOSTILE)
    assert "\x1b]" not in capsys.readouterr().err


def test_everlearn_prints_in_one_place_alone() -> None:
    """A `print` of its own would show text from files as it is."""
    for file in FILES:
        if file.name != "visible.py":
            calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
            named = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
            assert not named, f"{file}: lines {named} call print, where `everlearn.visible.tell` belongs"
