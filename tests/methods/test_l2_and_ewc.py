"""L2, EWC and MAS on a tiny model: value, direction, what moves, and the state behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from everlearn.errors import RecipeError
from everlearn.methods.base import Method, Stage
from everlearn.methods.registry import make_method
from everlearn.models.parameters import tuned_parameters
from everlearn.training import fisher
from everlearn.training.quadratic_penalty import values_of
from everlearn.training.rows import EncodedRow
from tests.methods.contexts import Bench, equal_tensors, number_stream, penalty_of, stored_and_loaded

STREAM = number_stream()


def moved(bench: Bench, by: float) -> None:
    """Shifts every tuned parameter."""
    with torch.no_grad():
        for parameter in tuned_parameters(bench.latest.model).values():
            parameter += by


def begun(name: str, folder: Path, model: Path) -> tuple[Bench, Method, list[Stage]]:
    """A bench, a pulled method as it is by default, and the stages of the stream."""
    method = make_method(name, {})
    return Bench(folder, model), method, list(method.stages(STREAM))


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_l2_is_the_squared_distance_from_the_last_stage(tmp_path: Path, tiny_model: Path, tuning: str) -> None:
    bench = Bench(tmp_path, tiny_model, tuning)
    method = make_method("l2", {"strength": 0.5})
    stages = method.stages(STREAM)
    method.after_stage(bench.context(stages[0]))
    assert penalty_of(method, bench.context(stages[1]), bench.latest.model).item() == 0.0  # type: ignore[union-attr]
    moved(bench, 0.25)
    count = sum(parameter.numel() for parameter in tuned_parameters(bench.latest.model).values())
    penalty = penalty_of(method, bench.context(stages[1]), bench.latest.model)
    assert penalty.item() == pytest.approx(0.5 * 0.0625 * count, rel=1e-4)  # type: ignore[union-attr]


def test_ewc_weighs_the_distance_with_the_fisher_information(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("ewc", {"strength": 2.0, "fisher_rows": 5})
    stages = method.stages(STREAM)
    method.after_stage(bench.context(stages[0]))
    fisher = [values for name, values in method.state_tensors().items() if name.startswith("fisher/")]
    assert all((values >= 0).all() for values in fisher)
    assert penalty_of(method, bench.context(stages[1]), bench.latest.model).item() == 0.0  # type: ignore[union-attr]
    moved(bench, 0.5)
    expected = 2.0 * 0.25 * sum(float(values.sum()) for values in fisher)
    assert expected > 0
    assert penalty_of(method, bench.context(stages[1]), bench.latest.model).item() == pytest.approx(expected, rel=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["l2", "ewc", "mas"])
def test_a_step_on_the_penalty_moves_towards_the_last_stage_and_only_what_is_tuned(
    name: str, tmp_path: Path, tiny_model: Path
) -> None:
    bench, method, stages = begun(name, tmp_path, tiny_model)
    method.after_stage(bench.context(stages[0]))
    anchors = values_of(bench.latest.model)
    moved(bench, 0.5)
    before = {key: values.clone() for key, values in bench.latest.model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in bench.latest.model.parameters() if p.requires_grad], lr=0.1)
    penalty_of(method, bench.context(stages[1]), bench.latest.model).backward()  # type: ignore[union-attr]
    optimizer.step()
    after = bench.latest.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert changed <= set(anchors)
    for key in changed:
        distance = np.abs(after[key].numpy() - anchors[key])
        assert (distance <= np.abs(before[key].numpy() - anchors[key]) + 1e-7).all()


@pytest.mark.parametrize("name", ["l2", "ewc", "mas"])
def test_every_stage_but_the_first_is_pulled_and_the_last_keeps_nothing(
    name: str, tmp_path: Path, tiny_model: Path
) -> None:
    bench, method, stages = begun(name, tmp_path, tiny_model)
    assert [len(method.influences(bench.context(stage))) for stage in stages] == [0, 1, 1]
    method.after_stage(bench.context(stages[1]))
    assert method.state_tensors()
    method.after_stage(bench.context(stages[2]))
    assert method.state_tensors() == {}


@pytest.mark.parametrize("name", ["l2", "ewc", "mas"])
def test_a_resumed_stage_is_pulled_to_the_same_values(name: str, tmp_path: Path, tiny_model: Path) -> None:
    bench, method, stages = begun(name, tmp_path, tiny_model)
    method.after_stage(bench.context(stages[0]))
    resumed = stored_and_loaded(method, make_method(name, {}), tmp_path / "state")
    assert equal_tensors(method.state_tensors(), resumed.state_tensors())
    moved(bench, 0.1)
    context = bench.context(stages[1])
    penalties = [penalty_of(one, context, bench.latest.model).item() for one in (method, resumed)]  # type: ignore[union-attr]
    assert penalties[0] == penalties[1] > 0


def test_only_the_last_stage_s_information_is_kept(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("ewc", {"fisher_rows": 3})
    stages = method.stages(STREAM)
    method.after_stage(bench.context(stages[0]))
    moved(bench, 0.3)
    method.after_stage(bench.context(stages[1]))
    alone = make_method("ewc", {"fisher_rows": 3})
    alone.after_stage(bench.context(stages[1]))
    assert equal_tensors(method.state_tensors(), alone.state_tensors())
    method.after_stage(bench.context(stages[2]))
    assert method.state_tensors() == {}


def test_the_information_is_that_of_rows_of_the_stage_just_finished(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    stage = make_method("ewc", {}).stages(STREAM)[1]
    other = replace(stage, tasks=(STREAM["third"],))
    states = []
    for one in (stage, stage, other):
        method = make_method("ewc", {"fisher_rows": 4})
        method.after_stage(bench.context(one))
        states.append(method.state_tensors())
    assert equal_tensors(states[0], states[1])
    assert not equal_tensors(states[0], states[2])


def test_the_information_is_that_of_as_many_rows_as_asked_for_drawn_by_the_seed(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[tuple[int, ...]]] = []

    def note(loaded: object, rows: Sequence[EncodedRow], tick: object, **_: object) -> dict[str, np.ndarray]:
        drawn.append([row.ids for row in rows])
        return {}

    monkeypatch.setattr(fisher, "fisher_information", note)
    bench = Bench(tmp_path, tiny_model)
    stage = make_method("ewc", {}).stages(STREAM)[0]
    for rows, seed in ((4, 1), (4, 1), (4, 2), (999, 1)):
        make_method("ewc", {"fisher_rows": rows}).after_stage(bench.context(stage, seed=seed))
    assert [len(rows) for rows in drawn] == [4, 4, 4, len(stage.rows)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_is_stored_of_the_published_ewc_is_found_again() -> None:
    assert [make_method("ewc", {"fisher": kind}).versions for kind in ("empirical", "sampled")] == [1, 2]
    assert make_method("ewc", {"strength": 1.0, "half": False}).described() == {"strength": 1.0, "fisher_rows": 200}
    assert make_method("ewc", {"memory": "online", "gamma": 0.5}).described() == {
        "strength": 0.1,
        "fisher_rows": 200,
        "memory": "online",
        "gamma": 0.5,
    }


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"memory": "online", "gamma": 0.5}, lambda f1, f2, d: 2.0 * ((0.5 * f1 + f2) * d**2)),
        ({"memory": "sum", "half": True}, lambda f1, f2, d: f1 * (d + 0.3) ** 2 + f2 * d**2),
    ],
    ids=["online", "sum"],
)
def test_ewc_of_all_stages_pulls_with_the_information_of_each(
    options: dict[str, object], expected: Callable[..., np.ndarray], tmp_path: Path, tiny_model: Path
) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("ewc", {"strength": 2.0, "fisher_rows": 3, **options})
    stages = method.stages(STREAM)
    information = []
    for stage in stages[:2]:
        alone = make_method("ewc", {"fisher_rows": 3})
        for one in (method, alone):
            one.after_stage(bench.context(stage))
        information.append({key: values for key, values in alone.state_tensors().items() if key.startswith("fisher/")})
        if stage is stages[0]:
            moved(bench, 0.3)
    method = stored_and_loaded(method, make_method("ewc", {"strength": 2.0, **options}), tmp_path / "state")
    moved(bench, 0.2)
    penalty = penalty_of(method, bench.context(stages[2]), bench.latest.model)
    value = sum(float(expected(information[0][key], information[1][key], 0.2).sum()) for key in information[0])
    assert value > 0
    assert penalty.item() == pytest.approx(value, rel=1e-3)  # type: ignore[union-attr]


def test_the_information_of_drawn_tokens_and_of_summed_losses_is_another(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    stage = make_method("ewc", {}).stages(STREAM)[0]
    states = []
    for options in ({}, {"row_loss": "sum"}, {"fisher": "sampled"}, {"fisher": "sampled"}):
        method = make_method("ewc", {"fisher_rows": 3, **options})
        method.after_stage(bench.context(stage))
        states.append(sum(float(v.sum()) for key, v in method.state_tensors().items() if key.startswith("fisher/")))
    assert states[2] == states[3]
    assert len(set(states)) == 3
    assert states[1] > states[0]


def test_mas_adds_stages_up_or_averages_them(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    found = []
    for options in ({}, {"accumulate": "average", "alpha": 0.25}):
        method = make_method("mas", {"rows": 3, **options})
        for stage in method.stages(STREAM)[:2]:
            method.after_stage(bench.context(stage))
            found.append({k: v for k, v in method.state_tensors().items() if k.startswith("importance/")})
    first, both, again, averaged = found
    assert equal_tensors(first, again)
    for key, values in first.items():
        second = both[key] - values
        np.testing.assert_allclose(averaged[key], 0.25 * values + 0.75 * second, rtol=1e-3, atol=1e-6)


def test_options_of_another_memory_are_refused() -> None:
    with pytest.raises(RecipeError, match="method ewc: gamma has a meaning for memory: online only, not for sum"):
        make_method("ewc", {"memory": "sum", "gamma": 0.5})
    with pytest.raises(RecipeError, match="method mas: alpha has a meaning for accumulate: average only"):
        make_method("mas", {"alpha": 0.25})
