"""Everything that decides how a run turns out, in one frozen value with a JSON form."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError

SCHEDULES = ("cosine", "linear")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run, as written to `config.json` in its folder.

    `model` and `weights` as `models.create`, `data`, `data_root` and `image_size` as
    `data.ImageData`, the recipe as `module.Classifier`; `sparsity` is `None` for a dense run.

    Raises `ConfigError` for values out of range.
    """

    model: str
    data: str
    sparsity: SparsityConfig | None = None
    weights: str | None = None
    data_root: str | None = None
    image_size: int | None = None
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.1
    schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 2), ("workers", 0), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be {least} or more.")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate is {self.learning_rate}; it must be positive.")
        for name, below in (("momentum", 1), ("label_smoothing", 1), ("weight_decay", 1)):
            value = getattr(self, name)
            if not 0 <= value < below:
                raise ConfigError(f"{name} is {value}; it must be in [0, {below}).")
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"schedule is {self.schedule!r}; it must be one of {', '.join(SCHEDULES)}."
            )

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
