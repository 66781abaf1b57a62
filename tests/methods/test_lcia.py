"""LCIA's average: where it acts, what is saved and trained on, what a kill costs, what is refused and noted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everlearn.errors import RecipeError
from everlearn.files import read_json, read_jsonl
from everlearn.methods.registry import make_method
from everlearn.methods.stack import assemble
from everlearn.models import loading
from everlearn.models.parameters import tuned_parameters
from everlearn.recipe import LoraConfig, MethodConfig, ModelConfig
from everlearn.runs.loop import execute
from everlearn.training.influence import Influence
from tests.methods.contexts import Bench, number_stream
from tests.runs.test_loop import TASKS, tiny_recipe
from tests.tiny_models import TARGETS, save_tiny_model
from tests.training.test_stage import CONFIG, train, weights

FORMS = ("code", "published", "next", "fixed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(root / name, name) for name in ("llama", "gpt2")}


def load(folder: Path, architecture: str, tuning: str) -> loading.LoadedModel:
    lora = LoraConfig(targets=TARGETS[architecture])
    config = ModelConfig(base=str(folder), tuning=tuning, dtype="float32", lora=lora, device="cpu")  # type: ignore[arg-type]
    return loading.load_model(config, trainable=True, seed=5)


def influences_of(folder: Path, model: Path, **options: object) -> list[Influence]:
    """Those of the second stage of one group."""
    method = make_method("lcia", {"groups": False, **options})
    return list(method.influences(Bench(folder, model).context(method.stages(number_stream())[1])))


class Watch(Influence):
    """The weights in training after each step."""

    def __init__(self, kill_at: int = 0) -> None:
        self.kill_at, self.seen = kill_at, []

    def begin(self, training) -> None:
        self.parameters = training.parameters

    def after_step(self, step) -> None:
        if step.number + 1 == self.kill_at:
            raise KeyboardInterrupt
        self.seen.append({name: weight.detach().clone() for name, weight in self.parameters.items()})


def test_without_groups_the_first_stage_is_plain_and_every_later_one_averages(
    tmp_path: Path, tiny_model: Path
) -> None:
    bench, method = Bench(tmp_path, tiny_model), make_method("lcia", {"groups": False})
    assert [len(method.influences(bench.context(stage))) for stage in method.stages(number_stream())] == [0, 1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"coefficient": "paper"}, "coefficient"),
        ({"scale": 0}, "scale: input should be greater than 0"),
        (
            {"coefficient": "fixed", "scale": 0.1},
            "scale has a meaning for coefficient: code or next only, not for fixed",
        ),
        ({"coefficient": "published", "scale": 2.0}, "not for published: leave it out"),
        ({"fallback_rate": 1.5}, "fallback_rate: input should be less than or equal to 1"),
        ({"average_starts_as": "zero"}, "average_starts_as"),
        ({"threshold": 1.5}, "threshold: input should be less than or equal to 1"),
        ({"expand_init": "base"}, "expand_init: input should be 'latest' or 'fresh'"),
        ({"groups": False, "threshold": 0.3}, "threshold has a meaning with groups only, not with groups: false"),
        ({"groups": False, "routing": "task"}, "routing has a meaning with groups only"),
        ({"groups": False, "exact_first": True}, "exact_first has a meaning with groups only"),
        ({"routing": "task", "exact_first": True}, "routing: task at all of a task: leave one out"),
    ],
)
def test_nonsense_is_refused_by_key(options: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=f"method lcia: .*{words}"):
        make_method("lcia", options)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ("multitask", "multitask trains all tasks in one stage, so lcia has nothing to average"),
        ("single_task", "each decides in which phases and from which weights a stage is trained"),
        ("lr_path_switching", "each decides in which phases"),
        ("olora", "each decides in which phases"),
        ("merging", "each decides in which phases"),
        ("lwf", "lcia starts a stage from another model than the one that lwf would keep to"),
        ("ewc", "lcia starts a stage from other weights than those that ewc would hold"),
    ],
)
def test_what_has_no_weights_to_average_cannot_be_stacked(other: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why) as refusal:
        assemble(MethodConfig.model_validate([other, "lcia"]))
    assert ("set method.lcia.groups to false, take one" in str(refusal.value)) == (other in ("lwf", "ewc"))
    one_group = {"name": "lcia", "groups": False}
    assert assemble(MethodConfig.model_validate([one_group, "lwf", "agem"])).name == "lcia+lwf+agem"
    assert assemble(MethodConfig.model_validate(["experience_replay", "lcia"])).overrides("answerer")


@pytest.mark.parametrize(("architecture", "tuning"), [("llama", "lora"), ("gpt2", "full")])
@pytest.mark.parametrize("form", FORMS)
def test_training_is_plain_and_the_average_of_what_is_tuned_takes_its_place(
    folders, tmp_path: Path, architecture: str, tuning: str, form: str
) -> None:
    base, watch = folders[architecture], Watch()
    plain, averaged = load(base, architecture, tuning), load(base, architecture, tuning)
    start, tuned = weights(averaged), set(tuned_parameters(averaged.model))
    train(plain, tmp_path / "plain")
    influences = influences_of(tmp_path, base, coefficient=form)
    train(averaged, tmp_path / "averaged", influences=[*influences, watch])
    ended = weights(plain)
    assert all(torch.equal(watch.seen[-1][name], ended[name]) for name in tuned)
    found = weights(averaged)
    for name, value in found.items():
        assert torch.equal(value, start[name]) == (name not in tuned)
        assert torch.equal(value, ended[name]) == (name not in tuned)
        if name in tuned:  # an average is no farther than what it has followed
            path = torch.stack([start[name], *(seen[name] for seen in watch.seen)])
            assert (path.amin(0) - 1e-6 <= value).all()
            assert (value <= path.amax(0) + 1e-6).all()
    history = list(read_jsonl(tmp_path / "averaged" / "history.jsonl"))
    summary = read_json(tmp_path / "averaged" / "summary.json")
    if form == "fixed":
        assert "notes" not in summary
    else:
        assert history[0]["fallbacks"] == 1.0
        assert summary["notes"]["fallbacks"] == pytest.approx(sum(row["fallbacks"] for row in history) / len(history))
        assert 0 < summary["notes"]["average_rate"] < 1
    assert "notes" not in read_json(tmp_path / "plain" / "summary.json")


def test_a_rate_of_one_is_plain_training_and_of_zero_no_training(folders, tmp_path: Path) -> None:
    found, base = [], folders["llama"]
    for rate in (None, 1.0, 0.0):
        loaded = load(base, "llama", "lora")
        start = weights(loaded)
        fixed = {"coefficient": "fixed", "fallback_rate": rate, "average_starts_as": "start"}
        train(loaded, tmp_path / f"{rate}", influences=[] if rate is None else influences_of(tmp_path, base, **fixed))
        found.append(weights(loaded))
    plain, one, none = found
    for name, value in plain.items():
        torch.testing.assert_close(one[name], value)
        assert torch.equal(none[name], start[name])


@pytest.mark.parametrize(
    ("form", "tuning"), [("code", "lora"), ("next", "full"), ("published", "lora"), ("fixed", "lora")]
)
def test_a_stage_killed_in_its_midst_ends_with_equal_tensors(folders, tmp_path: Path, form: str, tuning: str) -> None:
    base, config = folders["llama"], CONFIG.model_copy(update={"checkpoint_every": 2})
    options = {"coefficient": form} | ({"scale": 0.01} if form == "code" else {})
    whole, killed, resumed = (load(base, "llama", tuning) for _ in range(3))
    train(whole, tmp_path / "whole", influences=[*influences_of(tmp_path, base, **options), Watch()], config=config)
    mine = [*influences_of(tmp_path, base, **options), Watch(kill_at=4)]
    with pytest.raises(KeyboardInterrupt):
        train(killed, tmp_path / "killed", config=config, influences=mine)
    mine = [*influences_of(tmp_path, base, **options), Watch()]
    train(resumed, tmp_path / "killed", config=config, influences=mine)
    assert len(mine[-1].seen) == 4  # of six steps two were done
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())
    histories = [list(read_jsonl(tmp_path / name / "history.jsonl")) for name in ("whole", "killed")]
    keys = ("loss", "average_rate", "fallbacks")
    assert [[row.get(key) for key in keys] for row in histories[0]] == [
        [row.get(key) for key in keys] for row in histories[1]
    ]


def test_a_run_saves_measures_and_goes_on_from_the_averages(folders, tmp_path: Path) -> None:
    base = folders["llama"]
    model = {"base": str(base), "lora": {"rank": 2}, "dtype": "float32", "device": "cpu"}
    evaluation = {"max_new_tokens": 2, "bootstrap_samples": 100, "general": False}
    still = {
        "name": "lcia",
        "groups": False,
        "coefficient": "fixed",
        "fallback_rate": 0.0,
        "average_starts_as": "start",
    }
    folder = execute(tiny_recipe(tmp_path, base, method=still, model=model, evaluation=evaluation)).folder
    found = [
        load_file(folder / "stages" / f"{at:02d}-{task}" / "training/adapter/adapter_model.safetensors")
        for at, task in enumerate(TASKS, 1)
    ]
    for name, value in load_file(folder / "model" / "adapter_model.safetensors").items():
        assert all(torch.equal(value, stage[name]) for stage in found)  # averages that never move
    assert max(value.abs().max() for name, value in found[0].items() if "lora_B" in name) > 0
