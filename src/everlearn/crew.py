"""Several processes: the first one walks, all of them work.

`accelerate launch` (or torchrun) starts the same command in every process. The first one does what it does alone:
it reads, refuses, locks, stores, shows. Every other one serves (`Crew.serve`): it waits for an order and does the
named work together with the others. So nothing but that work ever meets another process, and no method asks for a
rank. An order is made of plain data, paths and functions known by name, and goes through the launch's own connections.

A fault in the walk ends the others quietly. A fault of one process in the midst of work closes its connections, which
ends the work of all; whoever failed says why, and where all fail alike, only the first does.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from everlearn.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

Order = TypeVar("Order")
Result = TypeVar("Result")

_PATIENCE = timedelta(
    hours=1
)  # of one exchange: in it, processes differ by the time of a step or of a model's loading
_LOOK = timedelta(seconds=10)
_SAID = timedelta(seconds=3)
_TOLD = "told"


class Broken(UserError):
    """Another process has ended in the midst of common work."""


class Crew:
    """The processes of a launch; alone, where there is only this one.

    Attributes:
        rank: Of this process.
        count: Of all.
        is_broken: Whether common work has failed, after which nothing can be exchanged any more.
    """

    def __init__(self, rank: int = 0, count: int = 1, store: Store | None = None) -> None:
        self.rank, self.count, self._store = rank, count, store
        self._orders = 0
        self.is_broken = False

    @property
    def is_first(self) -> bool:
        """Whether this process walks."""
        return self.rank == 0

    def together(self, work: Callable[[Order, Any], Result], order: Order, own: object = None) -> Result:
        """Does a piece of work in all processes; called by the first one.

        Args:
            work: A function of a module, which every process finds by its name.
            order: What it is about, the same for all.
            own: What only the first process has, such as a model in memory; the others are given None.

        Returns:
            The result of the first process.

        Raises:
            Broken: another process has ended.
        """
        if self.count == 1:
            return work(order, own)
        with self._told_if_broken():
            self._send((work, order))
            return work(order, own)

    def share(self, work: Sequence[Order], do: Callable[[Order], Result]) -> list[Result]:
        """Does pieces of work, each in one process, and gives what all have made, in order, in every process.

        Only within work that is done together. The pieces are those that one process alone would do, so that results
        are the same.
        """
        made = [do(piece) for piece in work[self.rank :: self.count]]
        found: list[Result] = [*work]  # type: ignore[list-item]
        for rank, theirs in enumerate(self.gather(made)):
            found[rank :: self.count] = theirs
        return found

    def gather(self, value: Result) -> list[Result]:
        """The values of all processes, in each of them; only within work that is done together."""
        if self.count == 1:
            return [value]
        import torch

        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def serve(self) -> int:
        """Does what the first process orders until it ends; returns the exit code.

        Raises:
            BaseException: what has gone wrong in this process alone.
        """
        try:
            while (order := self._receive()) is not None:
                work, about = order
                work(about, None)
        except BaseException as error:
            self.is_broken = True
            if isinstance(error, KeyboardInterrupt) or is_of_the_connection(error) or self._is_told():
                return 1  # the first process says why, or whoever has ended
            raise
        _disconnect()
        return 0

    def _is_told(self) -> bool:
        """Whether the same has gone wrong in the first process, which says so."""
        import torch

        assert self._store is not None, "a crew of several has a store"
        try:
            self._store.wait([_TOLD], _SAID)
        except torch.distributed.DistStoreError:
            return False
        except RuntimeError:  # it has told and taken the store along
            return True
        return True

    def end(self) -> None:
        """Lets the others go; called by the first process."""
        if self.count > 1 and not self.is_broken:
            with suppress(RuntimeError):
                self._send(None)
                _disconnect()

    def _send(self, order: tuple[Callable[[Order, Any], object], Order] | None) -> None:
        import torch

        assert self._store is not None, "a crew of several has a store"
        self._store.set(f"order {self._orders}", "")
        self._orders += 1
        torch.distributed.broadcast_object_list([order], src=0, device=torch.device("cpu"))

    def _receive(self) -> tuple[Callable[[Any, Any], object], Any] | None:
        """The next order; waiting for it has no limit, since the first process may compute for hours."""
        import torch

        assert self._store is not None, "a crew of several has a store"
        while not self._store.check([f"order {self._orders}"]):
            with suppress(torch.distributed.DistStoreError):
                self._store.wait([f"order {self._orders}"], _LOOK)
        self._orders += 1
        order: list[Any] = [None]
        torch.distributed.broadcast_object_list(order, src=0, device=torch.device("cpu"))
        return order[0]

    @contextmanager
    def _told_if_broken(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.is_broken = True
            assert self._store is not None, "a crew of several has a store"
            if not is_of_the_connection(error):
                with suppress(RuntimeError):
                    self._store.set(_TOLD, "")
                raise
            raise Broken(
                f"another of the {self.count} processes has ended in the midst of common work: it said why, or was "
                "killed (memory?). Finished steps are kept; the same command goes on."
            ) from error


def _disconnect() -> None:
    import torch

    torch.distributed.destroy_process_group()


_crew = Crew()


def crew() -> Crew:
    """The processes that this one works with.

    Raises:
        UserError: several were started, and each would walk.
    """
    if _crew.count == 1 and is_launched():
        raise UserError(
            "several processes work together by the command alone: give 'accelerate launch -m everlearn run RECIPE', "
            "or start one process."
        )
    return _crew


def is_connected() -> bool:
    """Whether this process has, or had, connections to others, whose threads can abort an interpreter as it ends."""
    return _crew.count > 1


def is_launched() -> bool:
    """Whether this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first() -> bool:
    """Whether this is the process that walks, shows and writes."""
    return os.environ.get("RANK", "0") == "0"


def join(arguments: Sequence[str]) -> Crew:
    """Makes the connections between the processes of a launch.

    Args:
        arguments: Of the command, which must be the same for all.

    Raises:
        UserError: the processes were not started by one launch, or with different arguments.
    """
    global _crew
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each lost connection is a page of addresses
    import torch
    from torch.distributed.rendezvous import rendezvous

    missing = [key for key in ("RANK", "MASTER_ADDR", "MASTER_PORT") if key not in os.environ]
    if missing:
        raise UserError(
            f"WORLD_SIZE is set to {os.environ['WORLD_SIZE']}, and {', '.join(missing)} is not: start several "
            "processes by 'accelerate launch' or torchrun, or unset WORLD_SIZE."
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    store, rank, count = next(rendezvous("env://", timeout=_PATIENCE))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE)
    store.set(f"arguments {rank}", json.dumps(list(arguments)))
    _crew = Crew(rank, count, store)
    if rank:
        return _crew
    given = [json.loads(store.get(f"arguments {other}")) for other in range(count)]
    for other, theirs in enumerate(given):
        if theirs != given[0]:
            raise UserError(
                f"process {other} of the launch was started with {' '.join(theirs)}, and the first one with "
                f"{' '.join(given[0])}: start all of them by one command."
            )
    return _crew


def is_of_the_connection(error: BaseException) -> bool:
    """Whether this is how the end of another process shows."""
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return False
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error) or "Connection" in str(error)
