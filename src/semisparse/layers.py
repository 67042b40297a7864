"""Layers whose output positions are masked.

Attaching changes a layer's class, not the object, so its parameters, hooks, shared references and
``state_dict`` keys stay as they are, and detaching is exact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from semisparse.errors import MaskError, ModelError
from semisparse.masks import check_mask, sources_of
from semisparse.trace import PlaneLayer

_ATTRIBUTES = ("mask", "_source", "_share", "fill", "layer_name")


class MaskedLayer(nn.Module):
    """What :class:`MaskedConv2d` and :class:`MaskedLinear` have in common.

    The mask acts on the linear part, before the layer's own bias: with bias ``b``, fill ``"bias"``
    gives ``where(mask, W * x + b, b)``. Fill ``"nearest"`` copies whole outputs, which is the same
    as copying the linear part, since the bias is equal at all positions, and so is ``"mean"``.

    Attributes:
        mask: bool ``[H_out, W_out]``, True where computed; a buffer, so it is in the state_dict.
        fill: ``"bias"``, ``"nearest"`` or ``"mean"``.
        layer_name: what errors call it.
    """

    mask: Tensor
    fill: str
    layer_name: str
    _source: Tensor
    _share: Tensor

    def set_mask(self, mask: Tensor, sources: tuple[Tensor, ...] | None = None) -> None:
        """Replace the mask, in place.

        Args:
            mask: bool ``[H_out, W_out]``, on any device.
            sources: ``sources_of(mask, self.fill)`` if they are already at hand.

        Raises:
            MaskError: if it is no mask, has another size, or masks everything under another fill
                than "bias".
        """
        check_mask(mask)
        if mask.shape != self.mask.shape:
            raise MaskError(
                f"a mask of {_by(mask.shape)} does not fit {self.layer_name}, whose output plane "
                f"is {_by(self.mask.shape)}."
            )
        self._set_sources(mask, sources)
        self.mask.copy_(mask)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._set_sources(self.mask)

    def _set_sources(self, mask: Tensor, sources: tuple[Tensor, ...] | None = None) -> None:
        if self.fill == "bias":
            return
        if sources is None:
            sources = sources_of(mask, self.fill)
        self._source.copy_(sources[0].flatten(-2))
        if self.fill == "mean":
            self._share.copy_(sources[1].view(torch.int32))

    def _check_plane(self, plane: torch.Size) -> None:
        if plane != self.mask.shape:
            raise MaskError(
                f"the mask of {self.layer_name} was made for an output plane of "
                f"{_by(self.mask.shape)}, but this input gives {_by(plane)}; run the model at the "
                "input size of the example input."
            )

    def _filled(self, output: Tensor, *, nhwc: bool) -> Tensor:
        """The layer's output, ``[..., H, W, C]`` or ``[..., C, H, W]``, with the fill."""
        take = _take_rows if nhwc else _gather

        def over_plane(values: Tensor) -> Tensor:
            return values[..., None] if nhwc else values

        if self.fill == "nearest":
            return take(output, self._source)
        if self.fill == "mean":
            first, second = (take(output, source) for source in self._source)
            share = over_plane(self._share.view(torch.float32).to(output.dtype))
            # The mean of an infinite value and itself would be NaN. Not lerp, which is NaN already
            # where one of two is infinite.
            return torch.where(share > 0, first * (1 - share) + second * share, first)
        bias = cast(Tensor | None, self.bias)
        if bias is None:
            return torch.where(over_plane(self.mask), output, 0)
        bias = bias.to(output.dtype)
        return torch.where(over_plane(self.mask), output, bias if nhwc else bias[:, None, None])

    def extra_repr(self) -> str:
        """The plain layer's arguments, the plane and the fill."""
        plain: str = super().extra_repr()
        return f"{plain}, mask={_by(self.mask.shape)}, fill={self.fill}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class of a masked subclass is made at run time, so pickle cannot find it by name.
        state = super().__reduce_ex__(protocol)[2]
        return _blank, (_plain_class(type(self)),), state


class MaskedConv2d(MaskedLayer, nn.Conv2d):
    """A convolution whose masked output positions hold the layer's fill; made by :func:`attach`."""

    def forward(self, input: Tensor) -> Tensor:
        """As the plain convolution, ``[N, C, H, W]`` or ``[C, H, W]``.

        Raises:
            MaskError: if the output plane is not the one that the mask was made for.
        """
        output: Tensor = super().forward(input)
        self._check_plane(output.shape[-2:])
        # Forward and backward in ms, one AVX-512 core, float32 [32, 64, 56, 56] (the convolution
        # itself: 128 and 787 contiguous, 64 and 315 channels_last):
        #                      contiguous    channels_last
        #   gather             4.6,  6.3      9.6, 12.8
        #   index_select      33.0,  6.4     13.8, 12.9
        #   the same in NHWC   8.4, 13.1      2.5,  5.5
        #   index             13.8, 17.6     21.8,  8.4
        #   index_copy        14.0, 17.4     16.8, 20.1
        if output.dim() == 4 and not output.is_contiguous():
            return self._filled(output.permute(0, 2, 3, 1), nhwc=True).permute(0, 3, 1, 2)
        return self._filled(output, nhwc=False)


class MaskedLinear(MaskedLayer, nn.Linear):
    """A linear layer of the channels of a plane, whose masked positions hold the layer's fill.

    It is to ``[N, H, W, C]`` what a 1x1 convolution is to ``[N, C, H, W]``; made by :func:`attach`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """As the plain layer, ``[N, H, W, C]`` or ``[H, W, C]``.

        Raises:
            MaskError: if the plane is not the one that the mask was made for.
        """
        output: Tensor = super().forward(input)
        self._check_plane(output.shape[-3:-1])
        return self._filled(output, nhwc=True)


def _gather(output: Tensor, source: Tensor) -> Tensor:
    """``output[..., p] = output[..., source[p]]`` over the plane of ``[..., H, W]``."""
    plane = output.flatten(-2)
    return plane.gather(-1, source.expand_as(plane)).view(output.shape)


def _take_rows(output: Tensor, source: Tensor) -> Tensor:
    """``output[..., p, :] = output[..., source[p], :]`` over the plane of ``[..., H, W, C]``."""
    return output.flatten(-3, -2).index_select(-2, source).view(output.shape)


def attach(layer: PlaneLayer, height: int, width: int, fill: str, name: str = "") -> None:
    """Make a layer masked, with everything computed at first.

    Args:
        layer: a Conv2d, a Linear or a subclass of either; its class changes.
        height: of its output plane.
        width: of its output plane.
        fill: ``"bias"``, ``"nearest"`` or ``"mean"``.
        name: what errors call it.

    Raises:
        ModelError: if it is masked already or has a ``mask`` of its own.
        MaskError: if the plane is empty or the fill unknown.
    """
    # A layer that is the whole model has an empty name.
    name = name or "the layer"
    if isinstance(layer, MaskedLayer):
        raise ModelError(f"{name} is already masked; detach it first.")
    for attribute in _ATTRIBUTES:
        if hasattr(layer, attribute):
            raise ModelError(
                f"{name} cannot be masked, because its class {type(layer).__name__} has an "
                f"attribute {attribute!r} of its own; rename that."
            )
    mask = torch.ones(height, width, dtype=torch.bool)
    sources = sources_of(mask, fill)
    device = layer.weight.device
    _set_class(layer, _masked_class(type(layer)))
    masked = cast(MaskedLayer, layer)
    masked.fill = fill
    masked.layer_name = name
    masked.register_buffer("mask", mask.to(device))
    buffers = {}
    if fill != "bias":
        # gather wants int64 indices.
        buffers["_source"] = sources[0].flatten(-2).long()
    if fill == "mean":
        # The bits as integers, which half() and double() leave as they are.
        buffers["_share"] = sources[1].view(torch.int32)
    for buffer, tensor in buffers.items():
        masked.register_buffer(buffer, tensor.to(device), persistent=False)


def detach(layer: nn.Module) -> None:
    """Make a masked layer the plain one it was.

    Raises:
        ModelError: if it is not masked.
    """
    if not isinstance(layer, MaskedLayer):
        raise ModelError("the layer is not masked, so there is nothing to detach.")
    _set_class(layer, _plain_class(type(layer)))
    for attribute in _ATTRIBUTES:
        if hasattr(layer, attribute):
            delattr(layer, attribute)


def masked_layers(model: nn.Module) -> dict[str, MaskedLayer]:
    """The masked layers by name, in the order of ``named_modules``; shared ones once."""
    return {name: m for name, m in model.named_modules() if isinstance(m, MaskedLayer)}


@contextlib.contextmanager
def masking_disabled(model: nn.Module) -> Iterator[None]:
    """Within the context the masked layers are plain ones, of their plain class.

    Their ``mask`` and ``fill`` stay where they are.
    """
    masked = [m for m in model.modules() if isinstance(m, MaskedLayer)]
    classes = [type(layer) for layer in masked]
    for layer, cls in zip(masked, classes, strict=True):
        _set_class(layer, _plain_class(cls))
    try:
        yield
    finally:
        for layer, cls in zip(masked, classes, strict=True):
            _set_class(layer, cls)


_MASKED_CLASSES: dict[type[nn.Module], type[MaskedLayer]] = {
    nn.Conv2d: MaskedConv2d,
    nn.Linear: MaskedLinear,
}


def _masked_class(plain: type[nn.Module]) -> type[MaskedLayer]:
    if plain not in _MASKED_CLASSES:
        masked = MaskedConv2d if issubclass(plain, nn.Conv2d) else MaskedLinear
        made = type(f"Masked{plain.__name__}", (masked, plain), {})
        _MASKED_CLASSES[plain] = cast(type[MaskedLayer], made)
    return _MASKED_CLASSES[plain]


def _plain_class(masked: type[MaskedLayer]) -> type[nn.Module]:
    return cast(type[nn.Module], masked.__bases__[-1])


def _set_class(layer: nn.Module, cls: type[nn.Module]) -> None:
    layer.__class__ = cls


def _blank(plain: type[nn.Module]) -> MaskedLayer:
    cls = _masked_class(plain)
    return cls.__new__(cls)


def _by(shape: torch.Size) -> str:
    return "x".join(str(int(side)) for side in shape)
