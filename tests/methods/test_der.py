"""DER and DER++: what the memory holds, whose logits are kept, and what a step's loss is made of."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, mse_loss

from everlearn.data.prompts import VanillaTemplate
from everlearn.errors import RecipeError, RunError
from everlearn.files import read_jsonl, read_mapping
from everlearn.methods.registry import make_method
from everlearn.models.heads import Heads, load_heads
from everlearn.models.loading import load_model
from everlearn.progress import LineProgress
from everlearn.recipe import TrainingConfig, make_recipe
from everlearn.runs.loop import execute
from everlearn.training.classes import Headed, StatesLoss
from everlearn.training.influence import Influence
from everlearn.training.kept_logits import Matched, distance
from everlearn.training.phase import HeadTraining
from everlearn.training.row_order import Batches
from everlearn.training.row_outputs import RowOutputs, write_row_outputs
from everlearn.training.rows import EncodedRow, encode_rows
from everlearn.training.stage import train_stage
from tests.methods.contexts import Bench, number_stream, stored_and_loaded, tiny_config

STREAM = number_stream(rows=12)


def context_of(bench: Bench, stage):
    context = bench.context(stage)
    return replace(context, training=context.training.model_copy(update={"precision": "float32"}))


def logits_of(method, context) -> list[dict[str, torch.Tensor]]:
    return list(RowOutputs(method._logits(context).path))


def test_rows_enter_between_stages_and_keep_the_logits_that_they_came_with(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model, "full")
    method = make_method("der", {"capacity": 6, "memory_batch": 4, "top_k": 5})
    stages = method.stages(STREAM)
    assert not method.rehearsal(context_of(bench, stages[0])).groups
    assert not method.influences(context_of(bench, stages[0]))
    method.after_stage(context_of(bench, stages[0]))
    second = context_of(bench, stages[1])
    first_rows, first_logits = method.rehearsal(second).groups[0].rows, logits_of(method, second)
    assert len(first_rows) == len(first_logits) == 6
    assert set(first_rows) <= set(stages[0].rows)
    (group,) = method.rehearsal(second).groups
    assert (group.weight, group.mean, group.per_step, group.is_within) == (0.5, "own", 4, False)
    assert group.drawn is not None
    for drawn in group.drawn(second.order, 0):
        assert len(set(drawn)) == 4
        assert set(drawn) <= set(range(6))
    with torch.no_grad():
        for weight in bench.latest.model.parameters():
            weight.mul_(1.1)
    method.after_stage(second)
    third = context_of(bench, stages[2])
    resumed = stored_and_loaded(method, make_method("der", method.described()), tmp_path / "state")
    rows, logits = resumed.rehearsal(third).groups[0].rows, logits_of(resumed, third)
    kept = [at for at, row in enumerate(rows) if row in first_rows]
    assert 0 < len(kept) < 6
    for at, row in enumerate(rows):
        if at in kept:
            assert torch.equal(logits[at]["logits"], first_logits[first_rows.index(row)]["logits"])
        (encoded,) = encode_rows([row], VanillaTemplate(), bench.latest.tokenizer, third.training, 1024)
        with torch.no_grad():
            now = bench.latest.model.eval()(input_ids=torch.tensor([encoded.ids])).logits[0]
        top = now[encoded.prompt_length - 1 : -1].topk(5, dim=1).values
        assert torch.allclose(logits[at]["logits"], top, atol=1e-3) == (at not in kept)


def test_logits_that_were_deleted_are_said_to_be_gone_with_the_way_to_have_them_again(
    tmp_path: Path, tiny_model: Path
) -> None:
    bench, method = Bench(tmp_path, tiny_model), make_method("der", {"capacity": 6})
    stages = method.stages(STREAM)
    method.after_stage(bench.context(stages[0]))
    place = method._logits(bench.context(stages[1])).path
    shutil.rmtree(place.resolve())
    place.unlink()
    with pytest.raises(RunError, match=r"the logits that stage 1 kept of its memory are gone.*under another name"):
        method.influences(bench.context(stages[1]))


@pytest.mark.parametrize(
    ("options", "weights"),
    [({}, [0.5]), ({"beta": 0}, [0.0]), ({"draws": "two"}, [0.0, 0.5]), ({"draws": "two", "beta": 0}, [0.0])],
)
def test_one_draw_serves_both_terms_or_each_has_its_own(
    options: dict, weights: list[float], tmp_path: Path, tiny_model: Path
) -> None:
    bench, method = Bench(tmp_path, tiny_model), make_method("der", {"capacity": 9, "memory_batch": 3, **options})
    stages = method.stages(STREAM)
    method.after_stage(bench.context(stages[0]))
    context = bench.context(stages[1])
    groups = method.rehearsal(context).groups
    assert [group.weight for group in groups] == weights
    drawn = [group.drawn(context.order, 0) for group in groups if group.drawn]
    assert len({str(of_group) for of_group in drawn}) == len(weights)


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("match", ["mse", "squared_l2", "kl"])
def test_a_step_adds_the_distance_and_the_memorys_cross_entropy(
    tuning: str, match: str, tmp_path: Path, tiny_model: Path
) -> None:
    options = {"alpha": 0.3, "beta": 0.7, "match": match, "capacity": 5, "memory_batch": 2, "top_k": 4}
    bench, method = Bench(tmp_path, tiny_model, tuning), make_method("der", options)
    stages = method.stages(STREAM)
    with torch.no_grad():  # else the model in training is the one whose logits were kept
        for weight in bench.latest.model.parameters():
            weight.mul_(1.1)
    method.after_stage(bench.context(stages[0]))
    settings = TrainingConfig(batch_size=4, epochs=1, precision="float32")
    context = bench.context(stages[1])
    context = replace(context, training=settings, order=Batches(12, batch_size=4, epochs=1, seed=3))
    config = tiny_config(tiny_model, tuning).model_copy(update={"dtype": "float32"})
    kept, mixture = logits_of(method, context), method.rehearsal(context)
    loaded = load_model(config, trainable=True, seed=9)
    loaded.model.eval()
    seen: list = []

    class Look(Influence):
        def penalty(self, rows):
            seen.append(rows)

    def terms(rows) -> tuple[float, float, float]:
        sums = {"own": torch.zeros(2), "der": torch.zeros(2)}
        far = torch.zeros(2)
        for row in rows:
            with torch.no_grad():
                logits = before.model(input_ids=torch.tensor([row.ids])).logits[0, row.prompt_length - 1 : -1]
            answers = torch.tensor(row.ids[row.prompt_length :])
            sums[row.group] += torch.tensor([cross_entropy(logits, answers, reduction="sum"), len(answers)])
            if row.group == "der":
                one = kept[row.number]
                each = distance(logits, one["ids"], one["logits"], kind=match)  # type: ignore[arg-type]
                far += torch.tensor([each.sum(), len(answers)])
        return tuple(float(total[0] / total[1]) for total in (sums["own"], sums["der"], far))  # type: ignore[return-value]

    before = load_model(config, trainable=True, seed=9)
    train_stage(
        loaded,
        stages[1].rows,
        settings,
        VanillaTemplate(),
        seed=3,
        folder=tmp_path / "trained",
        progress=LineProgress(),
        what="stage",
        mixture=mixture,
        influences=[*method.influences(context), Look()],
    )
    first = next(read_jsonl(tmp_path / "trained" / "history.jsonl"))
    new, memory, far = terms(seen[0])
    assert sum(row.group == "der" for row in seen[0]) == 2
    assert first["loss"] == pytest.approx(new + 0.7 * memory, rel=1e-3)
    assert first["term"] == pytest.approx(0.3 * far, rel=1e-3)
    assert first["term"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": -1}, "alpha"),
        ({"beta": -1}, "beta"),
        ({"capacity": 0}, "capacity"),
        ({"top_k": -1}, "top_k"),
        ({"match": "l1"}, "match"),
        ({"logits_at": "insertion"}, "unknown key 'logits_at'"),
    ],
)
def test_nonsense_is_refused_by_key(options: dict, words: str) -> None:
    with pytest.raises(RecipeError, match=f"method der: .*{words}"):
        make_method("der", options)


def test_over_heads_its_term_is_the_mean_square_over_the_classes_before(tmp_path: Path) -> None:
    heads = Heads("cosine", 4, (("a", ("x", "y")), ("b", ("z",))), seed=1, scale=8.0)
    plan = HeadTraining("cosine", heads.tasks, ("b",), moves_old=True)
    rows = [
        EncodedRow((0,), 1, group, at, classes=((0, label),))
        for group, at, label in (("own", 0, 2), ("der", 0, 1), ("der", 1, 0), ("own", 1, 2))
    ]
    states = {
        group: np.random.default_rng(at).normal(size=(2, 4)).astype(np.float32)
        for at, group in enumerate(("own", "der"))
    }
    kept = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(2, dtype=torch.int32)[None]
    write_row_outputs(tmp_path, lambda first: [{"ids": ids, "logits": row[None]} for row in kept][first:])
    matched = Matched("der", RowOutputs(tmp_path), "kept", 0.5, "mse")
    total, seen = StatesLoss(Headed(None, heads, plan), states, rows).seen(rows, [1.0, 0.5, 0.5, 1.0])
    term = matched.term(seen)
    assert term is not None
    logits = heads(torch.from_numpy(states["der"]))
    expected = 0.5 * mse_loss(logits[:, :2], kept)
    torch.testing.assert_close(term / matched.units(rows), expected)
    each = cross_entropy(logits, torch.tensor([1, 0]), reduction="sum") * 0.5
    each += cross_entropy(heads(torch.from_numpy(states["own"])), torch.tensor([2, 2]), reduction="sum")
    torch.testing.assert_close(total, each)
    (found,) = torch.autograd.grad(term / matched.units(rows), heads.each[0].weight, retain_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, heads.each[0].weight)[0])


@pytest.mark.parametrize("preset", ["seq_lin", "w_fixbc_lin"])
def test_over_heads_the_logits_of_all_classes_before_are_kept_of_all_rows_held(
    tmp_path: Path, tiny_model: Path, preset: str
) -> None:
    from tests.methods.test_seq import RATE, heads_after, recipe_of
    from tests.runs.test_loop import TASKS

    def ran(alpha: float) -> Path:
        method = [{"name": "seq", **RATE, "preset": preset, "fix_old_heads": False}]
        method.append({"name": "der", "capacity": 8, "memory_batch": 4, "alpha": alpha})
        recipe = recipe_of(tmp_path, tiny_model).model_copy(
            update={"method": make_recipe({"method": method}).method, "name": f"alpha-{alpha}"}
        )
        return execute(recipe).folder

    run, without = ran(2.0), ran(0.0)
    for stage in (1, 2):
        place = run / "stages" / f"{stage:02d}-{TASKS[stage - 1]}"
        kept = list(RowOutputs(place / "logits"))
        held = read_mapping(place / "state" / "state.json")
        assert len(kept) == 8
        assert {task for task, _ in held["der"]["held"]} == set(TASKS[:stage])
        heads = load_heads(place / "training")
        for row in kept:
            assert row["ids"].tolist() == [list(range(3 * stage))]
        if preset == "w_fixbc_lin":  # the states stand there
            for (task, at), row in zip(held["der"]["held"], kept, strict=True):
                (file,) = run.glob(f"stages/*-{task}/features/{task}/train/states.safetensors")
                torch.testing.assert_close(row["logits"], heads(load_file(file)["states"][at : at + 1]))
    assert not torch.equal(heads_after(run, 2)["0.weight"], heads_after(without, 2)["0.weight"])
