"""Settings of a run from files that people write or draw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from semisparse.errors import ConfigError
from semisparse.region import rows_of
from semisparse.training import settings


def read(path: Path) -> dict[str, Any]:
    """The entries of a YAML or JSON file in the flat form of `TrainSettings`.

    Names are those of the command line, with dashes or underscores. `sparsity` may also be a
    mapping with the entries of a `SparsityConfig`, so the `config.json` of a run is such a file.
    A `region` is its rows, the path of a picture, beside the file, or `none`.

    Raises `ConfigError` when the file cannot be read or has other entries.
    """
    values = {str(name).replace("-", "_"): value for name, value in _mapping(path).items()}
    version = values.pop("version", 1)
    if version != 1:
        raise ConfigError(
            f"{path} has version {version!r}, but this semisparse reads version 1; read it with "
            "the release that wrote it."
        )
    try:
        settings.check_names(values, settings.names())
        return settings.flatten(_with_rows(values, path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_masks(path: Path) -> dict[str, Any]:
    """The same of a file that holds a `SparsityConfig` only."""
    try:
        return settings.flatten(_with_rows({"sparsity": _mapping(path)}, path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _with_rows(values: Mapping[Any, Any], path: Path) -> dict[str, Any]:
    """The entries with the rows of a region in place of text."""
    entries = dict(values)
    if isinstance(entries.get("sparsity"), Mapping):
        entries["sparsity"] = _with_rows(entries["sparsity"], path)
    if isinstance(entries.get("region"), str):
        entries["region"] = region(entries["region"], path.parent)
    return entries


def region(text: str, folder: Path = Path()) -> tuple[str, ...]:
    """The `region` of a `SparsityConfig` from text: empty for `none`, else as `read_region`.

    `folder` is where a relative path begins; a picture that is called so is `./none`.
    """
    return () if text == "none" else read_region(folder / text)


def read_region(path: Path) -> tuple[str, ...]:
    """The `region` of a `SparsityConfig` from a picture in which it is white, of any size.

    Pixels from half of white on are inside; transparent ones are outside.

    Raises `ConfigError` when the picture cannot be read or has no such pixel.
    """
    try:
        with Image.open(path) as picture:
            # Wider pixels would be clipped to 8 bits.
            if picture.mode[0] in "IF":
                raise ValueError(f"its pixels are of mode {picture.mode}, not of 8 bits")
            grey, opacity = picture.convert("LA").split()
    except FileNotFoundError as error:
        raise ConfigError(f"There is no file {path}; give a picture of the region.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); give a picture, of PNG for example, in which the "
            "region is white."
        ) from error
    white = (np.asarray(grey) >= 128) & (np.asarray(opacity) >= 128)
    if not white.any():
        raise ConfigError(f"{path} has no white pixel; paint what matters white, all else black.")
    return rows_of(torch.from_numpy(white))


def _mapping(path: Path) -> Mapping[Any, Any]:
    try:
        # YAML 1.2, in which 1e-5 is a number and JSON is YAML; PyYAML reads 1.1.
        values = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError as error:
        raise ConfigError(f"There is no file {path}; give a YAML or JSON file.") from error
    except (OSError, UnicodeError, YAMLError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{path} cannot be read ({detail}); give a YAML or JSON file.") from error
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{path} holds {type(values).__name__}, not names and values; write lines such as "
            "'epochs: 20'."
        )
    return values
