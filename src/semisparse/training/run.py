"""The run behind `semisparse train`, and the folder that it leaves.

runs/x/
    config.json             the resolved settings, written first
    checkpoints/last.ckpt   end of the last epoch, what --resume goes on from
    checkpoints/best.ckpt   best validation accuracy among the epochs with the final masks
    metrics.csv             one row an epoch
    tensorboard/            the same for TensorBoard, and the sparsity of every step
    model.pt                final weights, masks and example input, what `saved.load_run` reads
    model.onnx              the exported model
    masks.h                 its masks as a C header, absent for a dense run
    result.json             final figures, written last: its presence marks a finished run
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.progress import Progress
from torch import nn

from semisparse.errors import ConfigError, ModelError
from semisparse.export import export_header, export_onnx
from semisparse.files import writing
from semisparse.training import models, saved, settings
from semisparse.training.callback import SparsityCallback
from semisparse.training.checkpoints import AtomicCheckpointIO, BestCheckpoint, last_checkpoint
from semisparse.training.data import ImageData
from semisparse.training.history import History
from semisparse.training.module import Classifier
from semisparse.training.progress import RunProgress, bars
from semisparse.training.pruning import prune
from semisparse.training.settings import TrainSettings

_TAYLOR_IMAGES = 512


@dataclass(frozen=True)
class RunResult:
    """Final figures of a run: accuracies in [0, 1], sparsities by layer."""

    test_accuracy: float
    test_loss: float
    val_accuracy: float
    sparsities: dict[str, float]


def train(
    options: TrainSettings, out: Path, *, resume: bool = False, progress: Progress | None = None
) -> RunResult:
    """Train, freeze, test and export one model into the folder `out`.

    With `resume`, goes on from the last finished epoch of an interrupted run; a finished run is
    returned as it is. The final weights are the last epoch's, for dense and sparse runs alike: the
    learning rate has then fallen to 1%, and the masks are fixed. `progress` takes the run's bar,
    by default its own on standard error.

    Raises `ConfigError` when the folder holds another run or cannot be written, and what the
    model, data and export raise.
    """
    finished = _open(options, out, resume)
    if finished is not None:
        return finished
    if progress is None:
        with bars() as own:
            return _train(options, out, own)
    return _train(options, out, progress)


def _open(options: TrainSettings, out: Path, resume: bool) -> RunResult | None:
    if not resume:
        # A run that failed before its first checkpoint, say over a mistyped rule, is no loss.
        replaceable = {"config.json", "tensorboard"}
        if out.exists() and (
            not out.is_dir() or any(entry.name not in replaceable for entry in out.iterdir())
        ):
            raise ConfigError(
                f"{out} exists already; go on with --resume {out}, or give another folder."
            )
        try:
            out.mkdir(parents=True, exist_ok=True)
            _write(out / "config.json", options.to_dict())
        except OSError as error:
            raise ConfigError(f"{out} cannot be written ({error}); give another folder.") from error
        return None
    differences = options.differences(settings.read(out))
    if differences:
        raise ConfigError(
            f"The run in {out} has other settings ({'; '.join(differences)}); resume it with its "
            "own, or give another folder."
        )
    path = out / "result.json"
    return RunResult(**json.loads(path.read_text())) if path.is_file() else None


def _train(options: TrainSettings, out: Path, progress: Progress) -> RunResult:
    with _quiet():
        lightning.seed_everything(options.seed, workers=True, verbose=False)
        data = ImageData(
            options.data,
            options.data_root,
            options.image_size,
            options.batch_size,
            options.workers,
            options.seed,
        )
        model, architecture = _create(options, data)
        sparsity = (
            SparsityCallback(options.masks, data.example_input, target="model")
            if options.masks
            else None
        )
        module = Classifier(
            model,
            data.num_classes,
            learning_rate=options.learning_rate,
            schedule=options.schedule,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            label_smoothing=options.label_smoothing,
            seed=options.seed,
        )
        last = out / "checkpoints" / "last.ckpt"
        trainer = lightning.Trainer(
            max_epochs=options.epochs,
            accelerator="auto",
            devices=1,
            precision=_precision(),
            logger=TensorBoardLogger(out, name="tensorboard", version=""),
            log_every_n_steps=1,
            callbacks=[
                *([sparsity] if sparsity else []),
                History(out / "metrics.csv"),
                RunProgress(progress, out.name),
                last_checkpoint(last.parent),
                BestCheckpoint(last.parent, sparsity),
            ],
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        resumable = str(last) if last.is_file() else None
        try:
            trainer.fit(module, data, ckpt_path=resumable, weights_only=True)
        except SystemExit as stop:
            # What Lightning makes of Ctrl-C.
            raise KeyboardInterrupt from stop
        if sparsity and sparsity.sparsifier and not sparsity.sparsifier.frozen:
            # The interruption came after the last epoch, so nothing was left to fit.
            sparsity.sparsifier.freeze()
        (val,) = trainer.validate(module, data, verbose=False)
        (test,) = trainer.test(module, data, verbose=False)
        model.to("cpu").eval()
        sparsifier = sparsity.sparsifier if sparsity else None
        saved.save(
            out / "model.pt",
            model,
            architecture=architecture,
            num_classes=data.num_classes,
            example_input=data.example_input,
            sparsifier=sparsifier,
        )
        export_onnx(model, data.example_input, out / "model.onnx")
        if sparsifier:
            export_header(model, out / "masks.h")
    result = RunResult(
        test_accuracy=test["test_accuracy"],
        test_loss=test["test_loss"],
        val_accuracy=val["val_accuracy"],
        sparsities=sparsifier.sparsities if sparsifier else {},
    )
    _write(out / "result.json", dataclasses.asdict(result))
    return result


def _create(options: TrainSettings, data: ImageData) -> tuple[nn.Module, str]:
    """The model as training starts with it, and the name of its architecture."""
    source = Path(options.model)
    if not source.is_dir():
        model = models.create(options.model, data.num_classes, options.weights, data.channels)
        architecture = options.model
        # A factory may give trained weights.
        if options.prune_channels and options.weights is None and ":" not in architecture:
            raise ConfigError(
                f"prune_channels is {options.prune_channels}, but which channels of {architecture} "
                "matter is not known while its weights are random; give weights, or the folder of "
                "a finished run as model."
            )
    elif options.weights is not None:
        raise ConfigError(
            f"The run {source} has weights of its own, but weights is {options.weights}; give one "
            "of them."
        )
    else:
        model, architecture = saved.load_dense(source)
    _check_outputs(options.model, model, data)
    if options.prune_channels:
        prune(
            model,
            data.example_input,
            options.prune_channels,
            options.prune_importance,
            itertools.islice(data.train_dataloader(), -(-_TAYLOR_IMAGES // data.batch_size)),
        )
    return model, architecture


def _check_outputs(name: str, model: nn.Module, data: ImageData) -> None:
    model.eval()
    try:
        with torch.no_grad():
            output = model(data.example_input)
    except RuntimeError as error:
        raise ModelError(
            f"{name} cannot take images of {tuple(data.example_input.shape)} ({error}); give "
            "another image size or model."
        ) from error
    finally:
        model.train()
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if shape != (1, data.num_classes):
        raise ModelError(
            f"{name} returns {shape} for one image, but the data has {data.num_classes} classes; "
            "give a classifier with one logit a class."
        )


def _precision() -> Any:
    if not torch.cuda.is_available():
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"


def _write(path: Path, values: dict[str, Any]) -> None:
    with writing(path) as draft:
        draft.write_text(json.dumps(values, indent=2) + "\n")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's banners and its advice on what is meant so; real warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # In-memory data is faster without workers, resuming into the same folder is the point, and
        # the tree test is Lightning's own affair with torch.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
