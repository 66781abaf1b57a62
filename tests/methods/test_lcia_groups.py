"""LCIA's groups in a run: where stages start, which are averaged, which weights answer, and what is handed back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from everlearn.data.instance import Instance, TaskStream
from everlearn.errors import RecipeError
from everlearn.evaluation.instruction_groups import stop_words
from everlearn.files import read_json, read_jsonl, read_mapping, read_vouched, write_json, write_jsonl
from everlearn.methods.lcia import LCIA
from everlearn.methods.registry import make_method
from everlearn.models.loading import load_model, save_checkpoint
from everlearn.models.state import ModelState, Part, Tuning
from everlearn.progress import LineProgress
from everlearn.recipe import Recipe, make_recipe
from everlearn.report.html import write_report
from everlearn.runs.add import add_task
from everlearn.runs.evaluation import evaluate_checkpoint
from everlearn.runs.loop import execute
from everlearn.training.phase import Phase
from tests.killed import killed_at
from tests.methods.contexts import Bench, equal_tensors, facts_of, number_stream
from tests.runs.test_publish import code_of

WORDINGS = {
    "one": ("Say the colour in a single word.",),
    "two": ("Count what there is on the table.",),
    "three": ("Say the colour in a single word.", "Say its colour in one short word."),
}
FIRST, SECOND, THIRD = (f"{at:02d}-{name}" for at, name in enumerate(WORDINGS, 1))


def recipe_of(folder: Path, base: Path, method: object, **sections: Any) -> Recipe:
    tasks = []
    for name, texts in WORDINGS.items():
        for part, count in (("train", 8), ("evaluation", 4)):
            rows = [
                {"instruction": texts[at % len(texts)], "input": f"{part} thing {at}", "output": f"{name} {at % 3}"}
                for at in range(count)
            ]
            write_jsonl(folder / "data" / f"{name}.{part}.jsonl", rows)
        paths = {part: str(folder / "data" / f"{name}.{part}.jsonl") for part in ("train", "evaluation")}
        tasks.append({"name": name, "demonstrations": 2, **paths})
    tree = {
        "name": "grouped",
        "runs_dir": str(folder / "runs"),
        "model": {"base": str(base), "lora": {"rank": 2}, "dtype": "float32", "device": "cpu"},
        "stream": {"tasks": tasks},
        "method": method,
        "training": {"epochs": 2, "batch_size": 4, "learning_rate": 2e-2, "checkpoint_every": 1},
        "evaluation": {"max_new_tokens": 5, "bootstrap_samples": 100, "general": False},
    }
    return make_recipe({**tree, **sections})


LCIA_03 = {"name": "lcia", "threshold": 0.3, "scale": 0.01}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Three tasks, the third of which goes on with the group of the first."""
    return execute(recipe_of(tmp_path_factory.mktemp("run"), tiny_model, LCIA_03)).folder


def adapter(run: Path, stage: str) -> dict[str, Any]:
    return load_file(run / "stages" / stage / "training/adapter/adapter_model.safetensors")


def answers(run: Path, stage: str, task: str) -> list[str]:
    return [
        row["prediction"] for row in read_jsonl(run / "stages" / stage / "predictions" / task / "predictions.jsonl")
    ]


def grouped_stream(**wordings: tuple[str, ...]) -> TaskStream:
    """A task for each name, its rows asked in turn by the wordings."""
    (task, *_) = number_stream(rows=8)
    rows = [(task.train, "train"), (task.evaluation, "evaluation")]
    return TaskStream(
        tuple(
            replace(
                task,
                name=name,
                **{
                    part: tuple(replace(row, instruction=texts[at % len(texts)]) for at, row in enumerate(of))
                    for of, part in rows
                },
            )
            for name, texts in wordings.items()
        )
    )


@pytest.mark.parametrize(
    ("expand_init", "second"), [("latest", Phase()), ("fresh", Phase(tuning=Tuning(ModelState("base"))))]
)
def test_a_stage_starts_from_its_groups_last_one_and_averages_a_new_group_does_neither(
    expand_init: str, second: Phase, tmp_path: Path, tiny_model: Path
) -> None:
    stream = grouped_stream(**WORDINGS)
    bench, method = Bench(tmp_path, tiny_model), make_method("lcia", {"threshold": 0.3, "expand_init": expand_init})
    contexts = [bench.context(stage) for stage in method.stages(stream)]
    assert [method.phases(context) for context in contexts] == [
        [Phase()],
        [second],
        [Phase(tuning=Tuning(ModelState("phase-1-None")))],
    ]
    assert [len(method.influences(context)) for context in contexts] == [0, 0, 1]
    found = [method.answerer(context) for context in contexts]
    assert found[0] is None
    assert [{name: state.fingerprint for name, state in one.models.items()} for one in found[1:] if one] == [
        {"group_1": "phase-1-None", "group_2": "phase-2-None"},
        {"group_1": "phase-3-None", "group_2": "phase-2-None"},
    ]


def test_a_group_is_gone_on_with_and_its_average_is_kept_while_another_stays_as_it_was(run: Path) -> None:
    stages = {stage["name"]: stage["start"] for stage in read_vouched(run / "manifest.json")["stages"]}
    assert stages == {FIRST: "previous", SECOND: "previous", THIRD: FIRST}
    lineage = {stage["name"]: stage["weights"][0]["from"] for stage in read_vouched(run / "lineage.json")["stages"]}
    assert lineage == {FIRST: ["base"], SECOND: [f"stages/{FIRST}/training"], THIRD: [f"stages/{FIRST}/training"]}
    averaged = [read_json(run / "stages" / name / "training/summary.json").get("notes") for name in stages]  # type: ignore[union-attr]
    assert averaged[:2] == [None, None]
    assert 0 < averaged[2]["average_rate"] < 1
    assert answers(run, THIRD, "two") == answers(run, SECOND, "two")
    answered = read_mapping(run / "stages" / THIRD / "scores.json")["answered_by"]
    assert answered == {"one": {"group_1": 4}, "two": {"group_2": 4}, "three": {"group_1": 4}}


def test_stages_that_open_a_group_are_those_of_sequential_training(
    run: Path, tmp_path: Path, tiny_model: Path
) -> None:
    recipe = recipe_of(tmp_path, tiny_model, "sequential", cache_dir=str(run.parent / ".cache"))
    plain = execute(recipe).folder
    steps = read_vouched(plain / "manifest.json")["steps"]
    assert [steps[f"stages/{name}/training"]["reused"] for name in (FIRST, SECOND, THIRD)] == [True, True, False]
    assert not equal_tensors(adapter(run, THIRD), adapter(plain, THIRD))


def test_the_report_tells_the_groups_the_rates_and_the_fallbacks(run: Path) -> None:
    found = read_mapping(run / "stages" / THIRD / "findings/findings.json")
    assert found["numbers"]["group"] == 1
    assert 0.3 < found["numbers"]["similarity to the nearest group"] < 1
    assert 0 <= found["numbers"]["share of fallbacks"] <= 1
    assert 0 < found["numbers"]["mean rate"] < 1
    assert found["tables"]["groups of instructions"]["rows"] == [[1, "one, three", 2, 3], [2, "two", 1, 2]]
    assert found["tables"]["held-out rows by group"]["rows"] == [
        ["one", 1, 4, 4, 0],
        ["two", 2, 4, 4, 0],
        ["three", 1, 4, 4, 0],
    ]
    first = read_mapping(run / "stages" / FIRST / "findings/findings.json")["numbers"]
    assert first == {"group": 1, "similarity to the nearest group": None}
    page = write_report(run).read_text()
    assert "share of fallbacks" in page
    assert "answers each row with one of 2 models, chosen by what the row asks" in page


def test_the_groups_are_handed_back_and_chosen_alike_by_the_card_and_by_evaluate(
    run: Path, tmp_path: Path, tiny_model: Path
) -> None:
    handed = tmp_path / "handed"
    shutil.copytree(run / "model", handed)
    routing = read_mapping(handed / "routing.json")
    assert routing["models"] == {"group_1": "routed/group_1", "group_2": "routed/group_2"}
    assert routing["rule"]["groups"] == [list(WORDINGS["three"]), list(WORDINGS["two"])]
    assert equal_tensors(load_file(handed / "routed/group_1/adapter_model.safetensors"), adapter(run, THIRD))
    assert equal_tensors(load_file(handed / "routed/group_2/adapter_model.safetensors"), adapter(run, SECOND))
    recipe = recipe_of(tmp_path, tiny_model, "sequential")
    scores = evaluate_checkpoint(recipe, handed, tmp_path / "scores", LineProgress())
    wanted = read_mapping(run / "stages" / THIRD / "scores.json")
    assert (scores["tasks"], scores["answered_by"]) == (wanted["tasks"], wanted["answered_by"])
    space: dict[str, Any] = {}
    exec(code_of(handed), space)
    asked = [text for texts in WORDINGS.values() for text in texts] + ["Count the table.", "Say nothing.", "of the"]
    for options in ({}, {"threshold": 0.9}, {"threshold": 0.9, "exact_first": True}):
        rule = LCIA.Answerer.Rule.model_validate({**routing["rule"], **options})
        named = LCIA.Answerer(rule, {}).routes(asked)  # type: ignore[attr-defined]
        given = {**routing, "rule": {**routing["rule"], **options}}
        assert [space["chosen"](given, text) for text in asked] == [f"group_{named[text][0]}" for text in asked]
    assert "An instruction is that of a row without its input" in (handed / "README.md").read_text()
    for task in WORDINGS:
        for row in list(read_jsonl(run / "stages" / THIRD / "predictions" / task / "predictions.jsonl"))[:2]:
            question = f"{row['instruction']}\n\n{row['input']}"
            assert space["answer"](question, row["instruction"]).strip() == row["prediction"]


def test_an_adapter_of_another_rank_answers_beside_the_others(run: Path, tmp_path: Path, tiny_model: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_model, "sequential")
    wider = recipe.model.model_copy(update={"lora": recipe.model.lora.model_copy(update={"rank": 4})})
    save_checkpoint(load_model(wider, trainable=True), tmp_path)
    handed = tmp_path / "handed"
    shutil.copytree(run / "model", handed)
    shutil.copytree(tmp_path / "adapter", handed / "routed/group_2", dirs_exist_ok=True)
    scores = evaluate_checkpoint(recipe, handed, tmp_path / "scores", LineProgress())
    assert scores["tasks"]["two"]["rows"] == 4
    assert scores["tasks"]["one"] == read_mapping(run / "stages" / THIRD / "scores.json")["tasks"]["one"]


def test_a_run_killed_while_a_group_is_gone_on_with_ends_alike(run: Path, tmp_path: Path, tiny_model: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_model, LCIA_03)
    with killed_at(2, f"training {THIRD}") as progress:
        execute(recipe, progress=progress)
    with killed_at(0, "answering one") as progress:  # by the group's new weights
        execute(recipe, progress=progress)
    resumed = execute(recipe)
    assert equal_tensors(adapter(resumed.folder, THIRD), adapter(run, THIRD))
    for task in WORDINGS:
        assert answers(resumed.folder, THIRD, task) == answers(run, THIRD, task)
    routings = [read_json(folder / "model/routing.json") for folder in (run, resumed.folder)]
    assert routings[0] == routings[1]


def check(stream: TaskStream, **options: object) -> list[str]:
    """What is told of the stream with the first stage."""
    method = make_method("lcia", options)
    method.check(facts_of(stream))
    return method._notes  # type: ignore[attr-defined, no-any-return]


def test_what_the_groups_come_to_is_told_before_training(tmp_path: Path, tiny_model: Path) -> None:
    assert check(grouped_stream(**WORDINGS), threshold=0.3) == []
    (alone,) = check(grouped_stream(one=WORDINGS["one"]))
    assert alone.startswith("there is but one task, so nothing is averaged")
    (apart,) = check(grouped_stream(one=("Say the colour.",), two=("Count the colour.",)))
    assert "no two tasks have instructions that are alike (threshold 0.9; the most alike, 0." in apart
    assert "those of one and two), so each opens a group and nothing is averaged: a lower threshold" in apart
    some = {"one": ("Say the colour of it.", "Say the colour.", "Count all."), "two": ("Translate it.",)}
    notes = check(grouped_stream(**some), threshold=0.4)
    assert notes[1].startswith("1 of 3 instructions of group 1 (one) will be answered by another group")
    assert len(check(grouped_stream(**some), threshold=0.4, exact_first=True)) == 1
    assert check(grouped_stream(**some), groups=False) == []
    bench, method, said = Bench(tmp_path, tiny_model), make_method("lcia", {}), []
    method.check(facts_of(grouped_stream(one=WORDINGS["one"])))
    progress = LineProgress()
    progress.say = said.append  # type: ignore[method-assign]
    stages = method.stages(grouped_stream(one=WORDINGS["one"]))
    method.phases(replace(bench.context(stages[0]), progress=progress))
    assert said == ["lcia: there is but one task, so nothing is averaged: the stage is trained plainly."]


@pytest.mark.parametrize(("share", "is_said"), [(0.97, True), (0.5, False)])
def test_an_average_of_fallbacks_says_that_it_is_a_plain_one(
    share: float, is_said: bool, tmp_path: Path, tiny_model: Path
) -> None:
    write_json(tmp_path / "summary.json", {"notes": {"average_rate": 0.03, "fallbacks": share}})
    method, said = make_method("lcia", {"groups": False}), []
    context = Bench(tmp_path, tiny_model).context(method.stages(grouped_stream(**WORDINGS))[1])
    progress = LineProgress()
    progress.say = said.append  # type: ignore[method-assign]
    state = ModelState("trained", (Part(tmp_path, "adapter"),))
    found = method.findings(replace(context, state=state, progress=progress))
    assert found is not None
    assert found.numbers == {"mean rate": 0.03, "share of fallbacks": share}
    plain = (
        "stage 02-two: 97.0 % of the rates are the fallback 0.01, so the average is nearly a plain one: a smaller "
        "scale makes more of them valid."
    )
    assert said == ([plain] if is_said else [])


def test_a_group_that_none_of_its_instructions_matches_is_refused_before_training() -> None:
    several = ("Say the colour.", "Count the chairs.", "Translate a poem.", "Name this town.")
    stream = grouped_stream(one=several, two=("Write the note.",))
    with pytest.raises(RecipeError) as refusal:
        check(stream)
    assert str(refusal.value) == (
        "method lcia: none of the 4 instructions of group 1 (one) is like the group as a whole (threshold 0.9), so it "
        "would answer nothing: set a lower threshold (0.3 is the published one for several wordings), exact_first: "
        "true, or groups: false."
    )
    for options in ({"threshold": 0.2}, {"exact_first": True}, {"groups": False}):
        check(stream, **options)


def test_routing_by_task_looks_at_all_rows_together_and_says_that_it_is_told_which(
    tmp_path: Path, tiny_model: Path
) -> None:
    stream = grouped_stream(one=("Say the colour.",), two=("Say the weight.",))
    rows = grouped_stream(mixed=("Say the colour.", "Say the weight.", "Say the weight.")).tasks[0].train
    found = {}
    for routing in ("instance", "task"):
        method = make_method("lcia", {"routing": routing, "threshold": 0.5})
        answerer = method.answerer(Bench(tmp_path, tiny_model).context(method.stages(stream)[1]))
        assert answerer is not None
        found[routing] = (answerer.knows_task, answerer.names_for(rows)[:3])
    assert found == {
        "instance": (False, ["group_1", "group_2", "group_2"]),
        "task": (True, ["group_1", "group_1", "group_1"]),
    }


def test_the_card_of_routing_by_task_chooses_by_all_instructions_of_a_task_as_it_was_measured() -> None:
    groups = [["Say the colour.", "Say its colour."], ["Say the weight.", "Weigh it."]]
    tasks = (["Say the colour."], ["Say the weight.", "Weigh it.", "Weigh it."], ["Say it.", "Weigh all."], ["Go."])
    for threshold in (0.1, 0.4, 0.9):
        given = {"threshold": threshold, "routing": "task", "exact_first": False, "instruction": "last_line"}
        rule = LCIA.Answerer.Rule.model_validate({**given, "stop_words": stop_words(), "groups": groups})
        answerer = LCIA.Answerer(rule, {})
        space: dict[str, Any] = {}
        exec("\n".join((*answerer.imports, answerer.example)), space)
        assert (answerer.asks, answerer.about.split(".")[0]) == (
            "instructions",
            "An instruction is the last line of a question",
        )
        for texts in tasks:
            rows = [Instance("", f"What now?\n{text}", "", "") for text in texts]
            chosen = space["chosen"]({"rule": rule.model_dump(mode="json")}, texts)
            assert answerer.names_for(rows) == [chosen] * len(texts)


def test_an_exact_instruction_of_the_whole_question_is_chosen_alike_by_the_card() -> None:
    asked, groups = "Say  it.\nNow.", [["Say  it.\nNow.", "Weigh it."], ["Say it now."]]
    given = {"threshold": 0.9, "routing": "instance", "exact_first": True, "instruction": "whole"}
    rule = LCIA.Answerer.Rule.model_validate({**given, "stop_words": stop_words(), "groups": groups})
    answerer = LCIA.Answerer(rule, {})
    space: dict[str, Any] = {}
    exec("\n".join((*answerer.imports, answerer.example)), space)
    assert answerer.names_for([Instance("", asked, "", "")]) == ["group_1"]
    assert space["chosen"]({"rule": rule.model_dump(mode="json")}, asked) == "group_1"


def test_a_task_that_is_added_later_goes_on_with_its_group_and_the_others_stay(
    run: Path, tmp_path: Path, tiny_model: Path
) -> None:
    folder = tmp_path / "moved" / run.name
    shutil.copytree(run, folder)  # without the cache
    data = tmp_path / "four.jsonl"
    write_jsonl(data, [{"instruction": WORDINGS["two"][0], "input": f"four {at}", "output": "4"} for at in range(8)])
    task = {"name": "four", "train": str(data), "evaluation": str(data), "demonstrations": 2}
    add_task(folder, task, LineProgress())
    steps = read_vouched(folder / "manifest.json")["steps"]
    stages = {stage["name"]: stage["start"] for stage in read_vouched(folder / "manifest.json")["stages"]}
    assert stages["04-four"] == SECOND
    fourth = adapter(folder, "04-four")
    assert equal_tensors(load_file(folder / "model/routed/group_1/adapter_model.safetensors"), adapter(run, THIRD))
    assert equal_tensors(load_file(folder / "model/routed/group_2/adapter_model.safetensors"), fourth)
    assert answers(folder, "04-four", "three") == answers(run, THIRD, "three")
    made = [place for place in steps if place.endswith("/training") and not steps[place]["reused"]]
    before = read_vouched(run / "manifest.json")["steps"]
    assert [place for place in made if place not in before] == ["stages/04-four/training"]
