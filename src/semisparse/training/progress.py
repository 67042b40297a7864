"""One progress bar for a whole run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from typing_extensions import override


def bars(console: Console | None = None) -> Progress:
    """Bars with count, time left and a note, on standard error by default."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console or Console(stderr=True),
    )


class RunProgress(Callback):
    """Moves a bar by one a step and notes the validation accuracy of the last epoch."""

    def __init__(self, progress: Progress, description: str) -> None:
        self._progress = progress
        self._task: TaskID = progress.add_task(description, total=None, note="")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._progress.update(
            self._task,
            total=trainer.estimated_stepping_batches,
            completed=trainer.global_step,
        )

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._progress.update(self._task, completed=trainer.global_step)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        accuracy = trainer.callback_metrics.get("val_accuracy")
        if accuracy is not None:
            self._progress.update(self._task, note=f"validation {100 * float(accuracy):.1f}%")
