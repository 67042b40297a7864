"""The run behind `semisparse train`, and the folder that it leaves.

runs/x/
    config.json             the resolved settings, written first
    checkpoints/
        last.ckpt           what --resume goes on from
        previous.ckpt       the one before it, for when the last one is damaged
        best.ckpt           best validation accuracy among the epochs with the final masks
    metrics.csv             one row an epoch
    tensorboard/            the same for TensorBoard, and the sparsity of every step
    model.pt                final weights, masks and example input, what `saved.load_run` reads
    model.onnx              the exported model
    masks.h                 its masks as a C header, absent for a dense run
    result.json             final figures, written last: its presence marks a finished run
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.progress import Progress
from torch import nn
from torch.distributed import DistError

from semisparse.errors import ConfigError, ModelError, TrainingError
from semisparse.export import export_header, export_onnx
from semisparse.files import clear_drafts, writing
from semisparse.training import models, saved, settings
from semisparse.training import trainer as trainers
from semisparse.training.callback import SparsityCallback
from semisparse.training.checkpoints import LAST, resumable
from semisparse.training.data import ImageData, calibration_images
from semisparse.training.distillation import load_teacher
from semisparse.training.module import Classifier
from semisparse.training.progress import bars
from semisparse.training.pruning import prune
from semisparse.training.settings import TrainSettings

_TAYLOR_IMAGES = 512
_IMPORTANCE_IMAGES = 500
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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

    With `resume`, goes on from the last checkpoint of an interrupted run, or from the one before
    it where that is damaged; a finished run is returned as it is. The final weights are the last
    epoch's, for dense and sparse runs alike: the learning rate has then fallen to 1%, and the masks
    are fixed. `progress` takes the run's bar, by default its own on standard error.

    With several devices this is called in every process, by Lightning's launcher or by torchrun.
    All of them return the result; the first alone writes, and alone reports an error that all have.

    Raises `ConfigError` when the folder holds another run or cannot be written, when its settings
    differ from `options` or all its checkpoints are damaged; `TrainingError` when the loss
    diverges; and what the model, data and export raise.
    """
    if resume and (finished := _finished(options, out)):
        return finished
    bar = progress or bars()
    sparsity = SparsityCallback(options.masks, target="model") if options.masks else None
    with trainers.quiet():
        trainer = trainers.create(options, out, sparsity, bar)
        first = trainer.is_global_zero
        if first and resume:
            for folder in (out, out / "checkpoints"):
                clear_drafts(folder)
        elif first:
            _begin(options, out)
        with bar if first and progress is None else nullcontext(), _as_one(trainer, out, bar):
            return _train(options, out, trainer, sparsity, bar)


def is_first_process() -> bool:
    """Whether this process reports for a run; all do but the others of one on several devices."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _finished(options: TrainSettings, out: Path) -> RunResult | None:
    differences = options.differences(settings.read(out))
    if differences:
        last = out / "checkpoints" / LAST
        anew = f"begin another with --weights {last}" if last.is_file() else "give another folder"
        raise ConfigError(
            f"The run in {out} has other settings ({'; '.join(differences)}); resume it with its "
            f"own, or {anew}."
        )
    path = out / "result.json"
    return RunResult(**json.loads(path.read_text())) if path.is_file() else None


def _begin(options: TrainSettings, out: Path) -> None:
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


@contextmanager
def _as_one(trainer: lightning.Trainer, out: Path, bar: Progress) -> Iterator[None]:
    """One outcome of all processes: the first reports what all have, and ends the others."""
    try:
        yield
    except BaseException as error:
        # Lightning makes SystemExit of KeyboardInterrupt.
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        lost = isinstance(error, DistError) or "gloo" in str(error)
        if not trainer.is_global_zero and (stopped or lost or isinstance(error, TrainingError)):
            # A failure would have Lightning's launcher kill the first process.
            raise SystemExit(0) from error
        _end_others(trainer, patience=5 if lost else 0)
        if stopped:
            bar.console.print(
                f"stopped; go on with: semisparse train --resume {out}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            raise KeyboardInterrupt from error
        if lost:
            raise TrainingError(
                f"One of the {trainer.world_size} processes ended early; mend what it reported, "
                f"then go on with `semisparse train --resume {out}`."
            ) from error
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise ConfigError(
                f"{out} cannot be written ({error}); make room, then go on with `semisparse train "
                f"--resume {out}`."
            ) from error
        raise


def _end_others(trainer: lightning.Trainer, patience: float) -> None:
    """End the processes that Lightning started beside this one; they might wait for it for ever."""
    for process in getattr(trainer.strategy.launcher, "procs", []):
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()


def _train(
    options: TrainSettings,
    out: Path,
    trainer: lightning.Trainer,
    sparsity: SparsityCallback | None,
    bar: Progress,
) -> RunResult:
    lightning.seed_everything(options.seed, workers=True, verbose=False)
    source = Path(options.model)
    start = saved.FinishedRun(source) if source.is_dir() else None
    data = ImageData(
        options.data,
        options.data_root,
        options.image_size,
        options.batch_size,
        options.workers,
        options.seed,
        download=options.download,
        # What the first weights were trained with, if that is known.
        normalisation=(
            start.normalisation if start else models.normalisation(options.model, options.weights)
        ),
        max_unreadable=options.max_unreadable,
        # In a crop or mirror image the region would be elsewhere.
        in_place=bool(options.sparsity and options.sparsity.region),
        whole=options.whole,
    )
    model = _create(options, data, start)
    teacher = (
        load_teacher(options.teacher, options.teacher_weights, data) if options.teacher else None
    )
    if sparsity:
        sparsity.images = lambda: calibration_images(
            *(options.data, _IMPORTANCE_IMAGES, options.data_root, options.image_size),
            workers=options.workers,
            normalisation=data.normalisation,
            max_unreadable=options.max_unreadable,
            whole=options.whole,
        )
    module = Classifier(model, data.num_classes, options, teacher)
    module.example_input_array = data.example_input
    last = resumable(out / "checkpoints", bar.console if trainer.is_global_zero else None)
    trainer.fit(module, data, ckpt_path=last, weights_only=True)
    if sparsity and sparsity.sparsifier and not sparsity.sparsifier.frozen:
        # The interruption came after the last epoch, so nothing was left to fit.
        sparsity.sparsifier.freeze()
    (val,) = trainer.validate(module, data, verbose=False)
    (test,) = trainer.test(module, data, verbose=False)
    sparsifier = sparsity.sparsifier if sparsity else None
    result = RunResult(
        test_accuracy=test["test_accuracy"],
        test_loss=test["test_loss"],
        val_accuracy=val["val_accuracy"],
        sparsities=sparsifier.sparsities if sparsifier else {},
    )
    if not trainer.is_global_zero:
        return result
    model.to("cpu").eval()
    saved.save(
        out / "model.pt",
        model,
        architecture=start.architecture if start else options.model,
        num_classes=data.num_classes,
        example_input=data.example_input,
        normalisation=data.normalisation,
        sparsifier=sparsifier,
    )
    export_onnx(model, data.example_input, out / "model.onnx")
    if sparsifier:
        export_header(model, out / "masks.h")
    _write(out / "result.json", dataclasses.asdict(result))
    return result


def _create(options: TrainSettings, data: ImageData, start: saved.FinishedRun | None) -> nn.Module:
    """The model as training starts with it, that of a run or by name."""
    if start:
        saved.check_own_weights(Path(options.model), options.weights, "weights")
        model = start.dense()
    else:
        model = models.create(options.model, data.num_classes, options.weights, data.channels)
        if options.prune_channels and models.random_weights(options.model, options.weights):
            raise ConfigError(
                f"prune_channels is {options.prune_channels}, but which channels of "
                f"{options.model} matter is not known while its weights are random; give weights, "
                "or the folder of a finished run as model."
            )
        importance = options.sparsity.importance if options.sparsity else 0
        if importance and models.random_weights(options.model, options.weights):
            raise ConfigError(
                f"importance is {importance:g}, but which positions matter to {options.model} is "
                "not known while its weights are random; give weights, or the folder of a finished "
                "run as model."
            )
    _check_outputs(options.model, model, data)
    if options.prune_channels:
        prune(
            model,
            data.example_input,
            options.prune_channels,
            options.prune_importance,
            itertools.islice(data.train_dataloader(), -(-_TAYLOR_IMAGES // data.batch_size)),
        )
    return model


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


def _write(path: Path, values: dict[str, Any]) -> None:
    with writing(path) as draft:
        draft.write_text(json.dumps(values, indent=2) + "\n")
