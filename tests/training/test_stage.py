"""Training a stage: what moves, what is repeatable, what a kill costs, and what the hooks can do."""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from everlearn.data.instance import Instance
from everlearn.data.mixture import Group, Mixture
from everlearn.data.prompts import VanillaTemplate, get_template
from everlearn.errors import DataError, MissingExtraError, RecipeError, UserError
from everlearn.files import read_json, read_jsonl
from everlearn.models import loading
from everlearn.progress import LineProgress
from everlearn.recipe import LoraConfig, ModelConfig, TrainingConfig
from everlearn.training import memory, trackers
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.answers import Answers
from everlearn.training.influence import Influence
from everlearn.training.row_order import Batches
from everlearn.training.rows import encode_rows
from everlearn.training.stage import train_stage
from tests.tiny_models import ARCHITECTURES, TARGETS, WORDS, save_tiny_model, save_with_eyes

CONFIG = TrainingConfig(batch_size=4, epochs=2, learning_rate=1e-2, precision="float32")


@pytest.fixture(autouse=True)
def _nothing_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test has found to fit is not the next one's affair."""
    monkeypatch.setattr(memory, "_found", {})


def make_rows(count: int = 10) -> list[Instance]:
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(words))

    return [
        Instance(instruction=" ".join(WORDS), input=text(draw.randrange(8, 20)), output=text(2), task="t", id=str(at))
        for at in range(count)
    ]


ROWS = make_rows()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(root / name, name) for name in ARCHITECTURES}


def load(folders, architecture: str = "llama", tuning: str = "lora", dropout: float = 0.1):
    lora = LoraConfig(targets=TARGETS[architecture], dropout=dropout)
    config = ModelConfig(base=str(folders[architecture]), tuning=tuning, dtype="float32", lora=lora, device="cpu")
    return loading.load_model(config, trainable=True, seed=5)


def train(loaded, folder: Path, *, config: TrainingConfig = CONFIG, rows=ROWS, seed: int = 7, **others):
    template = get_template("vanilla", loaded.tokenizer)
    return train_stage(
        loaded, rows, config, template, seed=seed, folder=folder, progress=LineProgress(), what="stage", **others
    )


def weights(loaded) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in loaded.model.named_parameters()}


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_trainable_weight_moves_and_no_other(folders, tmp_path, architecture: str, tuning: str) -> None:
    loaded = load(folders, architecture, tuning)
    before = weights(loaded)
    summary = train(loaded, tmp_path)
    assert summary["packed"]
    for name, weight in loaded.model.named_parameters():
        is_unused = name.endswith("wpe.weight")  # rows of positions beyond the longest row
        moved = not torch.equal(weight, before[name])
        assert moved == weight.requires_grad or is_unused, name
    assert not loaded.model.training


def test_the_loss_falls_and_the_history_says_so(folders, tmp_path) -> None:
    summary = train(load(folders, tuning="full"), tmp_path, config=CONFIG.model_copy(update={"epochs": 8}))
    history = list(read_jsonl(tmp_path / "history.jsonl"))
    assert [row["step"] for row in history] == list(range(1, 25))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[0]["learning_rate"] == 1e-2 > history[-1]["learning_rate"] > 0
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(history))
    assert read_json(tmp_path / "summary.json") == summary
    assert (summary["steps"], summary["rows"], summary["final_loss"]) == (24, 10, history[-1]["loss"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl", "summary.json"]


def test_a_step_is_adamw_on_the_mean_over_the_batches_answer_tokens(folders, tmp_path) -> None:
    config = CONFIG.model_copy(update={"epochs": 1, "micro_batch_tokens": 64})
    loaded, reference = load(folders, dropout=0.0), load(folders, dropout=0.0)
    train(loaded, tmp_path, config=config)
    rows = encode_rows(ROWS, get_template("vanilla", loaded.tokenizer), loaded.tokenizer, CONFIG, 256)
    order = Batches(len(rows), batch_size=4, epochs=1, seed=7)
    trained = [weight for weight in reference.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    history = list(read_jsonl(tmp_path / "history.jsonl"))
    for step, numbers in enumerate(order):
        total, count = torch.zeros(()), 0
        for row in (rows[at] for at in numbers):
            labels = [-100] * row.prompt_length + list(row.ids[row.prompt_length :])
            batch = {"input_ids": torch.tensor([row.ids]), "labels": torch.tensor([labels])}
            total = total + reference.model(**batch, num_items_in_batch=1).loss
            count += len(row.ids) - row.prompt_length
        (total / count).backward()
        assert history[step]["loss"] == pytest.approx((total / count).item(), rel=1e-5)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.param_groups[0]["lr"] = 0.5 * 1e-2 * (1 + math.cos(math.pi * step / len(order)))
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in reference.model.named_parameters():
        torch.testing.assert_close(dict(loaded.model.named_parameters())[name], weight, rtol=0, atol=1e-4)


def test_the_same_seed_gives_equal_tensors_and_another_does_not(folders, tmp_path) -> None:
    runs = []
    for number, seed in enumerate((7, 7, 8)):
        torch.manual_seed(number)  # what came before must not matter
        loaded = load(folders)
        train(loaded, tmp_path / str(number), seed=seed)
        runs.append(weights(loaded))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_global_generators_and_settings_are_as_before(folders, tmp_path) -> None:
    loaded = load(folders)
    use_cache = loaded.model.get_base_model().config.use_cache
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    train(loaded, tmp_path, config=CONFIG.model_copy(update={"gradient_checkpointing": True}))
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()
    assert loaded.model.get_base_model().config.use_cache == use_cache
    assert not any(getattr(module, "gradient_checkpointing", False) for module in loaded.model.modules())


def test_a_model_within_one_that_also_sees_is_trained_and_its_settings_are_as_before(tmp_path) -> None:
    """`use_cache` stands in the part of the configuration that describes the language model."""
    config = ModelConfig(base=str(save_with_eyes(tmp_path / "base")), device="cpu")
    loaded = loading.load_model(config, trainable=True)
    assert not hasattr(loaded.model.config, "use_cache")
    before = weights(loaded)
    train(loaded, tmp_path / "stage", rows=ROWS[:4])
    assert not hasattr(loaded.model.config, "use_cache")
    moved = {name for name, weight in loaded.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == {name for name, weight in loaded.model.named_parameters() if weight.requires_grad}


def test_no_generator_of_another_device_is_touched(folders, tmp_path, monkeypatch) -> None:
    kept = []
    fork = torch.random.fork_rng

    def spy(devices=None, **options):
        kept.append(devices)
        return fork(devices, **options)

    monkeypatch.setattr(torch.random, "fork_rng", spy)
    train(load(folders), tmp_path)
    assert [] in kept
    assert None not in kept


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("killed_at", [3, 4, 5])
def test_a_killed_stage_resumes_to_equal_tensors_and_history(folders, tmp_path, tuning: str, killed_at: int) -> None:
    class Kill(Influence):
        steps = 0

        def after_step(self, step):
            self.steps += 1
            if self.steps == killed_at:
                raise KeyboardInterrupt

    config = CONFIG.model_copy(update={"checkpoint_every": 2})
    whole, killed, resumed = (load(folders, tuning=tuning) for _ in range(3))
    train(whole, tmp_path / "whole", influences=[Influence()])
    with pytest.raises(KeyboardInterrupt):
        train(killed, tmp_path / "killed", config=config, influences=[Kill()])
    (left,) = (tmp_path / "killed").iterdir()
    assert left.name == f"partial-{2 * ((killed_at - 1) // 2):08d}"
    assert not list(left.glob("*.p*"))
    counter = Kill()
    counter.steps = -100
    train(resumed, tmp_path / "killed", config=config, influences=[counter])
    assert counter.steps == -100 + 6 - 2 * ((killed_at - 1) // 2)
    expected = weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed).items())
    histories = [list(read_jsonl(tmp_path / name / "history.jsonl")) for name in ("whole", "killed")]
    for a, b in zip(*histories, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["history.jsonl", "summary.json"]


def test_a_checkpoint_of_other_rows_is_not_taken_up(folders, tmp_path) -> None:
    class Kill(Influence):
        def after_step(self, step):
            if list(tmp_path.glob("partial-*")):
                raise KeyboardInterrupt

    config = CONFIG.model_copy(update={"checkpoint_every": 1})
    with pytest.raises(KeyboardInterrupt):
        train(load(folders), tmp_path, config=config, influences=[Kill()])
    other = make_rows(11)
    resumed, fresh = load(folders), load(folders)
    lines: list[str] = []
    for loaded, folder in ((resumed, tmp_path), (fresh, tmp_path / "fresh")):
        template, shown = get_template("vanilla", loaded.tokenizer), LineProgress(lines.append, interval_s=1e9)
        train_stage(loaded, other, config, template, seed=7, folder=folder, progress=shown, what="stage")
    assert len([line for line in lines if "the stage is trained again from its start" in line]) == 1
    assert all(torch.equal(weight, weights(fresh)[name]) for name, weight in weights(resumed).items())


def test_an_influence_that_does_nothing_changes_nothing(folders, tmp_path) -> None:
    class Reads(Influence):
        reads = True

    plain, acted_on, read = load(folders), load(folders), load(folders)
    train(plain, tmp_path / "plain")
    train(acted_on, tmp_path / "acted_on", influences=[Influence()])
    train(read, tmp_path / "read", influences=[Reads()])
    for other in (acted_on, read):
        assert all(torch.equal(weight, weights(plain)[name]) for name, weight in weights(other).items())


def test_the_penalty_is_added_once_a_step_whatever_the_number_of_micro_batches(folders, tmp_path) -> None:
    class Count(Influence):
        reads = True
        terms = penalties = steps = 0

        def begin(self, training):
            self.parameters = training.parameters

        def term(self, seen):
            self.terms += 1

        def penalty(self, rows):
            self.penalties += 1
            return sum((weight**2).sum() for weight in self.parameters.values())

        def after_step(self, step):
            self.steps += 1

    runs = []
    for most in (64, 8192):
        loaded, count = load(folders, dropout=0.0), Count()
        train(loaded, tmp_path, config=CONFIG.model_copy(update={"micro_batch_tokens": most}), influences=[count])
        assert count.penalties == count.steps == 6
        assert (count.terms > 6) == (most == 64)
        assert next(read_jsonl(tmp_path / "history.jsonl"))["penalty"] > 0
        runs.append(weights(loaded))
    for name, weight in runs[0].items():
        torch.testing.assert_close(weight, runs[1][name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_term_is_the_same_however_the_batch_is_cut(folders, tmp_path, monkeypatch, architecture, is_packed) -> None:
    """The model's own cross-entropy as a term: twice the loss, and the states are those that predict the answers."""

    class Again(Influence):
        reads = True

        def term(self, seen):
            logits = seen.states if seen.head is None else seen.head(seen.states)
            each = torch.nn.functional.cross_entropy(logits.float(), seen.targets, reduction="none")
            sums = torch.zeros(len(seen.rows)).index_add_(0, seen.row_of, each.detach())
            torch.testing.assert_close(sums, seen.losses, rtol=1e-4, atol=1e-5)
            assert [row.answer_count for row in seen.rows] == seen.row_of.bincount().tolist()
            again, head = seen.again(nullcontext)
            torch.testing.assert_close(again, seen.states.detach(), rtol=1e-4, atol=1e-5)
            assert (head is None) == (seen.head is None)
            return each.sum()

    if not is_packed:
        monkeypatch.setattr(AnswerLoss, "_agrees", lambda *_: False)
    for most in (64, 8192):
        plain, twice = load(folders, architecture, dropout=0.0), load(folders, architecture, dropout=0.0)
        config = CONFIG.model_copy(update={"micro_batch_tokens": most, "max_grad_norm": 1e9, "epochs": 1})
        train(plain, tmp_path / "plain", config=config)
        train(twice, tmp_path / "twice", config=config, influences=[Again()])
        one, other = (next(read_jsonl(tmp_path / name / "history.jsonl")) for name in ("plain", "twice"))
        assert other["loss"] == one["loss"]
        assert other["term"] == pytest.approx(one["loss"], rel=1e-5)
        assert "term" not in one


def test_a_penalty_alone_shrinks_the_weights(folders, tmp_path) -> None:
    class Shrink(Influence):
        def begin(self, training):
            self.parameters = training.parameters

        def after_backward(self, step):
            for gradient in step.gradients.values():
                gradient.zero_()

        def penalty(self, rows):
            return sum((weight**2).sum() for weight in self.parameters.values())

    loaded = load(folders, tuning="full")
    before = sum((weight**2).sum().item() for weight in weights(loaded).values())
    train(loaded, tmp_path, influences=[Shrink()])
    assert sum((weight**2).sum().item() for weight in weights(loaded).values()) < before


def test_the_state_of_an_influence_outlives_a_kill_and_its_last_word_is_saved(folders, tmp_path) -> None:
    class Average(Influence):
        def __init__(self, kill_at=0):
            self.kill_at = kill_at

        def begin(self, training):
            self.parameters = training.parameters
            self.average = {name: weight.detach().clone() for name, weight in self.parameters.items()}

        def after_step(self, step):
            if step.number + 1 == self.kill_at:
                raise KeyboardInterrupt
            for name, weight in self.parameters.items():
                self.average[name].lerp_(weight.detach(), 0.5)
            step.note("rate", torch.tensor(0.5))

        def finish(self):
            for name, weight in self.parameters.items():
                weight.data.copy_(self.average[name])

        def state(self):
            return self.average

        def load_state(self, tensors):
            self.average = {name: tensors[name].clone() for name in self.average}

    config = CONFIG.model_copy(update={"checkpoint_every": 2})
    whole, killed, resumed, plain = (load(folders) for _ in range(4))
    train(whole, tmp_path / "whole", influences=[Average()])
    with pytest.raises(KeyboardInterrupt):
        train(killed, tmp_path / "killed", config=config, influences=[Average(kill_at=4)])
    train(resumed, tmp_path / "killed", config=config, influences=[Average()])
    train(plain, tmp_path / "plain")
    assert all(torch.equal(weight, weights(whole)[name]) for name, weight in weights(resumed).items())
    assert any(not torch.equal(weight, weights(plain)[name]) for name, weight in weights(resumed).items())
    assert next(read_jsonl(tmp_path / "whole/history.jsonl"))["rate"] == 0.5


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, 1e-3),
        ({"micro_batch_tokens": 64}, 1e-3),
        ({"gradient_checkpointing": True}, 1e-3),
        ({"precision": "bfloat16"}, 3e-2),
        ({"precision": "float16"}, 3e-2),
    ],
)
def test_gradients_of_other_rows_are_those_of_their_mean_loss_and_leave_the_models_own(
    folders, tmp_path, changes: dict[str, object], tolerance: float, tuning: str
) -> None:
    looked = []

    class Look(Influence):
        def begin(self, training):
            self.training = training

        def after_backward(self, step):
            own = {name: gradient.clone() for name, gradient in step.gradients.items()}
            found = self.training.gradients_of(step.rows)
            for name, gradient in step.gradients.items():
                assert torch.equal(gradient, own[name])
                assert found[name].dtype == torch.float32
                torch.testing.assert_close(
                    found[name], gradient, rtol=tolerance, atol=tolerance * gradient.abs().max()
                )
            looked.append(step.number)

    config = CONFIG.model_copy(update=changes)
    train(load(folders, tuning=tuning, dropout=0.0), tmp_path, config=config, influences=[Look()])
    assert looked == list(range(6))


def test_gradients_of_other_rows_are_computed_in_smaller_parts_where_memory_is_short(
    folders, tmp_path, monkeypatch
) -> None:
    asked: list[int] = []
    real = Answers.gradients_of

    def short_of_memory(self, rows, most_tokens, scale):
        asked.append(most_tokens)
        if most_tokens > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return real(self, rows, most_tokens, scale)

    class Look(Influence):
        def begin(self, training):
            self.training = training

        def after_backward(self, step):
            before = {name: gradient.clone() for name, gradient in step.gradients.items()}
            self.training.gradients_of(step.rows)
            assert all(torch.equal(gradient, before[name]) for name, gradient in step.gradients.items())

    monkeypatch.setattr(Answers, "gradients_of", short_of_memory)
    train(load(folders), tmp_path, influences=[Look()])
    assert asked[0] > 100
    assert max(asked[-5:]) <= 100
    assert read_json(tmp_path / "summary.json")["micro_batch_tokens"] == asked[-1]


@pytest.mark.parametrize(
    ("group", "own", "expected"),
    [
        ({}, None, lambda own, other: (sum(map(sum, own)) + sum(map(sum, other))) / (len_of(own) + len_of(other))),
        ({"weight": 0.25, "mean": "own"}, (1.0, "own"), lambda own, other: mean(own) + 0.25 * mean(other)),
        ({"mean": "rows"}, (1.0, "rows"), lambda own, other: sum(sum(r) / len(r) for r in own + other) / 4),
        ({}, (1.0, "rows"), lambda own, other: sum(sum(r) / len(r) for r in own + other) / 4),
        ({"mean": "groups"}, (1.0, "groups"), lambda own, other: (mean(own) + mean(other)) / 2),
        ({"mean": "groups"}, (3.0, "groups"), lambda own, other: (3 * mean(own) + mean(other)) / 4),
        ({"weight": 0.0, "mean": "own"}, None, lambda own, other: mean(own)),
    ],
)
def test_groups_enter_the_loss_with_their_weight_and_mean(folders, tmp_path, group, own, expected) -> None:
    loaded = load(folders, dropout=0.0)
    template = get_template("vanilla", loaded.tokenizer)
    kinds = [encode_rows(rows, template, loaded.tokenizer, CONFIG, 256) for rows in (ROWS[:2], ROWS[2:4])]
    losses = [[token_losses(loaded, row) for row in rows] for rows in kinds]
    mixture = Mixture((Group("memory", ROWS[2:4], per_step=2, **group),), own=own)
    train(loaded, tmp_path, rows=ROWS[:2], mixture=mixture, config=CONFIG.model_copy(update={"epochs": 1}))
    first = next(read_jsonl(tmp_path / "history.jsonl"))
    assert first["loss"] == pytest.approx(expected(*losses), rel=1e-4)


def test_a_group_that_has_no_row_in_a_step_takes_no_part_in_the_mean_over_groups(folders, tmp_path) -> None:
    loaded = load(folders, dropout=0.0)
    own = encode_rows(ROWS[:2], get_template("vanilla", loaded.tokenizer), loaded.tokenizer, CONFIG, 256)
    expected = mean([token_losses(loaded, row) for row in own])
    other = Group("memory", ROWS[2:4], per_step=2, drawn=lambda order, seed: [[]] * len(order), mean="groups")
    mixture = Mixture((other,), own=(1.0, "groups"))
    train(loaded, tmp_path, rows=ROWS[:2], mixture=mixture, config=CONFIG.model_copy(update={"epochs": 1}))
    assert next(read_jsonl(tmp_path / "history.jsonl"))["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("is_within", "expected"), [(True, [[3, 1], [3, 1], [2, 1]]), (False, [[4, 1], [4, 1]])])
def test_rows_of_a_group_take_places_of_the_batch_or_come_on_top(folders, tmp_path, is_within, expected) -> None:
    sizes: list[list[int]] = []

    class Count(Influence):
        def penalty(self, rows):
            sizes.append([sum(row.group == name for row in rows) for name in ("own", "memory")])
            assert [row.number for row in rows if row.group == "memory"] == [1]

    group = Group("memory", ROWS[8:], per_step=1, is_within=is_within, drawn=lambda order, seed: [[1]] * len(order))
    config = CONFIG.model_copy(update={"epochs": 1})
    train(load(folders), tmp_path, rows=ROWS[:8], mixture=Mixture((group,)), config=config, influences=[Count()])
    assert sizes == expected


class Reversed(VanillaTemplate):
    """Asks for the answer's question."""

    name = "reversed"

    def prompt_ids(self, instance, tokenizer, max_tokens=None):
        return [tokenizer.bos_token_id, *tokenizer.encode(instance.output, add_special_tokens=False)]

    def target_ids(self, instance, tokenizer, max_tokens=None):
        return tokenizer.encode(instance.input, add_special_tokens=False)


def test_a_row_that_follows_another_is_there_in_its_steps_in_a_wording_of_its_own(folders, tmp_path) -> None:
    seen: list[tuple[dict[str, list[int]], set[int]]] = []
    loaded = load(folders)

    class Look(Influence):
        def penalty(self, rows):
            numbers = {name: sorted(r.number for r in rows if r.group == name) for name in ("own", "old", "other")}
            for row in rows:
                if row.group == "other":
                    text = loaded.tokenizer.decode(row.ids[row.prompt_length :])
                    assert text == (ROWS[:6] + ROWS[8:])[[0, 5, 6][row.number]].input
            seen.append((numbers, {row.number for row in rows if row.group == "other"}))

    follows = (("own", 0), ("own", 5), ("old", 0))
    other = Group("other", [ROWS[0], ROWS[5], ROWS[8]], follows=follows, template=Reversed(), weight=0.5, mean="own")
    mixture = Mixture((Group("old", ROWS[8:]), other))
    train(loaded, tmp_path, rows=ROWS[:6], mixture=mixture, influences=[Look()])
    assert [len(step["own"]) + len(step["old"]) for step, _ in seen] == [4, 4] * 2
    for step, others in seen:
        assert others == {at for at, (group, number) in enumerate(follows) if number in step[group]}
    assert sum(len(others) for _, others in seen) == 3 * 2
    assert mixture.rehearsed == [ROWS[8], ROWS[9]]


def token_losses(loaded, row) -> list[float]:
    """The cross-entropy of each answer token of a row."""
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([row.ids])).logits[0, row.prompt_length - 1 : -1]
    targets = torch.tensor(row.ids[row.prompt_length :])
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()


def len_of(rows: list[list[float]]) -> int:
    return sum(map(len, rows))


def mean(rows: list[list[float]]) -> float:
    return sum(map(sum, rows)) / len_of(rows)


class Device:
    """Has room for so many tokens at once; stands before the model's embeddings."""

    def __init__(self, loaded, room: int) -> None:
        self.room, self.refused = room, 0
        loaded.model.get_input_embeddings().register_forward_pre_hook(self)

    def __call__(self, module, arguments) -> None:
        if module.training and arguments[0].numel() > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def test_a_step_that_finds_no_memory_is_computed_in_smaller_parts(folders, tmp_path) -> None:
    plain, tight = load(folders, dropout=0.0), load(folders, dropout=0.0)
    train(plain, tmp_path / "plain")
    device = Device(tight, room=60)
    assert train(tight, tmp_path / "tight")["micro_batch_tokens"] < 120
    assert 1 <= device.refused <= 3, "what did not fit is not tried again at every step"
    for name, weight in weights(tight).items():
        torch.testing.assert_close(weight, weights(plain)[name], rtol=0, atol=1e-4)
    following = load(folders, dropout=0.0)
    device = Device(following, room=60)
    train(following, tmp_path / "next")
    assert not device.refused, "the next stage begins with what fitted"


def test_what_memory_had_room_for_outlives_a_kill(folders, tmp_path) -> None:
    class Kill(Influence):
        steps = 0

        def after_step(self, step):
            self.steps += 1
            if self.steps == 4:
                raise KeyboardInterrupt

    config = CONFIG.model_copy(update={"checkpoint_every": 2})
    whole, killed, resumed = (load(folders) for _ in range(3))
    devices = [Device(loaded, room=60) for loaded in (whole, killed, resumed)]
    train(whole, tmp_path / "whole", config=config)
    memory._found.clear()  # as in another process
    with pytest.raises(KeyboardInterrupt):
        train(killed, tmp_path / "killed", config=config, influences=[Kill()])
    memory._found.clear()
    alive = Kill()
    alive.steps = -100
    train(resumed, tmp_path / "killed", config=config, influences=[alive])
    assert devices[0].refused
    assert not devices[2].refused
    for name, weight in weights(resumed).items():
        assert torch.equal(weight, weights(whole)[name])


def test_no_room_for_one_row_is_one_sentence(folders, tmp_path) -> None:
    loaded = load(folders)
    Device(loaded, room=5)
    with pytest.raises(
        UserError, match=r"out of memory on cpu with one row of up to \d+ tokens at a time: set training"
    ):
        train(loaded, tmp_path)


def test_no_room_for_the_optimizer_is_one_sentence(folders, tmp_path) -> None:
    class Full(Influence):
        def after_step(self, step):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(UserError, match=r"out of memory on cpu in the optimizer: set training\.gradient"):
        train(load(folders), tmp_path, influences=[Full()])


@pytest.mark.parametrize("where", ["penalty", "term"])
def test_a_loss_that_is_no_number_is_refused_with_step_and_remedy(folders, tmp_path, where: str) -> None:
    class Break(Influence):
        steps = 0
        reads = where == "term"

        def begin(self, training):
            self.parameters = training.parameters

        def after_step(self, step):
            self.steps += 1

        def added(self, _):
            total = sum((weight**2).sum() for weight in self.parameters.values())
            return total * float("nan") if self.steps == 2 else total

    setattr(Break, where, Break.added)
    message = r"the loss became nan at step 3 of 6: lower training\.learning_rate .* strength of what the method adds"
    with pytest.raises(UserError, match=message):
        train(load(folders), tmp_path, influences=[Break()])


def test_rows_that_cannot_be_trained_on_are_refused_by_name(folders, tmp_path) -> None:
    loaded = load(folders)
    with pytest.raises(DataError, match="no rows"):
        train(loaded, tmp_path, rows=[])
    long = Instance(instruction="the cat " * 200, input="", output="yes", task="t", id="r9")
    with pytest.raises(DataError, match=r"row r9: .* context is 256"):
        train(loaded, tmp_path, rows=[long])


def test_an_answer_without_tokens_is_refused_by_name(folders) -> None:
    class Mute:
        name = "mute"

        def prompt_ids(self, instance, tokenizer, max_tokens=None):
            return [1, 5]

        def target_ids(self, instance, tokenizer, max_tokens=None):
            return []

    with pytest.raises(DataError, match="row 3: its answer has no tokens"):
        encode_rows([ROWS[3]], Mute(), None, CONFIG, 256)


def test_over_long_answers_lose_their_end_token_and_prompts_their_end(folders) -> None:
    loaded = load(folders)
    config = TrainingConfig(max_prompt_tokens=5, max_target_tokens=2)
    (row,) = encode_rows(ROWS[:1], get_template("vanilla", loaded.tokenizer), loaded.tokenizer, config, 256)
    whole = loaded.tokenizer(ROWS[0].query)["input_ids"]
    assert row.ids[:5] == tuple(whole[:5])
    assert (len(row.ids), row.prompt_length, row.ids[-1] != loaded.tokenizer.eos_token_id) == (7, 5, True)


def test_unknown_and_missing_trackers_are_refused(monkeypatch) -> None:
    import accelerate.tracking

    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: ["mlflow"])
    trackers.check_trackers(["mlflow"])
    with pytest.raises(UserError, match="did you mean 'wandb'"):
        trackers.check_trackers(["wanb"])
    with pytest.raises(MissingExtraError, match="pip install trackio"):
        trackers.check_trackers(["trackio"])


def test_a_full_disk_at_a_checkpoint_is_named(folders, tmp_path, monkeypatch) -> None:
    from safetensors import SafetensorError

    from everlearn.errors import RunError
    from everlearn.training import checkpoint

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(RunError, match="the disk is full"):
        train(load(folders), tmp_path, config=CONFIG.model_copy(update={"checkpoint_every": 1}))


def test_several_processes_that_each_train_by_themselves_are_refused(folders, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="by the command alone"):
        train(load(folders), tmp_path)


def test_progress_shows_step_loss_and_rate(folders, tmp_path) -> None:
    lines: list[str] = []
    loaded = load(folders)
    template = get_template("vanilla", loaded.tokenizer)
    progress = LineProgress(lines.append, interval_s=0.0)
    train_stage(loaded, ROWS, CONFIG, template, seed=1, folder=tmp_path, progress=progress, what="training 01-t")
    assert lines
    assert lines[0].startswith("  training 01-t: 1/6, loss ")
    assert "tokens/s" in lines[0]


def test_two_influences_that_note_the_same_are_told_apart(folders, tmp_path) -> None:
    class Note(Influence):
        def __init__(self, value):
            self.value = value

        def after_step(self, step):
            step.note("rate", torch.tensor(self.value))

    train(load(folders), tmp_path, influences=[Note(1.0), Note(2.0), Note(3.0)])
    row = next(read_jsonl(tmp_path / "history.jsonl"))
    assert (row["rate"], row["rate 2"], row["rate 3"]) == (1.0, 2.0, 3.0)


def test_groups_that_leave_the_own_rows_no_place_in_a_step_are_refused(folders, tmp_path) -> None:
    group = Group("memory", ROWS, per_step=CONFIG.batch_size)
    with pytest.raises(RecipeError, match=r"methods take 4 places .* training\.batch_size is 4: raise it above 4"):
        train(load(folders), tmp_path, mixture=Mixture((group,)))
