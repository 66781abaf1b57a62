"""Pieces within a step: a long one is divided into files, so that a killed one goes on where it stood."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from everlearn.files import read_jsonl, write_jsonl

Item = TypeVar("Item")
Row = dict[str, object]


def in_chunks(
    folder: Path,
    name: str,
    chunks: Sequence[Sequence[Item]],
    produce: Callable[[int, Sequence[Item]], Iterable[Mapping[str, object]]],
) -> list[Row]:
    """Writes the rows of each chunk to `name-000.jsonl` and so on, then all to `name.jsonl`.

    Chunks whose file already stands are not produced again; the small files go once the large one stands.

    Args:
        folder: Of the step.
        name: Stem of the files.
        chunks: What to produce rows from.
        produce: Makes the rows of the chunk with that number.

    Returns:
        All rows in order.
    """
    whole = folder / f"{name}.jsonl"
    parts = [folder / f"{name}-{number:03d}.jsonl" for number in range(len(chunks))]
    if not whole.exists():
        for number, (part, items) in enumerate(zip(parts, chunks, strict=True)):
            if not part.exists():
                write_jsonl(part, list(produce(number, items)))  # whose errors are no errors of this file
        write_jsonl(whole, (row for part in parts for row in read_jsonl(part)))
    for part in parts:
        part.unlink(missing_ok=True)
    return list(read_jsonl(whole))


def evenly(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Consecutive chunks of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]
