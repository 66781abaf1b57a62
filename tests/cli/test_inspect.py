"""`everlearn inspect` shows what data holds, also where a run would refuse it, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.cli.main import main


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tickets(count: int = 30) -> list[dict[str, str]]:
    labels = ("bug", "billing", "other")
    return [{"input": f"ticket {i} is about {labels[i % 3]}", "output": labels[i % 3]} for i in range(count)]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_data_file_is_shown_as_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "tickets.jsonl", tickets())
    assert main(["inspect", "tickets.jsonl", "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "\ntickets\n" in shown
    assert "metric: accuracy" in shown
    assert "3 labels, with their training rows: 'billing' " in shown
    assert "tokens of prompts: " in shown
    assert "    | ⟦<s>⟧ticket " in shown
    assert shown.count("  row ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["tickets.jsonl"], "nothing is written"


def test_what_can_be_read_is_shown_before_the_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "tickets.jsonl", [*tickets(), {"input": "no answer"}])
    assert main(["inspect", "tickets.jsonl", "missing.jsonl"]) == 2
    out, error = capsys.readouterr()
    assert "metric: accuracy" in out
    assert "everlearn: stream.tasks[1] 'missing' train: no file or folder missing.jsonl" in error
    assert main(["inspect", "tickets.jsonl"]) == 2
    assert "1 of 31 rows cannot be used: tickets.jsonl, line 31: no output" in capsys.readouterr().err
    assert main(["inspect", "tickets.jsonl", "--bad-rows", "tolerant"]) == 0
    assert "1 of 31 rows cannot be used" in capsys.readouterr().out


def test_rows_are_shown_as_training_cuts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        tmp_path / "deeds.jsonl",
        [{"input": "page\n" * 60 + f"Who signed {i}?", "output": f"signer {i}" * 9} for i in range(9)],
    )
    keys = ["--set", "training.max_prompt_tokens=32", "--set", "training.max_target_tokens=4"]
    assert main(["inspect", "deeds.jsonl", "--rows", "9", *keys]) == 0
    shown = capsys.readouterr().out
    assert "prompts are longer than training.max_prompt_tokens (32) and lose their end." in shown
    assert "page" in shown
    assert "tokens, cut to 32:" in shown
    assert "Who signed" not in shown
    assert main(["inspect", "deeds.jsonl", *keys, "--set", "training.too_long=leave_out"]) == 2


def test_a_recipe_is_checked_against_its_model_and_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "tickets.jsonl", [*tickets(), {"input": "why " * 900, "output": "other"}])
    tasks = [{"name": name, "train": "tickets.jsonl", "demonstrations": 1} for name in ("tickets", "others")]
    recipe = {"stream": {"tasks": tasks}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["inspect", "recipe.yaml", "--method", "sequential"]) == 2
    assert "the model's context is 512" in capsys.readouterr().err
    shorter = ["--set", "training.max_prompt_tokens=400", "--set", "training.max_target_tokens=64"]
    assert main(["inspect", "recipe.yaml", "--method", "sequential", *shorter]) == 0
    assert main(["inspect", "recipe.yaml", "--method", "ssr", *shorter]) == 2
    assert "demonstration" in capsys.readouterr().err
    assert main(["inspect", "recipe.yaml", "tickets.jsonl"]) == 2
    assert "give one recipe or data files" in capsys.readouterr().err


def test_a_folder_has_the_tasks_that_init_would_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "tickets.train.jsonl", tickets())
    write(tmp_path / "data" / "tickets.test.jsonl", tickets(6))
    write(tmp_path / "tickets.jsonl", tickets())
    (tmp_path / "data" / "notes.csv").write_text("a,b\n1,2\n")
    assert main(["inspect", "data", "tickets.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert "left out: notes.csv: no rows of a known format" in shown
    assert "\ntickets\n" in shown
    assert "\ntickets-2\n" in shown


def test_control_characters_of_the_data_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nasty = "\x1b[2J\x07\u202eevil </s> ⟦</s>⟧"
    rows = [{"input": f"{nasty} {i}", "output": f"{nasty} {i}"} for i in range(12)]
    write(tmp_path / "nasty.jsonl", rows)
    assert main(["inspect", "nasty.jsonl"]) == 0
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "␛[2J␇" in shown


def test_the_folder_of_a_run_or_comparison_stands_for_its_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "tickets.jsonl", tickets())
    tree = {"stream": {"tasks": [{"name": "stored", "train": "tickets.jsonl", "demonstrations": 1}]}}
    for name, files in (
        ("run", {"recipe.yaml": tree, "manifest.json": {}}),
        ("comparison", {"plan.json": {"recipe": tree, "methods": [], "seeds": []}, "comparison.json": {}}),
        ("updates", {"recipe.yaml": {"versions": []}, "manifest.json": {"kind": "update"}}),
    ):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(json.dumps(content))
    keys = ["--set", "training.max_prompt_tokens=400", "--set", "training.max_target_tokens=64"]
    for name in ("run", "comparison"):
        assert main(["inspect", name, *keys]) == 0
        assert "\nstored\n  train: 30 rows of tickets.jsonl" in capsys.readouterr().out
    assert main(["inspect", "updates"]) == 2
    assert "'everlearn update updates --plan'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x" * 5000, "\0", "https://example.com/rows.jsonl", ""])
def test_a_name_that_no_file_can_have_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", name]) == 2
    assert "\neverlearn: " in (told := capsys.readouterr().err)
    assert "details: " not in told, "nothing reaches the last resort"
