"""What is being done, on stderr: beside a bar or a spinner on a terminal, and a line each where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..escaping import escaped


@contextmanager
def steps() -> Iterator[Callable[[int, int, str], None]]:
    """The function is told which step begins, from 1, of how many, and what it is."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda number, total, what: _line(f"[{number}/{total}] {what}")
        return
    columns = (
        TextColumn("{task.fields[place]}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, place="")

        def begin(number: int, total: int, what: str) -> None:
            place = f"[{number}/{total}]"
            bar.update(task, place=place, completed=number - 1, total=total, description=escaped(what))

        yield begin


@contextmanager
def spinner() -> Iterator[Callable[[str], None]]:
    """The function is told what begins."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line
        return
    with console.status("") as status:
        yield lambda what: status.update(escape(escaped(what)))


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """The function is told how much of so many is done."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        begun = False

        def begin(done: int, total: int) -> None:
            nonlocal begun
            if not begun:
                _line(f"{what}, {total} steps")
            begun = True

        yield begin
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _line(text: str) -> None:
    print(escaped(text), file=sys.stderr, flush=True)
