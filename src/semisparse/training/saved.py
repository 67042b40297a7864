"""`model.pt` of a run: the trained model as tensors and plain values, and what rebuilds it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError
from semisparse.files import writing
from semisparse.sparsifier import Sparsifier
from semisparse.training import models, settings


def save(
    path: Path,
    model: nn.Module,
    *,
    num_classes: int,
    example_input: torch.Tensor,
    sparsifier: Sparsifier | None,
) -> None:
    """Write the model, `[N, C, H, W] -> [N, num_classes]`, with its masks, whole or not at all."""
    saved = {
        "model": model.state_dict(),
        "num_classes": num_classes,
        "example_input": example_input,
        "sparsifier": sparsifier.state_dict() if sparsifier else None,
    }
    with writing(path) as draft:
        torch.save(saved, draft)


def load_run(out: Path) -> tuple[nn.Module, torch.Tensor, SparsityConfig | None]:
    """The trained model of a finished run with its masks attached, in evaluation mode.

    Returns the model, an example input `[1, C, H, W]`, and the configuration of the masks, which
    is `None` for a dense run. Raises `ConfigError` when the folder holds no finished run.
    """
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
    example: torch.Tensor = saved["example_input"]
    model = models.create(options.model, saved["num_classes"], input_channels=example.shape[1])
    model.eval()
    if options.sparsity is not None:
        state = saved["sparsifier"]
        sparsifier = Sparsifier(model, example, options.sparsity, state["total_steps"])
        sparsifier.load_state_dict(state)
    model.load_state_dict(saved["model"])
    return model, example, options.sparsity
