"""The HTML page: one file that refers to nothing outside itself."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from semisparse.files import writing
from semisparse.report import charts, table
from semisparse.report.results import Report


def render(report: Report, path: Path) -> None:
    """Write the report to `path`, whole or not at all."""
    source = resources.files(__package__).joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(source).render(
        columns=table.COLUMNS,
        rows=[table.cells(row) for row in report.rows],
        tradeoff=charts.tradeoff(report.rows),
        curves=charts.training_curves(report.curves),
        masks=[
            (
                f"{entry.sparsity:.1f}",
                [(_breakable(name), charts.mask_picture(m)) for name, m in entry.masks.items()],
            )
            for entry in report.masks
        ],
        facts=report.facts,
    )
    with writing(path) as draft:
        draft.write_text(html, encoding="utf-8")


def _breakable(name: str) -> Markup:
    """A layer's name, which may be broken after its dots."""
    return Markup(".<wbr>").join(name.split("."))
