"""What a report shows, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Row:
    """One line of the table.

    accuracy is a fraction in [0, 1]; latency in milliseconds and speedup (over the first row) are
    medians with their lower and upper quartiles.
    """

    engine: str
    sparsity: float
    accuracy: float
    latency: float
    latency_quartiles: tuple[float, float]
    speedup: float
    speedup_quartiles: tuple[float, float]

    @property
    def limit(self) -> float:
        """What skipping the masked positions could gain at most: `1 / (1 - sparsity)`."""
        return 1 / (1 - self.sparsity)


@dataclass(frozen=True)
class Curve:
    """A training run, one value an epoch."""

    sparsity: float
    train_loss: Sequence[float]
    val_accuracy: Sequence[float]
    mask_sparsity: Sequence[float]


@dataclass(frozen=True)
class MaskSet:
    """The frozen masks of one network: layer name to bool `[H_out, W_out]`, True where computed."""

    sparsity: float
    masks: Mapping[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class Report:
    """Everything on the page; facts are `label: value` lines on how it was measured."""

    rows: Sequence[Row]
    curves: Sequence[Curve]
    masks: Sequence[MaskSet]
    facts: Mapping[str, Any]
