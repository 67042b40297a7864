"""The Lightning Trainer of a run: devices, precision, and the callbacks that keep its folder."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import TensorBoardLogger
from rich.progress import Progress

from semisparse.errors import ConfigError
from semisparse.training.averaging import MovingAverage
from semisparse.training.callback import SparsityCallback
from semisparse.training.checkpoints import LAST, AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from semisparse.training.divergence import DivergenceStop
from semisparse.training.history import History
from semisparse.training.interruption import StopRequest
from semisparse.training.progress import RunProgress
from semisparse.training.settings import TrainSettings

_PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def create(
    options: TrainSettings, out: Path, sparsity: SparsityCallback | None, progress: Progress
) -> lightning.Trainer:
    """A Trainer that writes its checkpoints, curves and logs into the folder `out`.

    Raises `ConfigError` when this machine has not the devices asked for or they not the precision,
    or a launcher such as torchrun started another number of processes.
    """
    _check_launcher(options)
    _check_precision(options)
    stop = StopRequest(progress.console)
    checkpoints = out / "checkpoints"
    try:
        return lightning.Trainer(
            max_epochs=options.epochs,
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            precision=_PRECISIONS[options.precision],
            gradient_clip_val=options.clip_gradient or None,
            logger=TensorBoardLogger(out, name="tensorboard", version=""),
            log_every_n_steps=1,
            callbacks=[
                *([sparsity] if sparsity else []),
                # Behind the masks, which its copy of the model has to have too.
                *([MovingAverage(options.ema)] if options.ema else []),
                DivergenceStop(checkpoints / LAST),
                History(out / "metrics.csv"),
                RunProgress(progress, out.name),
                stop,
                LastCheckpoint(checkpoints, options.checkpoint_steps, stop),
                BestCheckpoint(checkpoints, sparsity),
            ],
            plugins=[AtomicCheckpointIO()],
            # The data share out their images themselves.
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{options.devices} devices on {options.num_nodes} machines with accelerator "
            f"{options.accelerator} and strategy {options.strategy} cannot be had here ({error}); "
            "give others."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's banners and its advice on what is meant so; real warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    # TensorBoard's thread hands an error of its file to the main one, too.
    excepthook = threading.excepthook
    threading.excepthook = lambda failure: (
        None if isinstance(failure.exc_value, OSError) else excepthook(failure)
    )
    with warnings.catch_warnings():
        # In-memory data is faster without workers, the sampler goes on within an epoch, and the
        # tree test is Lightning's own affair with torch.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        try:
            yield
        finally:
            threading.excepthook = excepthook
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _check_launcher(options: TrainSettings) -> None:
    # Lightning would have each of torchrun's processes train alone, all into one folder.
    if not torch.distributed.is_torchelastic_launched():
        return
    started, wanted = int(os.environ["WORLD_SIZE"]), options.devices * options.num_nodes
    if started != wanted:
        raise ConfigError(
            f"torchrun started {started} processes, but the run has {options.devices} devices on "
            f"{options.num_nodes} machines; give --devices and --num-nodes to match."
        )


def _check_precision(options: TrainSettings) -> None:
    # Lightning would take bf16 instead.
    on_cpu = options.accelerator == "cpu" or not torch.accelerator.is_available()
    if options.precision == "fp16" and on_cpu:
        raise ConfigError("precision is fp16, which CPUs do not train in; use bf16 or fp32.")
