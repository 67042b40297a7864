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

import torchvision
from torch import nn

from semisparse.errors import MissingExtraError, ModelError
from semisparse.training import resnet
from semisparse.training.weights import load, read

_OWN: dict[str, Callable[..., nn.Module]] = {
    "semisparse/resnet8": resnet.resnet8,
    "semisparse/resnet20": resnet.resnet20,
}

# Of torchvision's, these have auxiliary heads, which are of use to training from the beginning
# only, and rescale images normalised as for ImageNet to [-1, 1] when they are given weights.
_AUXILIARY = ("googlenet", "inception_v3")


def create(
    name: str,
    num_classes: int,
    weights: str | Path | None = None,
    input_channels: int = 3,
    *,
    exact: bool = False,
) -> nn.Module:
    """Create a classifier `[N, input_channels, H, W] -> [N, num_classes]`.

    `name` is `torchvision/NAME` or only `NAME`, `timm/NAME`, `semisparse/resnet8`,
    `semisparse/resnet20`, or `module.path:factory` (looked up from the working directory too; the
    factory gets those of `num_classes` and `input_channels` that its signature names). `weights` is
    `None` (random), `"DEFAULT"` (the published ones, downloaded by torchvision or timm), or a path
    as for `weights.read`. An input layer or head whose weights are for another number of channels
    or classes is left random, which is said in one line, or refused if the model has to be `exact`.

    Raises `ModelError` for an unknown name, and for weights that do not fit the model.
    """
    name = full_name(name)
    if ":" in name:
        model = _from_factory(name, num_classes, input_channels)
        published = None
    elif name in _OWN:
        model = _OWN[name](num_classes, input_channels)
        published = None
    elif name.startswith("torchvision/"):
        model, published = _from_torchvision(name, num_classes)
    elif name.startswith("timm/"):
        model, published = _from_timm(name, num_classes, input_channels)
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
        try:
            state = published()
        except Exception as error:  # what fails without a network is up to two libraries
            raise ModelError(
                f"The published weights of {name} cannot be fetched ({error}); give a path to them."
            ) from error
    else:
        state = read(Path(weights))
    load(model, state, name, weights, exact=exact)
    return model


def random_weights(name: str, weights: str | Path | None) -> bool:
    """Whether `create` is known to give a model nothing that was trained."""
    # A factory may give trained weights.
    return weights is None and ":" not in name


def normalisation(
    name: str, weights: str | Path | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation, by channel of RGB in [0, 1], that published weights were trained with.

    `name` and `weights` as `create`. `None` for weights that no one has published: random ones,
    and files that torchvision or timm do not name as theirs.
    """
    if weights is None:
        return None
    name = full_name(name)
    file = Path(weights).name
    entry: Any
    if name.startswith("torchvision/"):
        tail = _torchvision_name(name)
        published = torchvision.models.get_model_weights(tail)
        entries = {"DEFAULT": published.DEFAULT, **{Path(e.url).name: e for e in published}}
        if file not in entries:
            return None
        if tail in _AUXILIARY:
            return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        entry = entries[file].transforms()
    elif name.startswith("timm/"):
        entry = _timm_config(name)
        if entry is None or file not in ("DEFAULT", Path(entry.url or "").name):
            return None
    else:
        return None
    return tuple(entry.mean), tuple(entry.std)


def full_name(name: str) -> str:
    """`torchvision/NAME` where torchvision has a model of that name alone, else `name`."""
    return f"torchvision/{name}" if name in _torchvision_names() else name


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


def _torchvision_name(name: str) -> str:
    """What torchvision calls the model."""
    tail = name.removeprefix("torchvision/")
    known = _torchvision_names()
    if tail not in known:
        raise _unknown(name, [f"torchvision/{candidate}" for candidate in known])
    return tail


def _timm_config(name: str) -> Any:
    """What timm knows of the published weights, whose tag a name may carry: `NAME.ra_in1k`."""
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError(
            f"Model {name} needs timm, which is not installed; install it with pip install timm."
        ) from error
    tail = name.removeprefix("timm/")
    if not timm.is_model(tail.split(".")[0]):
        raise _unknown(name, [f"timm/{candidate}" for candidate in timm.list_models()])
    try:
        return timm.get_pretrained_cfg(tail)
    except RuntimeError as error:
        tagged = timm.list_pretrained(tail.split(".")[0])
        raise _unknown(name, [f"timm/{candidate}" for candidate in tagged]) from error


def _from_torchvision(name: str, num_classes: int) -> tuple[nn.Module, Callable[[], Any]]:
    tail = _torchvision_name(name)
    options = {"aux_logits": False, "init_weights": True} if tail in _AUXILIARY else {}
    model: nn.Module = torchvision.models.get_model(
        tail, weights=None, num_classes=num_classes, **options
    )

    def published() -> Any:
        entry: Any = torchvision.models.get_model_weights(tail)
        return entry.DEFAULT.get_state_dict(progress=False, check_hash=True)

    return model, published


def _from_timm(
    name: str, num_classes: int, input_channels: int
) -> tuple[nn.Module, Callable[[], Any]]:
    _timm_config(name)
    import timm

    tail = name.removeprefix("timm/")
    # Several branches may read the images, which timm knows of.
    model: nn.Module = timm.create_model(
        tail, pretrained=False, num_classes=num_classes, in_chans=input_channels
    )

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
