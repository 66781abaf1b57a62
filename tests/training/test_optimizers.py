"""AdamW with moments of eight bits: tried before a run, taken back exactly, and counted in the memory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from everlearn.errors import MissingExtraError, ModelError
from everlearn.training.checkpoint import load_moments, moments_of, save_moments
from everlearn.training.optimizers import check_optimizer, make_adamw
from everlearn.training.processes import Processes

CPU = torch.device("cpu")
KIND = "adamw_8bit"


def stepped(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[torch.Tensor]:
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        model(torch.randn(3, 96, generator=draw)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [weight.detach().clone() for weight in model.parameters()]


def made() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Two matrices that are large enough for eight bits, two vectors that are not."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.Linear(64, 96))
    return model, make_adamw(model, rate=1e-2, weight_decay=0.1, optimizer=KIND)


def test_moments_of_eight_bits_are_taken_back_exactly(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model, optimizer = made()
    stepped(model, optimizer, range(3))
    moments = moments_of(model, [optimizer])
    assert moments["0.weight.state1"].dtype == torch.uint8
    assert moments["0.bias.state1"].dtype == torch.float32
    save_moments(tmp_path / "optimizer.safetensors", model, [optimizer], Processes(CPU))
    other, fresh = made()
    other.load_state_dict(model.state_dict())
    load_moments(tmp_path, other, [fresh])
    for a, b in zip(stepped(model, optimizer, range(3, 6)), stepped(other, fresh, range(3, 6)), strict=True):
        assert torch.equal(a, b)
    again, without = made()
    again.load_state_dict(other.state_dict())
    assert not torch.equal(stepped(again, without, range(6, 7))[0], stepped(other, fresh, range(6, 7))[0])


def test_it_goes_where_adamw_goes() -> None:
    pytest.importorskip("bitsandbytes")
    model, optimizer = made()
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(96, 64), torch.nn.Linear(64, 96))
    start = plain[0].weight.detach().clone()
    ours = stepped(model, optimizer, range(5))
    theirs = stepped(plain, make_adamw(plain, rate=1e-2, weight_decay=0.1), range(5))
    moves = [(after[0] - start).flatten() for after in (ours, theirs)]
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.9


def test_a_missing_package_and_a_device_without_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_optimizer("adamw", CPU)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"^training\.optimizer: adamw_8bit needs .*everlearn\[gpu\]"):
        check_optimizer(KIND, CPU)

    class NoKernel(torch.optim.SGD):
        def __init__(self, groups: object, lr: float, betas: object) -> None:
            super().__init__(groups, lr)  # type: ignore[arg-type]

        def step(self, closure: object = None) -> None:
            raise NotImplementedError("no such kernel for this device")

    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(optim=SimpleNamespace(AdamW8bit=NoKernel)))
    with pytest.raises(ModelError, match=r"cannot compute on cpu \(no such .*\): set training\.optimizer to adamw"):
        check_optimizer(KIND, CPU)
