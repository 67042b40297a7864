"""Convolutional networks that skip positions of their feature maps, and run faster for it.

Names load on first use, so importing the package costs nothing and the deployment side never
imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semisparse.config import SparsityConfig
    from semisparse.errors import SemisparseError
    from semisparse.export import export_header, export_onnx
    from semisparse.runtime import InferenceSession, library_path
    from semisparse.sparsifier import Sparsifier

__version__ = "0.1.0"

_HOMES = {
    "SparsityConfig": "semisparse.config",
    "SemisparseError": "semisparse.errors",
    "export_header": "semisparse.export",
    "export_onnx": "semisparse.export",
    "InferenceSession": "semisparse.runtime",
    "library_path": "semisparse.runtime",
    "Sparsifier": "semisparse.sparsifier",
}

__all__ = [
    "InferenceSession",
    "SemisparseError",
    "Sparsifier",
    "SparsityConfig",
    "__version__",
    "export_header",
    "export_onnx",
    "library_path",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'semisparse' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
