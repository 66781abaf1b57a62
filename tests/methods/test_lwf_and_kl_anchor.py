"""LwF and the KL anchor: whose predictions are kept, at which tokens, what moves, what a kill costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax

from everlearn.data.mixture import Group, Mixture
from everlearn.errors import ModelError, RecipeError
from everlearn.files import read_jsonl
from everlearn.methods.registry import make_method
from everlearn.methods.stack import assemble
from everlearn.models import loading
from everlearn.models.parameters import tuned_parameters
from everlearn.recipe import LoraConfig, MethodConfig, ModelConfig
from everlearn.runs.loop import execute
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.influence import Influence
from everlearn.training.rows import encode_rows
from tests.methods.contexts import Bench, number_stream
from tests.runs.test_loop import TASKS, tiny_recipe
from tests.tiny_models import save_tiny_model
from tests.training.test_stage import CONFIG, ROWS, train, weights

KINDS = [("llama", "lora"), ("llama", "full"), ("gpt2", "lora"), ("gpt2", "full")]
TARGETS = {"llama": ["v_proj", "down_proj"], "gpt2": ["c_attn"]}
HARD = CONFIG.model_copy(update={"learning_rate": 3e-2, "max_grad_norm": 1e9})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(root / name, name) for name in ("llama", "gpt2")}


def config_of(folder: Path, architecture: str, tuning: str, dropout: float = 0.0) -> ModelConfig:
    lora = LoraConfig(targets=TARGETS[architecture], dropout=dropout)
    return ModelConfig(base=str(folder), tuning=tuning, dtype="float32", lora=lora, device="cpu")  # type: ignore[arg-type]


def load(config: ModelConfig, checkpoint: Path | None = None) -> loading.LoadedModel:
    return loading.load_model(config, checkpoint=checkpoint, trainable=True, seed=5)


def influences_of(name: str, config: ModelConfig, folder: Path, **options: object) -> list[Influence]:
    """Those of the second stage."""
    method = make_method(name, options)
    bench = Bench(folder / "bench", Path(config.base))
    bench.config = config
    return list(method.influences(bench.context(method.stages(number_stream())[1])))


def first_stage(config: ModelConfig, folder: Path) -> Path:
    """A checkpoint that is not the base."""
    loaded = load(config)
    train(loaded, folder / "first", config=HARD, rows=ROWS[:5])
    loading.save_checkpoint(loaded, folder / "first")
    return folder / "first"


@torch.no_grad()
def predictions(loaded: loading.LoadedModel, rows: list) -> torch.Tensor:
    """Log-probabilities at the places that predict the rows' answers, from the model's own forward pass."""
    found = []
    for row in rows:
        logits = loaded.model(input_ids=torch.tensor([row.ids])).logits[0]
        found.append(log_softmax(logits[row.prompt_length - 1 : -1].float(), -1))
    return torch.cat(found)


def kl(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.exp() * (first - second)).sum(-1).mean())


def encoded(loaded: loading.LoadedModel, rows: list = ROWS, group: str = "own") -> list:
    from everlearn.data.prompts import get_template

    encoded = encode_rows(rows, get_template("vanilla", loaded.tokenizer), loaded.tokenizer, CONFIG, 256)
    return [replace(row, group=group, number=at) for at, row in enumerate(encoded)]


def test_the_last_model_is_kept_from_the_second_stage_on_and_the_base_from_the_first(
    tmp_path: Path, tiny_model: Path
) -> None:
    bench = Bench(tmp_path, tiny_model)
    for name, expected in (("lwf", [0, 1, 1]), ("kl_anchor", [1, 1, 1])):
        method = make_method(name, {})
        stages = method.stages(number_stream())
        assert [len(method.influences(bench.context(stage))) for stage in stages] == expected


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lwf", {"alpha": -1}, "alpha: input should be greater than or equal to 0"),
        ("lwf", {"temperature": 0}, "temperature: input should be greater than or equal to 0.01"),
        ("lwf", {"temperature": 1000}, "temperature: input should be less than or equal to 100"),
        ("lwf", {"tau_squared": 1}, "tau_squared"),
        ("lwf", {"positions": "all"}, "unknown key 'positions'"),
        ("kl_anchor", {"strength": -0.1}, "strength: input should be greater than or equal to 0"),
        ("kl_anchor", {"direction": "backward"}, "direction"),
        ("kl_anchor", {"direction": "jsd", "beta": 1.0}, "beta: input should be less than 1"),
        ("kl_anchor", {"beta": 0.3}, "beta has a meaning for direction: jsd only, not for forward: leave it out"),
    ],
)
def test_nonsense_is_refused_by_key(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=f"method {name}: .*{words}"):
        make_method(name, options)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ("multitask", "trains all tasks in one stage, so lwf has no earlier model to keep to"),
        ("single_task", "starts a stage from another model than the one that lwf would keep to"),
        ("lr_path_switching", "starts a stage from another model than the one that lwf would keep to"),
    ],
)
def test_what_has_no_last_model_cannot_be_stacked_with_lwf_but_with_an_anchor(other: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        assemble(MethodConfig.model_validate([other, "lwf"]))
    assert assemble(MethodConfig.model_validate([other, "kl_anchor"])).name == f"{other}+kl_anchor"


@pytest.mark.parametrize(
    ("architecture", "tuning", "is_packed", "precision"),
    [
        *((*kind, True, "float32") for kind in KINDS),
        ("llama", "lora", False, "float32"),
        ("gpt2", "full", False, "float32"),
        ("llama", "lora", True, "bfloat16"),
        ("llama", "full", True, "bfloat16"),
    ],
)
@pytest.mark.parametrize("name", ["lwf", "kl_anchor"])
def test_a_term_is_the_divergence_from_the_other_model_at_the_answers_of_own_rows(
    folders, tmp_path: Path, architecture: str, tuning: str, name: str, is_packed: bool, precision: str
) -> None:
    config = config_of(folders[architecture], architecture, tuning)
    first = first_stage(config, tmp_path)
    before = loading.load_model(config, checkpoint=first if name == "lwf" else None)
    loaded = load(config, first)
    found: list[torch.Tensor] = []

    class Look(Influence):
        reads = True

        def __init__(self, inner: Influence) -> None:
            self.inner = inner

        def begin(self, training) -> None:
            self.inner.begin(training)
            with torch.no_grad():
                for weight in training.parameters.values():
                    weight.mul_(2.0)  # else there is nothing between LwF's model and the one in training
            self.after = predictions(loaded, encoded(loaded))
            self.counted = [encoded(loaded), encoded(loaded, ROWS[:3], group="old")]

        def units(self, rows) -> int:
            assert self.inner.units([*self.counted[0], *self.counted[1]]) == self.inner.units(self.counted[0])
            return self.inner.units(rows)

        def term(self, seen):
            term = self.inner.term(seen)
            found.append(term.detach())
            return term

    look = Look(influences_of(name, config, tmp_path, **({"alpha": 0.5} if name == "lwf" else {"strength": 2.0}))[0])
    settings = CONFIG.model_copy(update={"batch_size": 20, "epochs": 1, "precision": precision})
    old = Mixture((Group("old", tuple(ROWS[:3])),))
    if is_packed:
        train(loaded, tmp_path / "stage", config=settings, influences=[look], mixture=old)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AnswerLoss, "_agrees", lambda *_: False)
            train(loaded, tmp_path / "stage", config=settings, influences=[look], mixture=old)
    theirs = predictions(before, encoded(before))
    tau, factor = (2.0, 0.5 * 4) if name == "lwf" else (1.0, 2.0)
    softer = [log_softmax(one / tau, -1) for one in (theirs, look.after)]
    tokens = sum(row.answer_count for row in encoded(before))
    assert kl(*softer) > 1e-4
    assert float(sum(found)) == pytest.approx(
        factor * kl(*softer) * tokens, rel=2e-3 if precision == "float32" else 0.1
    )


@pytest.mark.parametrize(("architecture", "tuning"), [KINDS[0], KINDS[1], KINDS[3]])
@pytest.mark.parametrize("name", ["lwf", "kl_anchor"])
def test_kept_outputs_give_the_same_losses_without_another_forward_pass(
    folders, tmp_path: Path, monkeypatch, architecture: str, tuning: str, name: str
) -> None:
    config = config_of(folders[architecture], architecture, tuning, dropout=0.1)
    first = first_stage(config, tmp_path)
    settings = HARD.model_copy(update={"precision": "float32"})
    histories = []
    for keeps in (False, True):
        method, folder = make_method(name, {"keep_outputs": keeps}), tmp_path / f"{keeps}"
        stage = method.stages(number_stream())[1]
        stage = replace(stage, tasks=(replace(stage.tasks[0], train=tuple(ROWS)),))
        bench = Bench(folder / "bench", Path(config.base), tuning)
        bench.config, bench.base = config, loading.load_model(config)
        bench.latest = loading.load_model(config, checkpoint=first)
        context = replace(bench.context(stage), training=settings)
        method.try_base(replace(context, stage=replace(stage, index=1)))
        influences = list(method.influences(context))
        loaded = load(config, first)
        if keeps:
            monkeypatch.setattr("everlearn.training.divergences.exchanged", None)
            monkeypatch.setattr("everlearn.models.adapters.adapter_off", None)
        train(loaded, folder / "stage", config=settings, influences=influences)
        histories.append([(row["loss"], row["term"]) for row in read_jsonl(folder / "stage" / "history.jsonl")])
    for whole, kept in zip(*histories, strict=True):
        assert kept == pytest.approx(whole, rel=2e-3, abs=1e-6)
    assert histories[1][-1][1] > 1e-4


@pytest.mark.parametrize("name", ["lwf", "kl_anchor"])
def test_outputs_that_cannot_be_kept_or_used_are_refused(folders, tmp_path: Path, monkeypatch, name: str) -> None:
    config = config_of(folders["llama"], "llama", "lora")
    method = make_method(name, {"keep_outputs": True})
    stage = method.stages(number_stream())[1]
    bench = Bench(tmp_path / "bench", folders["llama"])
    bench.config, bench.base, bench.latest = config, load(config), load(config)
    influences = list(method.influences(bench.context(stage)))
    with pytest.raises(RecipeError, match=r"kept are of other rows than those in training.*set keep_outputs: false"):
        train(load(config), tmp_path / "stage", influences=influences)
    monkeypatch.setattr(AnswerLoss, "_agrees", lambda *_: False)
    with pytest.raises(ModelError, match="would be all of them: set keep_outputs: false"):
        method.try_base(bench.context(method.stages(number_stream())[0]))


@pytest.mark.parametrize(("architecture", "tuning"), [KINDS[0], KINDS[3]])
@pytest.mark.parametrize("name", ["lwf", "kl_anchor"])
def test_predictions_stay_nearer_to_the_other_model_and_only_what_is_tuned_moves(
    folders, tmp_path: Path, architecture: str, tuning: str, name: str
) -> None:
    config = config_of(folders[architecture], architecture, tuning)
    first = first_stage(config, tmp_path)
    before = loading.load_model(config, checkpoint=first if name == "lwf" else None)
    theirs = predictions(before, encoded(before))
    option = "alpha" if name == "lwf" else "strength"
    distances = []
    for strength in (0.0, 50.0):
        loaded = load(config, first)
        start, tuned = weights(loaded), set(tuned_parameters(loaded.model))
        influences = influences_of(name, config, tmp_path, **{option: strength})
        train(loaded, tmp_path / f"{strength}", config=HARD, influences=influences)
        distances.append(kl(theirs, predictions(loaded, encoded(loaded))))
        assert {key for key, value in weights(loaded).items() if not torch.equal(value, start[key])} == tuned
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize(("architecture", "tuning"), [KINDS[0], KINDS[3]])
@pytest.mark.parametrize("name", ["lwf", "kl_anchor"])
def test_a_look_at_another_view_leaves_training_as_it_was(
    folders, tmp_path: Path, architecture: str, tuning: str, name: str
) -> None:
    """Dropout's draws, the weights, what moves: with next to no strength, all is as without."""
    config = config_of(folders[architecture], architecture, tuning, dropout=0.3)
    option = "alpha" if name == "lwf" else "strength"
    for changes in ({}, {"gradient_checkpointing": True, "micro_batch_tokens": 64}):
        settings = CONFIG.model_copy(update=changes)
        plain, other = load(config), load(config)
        train(plain, tmp_path / "plain", config=settings)
        influences = influences_of(name, config, tmp_path, **{option: 1e-30})
        train(other, tmp_path / "other", config=settings, influences=influences)
        assert all(torch.equal(value, weights(other)[key]) for key, value in weights(plain).items())


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("name", ["lwf", "kl_anchor"])
def test_a_stage_killed_in_its_midst_ends_with_equal_tensors(folders, tmp_path: Path, tuning: str, name: str) -> None:
    config = config_of(folders["llama"], "llama", tuning, dropout=0.1)
    settings = CONFIG.model_copy(update={"checkpoint_every": 2})

    class Killed(Influence):
        def after_step(self, step) -> None:
            if step.number == 3:
                raise KeyboardInterrupt

    whole, killed, resumed = (load(config) for _ in range(3))
    train(whole, tmp_path / "whole", config=settings, influences=influences_of(name, config, tmp_path))
    for loaded in (killed, resumed):
        mine = influences_of(name, config, tmp_path)
        if loaded is killed:
            with pytest.raises(KeyboardInterrupt):
                train(killed, tmp_path / "killed", config=settings, influences=[*mine, Killed()])
        else:
            train(resumed, tmp_path / "killed", config=settings, influences=[*mine, Influence()])
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(resumed).items())


@pytest.mark.parametrize(
    ("name", "architecture", "tuning"),
    [("lwf", "gpt2", "full"), ("lwf", "llama", "lora"), ("kl_anchor", "llama", "full")],
)
def test_a_run_keeps_to_the_right_model_in_every_stage(
    folders, tmp_path: Path, name: str, architecture: str, tuning: str
) -> None:
    lora = {"rank": 2, "targets": TARGETS[architecture], "dropout": 0.0}
    model = {"base": str(folders[architecture]), "tuning": tuning, "lora": lora, "dtype": "float32", "device": "cpu"}
    evaluation = {"max_new_tokens": 2, "bootstrap_samples": 100, "general": False}
    options = {"model": model, "evaluation": evaluation}
    strength = {"lwf": {"alpha": 5.0}, "kl_anchor": {"strength": 5.0}}[name]
    folder = execute(tiny_recipe(tmp_path, folders[architecture], method={"name": name, **strength}, **options)).folder
    plain = execute(tiny_recipe(tmp_path, folders[architecture], name="plain", **options)).folder
    differing = []
    for index, task in enumerate(TASKS, 1):
        place = f"stages/{index:02d}-{task}/training/history.jsonl"
        mine, theirs = ([row["loss"] for row in read_jsonl(one / place)] for one in (folder, plain))
        differing.append(mine != theirs)
        if index == 1:
            assert mine[0] == theirs[0]  # nothing between the model and its start
    assert differing == [name == "kl_anchor", True, True]
