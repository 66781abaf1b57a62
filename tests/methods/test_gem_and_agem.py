"""The projecting methods: what they remember, what they do to a step, what moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everlearn.data.instance import Instance
from everlearn.data.mixture import Mixture
from everlearn.data.prompts import VanillaTemplate
from everlearn.errors import RecipeError
from everlearn.files import read_jsonl
from everlearn.methods.registry import make_method
from everlearn.methods.stack import assemble
from everlearn.models.loading import load_model
from everlearn.models.parameters import tuned_parameters
from everlearn.progress import LineProgress
from everlearn.recipe import MethodConfig, TrainingConfig
from everlearn.training.influence import Influence, OptimizerStep, Training
from everlearn.training.rows import EncodedRow
from everlearn.training.stage import train_stage
from tests.methods.contexts import Bench, number_stream, tiny_config

STREAM = number_stream()
BOTH = pytest.mark.parametrize("name", ["agem", "gem"])


@BOTH
def test_rows_of_every_earlier_task_are_remembered_and_no_step_trains_on_them(
    name: str, tmp_path: Path, tiny_model: Path
) -> None:
    bench, method = Bench(tmp_path, tiny_model), make_method(name, {"memory_per_task": 5})
    stages = method.stages(STREAM)
    assert [len(method.influences(bench.context(stage))) for stage in stages] == [0, 1, 1]
    mixture = method.rehearsal(bench.context(stages[2]))
    assert [group.name for group in mixture.groups] == [f"{name}/first", f"{name}/second"]
    assert [{row.task for row in group.rows} for group in mixture.groups] == [{"first"}, {"second"}]
    assert [len(group.rows) for group in mixture.groups] == [5, 5]
    assert mixture.rehearsed == []
    order = [[0, 1], [2]]
    assert [list(map(list, group.drawn(order, 0))) for group in mixture.groups if group.drawn] == [[[], []]] * 2
    assert mixture.groups[0] == method.rehearsal(bench.context(stages[1])).groups[0]
    assert mixture != method.rehearsal(bench.context(stages[2], seed=1))


@BOTH
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory_per_task": 0}, "memory_per_task: input should be greater than or equal to 1"),
        ({"sample": 0}, "sample"),
        ({"margin": -0.1}, "margin"),
        ({"epsilon": -1}, "epsilon"),
        ({"epsilon_is": "exact"}, "epsilon_is"),
    ],
)
def test_nonsense_is_refused_by_key(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=f"method {name}: .*{words}"):
        make_method(name, options)


@BOTH
@pytest.mark.parametrize("other", ["l2", "ewc", "multitask"])
def test_what_would_undo_the_projection_or_leaves_nothing_to_protect_is_refused(name: str, other: str) -> None:
    with pytest.raises(RecipeError, match="cannot be stacked"):
        assemble(MethodConfig.model_validate(f"{name}+{other}"))


def toy(name: str, tmp_path: Path, model: Path, **options: object) -> tuple[Influence, torch.nn.Module]:
    """The influence of the third stage over one weight of two numbers, with memories that pull up and to the right."""
    bench, method = Bench(tmp_path, model), make_method(name, {"memory_per_task": 2, **options})
    (influence,) = method.influences(bench.context(method.stages(STREAM)[2]))
    weight = torch.nn.Linear(2, 1, bias=False)
    gradients = {f"{name}/first": [[1.0, 0.0]], f"{name}/second": [[0.0, 1.0]]}

    def gradients_of(rows: list[EncodedRow]) -> dict[str, torch.Tensor]:
        return {"weight": torch.stack([torch.tensor(gradients[row.group]) for row in rows]).mean(0)}

    rows = [EncodedRow((1, 2), 1, group) for group in gradients for _ in range(2)]
    influence.begin(Training(weight, dict(weight.named_parameters()), rows, torch.device("cpu"), 0, 1, gradients_of))
    return influence, weight


@pytest.mark.parametrize(
    ("name", "options", "gradient", "expected", "conflicts"),
    [
        ("gem", {"margin": 0.0, "epsilon": 0.0}, [-1.0, 2.0], [0.0, 2.0], 1),
        ("gem", {"margin": 0.0, "epsilon": 0.0}, [-1.0, -2.0], [0.0, 0.0], 2),
        ("gem", {"margin": 0.5, "epsilon": 0.0}, [-1.0, 2.0], [0.0, 2.5], 1),
        ("gem", {}, [1.0, 2.0], [1.0, 2.0], 0),
        ("agem", {"sample": 4}, [-3.0, 1.0], [-2.0, 2.0], 1),
        ("agem", {"sample": 99}, [-3.0, 1.0], [-2.0, 2.0], 1),
        ("agem", {"sample": 4}, [-1.0, 2.0], [-1.0, 2.0], 0),
    ],
)
def test_a_step_is_turned_until_it_harms_no_memory(
    name: str,
    options: dict[str, object],
    gradient: list[float],
    expected: list[float],
    conflicts: int,
    tmp_path: Path,
    tiny_model: Path,
) -> None:
    influence, model = toy(name, tmp_path, tiny_model, **options)
    model.weight.grad = torch.tensor([gradient])
    step = OptimizerStep(0, [], dict(model.named_parameters()), 0.1)
    influence.after_backward(step)
    torch.testing.assert_close(step.gradients["weight"], torch.tensor([expected]))
    assert float(step.notes["conflicts"]) == conflicts


@BOTH
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_trained_stage_takes_no_step_against_its_memory_and_moves_what_is_tuned_only(
    name: str, tuning: str, tmp_path: Path, tiny_model: Path
) -> None:
    bench = Bench(tmp_path, tiny_model)
    exact = {"agem": {"sample": 8}, "gem": {"margin": 0.0, "epsilon": 0.0}}
    method = make_method(name, {"memory_per_task": 8, **exact[name]})
    context = bench.context(method.stages(STREAM)[1])
    mixture = method.rehearsal(context)
    memory = [replace(row, output="even") for row in mixture.groups[0].rows]
    rows = [replace(row, output="odd") for row in memory]  # the same questions, answered otherwise
    dots: list[float] = []

    class Look(Influence):
        def begin(self, training: Training) -> None:
            self.training = training

        def after_backward(self, step: OptimizerStep) -> None:
            found = self.training.gradients_of([row for row in self.training.rows if row.group == f"{name}/first"])
            dots.append(sum(float((found[key] * value).sum()) for key, value in step.gradients.items()))

    config = tiny_config(tiny_model, tuning)
    config = config.model_copy(update={"lora": config.lora.model_copy(update={"dropout": 0.0})})
    loaded = load_model(config, trainable=True, seed=1)
    settings = TrainingConfig(batch_size=4, epochs=10, learning_rate=1e-2, precision="float32")

    def train(rows: list[Instance], folder: str, mixture: Mixture, influences: list[Influence]) -> None:
        train_stage(
            loaded,
            rows,
            settings,
            VanillaTemplate(),
            seed=0,
            folder=tmp_path / folder,
            progress=LineProgress(),
            what="stage",
            mixture=mixture,
            influences=influences,
        )

    train(memory, "first", Mixture(), [])
    before = {key: value.clone() for key, value in loaded.model.state_dict().items()}
    tuned = set(tuned_parameters(loaded.model))
    kept = Mixture((replace(mixture.groups[0], rows=tuple(memory)),))
    train(rows, "stage", kept, [*method.influences(context), Look()])
    history = list(read_jsonl(tmp_path / "stage" / "history.jsonl"))
    assert sum(float(row["conflicts"]) for row in history) > 0, "or nothing was tried"  # type: ignore[arg-type]
    assert min(dots) > -1e-3 * max(map(abs, dots))
    after = loaded.model.state_dict()
    assert {key for key in before if not torch.equal(before[key], after[key])} == tuned


@BOTH
def test_dropout_is_told_once_for_what_it_costs(name: str, tmp_path: Path, tiny_model: Path) -> None:
    said: list[str] = []
    bench, method = Bench(tmp_path, tiny_model), make_method(name, {})
    for stage in method.stages(STREAM)[1:]:
        context = bench.context(stage)
        (influence,) = method.influences(context)
        model = bench.latest.model
        influence.begin(
            Training(model, tuned_parameters(model), [], torch.device("cpu"), 0, 1, lambda rows: {}, said.append)
        )
    assert len(said) == 1
    assert "dropout is on (0.1)" in said[0]
