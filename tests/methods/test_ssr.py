"""Self-Synthesized Rehearsal within the stage loop's hooks."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

import everlearn.models.embeddings as embeddings
from everlearn.data.instance import Task, TaskStream
from everlearn.errors import DataError, MissingExtraError, RecipeError
from everlearn.methods.base import Method
from everlearn.methods.registry import make_method
from everlearn.recipe import TrainingConfig
from everlearn.synthesis import pipeline
from everlearn.synthesis.writers import demonstrations
from tests.methods.contexts import Bench, facts_of, number_stream, stored_and_loaded

STREAM = number_stream(labels=True)
FEW = {"clusters": 3, "ratio": 0.25}


def after_two_stages(bench: Bench, method: Method) -> None:
    for stage in method.stages(STREAM)[:2]:
        method.after_stage(bench.context(stage))


@pytest.mark.parametrize("preset", ["faithful", "improved"])
def test_later_stages_rehearse_the_sets_of_all_earlier_tasks_in_order(
    preset: str, tmp_path: Path, tiny_model: Path
) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("ssr", {**FEW, "preset": preset})
    stages = method.stages(STREAM)
    after_two_stages(bench, method)
    assert method.rehearsal(bench.context(stages[0])).rows == []
    second = method.rehearsal(bench.context(stages[1])).rows
    third = method.rehearsal(bench.context(stages[2])).rows
    assert third[: len(second)] == second
    assert [row.task for row in third] == ["first"] * len(second) + ["second"] * (len(third) - len(second))
    assert all(row.origin == "synthetic" for row in third)
    assert 8 <= len(second) <= 12  # published rounding need not give exactly 10
    if preset == "improved":
        assert (len(second), len(third)) == (10, 20)


def test_the_set_of_each_task_of_a_stage_is_made_with_the_tools_of_the_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note(task: Task, options: object, tools: pipeline.Tools) -> pipeline.Synthesis:
        asked.append((task.name, tools))
        return pipeline.Synthesis(task.train[:3], 3, tmp_path, {})

    monkeypatch.setattr(pipeline, "synthesize_task", note)
    bench = Bench(tmp_path, tiny_model)
    method = make_method("ssr", FEW)
    stage = replace(method.stages(STREAM)[0], tasks=STREAM.tasks[:2])
    context = replace(bench.context(stage, seed=9), training=TrainingConfig(epochs=7))
    method.after_stage(context)
    assert [name for name, _ in asked] == ["first", "second"]
    for _, tools in asked:
        for field in fields(tools):
            assert getattr(tools, field.name) is getattr(context, field.name)
    made = method.rehearsal(bench.context(method.stages(STREAM)[2])).rows
    assert list(made) == [*STREAM["first"].train[:3], *STREAM["second"].train[:3]]


def test_demonstrations_are_those_of_the_task_being_rehearsed(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    after_two_stages(bench, make_method("ssr", FEW))
    prompts = [text for texts, _ in bench.writer.calls for text in texts]
    assert {text.split(":")[0] for text in prompts} == {"<s>first", "<s>second"}
    for text in prompts:
        assert len({row.input for row in STREAM["first"].demonstrations if f"{row.input}\n" in text}) == 2


def test_nothing_is_synthesized_after_the_last_stage(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("ssr", FEW)
    method.after_stage(bench.context(method.stages(STREAM)[2]))
    assert not bench.writer.calls


def test_a_set_is_never_changed_by_later_stages(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("ssr", FEW)
    stages = method.stages(STREAM)
    method.after_stage(bench.context(stages[0]))
    before = method.rehearsal(bench.context(stages[1])).rows
    method.after_stage(bench.context(stages[1]))
    assert method.rehearsal(bench.context(stages[1])).rows == before


def test_the_sets_survive_a_kill(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("ssr", FEW)
    after_two_stages(bench, method)
    resumed = stored_and_loaded(method, make_method("ssr", FEW), tmp_path / "state")
    context = bench.context(method.stages(STREAM)[2])
    assert resumed.rehearsal(context).rows == method.rehearsal(context).rows


def test_without_refinement_the_latest_model_is_not_asked(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("ssr", {**FEW, "refine": False})
    method.after_stage(bench.context(method.stages(STREAM)[0]))
    assert not bench.answerer.calls


def changed(stream: TaskStream, **values: object) -> TaskStream:
    """The stream with another first task."""
    return replace(stream, tasks=(replace(stream.tasks[0], **values), *stream.tasks[1:]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stream", "options", "message"),
    [
        (changed(STREAM, demonstrations=()), {}, "task first has no demonstrations"),
        (STREAM, {"demonstrations": 7}, "has 6 demonstrations but a prompt shows 7"),
        (STREAM, {"preset": "faithful"}, "20 clusters, but only 4 synthetic rows are asked for task first"),
        (
            changed(STREAM, demonstrations=(*STREAM["first"].demonstrations, STREAM["second"].demonstrations[0])),
            {"layout": "superni"},
            "has another instruction than the first",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    stream: TaskStream, options: dict[str, object], message: str
) -> None:
    with pytest.raises((DataError, RecipeError), match=message):
        make_method("ssr", options).check(facts_of(stream))


def test_the_last_task_needs_no_demonstrations() -> None:
    stream = replace(STREAM, tasks=(*STREAM.tasks[:2], replace(STREAM.tasks[2], demonstrations=())))
    make_method("ssr", {}).check(facts_of(stream))


def test_options_that_exclude_each_other_are_refused_by_the_methods_name() -> None:
    with pytest.raises(RecipeError, match=r"^method ssr: save_more keeps inputs .* needs refine: true\.$"):
        make_method("ssr", {"save_more": True, "refine": False})


def test_random_selection_asks_for_no_clusters() -> None:
    make_method("ssr", {"preset": "faithful", "selection": "random"}).check(facts_of(STREAM))


def test_prompts_longer_than_the_context_are_refused_before_training() -> None:
    make_method("ssr", {}).check(facts_of(STREAM))
    with pytest.raises(DataError, match=r"task first: even the shortest synthesis prompt .* context of 9"):
        make_method("ssr", {}).check(facts_of(STREAM, context_length=9))


def test_prompts_are_checked_in_the_layout_in_which_they_will_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    monkeypatch.setattr(demonstrations, "check_room", lambda name, pool, layout, *_: checked.append((name, layout)))
    for layout in ("auto", "alpaca"):
        make_method("ssr", {"layout": layout}).check(facts_of(STREAM))
    assert checked == [(task, layout) for layout in ("superni", "alpaca") for task in ("first", "second")]


def test_an_absent_embedding_package_is_refused_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    make_method("ssr", {"embedding": "some/model", "selection": "random"}).check(facts_of(STREAM))
    with pytest.raises(MissingExtraError):
        make_method("ssr", {"embedding": "some/model"}).check(facts_of(STREAM))
