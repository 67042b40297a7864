"""Results as tables for the terminal and as self-contained HTML pages."""

from semisparse.report.comparison import Comparison, Run, comparison_table
from semisparse.report.page import render, render_comparison
from semisparse.report.results import Curve, MaskSet, Report, Row
from semisparse.report.table import table

__all__ = [
    "Comparison",
    "Curve",
    "MaskSet",
    "Report",
    "Row",
    "Run",
    "comparison_table",
    "render",
    "render_comparison",
    "table",
]
