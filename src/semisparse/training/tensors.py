"""Files of tensors and plain values."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch


def write(path: Path, values: dict[str, Any]) -> None:
    """What `torch.load` reads, on the disk when this returns.

    Raises `OSError` when there is no room, of which torch's own writer makes a `RuntimeError` that
    says nothing of it.
    """
    buffer = io.BytesIO()
    torch.save(values, buffer)
    with path.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
