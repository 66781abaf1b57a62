"""GeRe's losses against its golden cases: what is compared, how it is weighed, and a step as the engine sees it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import Linear

from everlearn.data.mixture import Group, Mixture
from everlearn.errors import UserError
from everlearn.training.answers import Answers, Batch
from everlearn.training.bands import band_of, mean_and_deviation, pack_states, states_in
from everlearn.training.divergences import divergence
from everlearn.training.imitation import Imitating, Imitation, feature_distance, halves, mean_of, weight_of
from everlearn.training.influence import Seen
from everlearn.training.losses import answer_cross_entropy, answer_divergence
from everlearn.training.row_factors import row_factors, shares_of
from everlearn.training.row_outputs import write_row_outputs
from everlearn.training.rows import EncodedRow
from everlearn.training.teacher import STATES, Teacher

GOLDEN = Path(__file__).parents[1] / "golden" / "gere"


def cases(file: str) -> list:
    return [pytest.param(case, id=case["id"]) for case in json.loads((GOLDEN / file).read_text())["cases"]]


def joined(rows: Sequence[object], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.cat([torch.tensor(row, dtype=dtype) for row in rows])


def close(found: Tensor | float, expected: object, tolerance: float) -> None:
    found = torch.as_tensor(found, dtype=torch.float64)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", cases("kl.json"))
def test_kl(case: dict) -> None:
    now = joined(case["current_logits"]).requires_grad_()
    terms = partial(divergence, temperature=case["temperature"])
    loss = answer_divergence(now, None, joined(case["base_logits"]), None, terms) / len(now)
    loss.backward()
    close(loss.detach(), case["expected_loss"], 1e-6)
    close(now.grad, [place for row in case["expected_grad"] for place in row], 1e-6)


@pytest.mark.parametrize("case", cases("feature_imitation.json"))
def test_distances_of_hidden_states(case: dict) -> None:
    now = joined(case["current_hidden"]).requires_grad_()
    loss = feature_distance(now, joined(case["base_hidden"]), case["kind"]).mean()
    loss.backward()
    close(loss.detach(), case["expected_loss"], 1e-6)
    close(now.grad, [place for row in case["expected_grad"] for place in row], 1e-6)


@pytest.mark.parametrize("case", cases("label_fitting.json"))
def test_label_fitting_is_the_cross_entropy_of_all_tokens_but_the_first(case: dict) -> None:
    logits = joined(case["logits"]).requires_grad_()
    rows = [EncodedRow(tuple(ids), 0, is_text=True) for ids in case["ids"]]
    states, targets, at = [], [], 0
    for row in rows:
        states.append(logits[at : at + len(row.ids) - 1])
        targets += row.ids[1:]
        at += len(row.ids)
    head = Linear(logits.shape[1], logits.shape[1], bias=False)
    head.weight.data = torch.eye(logits.shape[1])
    total, _ = answer_cross_entropy(torch.cat(states), head, torch.tensor(targets))
    count = sum(row.answer_count for row in rows)
    (total / count).backward()
    assert count == case["expected_tokens"]
    close(total.detach() / count, case["expected_loss"], 1e-6)
    close(logits.grad, [place for row in case["expected_grad"] for place in row], 1e-6)


@pytest.mark.parametrize("case", cases("combine.json"))
def test_cross_entropies_and_imitation_are_combined(case: dict) -> None:
    names = [name for name in ("replay_ce", "task_ce", "tm") if case[name] is not None]
    values = {name: torch.tensor(case[name], dtype=torch.float64, requires_grad=True) for name in names}
    total = losses = halves(values.get("task_ce"), values.get("replay_ce"))
    if "tm" in values:
        weight = weight_of(losses, values["tm"], case["weight"])
        total = losses + weight * values["tm"]
        close(weight / case["expected_weight"] if case["expected_weight"] else weight + 1, 1.0, 1e-5)
    total.backward()
    close(total.detach(), case["expected_total"], 1e-5)
    for name, value in values.items():
        torch.testing.assert_close(float(value.grad), float(case["expected_derivatives"][name]), rtol=1e-5, atol=1e-5)


def mixture_of(balance: str) -> Mixture:
    mean = "rows" if balance == "rows" else "groups"
    return Mixture((Group("gere", (), per_step=1, mean=mean),), own=(1.0, mean))


def factors_of(rows: Sequence[EncodedRow], balance: str) -> list[float]:
    factors = row_factors(rows, shares_of(mixture_of(balance)))
    assert factors is not None
    return [factors[id(row)] for row in rows]


@pytest.mark.parametrize("balance", ["rows", "halves"])
@pytest.mark.parametrize("case", cases("step.json"))
def test_a_step(case: dict, balance: str) -> None:
    given = case["rows"]
    rows = [
        EncodedRow(tuple(range(row["loss_tokens"] + 1)), 1, "gere" if row["kind"] == "replay" else "own")
        for row in given
    ]
    losses = torch.tensor([row["ce"] for row in given], dtype=torch.float64)
    counts = torch.tensor([row.answer_count for row in rows], dtype=torch.float64)
    total = (torch.tensor(factors_of(rows, balance), dtype=torch.float64) * losses * counts).sum()
    texts = [at for at, row in enumerate(given) if row["kind"] == "replay"]
    sums, violations = (
        torch.tensor([given[at][key] for at in texts], dtype=torch.float64) for key in ("tm_sum", "tm_count")
    )
    if balance == "rows":
        found = mean_of(sums, violations)
        total += (weight_of(losses[texts], found, case["weight"]) * found).sum() / len(rows)
    elif texts:
        found = mean_of(sums.sum(), violations.sum())
        total += weight_of(total, found, case["weight"]) * found
    close(total, case[f"expected_{balance}"], 1e-5)


@pytest.mark.parametrize("balance", ["rows", "halves"])
@pytest.mark.parametrize("case", cases("tiny_step.json"))
def test_a_whole_step_with_its_gradients(case: dict, balance: str, tmp_path: Path) -> None:
    before, table = torch.tensor(case["base_table"]), torch.tensor(case["table"], requires_grad=True)
    head = Linear(table.shape[1], len(table), bias=False)
    head.weight.data = torch.tensor(case["head"])
    texts = case["replay_set"]
    _, mean, deviation = mean_and_deviation([before[ids] for ids in texts])
    band = band_of(mean, deviation, 1.0)
    close(band, [case["expected_lower"], case["expected_upper"]], 1e-5)
    write_row_outputs(tmp_path, lambda _: ({STATES: pack_states(states_in(before[ids], band))} for ids in texts))
    rows = [EncodedRow(tuple(texts[at]), 0, "gere", at, is_text=True) for at in case["replay_rows_in_batch"]]
    rows += [EncodedRow(tuple(row["ids"]), row["prompt_length"]) for row in case["task_rows_in_batch"]]
    how = Imitating("tm", case["weight"], balance=balance)  # type: ignore[arg-type]
    influence = Imitation("gere", Teacher.at(tmp_path, "toy"), how)
    influence._device, influence._band = band.device, band
    total, seen = passed(rows, table, head, factors_of(rows, balance))
    term = influence.term(seen)
    assert term is not None
    total = total + term / influence.units(rows)
    total.backward()
    expected = case[f"expected_{balance}"]
    close(total.detach(), expected["total"], 1e-5)
    close(table.grad, expected["grad_table"], 1e-5)
    close(head.weight.grad, expected["grad_head"], 1e-5)


def test_a_divergence_takes_the_logits_that_are_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    table, head = torch.randn(9, 4, requires_grad=True), Linear(4, 9)
    texts = [[1, 5, 7], [2, 8], [3, 1, 4, 6]]
    write_row_outputs(tmp_path, lambda _: ({STATES: torch.randn(len(ids), 4)} for ids in texts))
    rows = [EncodedRow(tuple(ids), 0, "gere", at, is_text=True) for at, ids in enumerate(texts)]
    rows.insert(1, EncodedRow((3, 6, 2), 1))
    influence = Imitation("gere", Teacher.at(tmp_path, "toy"), Imitating("kl", "dynamic"))
    assert influence.reads_logits
    influence._device, influence._head, influence._kept_head = table.device, head, None
    runs = []
    for shares in (False, True):
        _, seen = passed(rows, table, head, [1.0] * len(rows))
        seen = replace(seen, logits=head(seen.states).detach() if shares else None)
        term = influence.term(seen)
        runs.append((term.detach(), *torch.autograd.grad(term, [table, head.weight, head.bias])))
    torch.testing.assert_close(*runs)


def passed(rows: Sequence[EncodedRow], table: Tensor, head: Linear, factors: Sequence[float]) -> tuple[Tensor, Seen]:
    """The loss of rows, and what a model whose state of a token is a row of the table leaves to see."""
    firsts = [max(row.prompt_length, 1) for row in rows]
    states = table[[token for row, first in zip(rows, firsts, strict=True) for token in row.ids[first - 1 : -1]]]
    targets = torch.tensor([token for row, first in zip(rows, firsts, strict=True) for token in row.ids[first:]])
    row_of = torch.arange(len(rows)).repeat_interleave(torch.tensor([row.answer_count for row in rows]))
    total, each = answer_cross_entropy(states, head, targets, torch.tensor(factors)[row_of])
    losses = torch.zeros(len(rows)).index_add_(0, row_of, each)
    text = table[[token for row in rows if row.is_text for token in row.ids]]
    return total, Seen(tuple(rows), row_of, targets, states, head, losses, text, lambda view: (states, None))


@pytest.mark.parametrize(
    ("how", "needs_whole"),
    [
        (Imitating("tm", "dynamic"), False),
        (Imitating("tm", 1.0, balance="halves"), True),
        (Imitating("tm", 1.0, balance="halves", tm_mean="elements"), False),
        (Imitating("l2", 1.0, balance="halves"), False),
        (Imitating("l2", "dynamic", balance="halves"), True),
    ],
)
def test_what_is_no_sum_over_rows_is_computed_in_one_part_or_refused(tmp_path: Path, how, needs_whole: bool) -> None:
    influence = Imitation("gere", Teacher.at(tmp_path, "toy"), how)
    assert influence.needs_whole == needs_whole
    rows = [EncodedRow(tuple(range(4, 40)), 0, "gere", at, is_text=True) for at in range(6)]

    def parts(processes: int, most: int) -> Sequence[object]:
        answers = object.__new__(Answers)
        answers._loss = SimpleNamespace(micro_batches=by_tokens)
        answers._readers, answers._processes = [influence], SimpleNamespace(count=processes)
        answers._ahead = SimpleNamespace(at_most=lambda tokens: None)
        return answers.parts(Batch(0, rows, rows, 0, None, ()), most)

    assert len(parts(1, 72)) == (1 if needs_whole else 3)
    if needs_whole:
        with pytest.raises(UserError, match=r"a step is computed in 2 processes, .* choose balance: rows"):
            parts(2, 72)
    else:
        assert len(parts(2, 72)) == 3


def by_tokens(rows: Sequence[EncodedRow], most: int) -> list[Sequence[EncodedRow]]:
    count = most // len(rows[0].ids)
    return [rows[at : at + count] for at in range(0, len(rows), count)]


def test_texts_of_another_method_are_left_alone(tmp_path: Path) -> None:
    table, head = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)), Linear(4, 9, bias=False)
    texts = [(4, 5, 6), (7, 8)]
    write_row_outputs(tmp_path, lambda _: ({STATES: table[list(ids)] + 1} for ids in texts))
    influence = Imitation("gere", Teacher.at(tmp_path, "toy"), Imitating("l1", 1.0))
    influence._device = table.device
    rows = [
        EncodedRow((5, 6, 7), 0, "other", 0, is_text=True),
        EncodedRow(texts[1], 0, "gere", 1, is_text=True),
        EncodedRow((3, 4), 1),
    ]
    _, seen = passed(rows, table, head, [1.0] * 3)
    close(influence.term(seen).detach(), 1.0, 1e-6)
