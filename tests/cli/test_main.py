"""The command line: fast to start, refuses with the nearest word, exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from everlearn.cli.main import COMMANDS, main
from tests.report.run_folders import make_run


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\nfrom everlearn.cli.main import build_parser\nbuild_parser().format_help()\n"
        "heavy = {'torch', 'transformers', 'peft', 'sklearn', 'datasets', 'numpy', 'pydantic', 'rich', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("command", "key", "right"),
    [("run", "versions", "update"), ("compare", "versions", "update"), ("update", "stream", "run")],
)
def test_a_recipe_of_the_other_kind_is_sent_to_its_command(
    command: str, key: str, right: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.yaml").write_text(f"name: other\n{key}: {{}}\n", encoding="utf-8")
    assert main([command, str(tmp_path / "other.yaml")]) == 2
    assert f"give it to 'everlearn {right}'" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "usage: everlearn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rum"], "'run'"),
        (["run", "--epoch-s", "3"], "--epochs"),
        (["run", "missing.yaml"], "no recipe at missing.yaml"),
        (["run", "embedded", "--set", "training.epoch=3"], "did you mean 'epochs'?"),
        (["run", "embedded", "--set", "training.epochs"], "write KEY=VALUE"),
        (["run", "embedded", "--method", "srr"], "did you mean 'ssr'?"),
        (["compare", "embedded", "--methods", "ssr:preset"], "key=value"),
        (["compare", "embedded", "--methods", "ssr,ssr"], "stands twice"),
        (["compare", "embedded", "--methods", ""], "unknown method ''"),
        (["compare", "embedded", "--methods", "ssr:ratio=["], "'[' is not valid YAML"),
        (["compare", "embedded", "--methods", "ssr:ratio=1;ratio=0.5"], "give each option once"),
        (["compare", "embedded", "--methods", "ssr:name=ewc"], "give each option once, and the name before the colon"),
        (["pretrain", "--out", "o", "--threads", "0"], "'0' is no whole number from 1 to 1024"),
        (["pretrain", "--out", "o", "--tokens", "9" * 5000], "is no whole number from 1 to"),
        (["update", "embedded", "--version-id", "x"], "--version-id and --column say more of the version"),
        (["update", "embedded", "--seeds", "1,2"], "--seeds are those of a comparison"),
        (["update", "embedded", "--add-version", ""], "--add-version goes with a run folder"),
        (["resume", "x" * 300], "the name is longer than the system allows"),
        (["run", "embedded", "--runs-dir", "x" * 300], "the name is longer than the system allows"),
        (["compare", "embedded", "--seeds", "a"], "seeds.0: input should be a valid integer"),
        (["compare", "embedded", "--seeds", "0,1,0"], "seeds: 0 stands twice: give each value once (given: '0,1,0')"),
        (["compare", "embedded", "--seeds", ""], "seeds: it is empty: give values apart by commas, or leave it out"),
        (["synthesize", "embedded", "--count", "0"], "synthesize.count: input should be greater than or equal to 1"),
        (["synthesize", "embedded", "--task", "routin"], "unknown task 'routin': did you mean 'routing'?"),
        (["evaluate", "embedded", "--checkpoint", ""], "evaluate.checkpoint: it is empty: name a file or folder"),
        (["evaluate", "embedded", "--set", "evaluate.checkpiont=x"], "did you mean 'checkpoint'?"),
        (["run", "embedded", "--set", "seed=["], "'[' is not valid YAML"),
        (["report", "nowhere"], "no run folder"),
        (["resume", "nowhere"], "no run folder"),
        (["doctor", "--cache", "nowhere"], "no folder nowhere"),
        (["run", "embedded", "--runs-dir", "/dev/null/runs"], "cannot write /dev/null/runs/quickstart"),
        (["run", "embedded", "--cache-dir", "/dev/null/cache", "--runs-dir", "."], "cannot write /dev/null/cache"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert "Traceback" not in shown


def test_a_device_without_memory_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from everlearn.cli import doctor

    def exhaust(_: object) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee the documentation")

    monkeypatch.setattr(doctor, "run", exhaust)
    assert main(["doctor"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("everlearn: CUDA out of memory. Tried to allocate 20.00 GiB. Finished steps are kept:")
    assert shown.count("\n") == 1


def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "named")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "everlearn", "report", str(folder)]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_a_run_keeps_its_name_where_its_folder_is_the_working_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_run(tmp_path / "named"))
    assert main(["report", "."]) == 0
    assert "<title>named · everlearn report</title>" in Path("report.html").read_text(encoding="utf-8")
