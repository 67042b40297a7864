"""Batch norm statistics from a few unlabelled images, without training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from semisparse.batches import batches
from semisparse.errors import DataError, ModelError

Statistics = dict[_BatchNorm, tuple[Tensor, Tensor]]


def recalibrate(
    model: nn.Module, images: Tensor, batch_size: int = 64, before: Statistics | None = None
) -> int:
    """Adapt the statistics of all batch norm layers to the images, in place.

    Masks and pruning change what batch norm gets to see, so the statistics of training are off.
    They become those of the images; or, with `before`, they change by what changed on the images:
    means by the difference, variances by the ratio. What is peculiar to the images is in both and
    cancels, so that few of them do.

    Args:
        model: on any device; layers that the images do not reach keep their statistics. Weights,
            masks, momentum and modes stay as they were.
        images: `[N, C, H, W]` with N from 2, prepared as for the model.
        batch_size: images that run at once, about; the smaller, the noisier the normalisation.
        before: by `statistics_of`, of the same images and batch size, before masks were put on
            whose layers the model still has.

    Returns:
        How many layers have new statistics; 0 where the model has no batch norm.

    Raises:
        DataError: there are fewer than two images.
    """
    # EfficientNet-Lite0 trained on ImageNet, all convolutions of its residual blocks masked by 0.5:
    # 64% of other images keep their class, with the statistics of 300 images 72%, with the change
    # on 150 images 81%.
    found = statistics_of(model, images, batch_size)
    for layer, (mean, variance) in found.items():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        if before is not None:
            own_mean, own_variance = before[layer]
            # With epsilon, as batch norm divides by it: a channel that is always zero has none.
            scale = (variance + layer.eps) / (own_variance + layer.eps)
            mean = layer.running_mean.cpu() + (mean - own_mean)
            variance = (layer.running_var.cpu() + layer.eps) * scale - layer.eps
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance.clamp(min=0))
    return len(found)


@torch.no_grad()
def statistics_of(model: nn.Module, images: Tensor, batch_size: int = 64) -> Statistics:
    """What batch norm gets to see of the images: mean and (unbiased) variance by channel, float64.

    The model runs once; batch norm normalises by the batch, as in training, and everything else is
    as in evaluation. The statistics are those of all values that a layer was given, whatever the
    batches. The model stays as it was.

    Args:
        model: as for `recalibrate`, and so the others.
        images: `[N, C, H, W]` with N from 2.
        batch_size: images that run at once, about.

    Raises:
        DataError: there are fewer than two images.
    """
    if len(images) < 2:
        raise DataError(
            f"Batch norm has no statistics over {len(images)} image; give 2 or more, some hundreds "
            "for good ones."
        )
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    moments = {layer: _Moments() for layer in layers}

    def collect(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, _BatchNorm)
        moments[layer].add(layer, inputs[0].numel() // inputs[0].shape[1])

    hooks = [layer.register_forward_hook(collect) for layer in layers]
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    model.eval()
    try:
        with kept_statistics(model):
            for layer in layers:
                layer.train()
                # Its running statistics are then those of the batch. To take them from the inputs
                # as well cost twice as much as all else (EfficientNet-Lite0, CPU).
                layer.momentum = 1.0
            run(model, images, batch_size)
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return {
        layer: (found.mean, found.squares / (found.count - 1))
        for layer, found in moments.items()
        if found.count > 1
    }


@torch.no_grad()
def run(model: nn.Module, images: Tensor, batch_size: int | None = None) -> Tensor:
    """The model's outputs of all images, in the mode that it is in, on the CPU.

    Args:
        model: as for `recalibrate`.
        images: `[N, C, H, W]` with N from 1.
        batch_size: images that run at once, about; by default what is fast.

    Raises:
        ModelError: the model returns something else than a tensor.
    """
    device = next(model.parameters()).device
    outputs = []
    for batch in batches(images, device, batch_size):
        output = model(batch.to(device))
        if not isinstance(output, Tensor):
            raise ModelError(
                f"{type(model).__name__} returns {type(output).__name__}; wrap it in a module that "
                "returns one tensor."
            )
        outputs.append(output.cpu())
    return torch.cat(outputs)


def held_statistics(model: nn.Module) -> dict[Tensor, Tensor]:
    """The buffers of batch norm, and copies of what they hold."""
    return {
        buffer: buffer.clone()
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for buffer in module.buffers(recurse=False)
    }


def restore_statistics(held: dict[Tensor, Tensor]) -> None:
    """Undo what happened to them since `held_statistics`."""
    for buffer, values in held.items():
        buffer.copy_(values)


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Restores the statistics of batch norm at the end of the block."""
    held = held_statistics(model)
    try:
        yield
    finally:
        restore_statistics(held)


class _Moments:
    """Mean and sum of squared deviations by channel, of values that come in parts."""

    # The parts are merged as in Chan, Golub & LeVeque (1983), without cancellation.

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, layer: _BatchNorm, count: int) -> None:
        """Take in the batch of `count` values by channel that a layer's statistics are of."""
        assert layer.running_mean is not None
        assert layer.running_var is not None
        mean, variance = (v.double().cpu() for v in (layer.running_mean, layer.running_var))
        total = self.count + count
        apart = mean - self.mean
        self.mean = self.mean + apart * (count / total)
        between = apart**2 * (self.count * count / total)
        self.squares = self.squares + variance * (count - 1) + between
        self.count = total
