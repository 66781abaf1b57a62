"""Checkpoints within a stage, written and taken back without a trainer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everlearn.training.partial import Partial, delete_partials, load_partial, save_partial


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """A model after one step, its second layer frozen."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    model[1].requires_grad_(False)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    return model, optimizer, scheduler


def at(step: int) -> Partial:
    return Partial(step, 1.5 * step, [{"step": float(step), "loss": 0.5}], 1024)


def test_a_checkpoint_gives_back_all_that_it_was_given(tmp_path: Path) -> None:
    model, optimizer, scheduler = trained()
    save_partial(tmp_path, "key", at(3), model, optimizer, scheduler)
    (folder,) = tmp_path.iterdir()
    assert set(load_file(folder / "weights.safetensors")) == {"0.weight", "0.bias"}
    fresh = trained()
    with torch.no_grad():
        fresh[0][0].weight.zero_()
    fresh[1].state.clear()
    assert load_partial(tmp_path, "key", *fresh) == at(3)
    assert torch.equal(fresh[0][0].weight, model[0].weight)
    assert torch.equal(*(one.state_dict()["state"][0]["exp_avg_sq"] for one in (optimizer, fresh[1])))
    assert (fresh[1].param_groups[0]["lr"], fresh[2].last_epoch) == (optimizer.param_groups[0]["lr"], 1)


def test_the_newest_of_two_checkpoints_is_taken_back(tmp_path: Path) -> None:
    for step in (9, 10):
        save_partial(tmp_path / str(step), "key", at(step), *trained())
        shutil.copytree(tmp_path / str(step), tmp_path / "both", dirs_exist_ok=True)
    assert load_partial(tmp_path / "both", "key", *trained()) == at(10)


def test_a_checkpoint_takes_the_place_of_the_one_before_it(tmp_path: Path) -> None:
    for step in (9, 10):
        save_partial(tmp_path, "key", at(step), *trained())
    assert [path.name for path in tmp_path.iterdir()] == ["partial-00000010"]
    assert load_partial(tmp_path, "another key", *trained()) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "one bit", "one figure", "gone"])
def test_a_damaged_checkpoint_is_as_good_as_none(tmp_path: Path, name: str, damage: str) -> None:
    save_partial(tmp_path, "key", at(3), *trained())
    path = tmp_path / "partial-00000003" / name
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    made = {"empty": b"", "cut": content[: len(content) // 2], "one bit": flipped}
    made["one figure"] = content.replace(b"0.5", b"0.6") if name == "state.json" else content[::-1]
    path.write_bytes(made.get(damage, b""))
    if damage == "gone":
        path.unlink()
    fresh = trained()
    assert load_partial(tmp_path, "key", *fresh) is None
    assert torch.equal(fresh[0][0].weight, trained()[0][0].weight)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_write_left_is_no_hindrance_and_goes_with_the_rest(tmp_path: Path) -> None:
    for step in (3, 6):
        half = tmp_path / f".partial-{step:08d}"
        half.mkdir()
        (half / "weights.safetensors").write_bytes(b"half")
    save_partial(tmp_path, "key", at(3), *trained())
    assert load_partial(tmp_path, "key", *trained()) == at(3)
    delete_partials(tmp_path)
    assert not list(tmp_path.iterdir())
