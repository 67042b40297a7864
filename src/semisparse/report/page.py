"""HTML pages: one file each that refers to nothing outside itself."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from semisparse.files import writing
from semisparse.report import charts, table
from semisparse.report.comparison import Comparison, comparison_table
from semisparse.report.results import Report


def render(report: Report, path: Path) -> None:
    """Write the demo's report to `path`, whole or not at all."""
    _write(
        path,
        "demo.html.j2",
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


def render_comparison(comparison: Comparison, path: Path) -> None:
    """Write a page of runs side by side to `path`, whole or not at all."""
    shown = comparison_table(comparison)
    _write(
        path,
        "comparison.html.j2",
        data=comparison.data,
        columns=shown.columns,
        rows=shown.rows,
        gain=len(shown.columns) if comparison.timed else 0,
        timed=comparison.timed,
        chart=charts.runs(comparison.runs),
        facts=comparison.facts,
    )


def _write(path: Path, template: str, **values: Any) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template(template).render(values)
    with writing(path) as draft:
        draft.write_text(html, encoding="utf-8")


def _source(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _breakable(name: str) -> Markup:
    """A layer's name, which may be broken after its dots."""
    return Markup(".<wbr>").join(name.split("."))
