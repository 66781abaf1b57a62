"""The README says what is true: its Python example runs, its commands exist, its method table is whole."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from everlearn.cli.main import COMMANDS, main
from everlearn.methods.registry import method_names

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
METHODS = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")


def test_the_python_example_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) < 10
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "01-sentiment" in shown
    assert "backward transfer:" in shown


def test_the_data_shown_is_what_inspect_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, shown = re.findall(r"```bash\n(for n in .*?)```\n\n```text\n(.*?)```", README, re.DOTALL)[0]
    *makes_the_file, command = script.strip().splitlines()
    monkeypatch.chdir(tmp_path)
    subprocess.run(["bash", "-c", "\n".join(makes_the_file)], check=True)
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out.strip() == shown.strip()


def test_every_command_and_method_is_in_the_readme() -> None:
    for command in COMMANDS:
        assert f"`everlearn {command}" in README
    for method in method_names():
        assert f"`{method}`" in README


def test_every_method_is_in_the_table_of_methods() -> None:
    rows = [line.split(" | ")[0] for line in METHODS.splitlines() if line.startswith("| `")]
    assert not [method for method in method_names() if not any(f"`{method}`" in row for row in rows)]


def test_the_readme_holds_no_unfilled_place() -> None:
    assert "@@" not in README
