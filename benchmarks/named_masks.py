"""Masks of a file, such as `semisparse tune` writes, as one more method of a comparison."""

from __future__ import annotations

import argparse
from pathlib import Path

from semisparse.config import SparsityConfig
from semisparse.errors import SemisparseError


def named_masks(text: str) -> tuple[str, SparsityConfig]:
    """From NAME=FILE, for argparse."""
    name, separator, path = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=FILE")
    try:
        return name, SparsityConfig.from_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, SemisparseError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from error
