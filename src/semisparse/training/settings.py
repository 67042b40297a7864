"""Everything that decides how a run turns out, in one frozen value.

It has two forms: `to_dict`, with the masks as a value of their own, is what `config.json` holds;
in the flat one the settings of masks stand beside those of the run, under the names of the command
line: `fill`, `skip`, `sparsity_begin`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from semisparse.config import FORMAT_VERSION, SparsityConfig
from semisparse.errors import ConfigError
from semisparse.image_size import AnySize, ImageSize

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
    "max_unreadable": True,
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
# Where a run finds its data and what computes it, which may be another when it goes on.
_FREE = (
    *("data_root", "download", "workers", "max_unreadable"),
    *("accelerator", "strategy", "checkpoint_steps"),
)


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run, as written to `config.json` in its folder.

    Attributes:
        model, weights: as `models.create`; or the folder of a finished run, whose weights are then
            the first ones, without its masks.
        data, data_root, download, image_size, whole, workers, max_unreadable: as
            `data.ImageData`; the size is kept as a number, or text where it is no square.
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
        prune_channels: share of the channels that is removed before anything is trained.
        prune_importance: by what channels are ranked: `"magnitude"` or `"taylor"`.
        prune_epochs: how many of the epochs pass before the schedule of the masks begins.
        seed: of weights, order of the images, augmentation and masks.

    Raises `ConfigError` for values out of range.
    """

    model: str
    data: str
    sparsity: SparsityConfig | None = None
    weights: str | None = None
    data_root: str | None = None
    download: bool = False
    image_size: AnySize | None = None
    whole: bool = False
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
    max_unreadable: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("model", "data"):
            self._check_type(name, str, "a name")
        for name in ("weights", "data_root", "teacher", "teacher_weights"):
            if getattr(self, name) is not None:
                self._check_type(name, str, "text")
        for name in ("download", "whole"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name} is {value!r}; it must be true or false.")
        for name, least in _LEAST.items():
            value = self._check_type(name, Integral, "a whole number")
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be {least} or more.")
        if self.image_size is not None:
            object.__setattr__(self, "image_size", ImageSize.of(self.image_size).plain)
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
        if self.prune_epochs and not self.prune_channels:
            raise ConfigError(
                f"prune_epochs is {self.prune_epochs}, but prune_channels is 0, so nothing is "
                "pruned; give both or none."
            )
        if self.prune_epochs >= self.epochs:
            raise ConfigError(
                f"prune_epochs is {self.prune_epochs} of {self.epochs} epochs, which leaves none "
                "for the masks; give more epochs."
            )

    @property
    def masks(self) -> SparsityConfig | None:
        """`sparsity` with its schedule moved into the epochs that follow those of pruning."""
        if self.sparsity is None or not self.prune_epochs:
            return self.sparsity
        left = 1 - self.prune_epochs / self.epochs
        begin, end = (1 - left * (1 - at) for at in (self.sparsity.begin, self.sparsity.end))
        return dataclasses.replace(self.sparsity, begin=begin, end=end)

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

    def to_flat(self) -> dict[str, Any]:
        """Plain values under the names of the command line.

        Of masks a dense run has `sparsity` 0 and an empty `region`.
        """
        values = {"sparsity": 0.0, "region": [], **flatten(self.to_dict())}
        del values["version"]
        return values

    @classmethod
    def from_flat(cls, entries: Mapping[str, Any]) -> TrainSettings:
        """Inverse of `to_flat`; absent entries take their defaults, masks the seed of the run.

        Raises `ConfigError` for unknown entries, without model and data, and for values that do
        not fit.
        """
        check_names(entries, names())
        for name in ("model", "data"):
            if entries.get(name) is None:
                raise ConfigError(
                    f"A run needs a model and data, but has no {name}; give --{name}."
                )
        run = {field.name: entries[field.name] for field in _fields() if field.name in entries}
        return cls(**{**run, "sparsity": masks(entries)})

    def differences(self, other: TrainSettings) -> list[str]:
        """`name: mine, not theirs` for every setting that decides what comes out and differs.

        By flat names. With as many processes, machines may have more devices or fewer.
        """
        mine, theirs = self.to_flat(), other.to_flat()
        free = set(_FREE)
        if self.devices * self.num_nodes == other.devices * other.num_nodes:
            free |= {"devices", "num_nodes"}
        lacking = object()
        return [
            f"{name}: {value!s:.300}, not {theirs.get(name, 'set')!s:.300}"
            for name, value in mine.items()
            if name not in free and value != theirs.get(name, lacking)
        ]


# Entries of a SparsityConfig by flat name; those that would say nothing alone have a prefix.
_MASKS = {
    f"sparsity_{field.name}"
    if field.name in ("initial", "begin", "end", "power", "frequency", "seed")
    else field.name: field.name
    for field in dataclasses.fields(SparsityConfig)
}


def names() -> list[str]:
    """All names of the flat form."""
    return list(dict.fromkeys([*(field.name for field in _fields()), *_MASKS]))


def masks(entries: Mapping[str, Any]) -> SparsityConfig | None:
    """What the entries of the flat form say of masks; `None` where `sparsity` is 0.

    A region masks at sparsity 0 too. Raises `ConfigError` for values that do not fit, and for
    masks of no sparsity.
    """
    chosen = {_MASKS[name]: value for name, value in entries.items() if name in _MASKS}
    if chosen.get("region"):
        chosen = {"sparsity": 0.0, **chosen}
    elif chosen.get("region") in ((), []):
        # That there is none can be said of a dense run too.
        del chosen["region"]
    if "sparsity" not in chosen and chosen:
        name = next(name for name in entries if _MASKS.get(name) in chosen)
        raise ConfigError(f"{name} is given, but no sparsity; give one, or 0 for a dense model.")
    if chosen.get("sparsity", 0) in (0, None) and not chosen.get("region"):
        return None
    return SparsityConfig(**{"seed": entries.get("seed", 0), **chosen})


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """The flat form of values whose `sparsity` may be a mapping, as in `config.json`.

    Entries beside the mapping win over those in it. The seed of the masks is left out where it is
    that of the run, which it follows.
    """
    flat = {name: value for name, value in values.items() if name != "sparsity"}
    inner = values.get("sparsity")
    if not isinstance(inner, Mapping):
        return {**flat, **({} if inner is None else {"sparsity": inner})}
    config = SparsityConfig.from_dict({"version": FORMAT_VERSION, **inner}).to_dict()
    if config["seed"] == values.get("seed", 0):
        del config["seed"]
    return {**{name: config[own] for name, own in _MASKS.items() if own in config}, **flat}


def check_names(entries: Iterable[Any], known: Iterable[str]) -> None:
    """Raises `ConfigError` for the first entry that is not known, with the names like it."""
    known = list(known)
    for name in entries:
        if name not in known:
            near = " or ".join(difflib.get_close_matches(str(name), known, n=3))
            remedy = f"did you mean {near}?" if near else "see semisparse train --help."
            raise ConfigError(f"There is no setting {name!r}; {remedy}")


def _fields() -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(TrainSettings)


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
