"""A table as text, and what plans of either kind say of the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everlearn.report.sections.provenance import size
from everlearn.room import free_on_disk


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """Columns aligned: the first `words` to the left, the others to the right."""
    widths = [max(len(str(row[at])) for row in [heads, *rows]) for at in range(len(heads))]
    lines = []
    for row in [heads, *rows]:
        cells = [
            str(cell).ljust(width) if at < words else str(cell).rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def disk_line(folder: Path, needed: int, what: str) -> str:
    """What is kept, in bytes at least, and what is free."""
    return f"Disk: at least {size(needed)}, {what}; {size(free_on_disk(folder))} are free in {folder}."
