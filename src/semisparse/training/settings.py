"""Everything that decides how a run turns out, in one frozen value with a JSON form."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError

# The least of each whole number; the range of each fraction and whether its end belongs to it.
_LEAST = {
    "epochs": 1,
    "batch_size": 2,
    "workers": 0,
    "seed": 0,
    "devices": 1,
    "num_nodes": 1,
    "checkpoint_steps": 0,
    "prune_epochs": 0,
}
_FRACTIONS = {
    "momentum": False,
    "weight_decay": False,
    "label_smoothing": False,
    "ema": False,
    "distill_alpha": True,
    "prune_channels": False,
}
_POSITIVE = ("learning_rate", "temperature")
_CHOICES = {
    "optimizer": ("sgd", "adam", "adamw", "rmsprop"),
    "schedule": ("cosine", "linear"),
    "precision": ("fp32", "bf16", "fp16"),
    "strategy": ("auto", "ddp"),
    "accelerator": ("auto", "cpu", "gpu"),
    "prune_importance": ("magnitude", "taylor"),
}


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run, as written to `config.json` in its folder.

    Attributes:
        model, weights: as `models.create`.
        data, data_root, download, image_size, workers: as `data.ImageData`.
        sparsity: what is masked; `None` for a dense run.
        epochs: passes over the training images.
        batch_size: images a step and device.
        optimizer: `"sgd"`, `"adam"`, `"adamw"` or `"rmsprop"`.
        learning_rate, schedule: at the start, and how it falls to 1% of that: `"cosine"` or
            `"linear"`.
        momentum: of SGD and RMSprop.
        weight_decay: on weights, not on biases and batch norm.
        label_smoothing: share of the target that is spread over all classes.
        clip_gradient: largest norm of the gradient; 0 leaves it as it is.
        ema: decay of the averaged weights that are tested and exported; 0 does not average.
        precision: `"fp32"`, `"bf16"` or `"fp16"`, the last two mixed.
        accelerator, devices, num_nodes, strategy: as Lightning's Trainer.
        checkpoint_steps: steps between checkpoints within an epoch; 0 writes at its end only.
        teacher, teacher_weights: as `model` and `weights`, or the folder of a finished run; `None`
            trains without one.
        distill_alpha: share of the teacher in the loss; 1 leaves the labels out.
        temperature: that softens the logits of teacher and student.
        prune_channels: share of the channels that is removed before masks are trained.
        prune_importance: by what channels are ranked: `"magnitude"` or `"taylor"`.
        prune_epochs: epochs of training between the pruning and the masks.
        seed: of weights, order of the images, augmentation and masks.

    Raises `ConfigError` for values out of range.
    """

    model: str
    data: str
    sparsity: SparsityConfig | None = None
    weights: str | None = None
    data_root: str | None = None
    download: bool = False
    image_size: int | None = None
    epochs: int = 20
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    clip_gradient: float = 10.0
    ema: float = 0.0
    precision: str = "fp32"
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    checkpoint_steps: int = 0
    teacher: str | None = None
    teacher_weights: str | None = None
    distill_alpha: float = 0.5
    temperature: float = 4.0
    prune_channels: float = 0.0
    prune_importance: str = "magnitude"
    prune_epochs: int = 0
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("model", "data"):
            self._check_type(name, str, "a name")
        for name in ("weights", "data_root", "teacher", "teacher_weights"):
            if getattr(self, name) is not None:
                self._check_type(name, str, "text")
        if not isinstance(self.download, bool):
            raise ConfigError(f"download is {self.download!r}; it must be true or false.")
        for name, least in _LEAST.items():
            value = self._check_type(name, Integral, "a whole number")
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be {least} or more.")
        if self.image_size is not None:
            self._check_type("image_size", Integral, "a whole number")
        for name in _POSITIVE:
            value = self._check_type(name, Real, "a number")
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}; it must be positive.")
        for name, closed in _FRACTIONS.items():
            value = self._check_type(name, Real, "a number")
            if not (0 <= value < 1 or (closed and value == 1)):
                raise ConfigError(
                    f"{name} is {value}; it must be in [0, 1{']' if closed else ')'}."
                )
        value = self._check_type("clip_gradient", Real, "a number")
        if not 0 <= value < math.inf:
            raise ConfigError(
                f"clip_gradient is {value}; it must be a norm, or 0 to leave gradients as they are."
            )
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}."
                )
        if self.teacher_weights is not None and self.teacher is None:
            raise ConfigError(
                f"teacher_weights is {self.teacher_weights!r}, but there is no teacher; name one."
            )

    def _check_type(self, name: str, kind: Any, wanted: str) -> Any:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ConfigError(f"{name} is {value!r}; it must be {wanted}.")
        return value

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and scalars, with the `version` of the form."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["sparsity"] = self.sparsity.to_dict() if self.sparsity else None
        return {"version": 1, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainSettings:
        """Inverse of `to_dict`; raises `ConfigError` for another version and unknown entries."""
        entries = dict(values)
        version = entries.pop("version", None)
        unknown = sorted(entries.keys() - {field.name for field in dataclasses.fields(cls)})
        if version != 1 or unknown:
            raise ConfigError(
                f"The run's settings have version {version} and unknown entries {unknown}; read "
                "them with the version of semisparse that wrote them."
            )
        if entries.get("sparsity") is not None:
            entries["sparsity"] = SparsityConfig.from_dict(entries["sparsity"])
        return cls(**entries)

    def differences(self, other: TrainSettings) -> list[str]:
        """`name: mine, not theirs` for every setting that differs."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [f"{k}: {mine[k]}, not {theirs[k]}" for k in mine if mine[k] != theirs[k]]


def read(path: Path) -> TrainSettings:
    """The settings of a run folder; raises `ConfigError` when it has none."""
    try:
        values = json.loads((path / "config.json").read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} is not a run folder, it has no config.json; give a folder that "
            "`semisparse train --out` wrote."
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path / 'config.json'} cannot be read ({error}); restore it or train again."
        ) from error
    return TrainSettings.from_dict(values)
