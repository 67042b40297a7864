"""Weights from files, fitted to a model whose ends may have other sizes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from semisparse.errors import ModelError

# Under which training scripts wrap the state dict of a model.
_WRAPPERS = ("state_dict", "model")
_PREFIXES = ("module.", "model.")

_log = logging.getLogger(__name__)


def read(path: Path) -> Mapping[str, Any]:
    """The tensors of a safetensors file, a state dict, or a checkpoint that holds one.

    Raises `ModelError` when the file is missing, corrupt, or holds more than tensors and plain
    values.
    """
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}; give a path to one, or DEFAULT.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"Weights file {path} cannot be read ({type(error).__name__}: {error}); give a "
            "safetensors file or a state dict of tensors."
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    return loaded if isinstance(loaded, Mapping) else {}


def load(
    model: nn.Module,
    state: Mapping[str, Any],
    name: str,
    weights: str | Path,
    *,
    exact: bool = False,
) -> None:
    """Load a state into a model; `name` and `weights` are how messages call the two.

    Unless the fit has to be `exact`, tensors of the input convolution and of the head that have
    other sizes stay random, which is said in one line. Masks of a sparse training are left out.
    Raises `ModelError` for the state of another model.
    """
    own = model.state_dict()
    state = _without_masks(_renamed(state, own), own)
    if getattr(model, "aux_logits", True) is False:
        state = {key: value for key, value in state.items() if not key.lower().startswith("aux")}
    if not state.keys() & own.keys():
        raise ModelError(
            f"Weights {weights} hold none of the tensors of {name}; give the weights of that model."
        )
    # Counters of batches are absent from weights published before torch 0.4.1.
    missing = sorted(
        key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked")
    )
    unknown = sorted(state.keys() - own.keys())
    if missing or unknown:
        raise ModelError(
            f"Weights {weights} do not fit {name}: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}) and {len(unknown)} are unknown "
            f"({', '.join(unknown[:3])}); give the weights of that model."
        )
    replaceable = set() if exact else _ends(model)
    misfits = [key for key, value in state.items() if value.shape != own[key].shape]
    for key in misfits:
        if key.rpartition(".")[0] not in replaceable:
            raise ModelError(
                f"Tensor {key} of weights {weights} is {tuple(state[key].shape)}, but {name} "
                f"wants {tuple(own[key].shape)}; give the weights of that model."
            )
    if misfits:
        # Without a handler, logging prints warnings as they are to standard error.
        replaced = [
            f"{key} is {tuple(own[key].shape)}, not {tuple(state[key].shape)}"
            for key in misfits
            if own[key].ndim > 1
        ]
        _log.warning("%s begins with random ends: %s in %s.", name, "; ".join(replaced), weights)
    model.load_state_dict({**own, **state, **{key: own[key] for key in misfits}})


def _renamed(state: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors, without what parallel or Lightning training puts before their names."""
    tensors = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    for prefix in ("", *_PREFIXES):
        within = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
        if within.keys() & own.keys():
            return within
    return tensors


def _without_masks(state: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in state.items()
        if key in own or value.dtype != torch.bool or not key.endswith(".mask")
    }


def _ends(model: nn.Module) -> set[str]:
    """Names of the input convolution and of the head: the last layer with weights."""
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    if not layers:
        return set()
    convolutions = [name for name, layer in layers if isinstance(layer, nn.Conv2d)]
    return {layers[-1][0], *convolutions[:1]}
