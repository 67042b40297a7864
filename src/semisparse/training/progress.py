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
        # The default, half a minute, shows no time left where a step takes longer than that.
        speed_estimate_period=600,
        console=console or Console(stderr=True),
    )


class RunProgress(Callback):
    """Moves a bar by one a step and notes the validation accuracy of the last epoch.

    Of several processes, the first one's moves.
    """

    def __init__(self, progress: Progress, description: str) -> None:
        self._progress = progress
        self._description = description
        self._task: TaskID | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._task = self._progress.add_task(
                self._description,
                total=trainer.estimated_stepping_batches,
                completed=trainer.global_step,
                note="",
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
        if self._task is not None:
            self._progress.update(self._task, completed=trainer.global_step)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        accuracy = trainer.callback_metrics.get("val_accuracy")
        if accuracy is not None and self._task is not None:
            self._progress.update(self._task, note=f"validation {100 * float(accuracy):.1f}%")
