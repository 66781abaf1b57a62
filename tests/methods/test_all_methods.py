"""What every registered method must do: build, walk a stream, keep its state through a kill, share its first stage."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from everlearn.errors import RecipeError
from everlearn.methods.base import Method, MethodOptions
from everlearn.methods.registry import make_method, method_class, method_names
from everlearn.training.phase import check_phases
from tests.methods.contexts import (
    Bench,
    equal_tensors,
    facts_of,
    number_stream,
    penalty_of,
    stored_and_loaded,
    trained,
    with_classes,
    with_walks,
)

PUBLISHED = ("ewc", "kmeans_rehearsal", "l2", "multitask", "random_rehearsal", "sequential", "single_task", "ssr")

WHOLE = ("osf",)
"""Methods that do without adapters."""
OPTIONS: dict[str, dict[str, object]] = {"r1_t1": {"epochs": 0, "wording": "plain"}}
"""Where the defaults need a package that is not everywhere."""
OVER_CLASSES = ("seq",)
"""Methods that train heads over the classes of a stream."""


def test_the_published_methods_are_registered() -> None:
    assert set(PUBLISHED) <= set(method_names())
    assert method_names() == sorted(method_names())


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="unknown method 'sequental': did you mean 'sequential'"):
        make_method("sequental", {})


@pytest.mark.parametrize("name", method_names())
def test_a_method_is_one_documented_class_with_documented_options(name: str) -> None:
    cls = method_class(name)
    assert issubclass(cls, Method)
    assert issubclass(cls.Options, MethodOptions)
    assert cls.name == name
    assert cls.__doc__
    assert [option for option, field in cls.Options.model_fields.items() if not field.description] == []
    assert cls.Options.model_config["extra"] == "forbid"
    assert cls.Options.model_config["frozen"]


@pytest.mark.parametrize("name", method_names())
def test_an_unknown_option_is_refused_by_name(name: str) -> None:
    with pytest.raises(RecipeError, match=f"method {name}: unknown key 'ratioo'"):
        make_method(name, {"ratioo": 1})


def test_each_seed_stage_and_purpose_has_a_random_stream_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    contexts = [
        bench.context(stage, seed=seed) for stage in make_method("ewc", {}).stages(number_stream()) for seed in (1, 2)
    ]
    seeds = [context.random_seed(purpose) for context in contexts for purpose in ("fisher", "draw")]
    assert len(set(seeds)) == len(seeds) == 12


@pytest.mark.parametrize("name", method_names())
def test_a_method_walks_a_stream_and_its_state_survives_a_kill(name: str, tmp_path: Path, tiny_model: Path) -> None:
    stream = with_classes(number_stream(rows=200)) if name in OVER_CLASSES else with_walks(number_stream(rows=200))
    tuning = "full" if name in WHOLE else "lora"
    bench = Bench(tmp_path, tiny_model, tuning)
    method = make_method(name, OPTIONS.get(name, {}))
    method.check(facts_of(stream, tuning=tuning))
    stages = method.stages(stream)
    assert [task.name for stage in stages for task in stage.tasks] == stream.names
    assert [stage.is_last for stage in stages] == [False] * (len(stages) - 1) + [True]
    for stage in stages:
        context = bench.context(stage)
        check_phases(method.phases(context))
        rehearsed = method.rehearsal(context).rows
        of_tasks = [row for row in rehearsed if row.form == "dialogue"]
        assert {row.task for row in of_tasks} <= {task.name for task in (*stage.seen, *stage.tasks)}
        order = (method.rehearsal(context), method.phases(context), list(method.influences(context)))
        assert pickle.dumps(order), "it goes to the other processes of a launch"
        penalty = penalty_of(method, context, bench.latest.model)
        assert penalty is None or penalty.isfinite()
        method.after_stage(trained(method, context, bench.latest.model))
        resumed = stored_and_loaded(
            method, make_method(name, OPTIONS.get(name, {})), tmp_path / f"state-{stage.index}"
        )
        assert equal_tensors(resumed.state_tensors(), method.state_tensors())
        assert resumed.state_json() == method.state_json()
        if not stage.is_last:
            following = bench.context(stages[stage.index])
            assert resumed.rehearsal(following).rows == method.rehearsal(following).rows
        method = resumed


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("l2", {"strength": 0.1}),
        ("ewc", {"strength": 0.1, "fisher_rows": 200}),
        ("random_rehearsal", {"ratio": 0.1, "draw": "published"}),
        ("kmeans_rehearsal", {"ratio": 0.1, "clusters": 20}),
    ],
)
def test_the_defaults_of_a_baseline_are_the_published_ones(name: str, defaults: dict[str, object]) -> None:
    assert make_method(name, {}).options.model_dump(include=set(defaults)) == defaults


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_first_stage_is_plain_training_that_all_methods_share(name: str, tmp_path: Path, tiny_model: Path) -> None:
    stage = make_method(name, {}).stages(number_stream())[0]
    context = Bench(tmp_path, tiny_model).context(stage)
    method = make_method(name, {})
    assert not method.influences(context)
    assert not method.rehearsal(context).rows


def test_options_that_do_not_go_together_are_refused_in_one_sentence() -> None:
    with pytest.raises(RecipeError) as caught:
        make_method("ssr", {"save_more": True, "refine": False})
    assert str(caught.value) == "method ssr: save_more keeps inputs without an answer, so it needs refine: true."


def test_a_long_wrong_value_is_shortened() -> None:
    with pytest.raises(RecipeError) as caught:
        make_method("ssr", {"ratio": "x" * 500})
    assert str(caught.value).startswith("method ssr: ratio: input should be a valid number")
    assert len(str(caught.value)) < 250
