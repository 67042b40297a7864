"""Data sets fetched from the network, once for all processes of a run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from semisparse.errors import DataError

# What torchvision raises for files that are absent, damaged or out of reach.
DAMAGE = (RuntimeError, OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError)


def fetch(
    name: str,
    root: Path,
    get: Callable[[], Any],
    remedy: str = "check the network and the space left, and try again",
) -> None:
    """Call `get`, which leaves the data set `name` in the folder `root` if it is not there.

    Raises `DataError`, which ends in `remedy`, when it cannot.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Of several processes of one run the first fetches, and the others find it done.
        with FileLock(root / f".{name}.lock"):
            get()
    except DAMAGE as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name} cannot be fetched into {root} ({reason}); {remedy}.") from error
