"""Outputs of a model kept by row: hidden states, bands, logits of a teacher that need not compute them again.

A folder of safetensors files, each with the outputs of many rows one after the other along the first axis and where
each row's begin (`starts`). Rows are read by their number through a memory map, so what is read is what is asked for,
whatever the size of the folder. A file is written whole or not at all, and rows whose file stands are not made again.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.files import unfinished, write_error

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FILE_BYTES = 1 << 28
"""Size from which a file is closed: what is held in memory while writing."""
_STARTS = "starts"

Outputs = Mapping[str, "Tensor"]
"""Of one row: tensors by name, all of the same length along the first axis."""


def write_row_outputs(folder: Path, outputs_from: Callable[[int], Iterable[Outputs]]) -> None:
    """Writes the outputs of rows in their order.

    Args:
        folder: Exists; rows whose files stand in it already are kept.
        outputs_from: Number of the first row that is missing, to the outputs of that row and all after it, with the
            same names and number formats each.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    done = len(RowOutputs(folder))
    waiting: list[Outputs] = []
    held = 0
    for row in outputs_from(done):
        assert len({len(values) for values in row.values()}) == 1, "a row's outputs are of the same length"
        waiting.append(row)
        held += sum(values.numel() * values.element_size() for values in row.values())
        if held >= FILE_BYTES:
            _write(folder, done, waiting)
            done, waiting, held = done + len(waiting), [], 0
    if waiting:
        _write(folder, done, waiting)


def _write(folder: Path, first: int, rows: Sequence[Outputs]) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = folder / f"rows-{first:08d}.safetensors"
    lengths = [len(next(iter(row.values()))) for row in rows]
    tensors = {name: torch.cat([row[name] for row in rows]).contiguous().cpu() for name in rows[0]}
    tensors[_STARTS] = torch.tensor([0, *lengths]).cumsum(0)
    partial = unfinished(path)
    try:
        save_file(tensors, partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error) from None
    finally:
        partial.unlink(missing_ok=True)


class RowOutputs:
    """Reads outputs by row number. Travels to other processes as the name of its folder.

    Args:
        folder: As `write_row_outputs` has left it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[type[RowOutputs], tuple[Path]]:
        return type(self), (self.folder,)

    def __len__(self) -> int:
        return self._files[-1].end if self._files else 0

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """The outputs of one row, on the CPU."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._files[bisect_right(self._firsts, number) - 1][number]

    def length(self, number: int) -> int:
        """Of the outputs of a row, which are not read."""
        file = self._files[bisect_right(self._firsts, number) - 1]
        return file.length(number)

    def of(self, numbers: Iterable[int], device: torch.device) -> dict[str, Tensor]:
        """The outputs of rows one after the other, on a device."""
        import torch

        rows = [self[number] for number in numbers]
        assert rows, "at least one row is asked for"
        return {name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[number] for number in range(len(self)))

    @cached_property
    def _files(self) -> list[_File]:
        return [_File(path) for path in sorted(self.folder.glob("rows-*.safetensors"))]

    @cached_property
    def _firsts(self) -> list[int]:
        return [file.first for file in self._files]


class _File:
    """One file of a folder, mapped."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self.first = int(path.stem.removeprefix("rows-"))
        self._open: Any = safe_open(path, framework="pt")
        self._starts: list[int] = self._open.get_tensor(_STARTS).tolist()
        self._values = {name: self._open.get_tensor(name) for name in self._open.keys() if name != _STARTS}  # noqa: SIM118
        self.end = self.first + len(self._starts) - 1

    def length(self, number: int) -> int:
        at = number - self.first
        return self._starts[at + 1] - self._starts[at]

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        at = number - self.first
        return {name: values[self._starts[at] : self._starts[at + 1]] for name, values in self._values.items()}
