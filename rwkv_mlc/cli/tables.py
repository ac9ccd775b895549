"""Facts and tables on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable

WIDE = 1000  # columns where stdout is no terminal: no row is cut


def console():
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, markup=False, highlight=False)


def pairs(facts: Iterable[tuple[str, str]]):
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(overflow="fold")
    for key, value in facts:
        grid.add_row(f"  {key}", value)
    return grid


def table(first: str, *others: str, justify: str = "right"):
    """A table whose first column folds; the others are numbers unless ``justify`` says otherwise."""
    from rich import box
    from rich.table import Table

    rows = Table(box=box.SIMPLE, padding=(0, 0, 0, 1))
    rows.add_column(first, overflow="fold")
    for name in others:
        rows.add_column(name, justify=justify, no_wrap=justify == "right", overflow="fold")
    return rows
