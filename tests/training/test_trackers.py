"""Trackers are fed while training (their refusal: `test_stage.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_tensorboard_gets_the_losses_of_a_stage(tmp_path: Path, tiny_model: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from everlearn.data.instance import Instance
    from everlearn.data.prompts import get_template
    from everlearn.files import read_jsonl
    from everlearn.models.loading import load_model
    from everlearn.progress import LineProgress
    from everlearn.recipe import ModelConfig, TrainingConfig
    from everlearn.training.stage import train_stage

    loaded = load_model(ModelConfig(base=str(tiny_model), tuning="full"), trainable=True)
    rows = [Instance("Say it.", f"thing {i}", "yes", "a") for i in range(20)]
    train_stage(
        loaded,
        rows,
        TrainingConfig(epochs=1, batch_size=2, report_to=["tensorboard"]),
        get_template("vanilla", loaded.tokenizer),
        seed=0,
        folder=tmp_path,
        progress=LineProgress(),
        what="training a",
    )
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events.parent)).Reload()
    (last,) = read.Scalars("train/loss")
    assert last.step == 10
    assert last.value == pytest.approx(list(read_jsonl(tmp_path / "history.jsonl"))[-1]["loss"], rel=1e-4)
