"""Recipes: every fault is named with its key and the nearest valid one."""

from __future__ import annotations

from pathlib import Path

import pytest

from everlearn.errors import RecipeError
from everlearn.recipe import cache_folder, load_recipe, make_recipe


def test_the_defaults_are_the_published_settings() -> None:
    recipe = make_recipe({})
    assert (recipe.training.epochs, recipe.training.batch_size, recipe.training.learning_rate) == (3, 32, 2e-4)
    training, evaluation = recipe.training, recipe.evaluation
    assert (training.scheduler, training.warmup_ratio, training.weight_decay) == ("cosine", 0.0, 0.0)
    assert (training.max_grad_norm, training.max_prompt_tokens, training.max_target_tokens) == (1.0, 1024, 512)
    assert (recipe.seed, evaluation.max_new_tokens) == (42, 512)
    lora = recipe.model.lora
    assert (lora.rank, lora.alpha, lora.dropout, lora.targets) == (8, 32, 0.1, "auto")


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"trainin": {}}, ["'trainin'", "'training'"]),
        ({"training": {"epoch": 3}}, ["'training.epoch'", "'epochs'"]),
        ({"model": {"lora": {"rnk": 3}}}, ["'model.lora.rnk'", "'rank'"]),
        ({"training": {"epochs": 0}}, ["training.epochs", "greater than 0"]),
        ({"stream": {"tasks": [{"name": "a", "train": "x", "evalution": "y"}]}}, ["evalution", "'evaluation'"]),
        ({"stream": {"tasks": [{"name": "a/b", "train": "x"}]}}, ["stream.tasks.0.name", "use letters, digits"]),
        ({"model": {"tuning": "qlora"}}, ["model.tuning", "'lora' or 'full'"]),
        ({"synthesize": {"task": ["a"]}}, ["'synthesize.task'", "'tasks'"]),
        ({"synthesize": {"count": 0}}, ["synthesize.count", "greater than or equal to 1"]),
        ({"synthesize": {"tasks": ["a", "b", "a"]}}, ["synthesize.tasks: 'a' stands twice"]),
        ({"evaluate": {"checkpont": "x"}}, ["'evaluate.checkpont'", "'checkpoint'"]),
        ({"model": "gpt2"}, ["model holds 'gpt2' where keys of its own belong (base, revision, tuning, ...)"]),
        ({"training": None}, ["training holds nothing where keys of its own belong (epochs, "]),
        ({"stream": {"tasks": ["a.csv"]}}, ["stream.tasks.0 holds 'a.csv' where keys of its own belong (name, train"]),
        ({"seed s": [1]}, ["'seed s'", "'seeds'"]),
        ({"seeds": [1, 2, 1]}, ["seeds: 1 stands twice"]),
        ({"name": ".hidden"}, ["name: a folder is called so", "the first a letter or digit (given: '.hidden')"]),
        ({"stream": {"tasks": [{"name": "a"}]}}, ["key 'stream.tasks.0.train' is missing"]),
        ({"seed": "x"}, ["recipe: seed: input should be a valid integer"]),
        (
            {"stream": {"tasks": [{"name": "a", "train": "x", "demonstrations": [1]}]}},
            ["stream.tasks.0.demonstrations: input should be a valid string (given: [1])", "be a valid integer"],
        ),
        ({"seeds": " "}, ["seeds: it is empty: give values apart by commas"]),
        ({"evaluation": {"confidence": 0.5}}, ["evaluation.confidence", "greater than 0.5"]),
    ],
)
def test_a_fault_is_named_with_its_key_and_remedy(tree: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(tree)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fault_within_a_task_hides_the_other_forms_of_the_list() -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe({"stream": {"tasks": [{"name": "a", "train": "x", "trian": "y"}]}})
    assert str(caught.value) == "recipe: unknown key 'stream.tasks.0.trian' (did you mean 'train'?)."


def test_a_long_wrong_value_is_shown_by_its_beginning() -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe({"seed": "x" * 500})
    assert len(str(caught.value)) < 250


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(RecipeError, match=r"epoch'.*batchsize"):
        make_recipe({"training": {"epoch": 1, "batchsize": 2}})


def test_another_method_drops_the_options_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("method: {name: ssr, preset: faithful}\n")
    assert load_recipe(path, {"method.name": "ewc", "method.strength": 1}).method.options == {"strength": 1}
    assert load_recipe(path, {"method.name": "ssr"}).method.options == {"preset": "faithful"}


def test_a_method_is_a_name_or_a_mapping() -> None:
    assert make_recipe({"method": "ewc"}).method.options == {}
    assert make_recipe({"method": {"name": "ewc", "strength": 1}}).method.options == {"strength": 1}


def test_overrides_reach_nested_keys(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("method: sequential\ntraining: {epochs: 2}\n")
    recipe = load_recipe(path, {"training.epochs": 5, "method.name": "ssr", "seed": 7})
    assert (recipe.training.epochs, recipe.method.name, recipe.seed) == (5, "ssr", 7)


def test_data_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    path = tmp_path / "r.yaml"
    path.write_text("stream: {tasks: [{name: a, train: a.jsonl}]}\nmodel: {base: org/name}\n")
    recipe = load_recipe(path)
    assert recipe.stream.tasks[0].train == str(tmp_path / "a.jsonl")  # type: ignore[union-attr]
    assert recipe.model.base == "org/name"


def test_every_path_of_the_file_is_relative_to_it_where_something_stands_there(tmp_path: Path) -> None:
    for name in ("train.jsonl", "evaluation.jsonl", "shown.jsonl", "general.txt"):
        (tmp_path / name).write_text("x")
    for name in ("base", "rows", "embedded"):
        (tmp_path / name).mkdir()
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {base: base}\nevaluation: {general_text: general.txt}\nstream: {tasks: [\n"
        "{name: a, train: train.jsonl, evaluation: evaluation.jsonl, demonstrations: shown.jsonl},\n"
        f"{{name: b, train: rows@train, evaluation: {tmp_path}//train.jsonl, demonstrations: 3}},\n"
        "{name: c, train: org/set@train, demonstrations: gone.jsonl}]}\n"
    )
    recipe = load_recipe(path)
    assert recipe.model.base == str(tmp_path / "base")
    assert recipe.evaluation.general_text == str(tmp_path / "general.txt")
    assert [(task.train, task.evaluation, task.demonstrations) for task in recipe.stream.tasks] == [  # type: ignore[union-attr]
        tuple(str(tmp_path / name) for name in ("train.jsonl", "evaluation.jsonl", "shown.jsonl")),
        (str(tmp_path / "rows@train"), f"{tmp_path}//train.jsonl", 3),
        ("org/set@train", None, "gone.jsonl"),
    ]
    path.write_text("name: plain\n")
    assert load_recipe(path).model.base == "embedded"


def test_a_recipe_without_keys_is_that_of_the_defaults_but_an_empty_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("{}\n")
    assert load_recipe(tmp_path / "r.yaml") == make_recipe({})


def test_the_shared_folder_stands_with_the_runs_unless_it_is_named() -> None:
    assert cache_folder("runs", None) == Path("runs/.cache")
    assert cache_folder("runs", "elsewhere") == Path("elsewhere")


def test_a_key_within_what_is_no_section_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: gpt2\n")
    with pytest.raises(RecipeError, match=r"cannot set 'model\.base': 'model' is not a section"):
        load_recipe(tmp_path / "r.yaml", {"model.base": "x"})


def test_the_keys_of_other_commands_are_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "seeds: [0, 1]\nsynthesize: {tasks: [a, b], count: 7, checkpoint: stage, out: made}\n"
        "evaluate: {checkpoint: nowhere}\n"
    )
    (tmp_path / "stage").mkdir()
    recipe = load_recipe(path)
    assert recipe.seeds == [0, 1]
    wanted = recipe.synthesize
    assert (wanted.tasks, wanted.count, wanted.out) == (["a", "b"], 7, "made")
    assert wanted.checkpoint == str(tmp_path / "stage")
    assert recipe.evaluate.checkpoint == "nowhere"
    assert load_recipe("embedded").seeds == []


@pytest.mark.parametrize("value", ["seeds: 0, 1", "seeds: [0, 1]", 'seeds: "0,1"'])
def test_seeds_are_a_list_or_numbers_apart_by_commas(tmp_path: Path, value: str) -> None:
    (tmp_path / "r.yaml").write_text(value)
    assert load_recipe(tmp_path / "r.yaml").seeds == [0, 1]
    assert load_recipe(tmp_path / "r.yaml", {"seeds": 7}).seeds == [7]
    assert load_recipe(tmp_path / "r.yaml", {"synthesize.tasks": "qa, sa"}).synthesize.tasks == ["qa", "sa"]


def test_a_path_of_the_command_line_is_relative_to_the_working_directory_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here / "base", here / "only-here", there / "base", there / "only-there"):
        place.mkdir(parents=True)
    path = there / "r.yaml"
    path.write_text("model: {base: base}\nmethod: {name: ssr, embedding: ./base}\n")
    monkeypatch.chdir(here)
    assert load_recipe(path).model.base == str(there / "base")
    assert load_recipe(path).method.options["embedding"] == str(there / "./base")
    assert load_recipe(path, {"model.base": "base"}).model.base == str(here / "base")
    assert load_recipe(path, {"method.embedding": "./base"}).method.options["embedding"] == str(here / "./base")
    assert load_recipe(path, {"model.base": "only-there"}).model.base == "only-there"
    assert load_recipe("embedded", {"model.base": "base"}).model.base == str(here / "base")
    tasks = [{"name": "t", "train": "base"}]
    assert load_recipe(path, {"stream.tasks": tasks}).stream.tasks[0].train == str(here / "base")  # type: ignore[union-attr]
    path.write_text("model: {base: only-here}\n")
    assert load_recipe(path).model.base == str(here / "only-here")


def test_a_checkpoint_of_the_command_line_is_relative_to_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("evaluate: {checkpoint: stage}\n")
    (tmp_path / "stage").mkdir()
    assert load_recipe(tmp_path / "r.yaml").evaluate.checkpoint == str(tmp_path / "stage")
    assert load_recipe(tmp_path / "r.yaml", {"evaluate.checkpoint": "stage"}).evaluate.checkpoint == "stage"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [", "not valid YAML"),
        (b"- 1", "list"),
        (None, "no recipe"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"versions: {}\n", "recipe of version updates .*'everlearn update'"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=words):
        load_recipe(path)


def test_the_recipe_for_general_ability_is_the_quickstarts_with_the_last_of_its_methods() -> None:
    quickstart, kept = load_recipe("embedded"), load_recipe("general_ability")
    assert kept.method == (quickstart.compare or [])[-1]
    own: dict[str, object] = {"name": "general_ability", "method": kept.method, "compare": kept.compare}
    assert kept == quickstart.model_copy(update=own)


def test_the_quickstart_recipe_is_valid() -> None:
    recipe = load_recipe("embedded")
    assert recipe.model.base == "embedded"
    assert [method.name for method in recipe.compare or []] == ["sequential", "ssr", "ssr+gere"]


def test_auto_is_the_published_template_for_the_embedded_base_alone() -> None:
    assert make_recipe({}).model.template_name == "vanilla"
    assert make_recipe({"model": {"base": "org/base"}}).model.template_name == "auto"
    assert make_recipe({"model": {"template": "cue"}}).model.template_name == "cue"


def test_recipes_that_ship_are_taken_by_their_names_and_a_file_of_that_name_comes_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (load_recipe("embedded").name, load_recipe("quickstart").name) == ("quickstart", "quickstart")
    assert load_recipe("incremental", {"seed": 7}).stream.scenario == "class_incremental"
    with pytest.raises(RecipeError, match=r"no recipe at incremetal: did you mean 'incremental', which ships"):
        load_recipe("incremetal")
    with pytest.raises(RecipeError, match=r"update_quickstart is a recipe of version updates"):
        load_recipe("update_quickstart")
    (tmp_path / "incremental").mkdir()
    assert load_recipe("incremental").name == "incremental"
    (tmp_path / "incremental").rmdir()
    (tmp_path / "incremental").write_text("name: mine")
    assert load_recipe("incremental").name == "mine"
