"""Results of runs as a table for the terminal and as one self-contained HTML page."""

from semisparse.report.page import render
from semisparse.report.results import Curve, MaskSet, Report, Row
from semisparse.report.table import table

__all__ = ["Curve", "MaskSet", "Report", "Row", "render", "table"]
