"""Outputs kept by row: read by number whatever the file, whole after a kill, and never all at once."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from everlearn.training import row_outputs
from everlearn.training.row_outputs import RowOutputs, write_row_outputs

LENGTHS = (3, 0, 5, 1, 2)
CPU = torch.device("cpu")


def outputs_from(first: int) -> Iterator[dict[str, Tensor]]:
    for number in range(first, len(LENGTHS)):
        states = torch.randn(LENGTHS[number], 4, generator=torch.Generator().manual_seed(number))
        yield {"states": states.bfloat16(), "tokens": torch.arange(LENGTHS[number])}


@pytest.mark.parametrize("file_bytes", [1, 40, 1 << 20])
def test_each_row_is_read_by_its_number_however_many_files_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    monkeypatch.setattr(row_outputs, "FILE_BYTES", file_bytes)
    write_row_outputs(tmp_path, outputs_from)
    kept = pickle.loads(pickle.dumps(RowOutputs(tmp_path)))  # noqa: S301
    assert len(kept) == len(LENGTHS)
    for found, made in zip(kept, outputs_from(0), strict=True):
        assert found.keys() == made.keys()
        assert all(torch.equal(found[name], made[name]) and found[name].dtype == made[name].dtype for name in made)
    joined = kept.of([4, 1, 0], CPU)["states"]
    rows = list(outputs_from(0))
    assert torch.equal(joined, torch.cat([rows[at]["states"] for at in (4, 1, 0)]))
    with pytest.raises(IndexError):
        kept[len(LENGTHS)]


def test_after_a_kill_only_the_rows_without_a_whole_file_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_outputs, "FILE_BYTES", 1)

    def killed(first: int) -> Iterator[dict[str, Tensor]]:
        for number, row in enumerate(outputs_from(first), first):
            if number == 3:
                raise KeyboardInterrupt
            yield row

    with pytest.raises(KeyboardInterrupt):
        write_row_outputs(tmp_path, killed)
    begun: list[int] = []

    def rest(first: int) -> Iterator[dict[str, Tensor]]:
        begun.append(first)
        yield from outputs_from(first)

    write_row_outputs(tmp_path, rest)
    assert begun == [3]
    assert [len(row["tokens"]) for row in RowOutputs(tmp_path)] == list(LENGTHS)
