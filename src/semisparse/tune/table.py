"""Latencies of a model's layers, masked and not: what one machine measures and another reads."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semisparse.errors import ConfigError
from semisparse.files import writing

FORMAT_VERSION = 3
# Standard errors by which a gain has to be above zero; one in forty would be by chance.
_SURE = 2.0


@dataclass(frozen=True)
class Option:
    """Some layers of a unit masked alike.

    Attributes:
        layers: that are masked; the others of the unit have no masks of their own.
        block: side of the squares of positions that are masked as a whole.
        sparsity: of each.
        saved: share of the unit's dense latency that this saves.
        noise: standard error of it.
    """

    layers: tuple[str, ...]
    block: int
    sparsity: float
    saved: float
    noise: float

    @property
    def pays(self) -> bool:
        """Whether it is faster than dense beyond doubt."""
        return self.saved > _SURE * self.noise


@dataclass(frozen=True)
class Unit:
    """What one mask decides on: a convolution, with those that it spares (`variants.Place`).

    Attributes:
        layers: of it, in order.
        weights: the shape of each one's weights, [C_out, C_in / group, kh, kw].
        planes: the output plane of each, [H_out, W_out].
        seconds: of the unit without masks.
        options: none where masks have no place: the plane is one block, a layer is called again, or
            some of its positions are not read anyway.
    """

    layers: tuple[str, ...]
    weights: tuple[tuple[int, ...], ...]
    planes: tuple[tuple[int, int], ...]
    seconds: float
    options: tuple[Option, ...]

    @property
    def name(self) -> str:
        """The layers, as a chain is called in the file."""
        return "+".join(self.layers)


@dataclass(frozen=True)
class LatencyTable:
    """Measured by `latency.measure`.

    The JSON form has these fields and those of `Unit` and `Option` by their names, and `version`.

    Attributes:
        machine: CPU and versions, of `bench.machine.describe`.
        threads: that the session had.
        fill: of masked positions.
        block: as asked for, "auto" for a choice, or a side.
        input_shape: `[1, C, H, W]`.
        seconds: of the whole model without masks.
        units: in the order of the file.
    """

    machine: dict[str, Any]
    threads: int
    fill: str
    block: int | str
    input_shape: tuple[int, ...]
    seconds: float
    units: tuple[Unit, ...]

    def save(self, path: Path) -> None:
        """Write the JSON form, whole or not at all."""
        text = json.dumps({"version": FORMAT_VERSION, **dataclasses.asdict(self)}, indent=1)
        with writing(path) as draft:
            draft.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Inverse of `save`.

        Raises:
            ConfigError: the file is absent or no such table.
        """
        remedy = "measure it with semisparse tune --measure-only"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("version")
            if version != FORMAT_VERSION:
                raise ConfigError(
                    f"{path} has version {version!r}, but this semisparse reads version "
                    f"{FORMAT_VERSION}; {remedy}."
                )
            values["units"] = tuple(_unit(unit) for unit in values["units"])
            values["input_shape"] = tuple(values["input_shape"])
            return cls(**values)
        except ConfigError:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path} is no table of latencies ({type(error).__name__}: {error}); {remedy}."
            ) from error


def _unit(values: dict[str, Any]) -> Unit:
    nested = {name: tuple(map(tuple, values[name])) for name in ("weights", "planes")}
    options = tuple(
        Option(**{**option, "layers": tuple(option["layers"])}) for option in values["options"]
    )
    return Unit(**{**values, **nested, "layers": tuple(values["layers"]), "options": options})
