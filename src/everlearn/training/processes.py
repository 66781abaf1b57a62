"""One process or several: who computes which share of a batch, and how their gradients become one.

`accelerate launch` (or torchrun) starts the processes. A version update's every process takes an equal share of each
batch, so that the mean over processes is the mean over the batch; weights are whole copies
(DistributedDataParallel), or sharded with their optimizer state (FSDP2: `fully_shard`). The shares of a stage's batch
may differ in anything and may be empty: their gradients are exchanged once a step, after all its passes
(`mean_gradients`); those of sharded weights by each pass (`sharding.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from everlearn.crew import crew
from everlearn.errors import RecipeError, UserError

_BUCKET_BYTES = 1 << 25


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        device: Where it computes.
        rank: Its number; 0 writes the files.
        count: How many there are.
        shares_weights: Whether each has a part of the weights in training, so that all make the same passes.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    shares_weights: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.count > 1:
            torch.distributed.barrier()

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The block runs in the first process, then in the others."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over processes, in every one of them."""
        if self.count > 1:
            value = value.clone()
            torch.distributed.all_reduce(value)
            value /= self.count
        return value

    def least(self, value: int) -> int:
        """The least of the numbers that processes give."""
        if self.count > 1:
            number = torch.tensor(value)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MIN)
            value = int(number)
        return value

    def sums(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each tensor's sum over processes, in every one of them."""
        if self.count > 1:
            for tensor in tensors.values():
                torch.distributed.all_reduce(tensor)
        return tensors

    def mean_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Makes gradients the mean over processes, some megabytes at a time; what none has computed stays None.

        Those of sharded weights are means already.
        """
        if self.count == 1:
            return
        parameters = [weight for weight in parameters if not is_sharded(weight)]
        has = torch.tensor([weight.grad is not None for weight in parameters], dtype=torch.uint8)
        torch.distributed.all_reduce(has, torch.distributed.ReduceOp.MAX)
        moved = [weight for weight, was in zip(parameters, has.tolist(), strict=True) if was]
        for weight in moved:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        for bucket in _buckets([weight.grad for weight in moved if weight.grad is not None]):
            means = self.mean(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            for gradient, mean in zip(bucket, means.split([one.numel() for one in bucket]), strict=True):
                gradient.copy_(mean.view_as(gradient))

    def share(self, batch_blocks: int) -> slice:
        """This process's part of a batch.

        Raises:
            RecipeError: the batch cannot be divided evenly.
        """
        if batch_blocks % self.count:
            raise RecipeError(
                f"training.batch_blocks ({batch_blocks}) cannot be divided over {self.count} processes: choose a "
                f"multiple of {self.count}, or another number of processes."
            )
        size = batch_blocks // self.count
        return slice(self.rank * size, (self.rank + 1) * size)


def here(device: torch.device) -> Processes:
    """This process's place in work that all do together.

    Raises:
        UserError: more processes than GPUs.
    """
    there = torch.cuda.device_count() if device.type == "cuda" else 0
    if crew().count > 1 and there and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > there:
        raise UserError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes were started on a machine with {there} GPUs: start {there}, "
            "or set model.device to cpu."
        )
    return Processes(device, crew().rank, crew().count)


def spread(model: nn.Module, processes: Processes, sharding: Literal["none", "fsdp"]) -> nn.Module:
    """The module to call for the forward pass; its gradients are means over all processes.

    With `fsdp` the model itself is changed: its parameters become shards.
    """
    if processes.count == 1:
        return model
    if sharding == "none":
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for layer in repeated_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def without_exchange(module: nn.Module, *, only: bool = True) -> AbstractContextManager[object]:
    """A block whose backward pass accumulates (`only`): gradients are exchanged by another one."""
    if only and isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process has only a part of it."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def part_of(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that may be sharded: the same memory, without gradient."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def total(scalar: Tensor) -> Tensor:
    """A sum over the elements of a tensor that may be sharded, whole, with its gradient."""
    from torch.distributed.tensor import DTensor

    return scalar.full_tensor() if isinstance(scalar, DTensor) else scalar


def sums_over_parts(values: Tensor, of: Sequence[Tensor]) -> Tensor:
    """Makes sums whole, each over what this process has of a tensor that may be sharded: (tensors,)."""
    sharded = [is_sharded(tensor) for tensor in of]
    if not any(sharded):
        return values
    found = values.clone()
    torch.distributed.all_reduce(found)
    return torch.where(torch.tensor(sharded, device=values.device), found, values)


def beside(target: Tensor, source: Tensor) -> Tensor:
    """A whole tensor in the form of another one: its device, number format, and parts where it is sharded."""
    if not is_sharded(target):
        return source.to(target)
    found = torch.zeros_like(target, requires_grad=False)
    fill(found, source.to(target.dtype))
    return found


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shards, on the CPU, contiguous; every process must ask for it."""
    from torch.distributed.tensor import DTensor

    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu().contiguous()


def fill(target: Tensor, source: Tensor) -> None:
    """Copies a whole tensor into a tensor that may be sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    with torch.no_grad():
        if isinstance(target, DTensor):
            source = source.to(target.device_mesh.device_type)
            target.copy_(distribute_tensor(source, target.device_mesh, target.placements))
        else:
            target.copy_(source)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one number format, as many as are worth one exchange."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size >= _BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The modules of the longest list of layers: the transformer's blocks."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])
