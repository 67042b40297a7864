"""The curves of a run, which survive a resume."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from semisparse.files import writing

COLUMNS = ("epoch", "step", "train_loss", "val_loss", "val_accuracy", "sparsity")


class History(Callback):
    """Writes `metrics.csv`, one row an epoch, from rows that the checkpoints carry along.

    Logs `train_loss`, the mean of an epoch over steps and ranks. Lightning's `CSVLogger` deletes
    the rows of the interrupted run when a resumed one starts, and its mean forgets the losses from
    before a checkpoint within an epoch.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self._loss_sum = torch.zeros(())
        self._losses = 0

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        loss = outputs["loss"].detach()
        self._loss_sum = self._loss_sum.to(loss.device) + loss
        self._losses += 1

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("train_loss", self._loss_sum / self._losses, sync_dist=True)
        self._loss_sum, self._losses = torch.zeros(()), 0
        logged = trainer.callback_metrics
        row = {"epoch": float(trainer.current_epoch), "step": float(trainer.global_step)}
        row |= {name: float(logged.get(name, 0.0)) for name in COLUMNS[2:]}
        self.rows.append(row)
        if trainer.is_global_zero:
            self._write()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "loss_sum": self._loss_sum, "losses": self._losses}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])
        self._loss_sum, self._losses = state_dict["loss_sum"], state_dict["losses"]

    def _write(self) -> None:
        with writing(self.path) as draft, draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)


def read(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.csv`, one an epoch."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
