"""Experience replay: the reservoir, what each step draws, what is kept, and how memory rows enter the loss."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everlearn.data.prompts import VanillaTemplate
from everlearn.data.reservoir import Reservoir, plan_of, slot_for
from everlearn.errors import RecipeError
from everlearn.methods.registry import make_method
from everlearn.models.loading import load_model
from everlearn.models.parameters import tuned_parameters
from everlearn.progress import LineProgress
from everlearn.recipe import TrainingConfig
from everlearn.training.influence import Influence, OptimizerStep
from everlearn.training.row_order import Batches
from everlearn.training.stage import train_stage
from tests.methods.contexts import Bench, facts_of, number_stream, stored_and_loaded, tiny_config

GOLDEN = Path(__file__).parents[1] / "golden" / "baselines" / "reservoir.json"
STREAM = number_stream()


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["cases"], ids=lambda case: case["id"])
def test_the_recorded_reservoirs(case: dict) -> None:
    slots: list[int] = []
    held: dict[int, int] = {}
    for item, drawn in enumerate(case["draws"]):

        def draw(most: int, drawn: int | None = drawn, item: int = item) -> int:
            assert drawn is not None, "nothing is drawn while there is room"
            assert most == item
            return drawn

        slot = slot_for(item, case["capacity"], draw)
        slots.append(-1 if slot is None else slot)
        if slot is not None:
            held[slot] = item
    assert slots == case["expected_slots"]
    assert [held[slot] for slot in sorted(held)] == case["expected_buffer"]


def plan(steps: list[list[int]], *, held: list[int] = [], offered: int = 0, count: int = 2, seed: int = 0, **of):  # noqa: B006
    return plan_of(steps, held, offered, Reservoir(**{"capacity": 200, **of}), count=count, seed=seed)


def test_a_step_draws_from_what_was_offered_before_it_each_row_once() -> None:
    steps = [[at, at + 1, at + 2] for at in range(0, 60, 3)]
    found = plan(steps, capacity=9, count=4)
    assert found.drawn[0] == []
    assert [len(drawn) for drawn in found.drawn[1:]] == [3, *[4] * 18]
    for number, drawn in enumerate(found.drawn):
        assert len(set(drawn)) == len(drawn)
        assert set(drawn) <= set(range(3 * number))
    assert len(found.held) == 9
    assert found.offered == 60
    assert found == plan(steps, capacity=9, count=4)
    assert found != plan(steps, capacity=9, count=4, seed=1)


def test_every_row_offered_is_held_as_often() -> None:
    held = Counter(item for seed in range(2000) for item in plan([[i] for i in range(20)], capacity=5, seed=seed).held)
    assert sum(held.values()) == 10_000
    assert all(400 < held[item] < 600 for item in range(20))


@pytest.mark.parametrize(("offer", "offered"), [("first_epoch", 6), ("every_epoch", 12)])
def test_a_row_is_offered_once_or_in_every_epoch(offer: str, offered: int) -> None:
    found = plan([[0, 1, 2], [3, 4, 5], [5, 3, 1], [0, 2, 4]], is_once=offer == "first_epoch")
    assert found.offered == offered


def test_the_memory_of_a_stage_is_where_the_next_one_begins(tmp_path: Path, tiny_model: Path) -> None:
    bench, method = Bench(tmp_path, tiny_model), make_method("experience_replay", {"capacity": 10, "memory_batch": 3})
    for number, stage in enumerate(method.stages(STREAM)):
        context = bench.context(stage)
        (group,) = method.rehearsal(context).groups
        before = group.rows[: -len(stage.rows)]
        assert len(before) == (10 if number else 0)
        assert {row.task for row in before} <= {task.name for task in stage.seen}
        assert tuple(group.rows[len(before) :]) == stage.rows
        drawn = group.drawn(context.order, 0)  # type: ignore[misc]
        assert [len(step) for step in drawn] == [3 if number or at else 0 for at in range(len(context.order))]
        method.after_stage(context)
        state = method.state_json()
        assert state["offered"] == sum(len(task.train) for task in (*stage.seen, *stage.tasks))
        assert len({tuple(place) for place in state["held"]}) == 10  # type: ignore[attr-defined]
        method = stored_and_loaded(
            method, make_method("experience_replay", method.described()), tmp_path / str(number)
        )
    assert len({task for task, _ in state["held"]}) > 1, "rows of several tasks are held"  # type: ignore[attr-defined]


def test_a_herded_memory_is_chosen_after_a_stage_and_drawn_in_the_next(tmp_path: Path, tiny_model: Path) -> None:
    options = {"selection": "herding", "capacity": 13, "memory_batch": 3}
    bench, method = Bench(tmp_path, tiny_model), make_method("experience_replay", options)
    stream = number_stream(labels=True)
    classes = len(stream.tasks[0].labels)
    for number, stage in enumerate(method.stages(stream)):
        context = bench.context(stage)
        groups = method.rehearsal(context).groups
        assert len(groups) == (number > 0)
        foreseen = method.forecast(context, facts_of(stream))
        assert [group.per_step for group in foreseen.mixture.groups] == [group.per_step for group in groups]
        assert foreseen.read_tokens > sum(len(row.input.split()) for row in stage.rows), "each is read once"
        for group in groups:
            assert {row.task for row in group.rows} == {task.name for task in stage.seen}
            drawn = group.drawn(context.order, 0)  # type: ignore[misc]
            assert [len(step) for step in drawn] == [3] * len(context.order)
            assert {item for step in drawn for item in step} <= set(range(len(group.rows))), "own rows are not offered"
        method.after_stage(context)
        held = method.state_json()["held"]
        tasks = {task.name: task for task in (*stage.seen, *stage.tasks)}
        count = Counter((task, tasks[task].train[place].output) for task, place in held)  # type: ignore[attr-defined]
        assert set(count.values()) == {13 // (classes * (number + 1))}
        assert len(count) == classes * (number + 1)
        method = stored_and_loaded(method, make_method("experience_replay", options), tmp_path / str(number))


def test_a_memory_that_leaves_nothing_for_a_class_is_refused() -> None:
    facts = facts_of(number_stream(labels=True))
    needed = sum(len(task.labels) for task in facts.stream)
    make_method("experience_replay", {"selection": "herding", "capacity": needed}).check(facts)
    make_method("experience_replay", {"capacity": 1}).check(facts)
    with pytest.raises(RecipeError, match=f"{needed - 1} rows leaves none for each of {needed} classes: set capacity"):
        make_method("experience_replay", {"selection": "herding", "capacity": needed - 1}).check(facts)


def test_rows_that_others_have_shuffled_in_are_not_offered(tmp_path: Path, tiny_model: Path) -> None:
    method = make_method("experience_replay", {})
    stage = method.stages(STREAM)[1]
    context = Bench(tmp_path, tiny_model).context(stage)
    method.after_stage(replace(context, order=Batches(len(stage.rows) + 30, batch_size=8, epochs=2, seed=0)))
    assert method.state_json()["offered"] == len(stage.rows)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_each_step_trains_its_rows_and_those_drawn_and_moves_what_is_tuned(
    tuning: str, tmp_path: Path, tiny_model: Path
) -> None:
    method = make_method("experience_replay", {"memory_batch": 2})
    context = replace(
        Bench(tmp_path, tiny_model).context(method.stages(STREAM)[0]),
        order=Batches(len(STREAM.tasks[0].train), batch_size=8, epochs=1, seed=0),
    )
    mixture = method.rehearsal(context)
    expected = mixture.groups[0].drawn(context.order, 0)  # type: ignore[misc]
    seen: list[tuple[list[int], list[int]]] = []

    class Look(Influence):
        def after_step(self, step: OptimizerStep) -> None:
            seen.append(
                (
                    [row.number for row in step.rows if row.group == "own"],
                    [row.number for row in step.rows if row.group == "experience_replay"],
                )
            )

    loaded = load_model(tiny_config(tiny_model, tuning), trainable=True, seed=1)
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    train_stage(
        loaded,
        context.stage.rows,
        TrainingConfig(batch_size=8, epochs=1, learning_rate=1e-2, precision="float32"),
        VanillaTemplate(),
        seed=0,
        folder=tmp_path / "stage",
        progress=LineProgress(),
        what="stage",
        mixture=mixture,
        influences=[Look()],
    )
    assert seen == [(list(own), list(drawn)) for own, drawn in zip(context.order, expected, strict=True)]
    after = loaded.model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == set(tuned_parameters(loaded.model))


def test_memory_rows_enter_by_one_mean_or_by_one_of_their_own(tmp_path: Path, tiny_model: Path) -> None:
    context = Bench(tmp_path, tiny_model).context(make_method("sequential", {}).stages(STREAM)[0])
    joint, separate = (
        make_method("experience_replay", options).rehearsal(context)
        for options in ({}, {"mean": "separate", "beta": 0.5})
    )
    assert (joint.own, joint.groups[0].weight, joint.groups[0].mean) == (None, 1.0, "tokens")
    assert (separate.own, separate.groups[0].weight, separate.groups[0].mean) == (None, 0.5, "own")
    assert joint.groups[0].per_step == context.training.batch_size


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"capacity": 0}, "capacity: input should be greater than or equal to 1"),
        ({"memory_batch": 0}, "memory_batch"),
        ({"offer": "never"}, "offer"),
        ({"beta": -1, "mean": "separate"}, "beta"),
        ({"selection": "herding", "offer": "every_epoch"}, "offer is about the reservoir"),
        ({"beta": 0.5}, "beta weighs a mean of the memory's own, so it needs mean: separate"),
    ],
)
def test_nonsense_is_refused_by_key(options: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=f"method experience_replay: .*{words}"):
        make_method("experience_replay", options)
