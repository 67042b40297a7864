"""How much the positions of a model's planes matter, and scores that spare those that do."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from semisparse.batches import batches
from semisparse.errors import MaskError, ModelError
from semisparse.masks import propagate
from semisparse.region import on_plane
from semisparse.trace import PlaneLayer, plane_of

# Maps of importance by the (height, width) of the plane that they are over.
Importance = Mapping[tuple[int, int], Tensor]

# A side of a plane is measured in as many parts. Single positions are lost in the noise of a few
# hundred images: ResNet8 on Fashion-MNIST, all at 0.2, untouched, diverges by 0.14 nats without
# importance, 0.14 by single positions of 1,000 images and 0.095 by 8x8 parts, of 150 images too;
# another such network by 0.17, 0.09 and 0.09.
_PARTS = 8
# Of the mean. Positions that do not matter at all are still masked evenly.
_LEAST = 1e-3


def measure(
    model: nn.Module,
    images: Tensor,
    fill: str = "nearest",
    batch_size: int | None = None,
    region: tuple[str, ...] = (),
) -> dict[tuple[int, int], Tensor]:
    """What masking single positions does to a trained network's answers, to first order.

    A position whose linear part changes by ``d`` moves the outputs by ``J d``, with ``J`` their
    derivative, and so their softmax ``p`` by a divergence (Kullback-Leibler) of

        1/2 (J d)^T (diag(p) - p p^T) (J d)

    nats, in which no label has a part. This is averaged over the images, and for another fill than
    ``"bias"`` over the up to four neighbours whose value the position may get; then it is summed
    over the convolutions on planes of one size, whose masks are aligned, and averaged over each of
    8x8 parts of the plane.

    The middle matrix is that of the covariance of ``v = sqrt(p) * s - p * (sqrt(p) . s)`` for
    random signs ``s``, so each image takes one backward pass, from ``v``, and the result is an
    estimate: the same one every time, the better the more images there are.

    Args:
        model: `[N, C, H, W] -> [N, num_classes]`, or for networks that segment
            `[N, num_classes, H', W']`, of which the mean over the positions counts; trained and
            without masks; it is left as it is.
        images: `[N, C, H, W]`, prepared as for the model.
        fill: what masked positions are going to hold, as in :class:`SparsityConfig`.
        batch_size: images that run at once, about; by default what is fast.
        region: of a :class:`SparsityConfig`, within which such positions count; empty for all.

    Returns:
        By plane ``(height, width)``: float64 ``[height, width]`` on the CPU.

    Raises:
        ModelError: the model does not take the images or has other outputs.
        MaskError: there are no images, or what they lead to is not finite.
    """
    if not len(images):
        raise MaskError("importance was to be measured on no images; give some hundreds.")
    device = next(model.parameters()).device
    signs = torch.Generator().manual_seed(0)
    found: dict[tuple[int, int], Tensor] = {}

    def watch(layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        plane = plane_of(layer, output)
        if plane is None:
            return output
        linear = _nchw(layer, output.detach())
        bias = layer.bias.detach() if isinstance(layer.bias, Tensor) else output.new_zeros(1)

        def add(gradient: Tensor) -> None:
            gradient = _nchw(layer, gradient)
            if fill == "bias":
                changes = _squared(gradient, bias[:, None, None] - linear)
            else:
                changes = _to_neighbours(gradient, linear)
            found[plane] = found.get(plane, 0) + changes.double().cpu() / (2 * len(images))

        output.register_hook(add)  # type: ignore[no-untyped-call]
        # What comes next may be in place, and would change `linear`.
        return output.clone()

    layers = [m for m in model.modules() if isinstance(m, PlaneLayer)]
    hooks = [layer.register_forward_hook(watch) for layer in layers]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        # A compiled model would be compiled anew with the hooks in it.
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            for batch in batches(images, device, batch_size):
                pixels = batch.detach().to(device).requires_grad_()
                outputs = _outputs(model, pixels)
                back = _towards(outputs.detach().softmax(1), signs)
                if outputs.dim() == 4:
                    back *= _shares(outputs, region)
                # To the pixels alone, so that nothing adds up in the parameters.
                torch.autograd.grad(outputs, pixels, back)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    found = {plane: _in_parts(values) for plane, values in found.items()}
    check_importance(found)
    return found


def weigh(score: Tensor, importance: Tensor, exponent: float) -> Tensor:
    """Raise the scores of positions that matter, so that fewer of them are among the lowest.

    Of scores that are spread evenly over [0, 1), the share that falls below a threshold becomes
    inversely proportional to ``importance ** exponent``.

    Args:
        score: float64 ``[H, W]``.
        importance: likewise, not negative.
        exponent: 0 leaves the scores as they are.
    """
    mean = importance.mean().clamp(min=torch.finfo(importance.dtype).tiny)
    return score * (importance / mean).clamp(min=_LEAST) ** exponent


def check_importance(importance: Importance) -> None:
    """Raise MaskError unless these are finite, non-negative maps over the planes they are of."""
    for plane, values in importance.items():
        if tuple(values.shape) != plane or values.dtype != torch.float64:
            raise MaskError(
                f"the importance of planes of {plane} is {values.dtype} {list(values.shape)}, but "
                "must be a float64 map of that size; pass what importance.measure() returned."
            )
        if not bool((values.isfinite() & (values >= 0)).all()):
            raise MaskError(
                f"the importance of planes of {plane} is negative or not finite; measure it on a "
                "trained model whose outputs are finite."
            )


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    name = type(model).__name__
    try:
        outputs = model(images)
    except RuntimeError as error:
        raise ModelError(
            f"{name} cannot take images of {list(images.shape[1:])} ({error}); give images as it "
            "was trained with."
        ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() not in (2, 4):
        shape = list(outputs.shape[1:]) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ModelError(
            f"{name} returns {shape} for an image, but importance is measured by one number a "
            "class, or a plane of them; wrap it in a module that returns such, or set importance "
            "to 0."
        )
    return outputs


def _nchw(layer: nn.Module, output: Tensor) -> Tensor:
    return output.movedim(-1, -3) if isinstance(layer, nn.Linear) else output


def _shares(outputs: Tensor, region: tuple[str, ...]) -> Tensor:
    """Square roots of what the positions of planes count, ``[H, W]``."""
    plane = outputs.shape[2:]
    counted = on_plane(region, *plane) if region else torch.ones(plane, dtype=torch.bool)
    return (counted / counted.sum()).sqrt().to(outputs)


def _towards(shares: Tensor, generator: torch.Generator) -> Tensor:
    """Random vectors ``[N, classes, ...]`` of covariance ``diag(p) - p p^T`` for shares ``p``."""
    signs = torch.randint(2, shares.shape, generator=generator).to(shares) * 2 - 1
    roots = shares.sqrt() * signs
    return roots - shares * roots.sum(1, keepdim=True)


def _to_neighbours(gradient: Tensor, linear: Tensor) -> Tensor:
    """`_squared` of the change to a neighbour's value, the mean over the neighbours there are."""
    height, width = linear.shape[-2:]
    total, count = linear.new_zeros(height, width), linear.new_zeros(height, width)
    for dim, step in ((2, 1), (2, -1), (3, 1), (3, -1)):
        inside = linear.new_ones(height, width)
        # Rolled in from the other side.
        inside.select(dim - 2, 0 if step == 1 else -1).zero_()
        total += inside * _squared(gradient, linear.roll(step, dim) - linear)
        count += inside
    return total / count.clamp(min=1)


def _in_parts(values: Tensor) -> Tensor:
    height, width = values.shape
    parts = propagate(values, min(height, _PARTS), min(width, _PARTS))
    return propagate(parts, height, width)


def _squared(gradient: Tensor, change: Tensor) -> Tensor:
    """Squared products over the channels of ``[N, C, H, W]``, summed over the images."""
    return (gradient * change).sum(1).square().sum(0)
