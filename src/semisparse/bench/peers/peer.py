"""What the harness asks of an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray

from semisparse.bench.models import Model

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Peer:
    """An engine that runs the dense model in float32.

    Attributes:
        name: as in `--peers`.
        packages: the distributions it needs, the engine's own first.
        load: (model, threads) -> a function that runs the model on `model.x` once and returns the
            output. It converts the model into `model.folder` where the engine has a format of its
            own, and imports the engine only when called.
    """

    name: str
    packages: tuple[str, ...]
    load: Callable[[Model, int], Callable[[], Floats]]

    def versions(self) -> dict[str, str]:
        """Versions of the packages that are installed."""
        found = {}
        for package in self.packages:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return found

    def missing(self) -> list[str]:
        """The packages that are not installed."""
        return [package for package in self.packages if package not in self.versions()]
