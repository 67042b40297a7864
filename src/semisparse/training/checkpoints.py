"""Checkpoints that no crash can tear or lose, and the choice of the best one."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from typing_extensions import override

from semisparse.errors import ConfigError
from semisparse.files import writing
from semisparse.training import tensors
from semisparse.training.callback import SparsityCallback
from semisparse.training.divergence import check_weights
from semisparse.training.interruption import StopRequest

LAST, PREVIOUS, BEST, DAMAGED = "last.ckpt", "previous.ckpt", "best.ckpt", "damaged.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames; the last checkpoint becomes the previous one.

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
            tensors.write(draft, checkpoint)
            if path.name == LAST and path.exists():
                os.replace(path, path.with_name(PREVIOUS))


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`: the end of the last epoch, or `steps` or a stop within one.

    With `steps` above 0 a checkpoint is written every so many steps as well. When `stop` was
    requested, one is written after the batch in hand, or after the validation in hand, and the run
    is interrupted.
    """

    def __init__(self, folder: Path, steps: int, stop: StopRequest) -> None:
        self._path = folder / LAST
        self._steps = steps
        self._stop = stop
        self._images: dict[str, Any] = {}

    # Lightning keeps the state of a loader, but restores it only if nobody has asked for the number
    # of steps before, as schedules do.
    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        loader: Any = trainer.train_dataloader
        checkpoint["images"] = loader.state_dict()

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._images = checkpoint["images"]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._images:
            loader: Any = trainer.train_dataloader
            loader.load_state_dict(self._images)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.is_last_batch:
            return
        stop = self._stop.granted(trainer)
        if stop or (self._steps and trainer.global_step % self._steps == 0):
            _save(trainer, pl_module, self._path)
        if stop:
            raise KeyboardInterrupt

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _save(trainer, pl_module, self._path)
        if self._stop.granted(trainer):
            raise KeyboardInterrupt


class BestCheckpoint(Checkpoint):
    """Keeps `best.ckpt`, by validation accuracy, among the epochs with the final masks.

    Before the masks are frozen the sparsity is lower, so accuracies are not comparable.
    """

    def __init__(self, folder: Path, sparsity: SparsityCallback | None) -> None:
        self._path = folder / BEST
        self._sparsity = sparsity
        self._accuracy = -1.0

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sparsifier = self._sparsity.sparsifier if self._sparsity else None
        if trainer.state.fn != TrainerFn.FITTING or (sparsifier and not sparsifier.frozen):
            return
        accuracy = float(trainer.callback_metrics["val_accuracy"])
        if accuracy > self._accuracy:
            self._accuracy = accuracy
            _save(trainer, pl_module, self._path)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"accuracy": self._accuracy}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._accuracy = state_dict["accuracy"]


def _save(trainer: Trainer, module: LightningModule, path: Path) -> None:
    check_weights(trainer, module, path.with_name(LAST))
    trainer.save_checkpoint(path)


def resumable(folder: Path, console: Console | None) -> Path | None:
    """The checkpoint to go on from: the last one, or the previous if the last is damaged.

    The process that has a `console` says so there, and moves the damaged one aside, so that it
    never becomes the previous one in its turn. Returns `None` when there is no checkpoint, and
    raises `ConfigError` when there are only damaged ones.
    """
    damages: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        try:
            _check(path)
        except FileNotFoundError:
            continue
        except _DamagedError as error:
            damages.append(str(error))
            continue
        if damages and console:
            os.replace(folder / LAST, folder / DAMAGED)
            warning = f"warning: {damages[0]}; going on from {path}."
            console.print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return path
    if damages:
        raise ConfigError(f"{' and '.join(damages)}; remove {folder} to train from the beginning.")
    return None


def _check(path: Path) -> None:
    try:
        # torch reads tensors without looking at their checksums.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _DamagedError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


class _DamagedError(Exception):
    """A checkpoint is not what was written."""
