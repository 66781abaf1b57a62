"""Runs over words with tags: heads over each word's state, from rows to report."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from everlearn.api import evaluate
from everlearn.api import run as run_api
from everlearn.cli.main import main
from everlearn.data.embedded.words import POOLS
from everlearn.data.stream import load_stream
from everlearn.errors import RecipeError
from everlearn.files import read_jsonl, read_mapping, write_jsonl
from everlearn.recipe import Recipe, make_recipe
from everlearn.report.facts.study import read_study
from everlearn.report.html import page, write_report
from everlearn.runs.loop import execute
from tests.killed import killed_at
from tests.methods.test_seq import asked_elsewhere
from tests.tiny_models import save_tiny_model

pytest.importorskip("seqeval", reason="the extra `entities` is not installed")
TINY = {"COLOUR": ("red", "green", "blue"), "PET": ("cat", "dog", "big cat"), "YES": ("yes", "true")}
REAL = {kind: POOLS[kind] for kind in ("city", "name", "food")}
FRAMES = ("the {} runs a {}", "{} sleeps a {} bird", "no {} says {}", "small {} negative")
ASKED = ("is {} in the room with {}", "bring {} to {} please", "the way from {} to {}", "my {} and {}")
SEQ = {"name": "seq", "preset": "w_fixbc_lin", "warmup_target": "classes", "head_learning_rate": 0.05}


def write_corpus(file: Path, pools: Any, frames: tuple[str, ...], count: int, seed: int) -> Path:
    """Sentences with an entity in each gap."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        words, tags = [], []
        for piece in rng.choice(frames).split():
            kind = rng.choice(sorted(pools)) if piece == "{}" else ""
            for at, word in enumerate(str(rng.choice(pools[kind])).split() if kind else [piece]):
                words.append(word)
                tags.append(f"{'I' if at else 'B'}-{kind}" if kind else "O")
        rows.append({"tokens": words, "ner_tags": tags})
    write_jsonl(file, rows)
    return file


def recipe_of(folder: Path, base: Path | str, pools: Any, frames: tuple[str, ...], **sections: Any) -> Recipe:
    """A task of one type and one of two."""
    folder.mkdir(exist_ok=True)
    source = {
        "train": str(write_corpus(folder / "train.jsonl", pools, frames, 90, 1)),
        "evaluation": str(write_corpus(folder / "test.jsonl", pools, frames, 40, 2)),
    }
    tree = {
        "name": "words",
        "runs_dir": str(folder / "runs"),
        "model": {"base": str(base), "lora": {"rank": 4, "dropout": 0.0}, "device": "cpu"},
        "stream": {
            "from": source,
            "classes_per_task": [1, 2],
            "class_order": sorted(pools),
            "scenario": "class_incremental",
        },
        "method": SEQ,
        "training": {"epochs": 4, "batch_size": 8, "learning_rate": 1e-3},
        "evaluation": {"general": False, "bootstrap_samples": 100, "probing": {"probes": []}},
    }
    return make_recipe({**tree, **sections})


def predictions(run: Path, stage: int, task: int) -> list[dict[str, Any]]:
    (place,) = run.glob(f"stages/{stage:02d}-*/predictions/task-{task}")
    return list(read_jsonl(place / "predictions.jsonl"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_words_are_tagged_and_measured_and_tagged_alike_elsewhere(tmp_path: Path, architecture: str) -> None:
    base = save_tiny_model(tmp_path / "base", architecture)
    probing = {"general": False, "bootstrap_samples": 100, "probing": {"probes": ["linear", "cosine_prototype"]}}
    recipe = recipe_of(tmp_path, base, TINY, FRAMES, evaluation=probing)
    done = execute(recipe)
    run, matrix = done.folder, done.matrix
    assert read_mapping(run / "manifest.json")["template"] == "words"
    assert matrix["base"] == [None, None]
    (first, nothing), (last, same) = matrix["values"]  # type: ignore[misc, union-attr]
    assert nothing is None
    assert last == same == done.metrics["AR"]["value"]  # type: ignore[index]
    assert done.metrics["average_accuracy"]["value"] == pytest.approx((first + last) / 2)  # type: ignore[index]
    assert list(matrix["types"][1]) == ["COLOUR", "PET", "YES"]  # type: ignore[index, arg-type]
    assert first > 90  # the tokens of this base tell the types apart
    after_one = predictions(run, 1, 1)
    assert {tag for row in after_one for tag in row["prediction"].split()} <= {"O", "B-COLOUR", "I-COLOUR"}
    assert not list(run.glob("stages/01-*/predictions/task-2"))
    for row in predictions(run, 2, 2):
        assert len(row["prediction"].split()) == len(row["gold"].split()) == len(row["input"].split())
    probes = done.probing["probes"]["linear"]  # type: ignore[index, call-overload]
    assert probes["values"][1][0] == probes["values"][1][1]
    gap = done.metrics["probe_gap"]["value"]  # type: ignore[index]
    assert gap == pytest.approx(probes["values"][1][0] - last)
    shown = page(read_study(run))
    assert "macro F1" in shown
    assert re.search(r"Entities by type.*COLOUR.*PET.*YES.*02-task-2", shown, re.S)
    scores = evaluate(recipe, checkpoint=run / "model")["tasks"]
    assert scores == read_mapping(next(run.glob("stages/02-*/scores.json")))["tasks"]
    write_report(run)
    answer = asked_elsewhere(run, tmp_path / "elsewhere")
    for row in predictions(run, 2, 1)[:10]:
        assert " ".join(answer(row["input"].split())) == row["prediction"]


def test_a_real_model_learns_types_one_after_the_other(tmp_path: Path) -> None:
    method = {**SEQ, "warmup_epochs": 3}
    recipe = recipe_of(
        tmp_path, "embedded", REAL, ASKED, method=method, model={"tuning": "full", "device": "cpu", "dtype": "float32"}
    )
    done = execute(recipe)
    first, last = (row[0] for row in done.matrix["values"])  # type: ignore[union-attr]
    assert first > 80
    assert last > 50
    told = re.sub(r"<[^>]+>|\s+", " ", page(read_study(done.folder)))
    assert "on the entity types of all of them" in re.sub(" +", " ", told)
    plain = {"name": "seq", "preset": "seq_lin", "head_learning_rate": 0.05}
    plainly = execute(recipe.model_copy(update={"name": "plain", "method": make_recipe({"method": plain}).method}))
    assert plainly.matrix["types"][-1]["city"] < done.matrix["types"][-1]["city"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"method": "sequential"}, "method sequential answers in words of its own"),
        ({"method": {"name": "seq", "head": "linear"}}, "set warmup_target: classes"),
        (
            {"method": [SEQ, {"name": "experience_replay", "selection": "herding"}]},
            "selection: herding takes one state a row",
        ),
        ({"model": {"base": "embedded", "template": "alpaca"}}, "alpaca frames a question"),
    ],
)
def test_what_words_cannot_be_trained_with_is_refused(tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    from everlearn.runs.prepare import prepare

    with pytest.raises(RecipeError, match=said):
        prepare(recipe_of(tmp_path, "embedded", TINY, FRAMES, **sections), trains=True)


def heads_of(run: Path, stage: int) -> dict[str, torch.Tensor]:
    (file,) = run.glob(f"stages/{stage:02d}-*/training/heads/heads.safetensors")
    return load_file(file)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_words_are_trained_through_a_frozen_model_as_on_their_states(tmp_path: Path, architecture: str) -> None:
    base, found = save_tiny_model(tmp_path / "base", architecture), []
    for passes in (True, False):  # of a model without dropout
        recipe = recipe_of(
            tmp_path / str(passes),
            base,
            TINY,
            FRAMES,
            model={"base": str(base), "lora": {"dropout": 0.0}, "device": "cpu", "dtype": "float32"},
            method=[{**SEQ, "warmup_epochs": 0, "frozen_dropout": passes}, {"name": "der", "capacity": 9}],
            training={"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "precision": "float32"},
        )
        found.append(execute(recipe).folder)
    for stage in (1, 2):
        through, on_states = heads_of(found[0], stage), heads_of(found[1], stage)
        for name, weight in on_states.items():
            torch.testing.assert_close(through[name], weight, atol=2e-3, rtol=1e-2)
    assert [row["prediction"] for row in predictions(found[0], 2, 1)] == [
        row["prediction"] for row in predictions(found[1], 2, 1)
    ]


def test_a_killed_run_over_words_ends_as_one_that_was_not(tmp_path: Path, tiny_model: Path) -> None:
    method = [{**SEQ, "preset": "seq_lin"}, {"name": "der", "capacity": 9, "memory_batch": 4}]
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "checkpoint_every": 2}
    whole, killed = (
        recipe_of(tmp_path / name, tiny_model, TINY, FRAMES, method=method, training=training)
        for name in ("whole", "killed")
    )
    expected = execute(whole).folder
    with killed_at(20) as progress:  # within the second stage
        execute(killed, progress=progress)
    run = execute(killed).folder
    for name, weight in heads_of(expected, 2).items():
        assert torch.equal(heads_of(run, 2)[name], weight)
    assert predictions(run, 2, 2) == predictions(expected, 2, 2)


def test_a_run_over_words_takes_further_types(tmp_path: Path, tiny_model: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_model, TINY, FRAMES)
    shorter = recipe.stream.model_copy(update={"order": ["task-1"]})
    first = execute(recipe.model_copy(update={"stream": shorter})).folder
    trained = next(first.glob("stages/01-*/training/artifact.json")).stat().st_mtime_ns
    longer = recipe.stream.model_copy(update={"order": ["task-1", "task-2"]})
    done = execute(recipe.model_copy(update={"stream": longer}))
    assert done.folder == first
    assert next(first.glob("stages/01-*/training/artifact.json")).stat().st_mtime_ns == trained
    whole = recipe.model_copy(update={"name": "whole"})
    assert execute(whole).matrix["values"] == done.matrix["values"]


def test_a_stream_of_words_made_in_python_is_run_as_it_is(tmp_path: Path, tiny_model: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_model, TINY, FRAMES)
    stream = load_stream(recipe.stream, seed=recipe.seed)
    by_hand = run_api(recipe, stream=stream, name="by-hand")
    assert by_hand.matrix["values"] == execute(recipe).matrix["values"]


@pytest.mark.parametrize("preset", ["w_fixbc_lin", "seq_lin"])
def test_what_a_run_over_words_reads_and_trains_is_what_was_planned(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    from everlearn.models import features
    from everlearn.runs.plan import GENERAL, plan_run
    from everlearn.runs.prepare import prepare
    from tests.runs.test_plan import spent

    read: list[int] = []
    states = features.last_prompt_states

    def counted(loaded: Any, prompts: Any, *places: Any, **keys: Any) -> Any:
        read.append(sum(map(len, prompts)))
        return states(loaded, prompts, *places, **keys)

    monkeypatch.setattr(features, "last_prompt_states", counted)
    method = {"name": "seq", "preset": preset, "warmup_target": "classes"}
    recipe = recipe_of(tmp_path, tiny_model, TINY, FRAMES, method=method)
    parts = plan_run(prepare(recipe, trains=True), "seq").parts
    trained = spent(execute(recipe).folder)
    planned = {stage: [0, 0] for stage in trained}
    for part in parts:
        if part.stage in planned:
            planned[part.stage][0] += part.steps
            planned[part.stage][1] += part.trained_tokens
    assert {stage: tuple(sums) for stage, sums in planned.items()} == trained
    assert sum(part.read_tokens for part in parts if part.kind != GENERAL) == sum(read)
    assert not any(part.writings for part in parts)


def test_rows_of_words_are_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(tmp_path, "embedded", TINY, FRAMES)
    path = tmp_path / "recipe.yaml"
    import yaml

    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert main(["inspect", str(path), "--rows", "1"]) == 0
    shown = capsys.readouterr().out
    assert "class_incremental: 3 classes in 2 tasks" in shown
    assert "template words" in shown
    assert "B-COLOUR" in shown
