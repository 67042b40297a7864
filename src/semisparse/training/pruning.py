"""Structured pruning: whole channels go, along the dependencies between a model's layers.

The dependencies and the ranking are torch-pruning's (DepGraph, arXiv 2301.12900). What is left is
an ordinary model of narrower layers, so its weights alone tell how to rebuild it.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from semisparse.errors import ConfigError, MissingExtraError, ModelError

IMPORTANCES = ("magnitude", "taylor")

# The kernels compute whole vectors of output channels, 8 or 16 floats each.
_MULTIPLE = 8
# Of the pruned and the rebuilt model in float32: the same arithmetic in the same order.
_TOLERANCE = 1e-6


def prune(
    model: nn.Module,
    example_input: Tensor,
    fraction: float,
    importance: str = "magnitude",
    batches: Iterable[tuple[Tensor, Tensor]] = (),
) -> None:
    """Remove the least important channels of every layer but the head, in place.

    Layers whose channels depend on each other, by a residual sum or a depthwise convolution, lose
    the same ones. Each layer keeps the multiple of 8 that is nearest to `1 - fraction` of its
    channels, and 8 at least.

    Args:
        model: a classifier `[N, C, H, W] -> [N, num_classes]` without masks; the better it is
            trained, the more its channels' importance means.
        example_input: `[N, C, H, W]`.
        fraction: of the channels to remove, in (0, 1).
        importance: `"magnitude"`, the norm of a channel's weights in all layers that it belongs
            to, or `"taylor"`, the change of the loss to first order when it is removed
            (Molchanov et al. 2019).
        batches: images `[N, C, H, W]` and classes `[N]`, by which `"taylor"` is estimated.

    Raises:
        ConfigError: the fraction or the importance is out of range, or batches are missing.
        MissingExtraError: torch-pruning is not installed.
        ModelError: the model's dependencies cannot be followed, or nothing of it can be removed;
            it may then be changed.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"The share of channels to prune is {fraction}; give one in (0, 1).")
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingExtraError(
            "Pruning channels needs torch-pruning, which is not installed; run pip install "
            "'semisparse[train]'."
        ) from error
    rankings: dict[str, Any] = {
        "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
    }
    if importance not in rankings:
        raise ConfigError(
            f"There is no importance {importance!r}; give one of {', '.join(rankings)}."
        )
    name = type(model).__name__
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    before = copy.deepcopy(model)
    mode = model.training
    model.eval()
    if importance == "taylor":
        with torch.enable_grad():
            _differentiate(model, batches)
    try:
        # What depends on what is read off the gradient's graph.
        with warnings.catch_warnings(), torch.enable_grad():
            # How parameters outside of layers are treated, which the check below covers.
            warnings.filterwarnings("ignore", "Unwrapped parameters detected")
            pruner = torch_pruning.pruner.BasePruner(
                model,
                example_input,
                importance=rankings[importance](),
                pruning_ratio_dict={layer: _share(layer, fraction) for layer in layers},
                ignored_layers=layers[-1:],
            )
            pruner.step()
        with torch.no_grad():
            pruned = model(example_input)
    # The library asks a model's graph for what it may not have, and then raises whatever comes.
    except Exception as error:
        raise ModelError(
            f"{name} cannot be pruned ({type(error).__name__}: {error}); train it without "
            "prune_channels."
        ) from error
    model.zero_grad(set_to_none=True)
    model.train(mode)
    if _size(model) == _size(before):
        raise ModelError(
            f"Nothing of {name} is left out when {fraction} of its channels are to go, because "
            f"layers keep multiples of {_MULTIPLE}; give a larger share."
        )
    resize(before.eval(), model.state_dict())
    before.load_state_dict(model.state_dict())
    with torch.no_grad():
        rebuilt = before(example_input)
    if rebuilt.shape != pruned.shape or not torch.allclose(
        rebuilt, pruned, rtol=_TOLERANCE, atol=_TOLERANCE
    ):
        raise ModelError(
            f"{name} has sizes that its weights do not tell, so it could not be loaded again once "
            "it is pruned; train it without prune_channels."
        )


def resize(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give the layers of a model the sizes that they have in a state dict, in place.

    Values of resized tensors are undefined until the state dict is loaded.
    """
    for prefix, module in model.named_modules():
        changed = False
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                wanted = state.get(f"{prefix}.{key}" if prefix else key)
                if tensor is not None and wanted is not None and wanted.shape != tensor.shape:
                    tensor.data = tensor.new_empty(wanted.shape)
                    changed = True
        if changed:
            _describe(module)


def _describe(module: nn.Module) -> None:
    """Bring the attributes that tell a layer's sizes in line with its weights."""
    if isinstance(module, nn.Conv2d):
        outputs, inputs = module.weight.shape[:2]
        if 1 < module.groups == module.out_channels:
            module.groups = outputs
        module.out_channels, module.in_channels = outputs, inputs * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        module.num_features = max(tensor.numel() for tensor in tensors)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = module.weight.numel()
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)


def _share(layer: nn.Conv2d | nn.Linear, fraction: float) -> float:
    """The share of a layer's channels, in each of its groups, that the pruner is to remove."""
    channels = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    # A depthwise convolution loses the channels of the layer before it.
    if groups == channels:
        groups = 1
    size, step = channels // groups, _MULTIPLE // math.gcd(_MULTIPLE, groups)
    kept = step * max(1, round(size * (1 - fraction) / step))
    # The pruner keeps int(size * (1 - share)): half a channel more is safe from rounding.
    return max(0.0, 1 - (kept + 0.5) / size)


def _differentiate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Sum the loss's gradients over the batches, as the model evaluates."""
    model.zero_grad(set_to_none=True)
    count = 0
    for images, classes in batches:
        loss = nn.functional.cross_entropy(model(images), classes, reduction="sum")
        # torch has no annotations there.
        loss.backward()  # type: ignore[no-untyped-call]
        count += len(classes)
    if not count:
        raise ConfigError("The importance 'taylor' is estimated on images; give batches of them.")


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
