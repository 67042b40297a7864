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
    """Moves a bar by one a step, and notes how far validation and test are and what they found.

    Of several processes, the first one's moves.
    """

    def __init__(self, progress: Progress, description: str) -> None:
        self._progress = progress
        self._description = description
        self._task: TaskID | None = None
        self._accuracies: dict[str, float] = {}

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
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._note(f"validating, {batch_idx + 1}/{trainer.num_val_batches[0]} batches")

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._note(f"testing, {batch_idx + 1}/{trainer.num_test_batches[0]} batches")

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._found(trainer, "validation", "val_accuracy")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._found(trainer, "test", "test_accuracy")

    def _found(self, trainer: Trainer, split: str, metric: str) -> None:
        accuracy = trainer.callback_metrics.get(metric)
        if accuracy is not None:
            self._accuracies[split] = float(accuracy)
        self._note(
            ", ".join(f"{name} {100 * value:.1f}%" for name, value in self._accuracies.items())
        )

    def _note(self, text: str) -> None:
        if self._task is not None:
            self._progress.update(self._task, note=text)
