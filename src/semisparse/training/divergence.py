"""What ends a run whose loss or weights are no longer finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from semisparse.errors import TrainingError

# Looking at a loss waits for the device, so it is done once in so many steps.
_INTERVAL = 50


class DivergenceStop(Callback):
    """Stops a run within 50 steps, and before validation, once a loss is not finite.

    Raises `TrainingError` on every rank with the first such step of any rank. Gradients that a
    scaler of fp16 finds infinite are none of its business: that step is skipped, and its loss is
    finite. `last` is the checkpoint that the message names, if there is one.
    """

    def __init__(self, last: Path) -> None:
        self._last = last
        self._losses: list[torch.Tensor] = []
        self._rates: list[float] = []

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._rates.append(_rate(trainer))

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._losses.append(outputs["loss"].detach())
        if len(self._losses) == _INTERVAL or trainer.is_last_batch:
            self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        # In a sum over the ranks, what is not finite on one of them shows on all.
        losses = trainer.strategy.reduce(torch.stack(self._losses), reduce_op="sum")
        wrong = (~losses.isfinite()).nonzero()
        if len(wrong):
            first = int(wrong[0])
            step = trainer.global_step - len(losses) + first + 1
            raise TrainingError(
                f"The loss is {float(losses[first])} at step {step} of "
                f"{trainer.estimated_stepping_batches} (learning rate {self._rates[first]:.3g})"
                f"{_remedy(self._last)}"
            )
        self._losses.clear()
        self._rates.clear()


def check_weights(trainer: Trainer, module: LightningModule, last: Path) -> None:
    """Raises `TrainingError` on every rank if a weight or statistic of any is not finite.

    `last` is the checkpoint that the message names, if there is one.
    """
    wrong = [
        name
        for name, value in module.state_dict().items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if trainer.strategy.reduce_boolean_decision(bool(wrong), all=False):
        where = wrong[0] if wrong else "a tensor of another process"
        raise TrainingError(
            f"The weights are not finite after step {trainer.global_step} of "
            f"{trainer.estimated_stepping_batches} (learning rate {_rate(trainer):.3g}), first "
            f"{where}{_remedy(last)}"
        )


def _rate(trainer: Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[0]["lr"])


def _remedy(last: Path) -> str:
    weights = f"--weights {last}, whose weights are finite, and " if last.is_file() else ""
    return f"; begin another run with {weights}a lower --learning-rate or --clip-gradient."
