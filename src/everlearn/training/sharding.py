"""Weights taken apart over processes (FSDP2) while a stage is trained.

Each repeated layer of a model, and what stands around the layers, is stored in parts, one a process, and put together
only while it computes. What the output head computes with stays whole, since the loss reads it block by block
(`losses.py`), and so do adapters, which are small: with them only frozen weights are taken apart, and whatever a
method does to the moving ones is as it is without. Under full tuning the moving weights, their gradients and the
optimizer's moments are parts (`DTensor`).

A layer is put together by all processes at once, so all must make the same passes in the same order, whatever rows
they have. Before a pass each says what it would do next; who would do less makes an empty pass of the kind that
others need (`Lockstep`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import TypeVar

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from everlearn.training.processes import Processes, repeated_layers

Part = TypeVar("Part")


class Pass(IntEnum):
    """What a process would do next; all do the least of these."""

    AGAIN = 0
    BACKWARD = 1
    PART = 2
    DONE = 3


class Lockstep:
    """Keeps the passes of processes that share weights in one order.

    Args:
        processes: This process among all.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def before(self, wanted: Pass) -> Iterator[Pass]:
        """Passes of other kinds that others need before all do what is wanted here."""
        while (next_pass := Pass(self._processes.least(int(wanted)))) < wanted:
            yield next_pass

    def parts(self, own: Iterable[Part], spare: Callable[[], Part]) -> Iterator[tuple[Part, bool]]:
        """The parts of a step and whether each counts: as many in every process."""
        for part in own:
            for _ in self.before(Pass.PART):
                raise AssertionError("nobody is amid a part here")
            yield part, True
        for _ in self.before(Pass.DONE):
            yield spare(), False


def take_apart(model: PreTrainedModel | PeftModel, processes: Processes) -> None:
    """Leaves this process its parts of a model's weights, in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    decoder = inner.get_decoder()
    whole = {*inner.get_output_embeddings().parameters(), *_of_parts(model)}
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for module in (*repeated_layers(decoder), decoder):
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)


def _of_parts(model: PreTrainedModel | PeftModel) -> Iterator[nn.Parameter]:
    """What moves beside frozen weights, adapters that are carried along, and what a soft prompt stands before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, PeftModel):
        return
    yield from (weight for weight in model.parameters() if weight.requires_grad)
    if any(settings.is_prompt_learning for settings in model.peft_config.values()):
        yield from model.get_base_model().get_input_embeddings().parameters()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for name in module.adapter_layer_names:
                yield from getattr(module, name).parameters()
