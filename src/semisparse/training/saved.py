"""`model.pt` of a run: the trained model as tensors and plain values, and what rebuilds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError
from semisparse.files import writing
from semisparse.image_size import ImageSize
from semisparse.sparsifier import Sparsifier
from semisparse.training import models, settings, tensors
from semisparse.training.data import Normalisation
from semisparse.training.pruning import resize

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


class FinishedRun:
    """What a finished run left, read once.

    Attributes:
        settings: of the run.
        architecture: name of the model, as `models.create` takes it.
        example_input: `[1, C, H, W]`.
        normalisation: mean and deviation of each channel that it was trained with.

    Raises `ConfigError` when the folder holds no finished run.
    """

    def __init__(self, out: Path) -> None:
        self.settings = settings.read(out)
        self._saved = _read(out)
        self.architecture: str = self._saved["architecture"]
        self.example_input: torch.Tensor = self._saved["example_input"]
        mean, std = self._saved["normalisation"]
        self.normalisation: Normalisation = tuple(mean), tuple(std)

    def masked(self) -> nn.Module:
        """The trained model with its masks attached, if it has any, in evaluation mode."""
        model = self._blank()
        masks = self.settings.masks
        if masks is not None:
            state = self._saved["sparsifier"]
            sparsifier = Sparsifier(model, self.example_input, masks, state["total_steps"])
            sparsifier.load_state_dict(state)
        model.load_state_dict(self._saved["model"])
        return model

    def dense(self) -> nn.Module:
        """The trained model without its masks, in evaluation mode."""
        model = self._blank()
        trained = self._saved["model"]
        model.load_state_dict({name: trained[name] for name in model.state_dict()})
        return model

    @property
    def image_size(self) -> ImageSize:
        """That it was trained with, also where its settings left that to the data."""
        return ImageSize(*self.example_input.shape[2:])

    @property
    def pruned(self) -> float:
        """Share of the channels of the architecture's convolutions that the network lacks."""
        return 1 - _channels(self._blank()) / _channels(self._create())

    def _blank(self) -> nn.Module:
        model = self._create()
        resize(model, self._saved["model"])
        return model.eval()

    def _create(self) -> nn.Module:
        channels = self.example_input.shape[1]
        return models.create(self.architecture, self._saved["num_classes"], input_channels=channels)


def load_run(out: Path) -> tuple[nn.Module, torch.Tensor, SparsityConfig | None]:
    """The trained model of a finished run with its masks attached, in evaluation mode.

    Returns the model, an example input `[1, C, H, W]`, and the configuration of the masks, which
    is `None` for a dense run. Raises `ConfigError` when the folder holds no finished run.
    """
    run = FinishedRun(out)
    return run.masked(), run.example_input, run.settings.sparsity


def check_own_weights(out: Path, weights: str | Path | None, option: str) -> None:
    """Raises `ConfigError` for weights, given by `option`, beside those that a run has."""
    if weights is not None:
        raise ConfigError(
            f"The run {out} has weights of its own, but {option} is {weights}; give one of them."
        )


def _read(out: Path) -> dict[str, Any]:
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
    return saved


def _channels(model: nn.Module) -> int:
    return sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
