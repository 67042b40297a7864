"""`model.pt` of a run: the trained model as tensors and plain values, and what rebuilds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError
from semisparse.files import writing
from semisparse.sparsifier import Sparsifier
from semisparse.training import models, settings, tensors
from semisparse.training.data import Normalisation
from semisparse.training.pruning import resize
from semisparse.training.settings import TrainSettings

_ENTRIES = {"architecture", "model", "num_classes", "example_input", "normalisation", "sparsifier"}


def save(
    path: Path,
    model: nn.Module,
    *,
    architecture: str,
    num_classes: int,
    example_input: torch.Tensor,
    normalisation: Normalisation,
    sparsifier: Sparsifier | None,
) -> None:
    """Write a model, `[N, C, H, W] -> [N, num_classes]`, with its masks, whole or not at all.

    `architecture` is its name for `models.create`; its layers may have fewer channels.
    """
    saved = {
        "architecture": architecture,
        "model": model.state_dict(),
        "num_classes": num_classes,
        "example_input": example_input,
        "normalisation": normalisation,
        "sparsifier": sparsifier.state_dict() if sparsifier else None,
    }
    with writing(path) as draft:
        tensors.write(draft, saved)


def load_run(out: Path) -> tuple[nn.Module, torch.Tensor, SparsityConfig | None]:
    """The trained model of a finished run with its masks attached, in evaluation mode.

    Returns the model, an example input `[1, C, H, W]`, and the configuration of the masks, which
    is `None` for a dense run. Raises `ConfigError` when the folder holds no finished run.
    """
    saved, options = _read(out)
    model = _blank(saved)
    if options.masks is not None:
        state = saved["sparsifier"]
        sparsifier = Sparsifier(model, saved["example_input"], options.masks, state["total_steps"])
        sparsifier.load_state_dict(state)
    model.load_state_dict(saved["model"])
    return model, saved["example_input"], options.sparsity


def load_dense(out: Path) -> tuple[nn.Module, str]:
    """The trained model of a finished run without its masks, in evaluation mode.

    Returns the model and the name of its architecture. Raises `ConfigError` as `load_run`.
    """
    saved, _ = _read(out)
    model = _blank(saved)
    model.load_state_dict({name: saved["model"][name] for name in model.state_dict()})
    return model, saved["architecture"]


def normalisation(out: Path) -> Normalisation:
    """Mean and deviation of each channel that a finished run was trained with.

    Raises `ConfigError` as `load_run`.
    """
    saved, _ = _read(out)
    mean, std = saved["normalisation"]
    return tuple(mean), tuple(std)


def architecture(out: Path) -> tuple[str, float]:
    """What a finished run's network is made from.

    Returns the name of the architecture, and the share of the channels of its convolutions that
    the network lacks. Raises `ConfigError` as `load_run`.
    """
    saved, _ = _read(out)
    left = _channels(_blank(saved)) / _channels(_architecture(saved))
    return saved["architecture"], 1 - left


def _read(out: Path) -> tuple[dict[str, Any], TrainSettings]:
    options = settings.read(out)
    path = out / "model.pt"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(
            f"The run in {out} is not finished, it has no model.pt; finish it with "
            f"`semisparse train --resume {out}`."
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}: {error}); train again."
        ) from error
    if not isinstance(saved, dict) or not saved.keys() >= _ENTRIES:
        raise ConfigError(f"{path} is not what a run of this semisparse leaves; train again.")
    return saved, options


def _blank(saved: Mapping[str, Any]) -> nn.Module:
    model = _architecture(saved)
    resize(model, saved["model"])
    return model.eval()


def _architecture(saved: Mapping[str, Any]) -> nn.Module:
    channels = saved["example_input"].shape[1]
    return models.create(saved["architecture"], saved["num_classes"], input_channels=channels)


def _channels(model: nn.Module) -> int:
    return sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
