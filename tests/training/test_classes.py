"""Heads against recorded trainings of the published code, and trained through a model and on its states alike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from everlearn.errors import ModelError
from everlearn.models.heads import (
    Head,
    Heads,
    best_classes,
    class_cross_entropy,
    cosine_logits,
    load_heads,
    save_heads,
)
from everlearn.training.checkpoint import load_moments, save_moments
from everlearn.training.classes import Headed, make_head_optimizer, make_heads
from everlearn.training.phase import HeadTraining
from everlearn.training.processes import Processes

CPU = Processes(torch.device("cpu"))
KINDS = {"Linear": "linear", "CosineLinear": "cosine"}


def recorded(file: str) -> list[dict[str, Any]]:
    folder = Path(__file__).parents[1] / "golden" / "seq"
    return json.loads((folder / file).read_text(encoding="utf-8"))


def named(record: dict[str, Any]) -> str:
    return f"{record['variant']}-{record['head']}-{record['il_mode']}"


class Toy(nn.Module):
    """h = tanh((e + mean of e over the row) W^T + b)."""

    def __init__(self, init: dict[str, Any]) -> None:
        super().__init__()
        for name in ("emb", "W", "b"):
            value = torch.tensor(init[f"model.{name}"], dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, batch: dict[str, Any]) -> Tensor:
        e = self.emb[torch.tensor(batch["input_ids"])]
        mask = torch.tensor(batch["attention_mask"], dtype=torch.float64)[..., None]
        mean = (e * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return torch.tanh((e + mean) @ self.W.T + self.b)


def set_head(head: Head, init: dict[str, Any], at: int) -> None:
    """The values that the record begins with."""
    with torch.no_grad():
        head.weight.copy_(torch.tensor(init[f"classifier_list.{at}.weight"], dtype=torch.float64))
        if head.bias is not None:
            head.bias.copy_(torch.tensor(init[f"classifier_list.{at}.bias"], dtype=torch.float64))


def named_weights(headed: Headed) -> list[tuple[str, nn.Parameter]]:
    """By the names of the records."""
    names = {"backbone.": "model.", "heads.of_task.": "classifier_list."}
    return [
        (next(name.replace(ours, theirs) for ours, theirs in names.items() if name.startswith(ours)), weight)
        for name, weight in headed.named_parameters()
    ]


def tensors_of(headed: Headed) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in named_weights(headed)}


def trained_as_recorded(record: dict[str, Any], loss: Any, folder: Path) -> Headed:
    """Trains task by task, each phase with an optimizer of its own that goes on with stored moments."""
    switches, hyper, sizes = record["switches"], record["hyper"], record["classes_per_task"]
    tasks = tuple((f"task-{at}", tuple(f"{at}/{k}" for k in range(size))) for at, size in enumerate(sizes))
    fixes, warmup = switches.get("SEQ_fix_encoder", False), switches.get("SEQ_warmup_epoch_before_fix_encoder", 0)
    backbone, heads, headed = Toy(record["init"]), None, None
    for at, facts in enumerate(record["per_task"]):
        before = {} if headed is None else {k: v.clone() for k, v in tensors_of(headed).items()}
        phases = [(hyper["training_epochs"], not fixes)]
        if at == 0 and fixes and warmup:
            phases.insert(0, (warmup, True))
        losses: list[float] = []
        has_gradient: set[str] = set()
        for epochs, moves in phases:
            plan = HeadTraining(
                KINDS[record["head"]],  # type: ignore[arg-type]
                tasks if switches.get("SEQ_preallocated_classifier") else tasks[: at + 1],
                (tasks[at][0],),
                within_task=record["il_mode"] == "TIL",
                moves_backbone=moves,
                moves_old=not switches.get("SEQ_fix_old_classifier", False),
                learning_rate=hyper["lr_head"],
                weight_decay=hyper["wd_head"],
            )
            known = len(heads.tasks) if heads else 0
            heads = make_heads(plan, backbone.b.numel(), heads).double()
            for place in range(known, len(heads.tasks)):
                set_head(heads.of_task[place], record["init"], place)
            backbone.requires_grad_(moves)
            headed = Headed(backbone, heads, plan)
            before = before or {k: v.clone() for k, v in tensors_of(headed).items()}
            optimizer = make_head_optimizer(
                *headed.named_groups(), plan, rate=hyper["lr_backbone"], decay=hyper["wd_backbone"]
            )
            load_moments(folder, headed, [optimizer], grows=True)
            for group in optimizer.param_groups:
                group["lr"] = hyper["lr_backbone"] * group["rate_factor"]
            for _ in range(epochs):
                for batch in record["batches"][at]:
                    value = loss(headed, batch, at)
                    losses.append(value.item())
                    value.backward()
                    has_gradient |= {name for name, weight in named_weights(headed) if weight.grad is not None}
                    optimizer.step()
                    optimizer.zero_grad()
            save_moments(folder / "optimizer.safetensors", headed, [optimizer], CPU)
        assert losses == pytest.approx(facts["losses"], abs=1e-8)
        now = tensors_of(headed)
        moved = {name: name not in before or not torch.equal(before[name], now[name]) for name in now}
        assert moved == {name: facts["moved"][name] for name in now}
        assert has_gradient <= {name for name, has in facts["got_nonzero_grad"].items() if has}
        assert {name for name, has in facts["moved"].items() if has} == has_gradient  # what is frozen has none at all
    assert headed is not None
    return headed


def of_sentences(headed: Headed, batch: dict[str, Any], at: int) -> Tensor:
    assert headed.backbone is not None
    labels, within = torch.tensor(batch["label_idx_cil"]), headed.plan.within_task
    states = headed.backbone(batch)[:, 0]
    return class_cross_entropy(states, headed.heads, labels, within_task=within)[0] / len(labels)


@pytest.mark.parametrize("record", recorded("seq_training.json"), ids=named)
def test_each_variant_trains_as_the_published_code(record: dict[str, Any], tmp_path: Path) -> None:
    headed = trained_as_recorded(record, of_sentences, tmp_path)
    for name, weight in tensors_of(headed).items():
        torch.testing.assert_close(weight, torch.tensor(record["final"][name], dtype=torch.float64), atol=1e-8, rtol=0)
    logits = headed.heads(headed.backbone(record["test"])[:, 0])  # type: ignore[misc]
    expected = torch.tensor(record["test"]["logits_all_heads"], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, atol=1e-8, rtol=0)


def over_sequence(heads: Heads, states: Tensor) -> Tensor:
    """As published: cosine heads normalise axis 1 of a sequence of states."""
    if heads.kind == "linear":
        return heads(states)
    return torch.cat([cosine_logits(states, head.weight, over_sequence=True) for head in heads.of_task], -1)


def seen_labels(labels: Tensor, first: int, end: int) -> Tensor:
    """As the published loss sees them: types of other tasks than this one are `O` (0); -100 stays."""
    return labels.masked_fill((labels >= end) | ((labels > 0) & (labels < first)), 0)


def of_words(headed: Headed, batch: dict[str, Any], at: int) -> Tensor:
    assert headed.backbone is not None
    sizes = [len(classes) for _, classes in headed.heads.tasks]
    labels = seen_labels(torch.tensor(batch["label_idx_cil"]), sum(sizes[:at]), sum(sizes[: at + 1]))
    if headed.heads.kind == "linear":
        has_state = labels != -100
        states = headed.backbone(batch)[has_state]
        return class_cross_entropy(states, headed.heads, labels[has_state])[0] / len(states)
    logits = over_sequence(headed.heads, headed.backbone(batch))
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


@pytest.mark.parametrize("record", recorded("seq_training_word.json"), ids=named)
def test_words_are_trained_as_by_the_published_code(record: dict[str, Any], tmp_path: Path) -> None:
    headed = trained_as_recorded(record, of_words, tmp_path)
    for name, weight in tensors_of(headed).items():
        torch.testing.assert_close(weight, torch.tensor(record["final"][name], dtype=torch.float64), atol=1e-8, rtol=0)
    logits = over_sequence(headed.heads, headed.backbone(record["test"]))  # type: ignore[misc]
    expected = torch.tensor(record["test"]["logits_all_heads"], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    "case", recorded("heads_forward.json"), ids=lambda case: f"{case['kind']}-{case['input_shape']}"
)
def test_logits_are_the_published_ones(case: dict[str, Any]) -> None:
    states = torch.tensor(case["x"], dtype=torch.float64)
    tasks = [(str(at), [str(k) for k in range(len(one["weight"]))]) for at, one in enumerate(case["heads"])]
    heads = Heads(KINDS[case["kind"]], states.shape[-1], tasks).double()  # type: ignore[arg-type]
    init = {
        f"classifier_list.{at}.{name}": one[name]
        for at, one in enumerate(case["heads"])
        for name in ("weight", "bias")
        if one.get(name) is not None
    }
    for at, head in enumerate(heads.of_task):
        set_head(head, init, at)
    logits = over_sequence(heads, states) if case["kind"] == "CosineLinear" else heads(states)
    torch.testing.assert_close(logits, torch.tensor(case["logits"], dtype=torch.float64), atol=1e-8, rtol=0)


def test_a_head_without_rows_has_no_gradient_where_tasks_are_known() -> None:
    heads = Heads("linear", 4, [("a", ["x", "y"]), ("b", ["z", "w"])])
    class_cross_entropy(torch.randn(3, 4), heads, torch.tensor([2, 3, 2]), within_task=True)[0].backward()
    assert heads.of_task[0].weight.grad is None
    assert heads.of_task[1].weight.grad is not None


def test_a_scale_multiplies_cosines_and_is_kept(tmp_path: Path) -> None:
    tasks, states = [("a", ["x", "y"]), ("b", ["z"])], torch.randn(3, 4)
    scaled = Heads("cosine", 4, tasks, seed=1, scale=16.0)
    torch.testing.assert_close(scaled(states), 16 * Heads("cosine", 4, tasks, seed=1)(states))
    torch.testing.assert_close(scaled(states)[:, :2], scaled.each[0](states))
    save_heads(scaled, tmp_path)
    torch.testing.assert_close(load_heads(tmp_path, tasks=tasks)(states), scaled(states))


def test_heads_of_tasks_to_come_are_not_asked(tmp_path: Path) -> None:
    tasks = (("a", ("x", "y")), ("b", ("z",)))
    heads = make_heads(HeadTraining("cosine", tasks, ("a",)), 4, None)
    with torch.no_grad():
        heads.each[1].weight.copy_(torch.eye(4)[:1])
    states = torch.eye(4)[:1].numpy()
    save_heads(heads, tmp_path)
    for asked in (heads, load_heads(tmp_path)):
        assert {*best_classes(states, asked, None), *best_classes(states, asked, "b")} <= {"x", "y"}
    last = make_heads(HeadTraining("cosine", tasks, ("b",)), 4, heads)
    assert best_classes(states, last, None) == best_classes(states, last, "b") == ["z"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 5}, "heads.safetensors does not hold what heads.json says"),
        ({"kind": "linear"}, "heads.safetensors does not hold what heads.json says"),
        ({"kind": "cubic"}, "heads.json: kind"),
        ({"scales": 1}, "unknown key 'scales'"),
        ({"ahead": 2}, "heads.safetensors does not hold what heads.json says"),
        ({"tasks": [{"name": "c", "classes": ["x", "y"]}]}, "are of the task 'c' where this stream has a"),
    ],
)
def test_heads_that_are_not_what_they_say_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    tasks = [("a", ["x", "y"]), ("b", ["z"])]
    save_heads(Heads("cosine", 4, tasks), tmp_path)
    path = tmp_path / "heads" / "heads.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=re.escape(said)):
        load_heads(tmp_path, tasks=tasks)


def test_heads_of_another_width_or_of_fewer_classes_are_refused(tmp_path: Path) -> None:
    tasks = [("a", ["x", "y"])]
    save_heads(Heads("cosine", 4, tasks), tmp_path)
    with pytest.raises(ModelError, match="read states of width 4, and this model's have 8"):
        load_heads(tmp_path, width=8)
    with pytest.raises(ModelError, match=r"another class list of the task 'a' \(they have 2 classes, there are 1\)"):
        load_heads(tmp_path, tasks=[("a", ["x"])])
    (tmp_path / "heads" / "heads.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match=r"heads\.safetensors is no readable safetensors file"):
        load_heads(tmp_path)
