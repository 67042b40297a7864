"""The results in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from semisparse.report.results import Row

COLUMNS = (
    "engine",
    "sparsity",
    "test accuracy",
    "latency, ms",
    "speedup over stock dense",
    "limit 1/(1-s)",
)


def cells(row: Row) -> tuple[str, ...]:
    """The row's values as text, in the order of `COLUMNS`."""
    return (
        row.engine,
        f"{row.sparsity:.1f}",
        f"{100 * row.accuracy:.1f}%",
        f"{row.latency:.2f}",
        f"{row.speedup:.2f}x",
        f"{row.limit:.2f}x",
    )


def table(rows: Sequence[Row]) -> Table:
    """A rich table of the rows."""
    result = Table()
    for index, name in enumerate(COLUMNS):
        result.add_column(name, justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        result.add_row(*cells(row))
    return result
