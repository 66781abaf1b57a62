"""The Python API: what it makes of its arguments, and the sentence for a person who guesses at them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import everlearn
from everlearn.data.instance import Instance, Task, TaskStream
from everlearn.errors import RecipeError
from everlearn.files import write_jsonl
from everlearn.progress import LineProgress
from everlearn.recipe import MethodConfig, Recipe, load_recipe, make_recipe
from everlearn.runs import compare, loop


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: everlearn.run(stream="embedded"), "stream is of type str: give what everlearn.load_stream returns"),
        (lambda: everlearn.run(stream=[{"name": "a", "train": "a.jsonl"}]), "stream is of type list"),
        (lambda: everlearn.run({"name": "mine"}), "recipe is of type dict"),
        (lambda: everlearn.compare({"name": "mine"}, ["ssr"]), "recipe is of type dict"),
        (lambda: everlearn.inspect({"name": "mine"}), "recipe is of type dict"),
        (lambda: everlearn.evaluate({"name": "mine"}), "recipe is of type dict"),
        (lambda: everlearn.synthesize({"name": "mine"}), "recipe is of type dict"),
        (lambda: everlearn.update({"name": "mine"}), "recipe is of type dict"),
        (lambda: everlearn.update("embedded", add_version="new.txt"), "add_version goes with a run folder"),
        (lambda: everlearn.update("/tmp", name="mine"), "is a run folder with a recipe of its own"),
        (lambda: everlearn.evaluate(trainings={"epochs": 1}), "unknown key 'trainings'"),
        (lambda: everlearn.compare("embedded", "ssr"), r"methods is the text 'ssr': give a list of methods"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_what_is_wanted(call: Callable[[], object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        call()


def rows(word: str, count: int) -> tuple[Instance, ...]:
    return tuple(Instance("Say the number.", f"{word} {at}", f"{at}", "", id=f"{word}{at}") for at in range(count))


STREAM = TaskStream(
    (
        Task("shown", rows("a", 6), rows("b", 2), rows("c", 3), metric="token_f1"),
        Task("bare", rows("d", 6), rows("e", 2), labels=tuple(str(at) for at in range(6))),
    )
)


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, object]]:
    """Recipe and progress of the runs asked for, none of which is made."""
    done: list[tuple[Recipe, object]] = []
    monkeypatch.setattr(loop, "execute", lambda recipe, *, progress=None: done.append((recipe, progress)))
    return done


def test_a_run_is_the_quickstarts_but_for_the_keys_that_are_given(executed: list[tuple[Recipe, object]]) -> None:
    quickstart = load_recipe("embedded")
    shown = LineProgress()
    everlearn.run(name="mine", seed=5, method={"name": "l2", "strength": 2}, training={"epochs": 7}, progress=shown)
    recipe, progress = executed[0]
    assert progress is shown
    assert (recipe.name, recipe.seed, recipe.method.options) == ("mine", 5, {"strength": 2})
    assert recipe.training == quickstart.training.model_copy(update={"epochs": 7})
    assert (recipe.model, recipe.stream) == (quickstart.model, quickstart.stream)
    everlearn.run(recipe)
    assert executed[1][0] == recipe


def test_a_stream_made_in_python_is_kept_with_the_run_and_read_back_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executed: list[tuple[Recipe, object]]
) -> None:
    monkeypatch.chdir(tmp_path)
    everlearn.run(stream=STREAM, name="mine", method="sequential")
    recipe = executed[0][0]
    assert len(list((tmp_path / "runs" / "mine" / "stream").iterdir())) == 5
    monkeypatch.chdir("/")
    entries = [task.model_dump() for task in recipe.stream.tasks]  # type: ignore[union-attr]
    shown, bare = everlearn.load_stream(entries)
    for found, made in ((shown, STREAM["shown"]), (bare, STREAM["bare"])):
        assert (found.name, found.metric, found.labels) == (made.name, made.metric, made.labels)
        assert [row.query for row in found.train] == [row.query for row in made.train]
        assert [row.output for row in found.evaluation] == [row.output for row in made.evaluation]
    assert [row.input for row in shown.demonstrations] == ["c 0", "c 1", "c 2"]
    assert {row.input for row in bare.demonstrations} <= {row.input for row in bare.train}


def test_a_stream_is_loaded_with_its_seed_and_the_keys_of_its_section(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, (row.to_json() for row in rows("a", 30)))
    tasks = [{"name": name, "train": str(path), "demonstrations": 2} for name in ("one", "two")]
    stream = everlearn.load_stream(tasks, seed=1, order=["two", "one"], evaluation_limit=2)
    assert (stream.names, len(stream["one"].evaluation)) == (["two", "one"], 2)
    first, second = (everlearn.load_stream(tuple(tasks), seed=seed)["one"].evaluation for seed in (1, 2))
    assert first != second


def test_a_comparison_takes_methods_and_seeds_as_a_recipe_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(compare, "compare", lambda recipe, methods, *, progress: asked.append((recipe, methods)))
    base = make_recipe({"seeds": [1], "name": "mine"})
    everlearn.compare(base, ["sequential", {"name": "l2", "strength": 2}])
    everlearn.compare(base, ["ewc"], seeds=(3, 4))
    methods = [MethodConfig(name="sequential"), MethodConfig.model_validate({"name": "l2", "strength": 2})]
    assert asked == [
        (base, methods),
        (base.model_copy(update={"seeds": [3, 4]}), [MethodConfig(name="ewc")]),
    ]


def test_what_the_command_inspect_shows_is_known_in_python_too() -> None:
    found = everlearn.inspect("embedded", rows=1)
    assert [task.account.task for task in found.tasks][:2] == ["sentiment", "ruvian"]
    assert sum(found.tasks[0].labels.values()) == 300
    assert found.refusal is None


def test_the_stream_of_a_recipe_is_that_of_its_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", (row.to_json() for row in rows("a", 30)))
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 3\nstream: {tasks: [{name: one, train: a.jsonl, demonstrations: 2}]}\n")
    stream = everlearn.load_stream(path, evaluation_limit=2)
    assert (stream.names, len(stream["one"].evaluation)) == (["one"], 2)
    entries = [{"name": "one", "train": str(tmp_path / "a.jsonl"), "demonstrations": 2}]
    assert stream["one"].evaluation == everlearn.load_stream(entries, seed=3, evaluation_limit=2)["one"].evaluation
    assert stream["one"].train != everlearn.load_stream(str(path), seed=4)["one"].train


def test_adding_evaluating_and_synthesizing_do_what_the_commands_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everlearn.runs import add, evaluation, synthesis

    monkeypatch.chdir(tmp_path)
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(add, "add_task", lambda *given: asked.append(given))
    monkeypatch.setattr(evaluation, "evaluate_checkpoint", lambda *given: asked.append(given))
    monkeypatch.setattr(synthesis, "synthesize_stream", lambda *given: asked.append(given))
    shown = LineProgress()
    everlearn.add("runs/mine", Path("new.jsonl"), name="new", metric="accuracy", progress=shown)
    assert asked.pop() == (Path("runs/mine"), {"train": "new.jsonl", "name": "new", "metric": "accuracy"}, shown)
    (tmp_path / "model").mkdir()
    everlearn.evaluate(checkpoint=Path("model"), name="mine", progress=shown)
    recipe, *others = asked.pop()
    assert others == [tmp_path / "model", Path("runs/mine-evaluation"), shown]
    assert recipe == make_recipe({**load_recipe("embedded").model_dump(mode="json"), "name": "mine"}).model_copy(
        update={"evaluate": recipe.evaluate}  # type: ignore[attr-defined]
    )
    everlearn.synthesize(name="mine", synthesize={"tasks": ["routing"]}, progress=shown)
    recipe, *others = asked.pop()
    assert recipe.synthesize.tasks == ["routing"]  # type: ignore[attr-defined]
    assert others == [Path("runs/mine-synthesis"), shown]


def test_updates_are_run_compared_gone_on_with_and_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from everlearn.updates import compare as comparison
    from everlearn.updates import executor, folder, growth

    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(executor, "execute", lambda recipe, **given: asked.append(("run", recipe, given)))
    monkeypatch.setattr(comparison, "compare", lambda recipe, _: asked.append(("compare", recipe)))
    monkeypatch.setattr(folder, "recipe_of", lambda place: ("recipe", place))
    monkeypatch.setattr(folder, "comparison_of", lambda place: ("comparison", place))
    monkeypatch.setattr(growth, "longer", lambda *given: ("longer", *given))
    everlearn.update(name="mine", schedule={"maximal_rate": 0.5})
    kind, recipe, _ = asked.pop()
    assert (kind, recipe.name, recipe.schedule.maximal_rate) == ("run", "mine", 0.5)  # type: ignore[attr-defined]
    everlearn.update(recipe, compare=True)  # type: ignore[arg-type]
    assert asked.pop() == ("compare", recipe)
    everlearn.update(tmp_path)
    assert asked.pop()[1] == ("recipe", tmp_path)
    everlearn.update(str(tmp_path), add_version="new.txt", version_id="v9")
    assert asked.pop()[1] == ("longer", tmp_path, "new.txt", "v9", None)
    (tmp_path / "comparison.json").touch()
    everlearn.update(tmp_path)
    assert asked.pop() == ("compare", ("comparison", tmp_path))
