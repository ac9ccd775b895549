"""Facts and tables on a terminal, of which nothing is cut off at any width."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as RichTable

WIDE = 1000  # columns where stdout is no terminal


def console() -> Console:
    from rich.console import Console

    class Pipe(Console):
        def on_broken_pipe(self) -> None:
            """As everywhere: where nobody reads any more the command line ends, and not as if something had failed."""
            raise BrokenPipeError

    return Pipe(width=None if sys.stdout.isatty() else WIDE, markup=False, highlight=False)


def pairs(facts: Iterable[tuple[str, str]]) -> RichTable:
    """Keys, which are short, and values, which go on below each other."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in facts:
        grid.add_row(f"  {key}", value)
    return grid


class Table:
    """Rows below heads: a name, and numbers or, to the ``left``, words, which may go on below each other. Where the columns do
    not fit side by side, each row is its name with the others after it, by their heads."""

    def __init__(self, *heads: str, title: str = "", justify: Literal["left", "right"] = "right"):
        self.heads, self.title, self.justify = heads, title, justify
        self.rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        self.rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.measure import Measurement

        if self.title:
            yield self.title
        table = self._table()
        if Measurement.get(console, options.update(max_width=WIDE), table).minimum <= options.max_width:
            yield table
            return
        yield ""
        for row in self.rows:
            yield from self._paragraph(row, options.max_width)
        yield ""

    def _table(self) -> RichTable:
        from rich import box
        from rich.cells import cell_len
        from rich.table import Table

        table = Table(box=box.SIMPLE, padding=(0, 0, 0, 1))
        for i, (head, *cells) in enumerate(zip(self.heads, *self.rows)):
            if i == 0 or self.justify == "right":
                width = max(map(cell_len, (head, *cells)))
                table.add_column(head, justify=self.justify if i else "left", no_wrap=True, min_width=width)
            else:
                table.add_column(head, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def _paragraph(self, row: tuple[str, ...], width: int) -> Iterator[RenderableType]:
        """A row whose cells stay together with their heads as long as they fit."""
        from rich.text import Text

        named = [f"{head} {cell}".strip() for head, cell in zip(self.heads[1:], row[1:]) if cell]
        lines, indent = [row[0].lstrip()], " " * 4
        for place, cell in enumerate(named):
            text = cell + "," * (place < len(named) - 1)
            if place and len(lines[-1]) + 1 + len(text) <= width:
                lines[-1] += f" {text}"
            else:
                lines.append(indent + text)
        for line in lines:
            yield Text(line, overflow="fold")


def size(nbytes: float) -> str:
    """Bytes in the unit that says most."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.2f} {unit}"
    return f"{nbytes:.0f} bytes"
