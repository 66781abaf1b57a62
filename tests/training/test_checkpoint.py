"""Checkpoints within a stage, written and taken back without a trainer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everlearn.training.checkpoint import (
    FORM,
    delete_partials,
    keep_one_partial,
    load_moments,
    load_tensors,
    moments_of,
    moving_tensors,
    newest_partial,
    partial_folder,
    save_state,
)
from everlearn.training.processes import Processes

ALONE = Processes(torch.device("cpu"))
Trained = tuple[torch.nn.Module, torch.optim.Optimizer]


def trained() -> Trained:
    """A model after one step, its second layer frozen."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    model[1].requires_grad_(False)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def save_partial(folder: Path, step: int, one: Trained) -> None:
    record = {"key": "key", "form": FORM, "step": step, "history": [{"step": step, "loss": 0.5}]}
    moments = moments_of(one[0], [one[1]])
    save_state(partial_folder(folder, step), moving_tensors(one[0]), record, ALONE, moments=moments)
    keep_one_partial(folder, step)


def load_partial(folder: Path, key: str, one: Trained) -> int | None:
    """Steps of the checkpoint that was taken back."""
    found = newest_partial(folder, key, FORM)
    if found is None:
        return None
    path, record = found
    load_tensors(path / "model.safetensors", moving_tensors(one[0]))
    load_moments(path, one[0], [one[1]])
    return int(record["step"])


def test_a_checkpoint_gives_back_all_that_it_was_given(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_partial(tmp_path, 3, (model, optimizer))
    (folder,) = tmp_path.iterdir()
    assert set(load_file(folder / "model.safetensors")) == {"0.weight", "0.bias"}
    fresh = trained()
    with torch.no_grad():
        fresh[0][0].weight.zero_()
    fresh[1].state.clear()
    assert load_partial(tmp_path, "key", fresh) == 3
    assert torch.equal(fresh[0][0].weight, model[0].weight)
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(*(one.state_dict()["state"][0][name] for one in (optimizer, fresh[1])))


def test_the_newest_of_two_checkpoints_is_taken_back(tmp_path: Path) -> None:
    for step in (9, 10):
        save_partial(tmp_path / str(step), step, trained())
        shutil.copytree(tmp_path / str(step), tmp_path / "both", dirs_exist_ok=True)
    assert load_partial(tmp_path / "both", "key", trained()) == 10


def test_a_checkpoint_takes_the_place_of_the_one_before_it(tmp_path: Path) -> None:
    for step in (9, 10):
        save_partial(tmp_path, step, trained())
    assert [path.name for path in tmp_path.iterdir()] == ["partial-00000010"]
    assert load_partial(tmp_path, "another key", trained()) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "one bit", "one figure", "gone"])
def test_a_damaged_checkpoint_is_as_good_as_none(tmp_path: Path, name: str, damage: str) -> None:
    save_partial(tmp_path, 3, trained())
    path = tmp_path / "partial-00000003" / name
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    made = {"empty": b"", "cut": content[: len(content) // 2], "one bit": flipped}
    made["one figure"] = content.replace(b"0.5", b"0.6") if name == "state.json" else content[::-1]
    path.write_bytes(made.get(damage, b""))
    if damage == "gone":
        path.unlink()
    fresh = trained()
    assert load_partial(tmp_path, "key", fresh) is None
    assert torch.equal(fresh[0][0].weight, trained()[0][0].weight)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_form_is_not_read(tmp_path: Path) -> None:
    save_partial(tmp_path, 3, trained())
    assert newest_partial(tmp_path, "key", FORM + 1) is None
    assert not list(tmp_path.iterdir())


def test_what_a_killed_write_left_is_no_hindrance_and_goes_with_the_rest(tmp_path: Path) -> None:
    for step in (3, 6):
        half = tmp_path / f".partial-{step:08d}"
        half.mkdir()
        (half / "model.safetensors").write_bytes(b"half")
    save_partial(tmp_path, 3, trained())
    assert load_partial(tmp_path, "key", trained()) == 3
    delete_partials(tmp_path)
    assert not list(tmp_path.iterdir())
