"""What cannot be done is refused before training, in one clear sentence with the key, the version and a remedy."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from everlearn import progress, room
from everlearn.cli.main import main
from everlearn.errors import ModelError, RunError, UserError
from everlearn.updates.config import load_update_recipe
from everlearn.updates.executor import execute
from everlearn.updates.folder import UpdateFolder
from tests.killed import KilledAt
from tests.updates.tiny_runs import tiny_recipe, tiny_tree


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command ends with another code than 2 once a training reports."""
    monkeypatch.setattr(progress, "make_progress", lambda **_: KilledAt(1))


def refused(folder: Path, tree: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """What `everlearn update` says about a recipe file; it must end with exit code 2 and one sentence."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    assert main(["update", str(folder / "recipe.yaml"), "--quiet"]) == 2
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert "Traceback" not in said
    return said


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": {"branch_fraction": 0}}, "path.branch_fraction: input should be greater than 0"),
        ({"path": {"branch_fraction": 1.2}}, "path.branch_fraction: input should be less than or equal to 1"),
        ({"schedule": {"maximal_rate": 0}}, "schedule.maximal_rate: input should be greater than 0"),
        ({"schedule": {"maximal_rate": float("inf")}}, "schedule.maximal_rate: input should be a finite number"),
        ({"schedule": {"warm_up_steps": 4}}, "the branch of version 1 would start at step 2, inside the warm-up of 4"),
        ({"schedule": {"warmup_steps": 4}}, "unknown key 'schedule.warmup_steps' (did you mean 'warm_up_steps'?)"),
        ({"paradigm": "ptsf"}, "paradigm: input should be 'ptfs', 'cpt' or 'path_switching'"),
        ({"training": {"block_tokens": 4096}}, "version v1 is shorter than one block"),
        ({"training": {"batch_blocks": 999}}, "blocks, less than one step of training.batch_blocks (999)"),
        ({"quality": {"microtasks": True}}, "more than the model's context of 16: give model.config"),
        ({"quality": {"heldout_ratio": 1e-6}}, "its held-out text has 0 tokens"),
        ({"model": {"config": {"model_type": "lama"}}}, "did you mean 'llama'?"),
        (
            {"model": {"config": {"model_type": "llama", "hidden_size": 26, "num_attention_heads": 2}}},
            "model.config: llama refuses these fields",
        ),
        (
            {"model": {"config": {"model_type": "llama", "hiden_size": 16}}},
            "llama has no field 'hiden_size'; did you mean 'hidden_size'?",
        ),
        ({"model": {"config": {"model_type": "llama", "vocab_size": 5}}}, "vocab_size 5 is less than the tokenizer's"),
        ({"model": {"config": None}}, "give either model.config"),
        ({"path": {"placement": "scheduled"}}, "path.points and path.placement: scheduled belong together"),
        (
            {"path": {"placement": "scheduled", "points": [{"at": 5, "steps": 2}] * 2}},
            "path.points has 2 entries for 3 versions",
        ),
        ({"schedule": {"name": "multistep", "minimal_ratio": 0.2}}, "minimal_ratio has no meaning"),
        ({"compare": [{"label": "a"}, {"label": "a"}]}, "the label 'a' stands twice"),
    ],
)
def test_an_impossible_recipe(
    tmp_path: Path, changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(tmp_path, tiny_tree(tmp_path, **changes), capsys)


@pytest.mark.usefixtures("no_training")
def test_versions_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = tiny_tree(tmp_path)
    first, second, third = tree["versions"]

    def with_second(**changes: Any) -> str:
        return refused(tmp_path, {**tree, "versions": [first, {**second, **changes}, third]}, capsys)

    (tmp_path / "empty.txt").write_text(" \n\n ")
    (tmp_path / "short.txt").write_text("The sun.")
    assert "version v2 has no text" in with_second(data="empty.txt")
    assert "version v2 is shorter than one block" in with_second(data="short.txt")
    assert "did you mean" in with_second(data="text4.txt")
    assert "the id 'v1' stands twice" in with_second(id="v1")
    assert "version v2: steps (5000) is more than the" in with_second(steps=5000)
    assert "unknown key 'versions.1.colum' (did you mean 'column'?)" in with_second(colum="text")


def test_a_run_folder_belongs_to_its_recipe(tmp_path: Path) -> None:
    execute(tiny_recipe(tmp_path))
    with pytest.raises(UserError, match=r"made with another recipe \(schedule\.maximal_rate differ\)"):
        execute(tiny_recipe(tmp_path, schedule={"maximal_rate": 2e-2}))
    execute(tiny_recipe(tmp_path, training={"micro_batch_blocks": 4}))


def test_a_main_path_that_was_trained_with_another_tokenizer(tmp_path: Path) -> None:
    execute(tiny_recipe(tmp_path / "one"))
    execute(tiny_recipe(tmp_path / "two", model={"vocabulary_size": 310}))
    own, other = (tmp_path / name / "runs" / "tiny" / "tokenizer" for name in ("one", "two"))
    shutil.rmtree(own)
    shutil.copytree(other, own)
    with pytest.raises(ModelError, match="was trained with another tokenizer"):
        execute(tiny_recipe(tmp_path / "one"))


def test_a_start_with_the_tokenizer_of_another_model(tmp_path: Path) -> None:
    execute(tiny_recipe(tmp_path / "one"))
    execute(tiny_recipe(tmp_path / "two", model={"vocabulary_size": 310}))
    base = tmp_path / "one" / "runs" / "tiny" / "releases" / "v1"
    other = tmp_path / "two" / "runs" / "tiny" / "tokenizer"
    recipe = tiny_recipe(tmp_path / "three")
    start = type(recipe.model)(start_from=str(base), tokenizer=str(other))
    with pytest.raises(ModelError, match="was trained with another tokenizer"):
        execute(recipe.model_copy(update={"model": start}))


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.yaml"], "no recipe at missing.yaml"),
        (["embedded", "--add-version", "text.txt"], "--add-version goes with a run folder"),
        (["embedded", "--compare", "--seeds", "a"], "seeds.0: input should be a valid integer"),
        (["embedded", "--compare", "--seeds", "1,1"], "seeds: 1 stands twice"),
        (["embedded", "--compare", "--seeds", ""], "seeds: it is empty"),
        ([".", "--seeds", "1,2"], "leave out ['seeds']"),
        (["embedded", "--set", "seed"], "write KEY=VALUE"),
        ([".", "--seed", "3"], "is a run folder with a recipe of its own"),
        (["."], "no run folder of version updates"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["update", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_rate_that_makes_the_loss_infinite_stops_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf) at step .*lower schedule\.maximal_rate"):
        execute(tiny_recipe(tmp_path, schedule={"maximal_rate": 1e30}))


def test_paths_in_a_recipe_are_relative_to_it(tmp_path: Path) -> None:
    tree = tiny_tree(tmp_path)
    for entry in tree["versions"]:
        entry["data"] = Path(entry["data"]).name
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    recipe = load_update_recipe(tmp_path / "recipe.yaml")
    assert [version.data for version in recipe.versions] == [str(tmp_path / f"text{n}.txt") for n in (1, 2, 3)]


def test_the_folder_of_a_task_run_is_refused_with_the_command_that_takes_it(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"status": "complete"}', encoding="utf-8")
    with pytest.raises(RunError, match="holds a run of tasks: go on with it by 'everlearn resume'"):
        UpdateFolder(tmp_path)


def test_releases_that_cannot_fit_on_the_disk_are_refused_with_the_plan_and_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tiny_tree(tmp_path)
    assert main(["update", str(_written(tmp_path, tree)), "--plan", "--quiet"]) == 0
    assert "Disk: at least" in capsys.readouterr().out
    monkeypatch.setattr(room.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    for flags in ([], ["--plan"]):
        assert main(["update", str(tmp_path / "recipe.yaml"), "--quiet", *flags]) == 2
        said = capsys.readouterr().err.strip()
        assert said.count("\n") == 0
        assert "1,000 are free" in said
        assert str(tmp_path / "runs" / "tiny") in said
    assert not (tmp_path / "runs" / "tiny").exists()


def _written(folder: Path, tree: dict[str, Any]) -> Path:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder / "recipe.yaml"
