"""Exporting trained models to files that need no torch."""

from __future__ import annotations

from semisparse.export.exporter import ExportedLayer, ExportReport, export_onnx
from semisparse.export.header import export_header

__all__ = ["ExportReport", "ExportedLayer", "export_header", "export_onnx"]
