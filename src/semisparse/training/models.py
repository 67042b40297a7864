"""Models by name, with the number of classes and input channels that the data asks for."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from semisparse.errors import MissingExtraError, ModelError
from semisparse.training import resnet

_OWN: dict[str, Callable[..., nn.Module]] = {
    "semisparse/resnet8": resnet.resnet8,
    "semisparse/resnet20": resnet.resnet20,
}


def create(
    name: str, num_classes: int, weights: str | Path | None = None, input_channels: int = 3
) -> nn.Module:
    """Create a classifier `[N, input_channels, H, W] -> [N, num_classes]`.

    `name` is `torchvision/NAME`, `timm/NAME`, `semisparse/resnet8`, `semisparse/resnet20`, or
    `module.path:factory` (looked up from the working directory too; the factory gets those of
    `num_classes` and `input_channels` that its signature names). `weights` is `None` (random),
    `"DEFAULT"` (the published ones, downloaded by torchvision or timm), or a path to a state dict
    or safetensors file. Weights of the input layer and of the head that do not fit the number of
    channels or classes are left random.

    Raises `ModelError` for an unknown name, and for weights that do not fit the model.
    """
    if ":" in name:
        model = _from_factory(name, num_classes, input_channels)
        published = None
    elif name in _OWN:
        model = _OWN[name](num_classes, input_channels)
        published = None
    elif name.startswith("torchvision/"):
        model, published = _from_torchvision(name, num_classes)
    elif name.startswith("timm/"):
        model, published = _from_timm(name, num_classes)
    else:
        raise _unknown(name, names())
    _adapt_input(model, input_channels)
    if weights is None:
        return model
    if str(weights) == "DEFAULT":
        if published is None:
            raise ModelError(
                f"{name} has no published weights; give a path to a state dict, or no weights."
            )
        state = published()
    else:
        state = _read_state(Path(weights))
    _load(model, state, name, weights)
    return model


def names() -> list[str]:
    """Every name that `create` knows, those of timm only if it is installed."""
    known = [*_OWN, *(f"torchvision/{name}" for name in _torchvision_names())]
    try:
        import timm
    except ImportError:
        return known
    return [*known, *(f"timm/{name}" for name in timm.list_models())]


def _torchvision_names() -> list[str]:
    listed: list[str] = torchvision.models.list_models(module=torchvision.models)
    return listed


def _unknown(name: str, known: list[str]) -> ModelError:
    by_tail = {candidate.split("/", 1)[1]: candidate for candidate in reversed(known)}
    tail = name.split("/", 1)[-1]
    near = [by_tail[match] for match in difflib.get_close_matches(tail, by_tail, n=3)]
    near = near or ["torchvision/NAME", "timm/NAME", "module.path:factory"]
    return ModelError(f"There is no model {name!r}; did you mean {' or '.join(near)}?")


def _from_torchvision(name: str, num_classes: int) -> tuple[nn.Module, Callable[[], Any]]:
    tail = name.removeprefix("torchvision/")
    known = _torchvision_names()
    if tail not in known:
        raise _unknown(name, [f"torchvision/{candidate}" for candidate in known])
    model: nn.Module = torchvision.models.get_model(tail, weights=None, num_classes=num_classes)

    def published() -> Any:
        entry: Any = torchvision.models.get_model_weights(tail)
        return entry.DEFAULT.get_state_dict(progress=False, check_hash=True)

    return model, published


def _from_timm(name: str, num_classes: int) -> tuple[nn.Module, Callable[[], Any]]:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(
            f"Model {name} needs timm, which is not installed; install it with pip install timm."
        ) from error
    tail = name.removeprefix("timm/")
    # A timm name may carry a tag of its weights: mobilenetv2_100.ra_in1k.
    if not timm.is_model(tail.split(".")[0]):
        raise _unknown(name, [f"timm/{candidate}" for candidate in timm.list_models()])
    model: nn.Module = timm.create_model(tail, pretrained=False, num_classes=num_classes)

    def published() -> Any:
        return timm.create_model(tail, pretrained=True).state_dict()

    return model, published


def _from_factory(name: str, num_classes: int, input_channels: int) -> nn.Module:
    path, _, attribute = name.partition(":")
    # A console script, unlike `python -m`, does not look for modules where the user stands.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            f"Model factory {name!r} cannot be loaded ({error}); give an importable "
            "module.path:factory."
        ) from error
    offered = {"num_classes": num_classes, "input_channels": input_channels}
    wanted = inspect.signature(factory).parameters
    model = factory(**{key: value for key, value in offered.items() if key in wanted})
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"Model factory {name!r} returned {type(model).__name__}; it must return a "
            "torch.nn.Module."
        )
    return model


def _adapt_input(model: nn.Module, channels: int) -> None:
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        if layer.in_channels != channels:
            if layer.groups != 1:
                raise ModelError(
                    f"The first convolution, {name}, is grouped and takes {layer.in_channels} "
                    f"channels, not {channels}; give data with {layer.in_channels} channels."
                )
            layer.in_channels = channels
            shape = (layer.out_channels, channels, *layer.kernel_size)
            layer.weight = nn.Parameter(layer.weight.new_empty(shape))
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return


def _read_state(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}; give a path to one, or DEFAULT.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(
            f"Weights file {path} cannot be read ({type(error).__name__}: {error}); give a "
            "safetensors file or a state dict of tensors."
        ) from error


def _load(model: nn.Module, state: Any, name: str, weights: str | Path) -> None:
    own = model.state_dict()
    if not isinstance(state, dict) or not state.keys() & own.keys():
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
    replaceable = _ends(model)
    misfits = [key for key, value in state.items() if value.shape != own[key].shape]
    for key in misfits:
        if key.rpartition(".")[0] not in replaceable:
            raise ModelError(
                f"Tensor {key} of weights {weights} is {tuple(state[key].shape)}, but {name} "
                f"wants {tuple(own[key].shape)}; give the weights of that model."
            )
    model.load_state_dict({**own, **state, **{key: own[key] for key in misfits}})


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
