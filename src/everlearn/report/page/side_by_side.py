"""Terminal tables of many columns: in as many blocks, one below the other, as the width asks for.

rich shrinks the columns of a table that is too wide until figures are cut (`9…`) or gone. Here no figure is ever
cut: heads and the names of rows fold first, then the table goes on in a further block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

GAP = 3  # the frame between two columns
FOLDED_HEAD = 12  # a head longer than that folds where one table is too narrow for all columns


@dataclass(frozen=True, slots=True)
class Column:
    """A head with its cells, one a row."""

    head: Text
    cells: Sequence[Text]


@dataclass(frozen=True, slots=True)
class SideBySide:
    """What rich prints: `names` of the rows under `head`, and the columns."""

    head: Text
    names: Sequence[Text]
    columns: Sequence[Column]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The blocks for the width at hand."""
        name = _width([self.head, *self.names])
        full = [max(_width(column.cells), _width([column.head])) for column in self.columns]
        least = [_width(column.cells) for column in self.columns]
        widths = full
        if name + _taken(full) > options.max_width:
            name = min(name, max(FOLDED_HEAD, options.max_width // 3))
            folded = [min(whole, max(figures, FOLDED_HEAD)) for whole, figures in zip(full, least, strict=True)]
            fits = (found for found in (full, folded, least) if name + _taken(found) <= options.max_width)
            widths = next(fits, folded)
        for block in _blocks(widths, options.max_width - name):
            yield self._table(name, block, widths)

    def _table(self, name: int, block: Sequence[int], widths: Sequence[int]) -> Table:
        table = plain_table()
        table.add_column(self.head, width=name, overflow="fold")
        for place in block:
            table.add_column(self.columns[place].head, justify="right", width=widths[place], overflow="fold")
        for row, words in enumerate(self.names):
            table.add_row(words, *(self.columns[place].cells[row] for place in block))
        return table


def plain_table() -> Table:
    """A table with a line under its head and no other frame."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """The columns' places, as many in a block as fit beside the names; at least one."""
    blocks: list[list[int]] = [[]]
    for place in range(len(widths)):
        if blocks[-1] and _taken([widths[other] for other in (*blocks[-1], place)]) > room:
            blocks.append([])
        blocks[-1].append(place)
    return blocks


def _taken(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * len(widths) + 2


def _width(texts: Sequence[Text]) -> int:
    return max((cell_len(line) for text in texts for line in text.plain.split("\n")), default=0)
