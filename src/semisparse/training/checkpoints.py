"""Checkpoints that a crash cannot tear, and the choice of the best one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from semisparse.errors import ConfigError
from semisparse.files import writing
from semisparse.training.callback import SparsityCallback


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so the previous checkpoint stays until the new is whole.

    Lightning's own goes through the system's temporary folder, from where a move is not atomic
    when that is another file system.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as draft:
            super().save_checkpoint(checkpoint, draft, storage_options)
            with draft.open("rb") as file:
                os.fsync(file.fileno())

    @override
    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            return super().load_checkpoint(path, *arguments, **options)
        except Exception as error:
            raise ConfigError(
                f"Checkpoint {path} cannot be read ({type(error).__name__}: {error}); remove it "
                "to train from the beginning."
            ) from error


def last_checkpoint(folder: Path) -> ModelCheckpoint:
    """Keeps `last.ckpt`, written at the end of every epoch."""
    return ModelCheckpoint(
        dirpath=folder,
        filename="last",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


class BestCheckpoint(ModelCheckpoint):
    """Keeps `best.ckpt`, by validation accuracy, among the epochs with the final masks.

    Before the masks are frozen the sparsity is lower, so accuracies are not comparable.
    """

    def __init__(self, folder: Path, sparsity: SparsityCallback | None) -> None:
        super().__init__(
            dirpath=folder,
            filename="best",
            monitor="val_accuracy",
            mode="max",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._sparsity = sparsity

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sparsifier = self._sparsity.sparsifier if self._sparsity else None
        if sparsifier is None or sparsifier.frozen:
            super().on_validation_end(trainer, pl_module)
