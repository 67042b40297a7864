"""What commands print tables to, and the bar of those that time something."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from semisparse.bench.tables import Table

_FILE_WIDTH = 200  # columns


def still_bar(console: Console) -> Any:
    """A bar for `bench.harness.run` that uses no CPU while something is timed."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    class Bar(RichProgress):
        """Draws itself only between samples: its thread would disturb what is timed."""

        def __init__(self) -> None:
            super().__init__(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                auto_refresh=False,
                transient=True,
            )
            self._drawn = 0.0

        def stage(self, what: str) -> None:
            for task in self.task_ids:
                self.remove_task(task)
            self.add_task(what, total=None)
            self.refresh()

        def sampled(self, done: int, total: int) -> None:
            self.update(self.task_ids[-1], completed=done, total=total)
            if done == total or time.monotonic() - self._drawn > 0.5:
                self.refresh()
                self._drawn = time.monotonic()

    return Bar()


def tables_console(*, stderr: bool = False) -> Console:
    """A console that tables fit on also where neither a terminal nor COLUMNS tells its width."""
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _FILE_WIDTH
    return console


def print_table(console: Console, table: Table) -> None:
    """Draw a table of figures with its title and notes."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Drawn

    drawn = Drawn(title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for place, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*row)
    console.print(drawn)
    for note in table.notes:
        console.print(note, highlight=False, markup=False)
