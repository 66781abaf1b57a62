"""Flags are recipe keys: each overrides the file's, and lists may be given in parts."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.cli.main import build_parser, main
from everlearn.cli.options import read_recipe
from everlearn.data.instance import Task
from everlearn.recipe import Recipe

FILE = """
name: mine
seeds: [5, 6]
synthesize: {tasks: [routing], count: 9, checkpoint: a, out: b}
evaluate: {checkpoint: c}
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(FILE)
    return path


def read(*arguments: str) -> Recipe:
    return read_recipe(build_parser().parse_args(arguments))


def test_without_flags_the_file_holds(recipe_file: Path) -> None:
    assert read("compare", str(recipe_file)).seeds == [5, 6]
    wanted = read("synthesize", str(recipe_file)).synthesize
    assert (wanted.tasks, wanted.count, wanted.checkpoint, wanted.out) == (["routing"], 9, "a", "b")
    assert read("evaluate", str(recipe_file)).evaluate.checkpoint == "c"


def test_each_flag_overrides_its_key(recipe_file: Path) -> None:
    assert read("compare", str(recipe_file), "--seeds", "0, 1,2").seeds == [0, 1, 2]
    flags = ("--task", "booking", "--count", "3", "--checkpoint", "x", "--out", "2026-01-01")
    wanted = read("synthesize", str(recipe_file), *flags).synthesize
    assert (wanted.tasks, wanted.count, wanted.checkpoint, wanted.out) == (["booking"], 3, "x", "2026-01-01")
    assert read("evaluate", str(recipe_file), "--checkpoint", "y").evaluate.checkpoint == "y"


def test_a_list_may_be_given_in_parts(recipe_file: Path) -> None:
    assert read("synthesize", str(recipe_file), "--task", "a", "--task", "b,7").synthesize.tasks == ["a", "b", "7"]
    assert read("compare", str(recipe_file), "--seeds", "1", "--seeds", "2").seeds == [1, 2]
    assert read("compare", str(recipe_file), "--set", "seeds=[3, 4]").seeds == [3, 4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--seed", "1", "--seed", "2"), "argument --seed: given twice"),
        (("--seed", "1", "--set", "seed=2"), "seed is set already"),
        (("--set", "seed=1", "--set", " seed =1"), "seed is set already"),
        (("--epochs", "1", "--set", "training={epochs: 2}"), "training.epochs is set already"),
        (("--set", "training={epochs: 2}", "--set", "training.epochs=3"), "training is set already"),
        (("--ep", "1"), "unknown argument --ep 1 (write --epochs in full)"),
        (("--se", "1"), "(write --seed or --set in full)"),
        (("--set", "=1"), "write KEY=VALUE"),
        (("--set", "a..b=1"), "write KEY=VALUE"),
        (("--set", "synthesize={count: 1}"), "its tasks, checkpoint, out would be lost: set its keys one by one"),
        (("--epochs=",), "training.epochs: input should be a valid number (given: '')"),
        (("--seed", "true"), "seed: input should be a valid integer (given: True)"),
        (("--name=",), "name: a folder is called so"),
        (("--model=",), "model.base: it is empty"),
        (("--epochs", "9" * 5000), "training.epochs: input should be a valid number (given: '99999"),
        (("--set", f"seed={'9' * 5000}"), "a number of 5,000 digits means nothing"),
        (("--set", "training.batch_size=1000000000000000000000"), "a number of 22 digits"),
        (("--set", "evaluation={general: true, general: false}"), "the key 'general' stands twice"),
        (("--set", ".".join("a" * 50) + "=1"), "no section of a recipe is as deep"),
    ],
)
def test_a_key_is_set_once_with_its_full_name(
    arguments: tuple[str, ...], words: str, recipe_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main(["run", str(recipe_file), *arguments]))
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said) < 2500


def test_synthesize_makes_what_the_keys_say(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from everlearn.synthesis import pipeline

    asked = []

    def record(task: Task, options: object, tools: pipeline.Tools, *, count: int) -> pipeline.Synthesis:
        asked.append((task.name, count, tools.latest is not None))
        return pipeline.Synthesis((), count, tmp_path, {})

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter.safetensors").write_bytes(b"")
    monkeypatch.setattr(pipeline, "synthesize_task", record)
    assert main(["synthesize", str(recipe_file), "--quiet"]) == 0
    assert asked == [("routing", 9, True)]
    assert (tmp_path / "b" / "routing.jsonl").exists()
    assert f"{Path('b', 'routing.jsonl')}: 0 rows of 9 asked for" in capsys.readouterr().out


def test_evaluate_scores_the_checkpoint_of_the_key(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everlearn.runs import evaluation

    asked = []

    def record(recipe: Recipe, checkpoint: Path | None, *_: object) -> dict[str, dict[str, object]]:
        asked.append(checkpoint)
        return {"tasks": {}, "general": {}}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "evaluate_checkpoint", record)
    assert main(["evaluate", str(recipe_file), "--quiet"]) == 0
    assert main(["evaluate", "embedded", "--quiet"]) == 0
    assert asked == [Path("c"), None]
