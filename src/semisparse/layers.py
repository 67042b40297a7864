"""Convolutions whose output positions are masked.

Attaching changes a convolution's class, not the object, so its parameters, hooks, shared
references and ``state_dict`` keys stay as they are, and detaching is exact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from semisparse.errors import MaskError, ModelError
from semisparse.masks import check_mask, sources_of

_ATTRIBUTES = ("mask", "_source", "_share", "fill", "layer_name")


class MaskedConv2d(nn.Conv2d):
    """A convolution whose masked output positions hold the layer's fill; made by :func:`attach`.

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

    def forward(self, input: Tensor) -> Tensor:
        """As the plain convolution, ``[N, C, H, W]`` or ``[C, H, W]``.

        Raises:
            MaskError: if the output plane is not the one that the mask was made for.
        """
        output: Tensor = super().forward(input)
        if output.shape[-2:] != self.mask.shape:
            raise MaskError(
                f"the mask of {self.layer_name} was made for an output plane of "
                f"{_by(self.mask.shape)}, but this input gives {_by(output.shape[-2:])}; run the "
                "model at the input size of the example input."
            )
        if self.fill == "nearest":
            return _take(output, self._source)
        if self.fill == "mean":
            first, second = (_take(output, source) for source in self._source)
            share = self._share.view(torch.float32).to(output.dtype)
            # The mean of an infinite value and itself would be NaN. Not lerp, which is NaN already
            # where one of two is infinite.
            return torch.where(share > 0, first * (1 - share) + second * share, first)
        if self.bias is None:
            return torch.where(self.mask, output, 0)
        return torch.where(self.mask, output, self.bias[:, None, None].to(output.dtype))

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

    def extra_repr(self) -> str:
        """The plain convolution's arguments, the plane and the fill."""
        # torch has no annotations there.
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, mask={_by(self.mask.shape)}, fill={self.fill}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class of a masked subclass is made at run time, so pickle cannot find it by name.
        state = super().__reduce_ex__(protocol)[2]
        return _blank, (_plain_class(type(self)),), state


def _take(output: Tensor, source: Tensor) -> Tensor:
    """``output[..., p] = output[..., source[p]]`` over the flattened plane."""
    # Forward and backward in ms, one AVX-512 core, float32 [32, 64, 56, 56] (the convolution
    # itself: 128 and 787 contiguous, 64 and 315 channels_last):
    #                      contiguous    channels_last
    #   gather             4.6,  6.3      9.6, 12.8
    #   index_select      33.0,  6.4     13.8, 12.9
    #   the same in NHWC   8.4, 13.1      2.5,  5.5
    #   index             13.8, 17.6     21.8,  8.4
    #   index_copy        14.0, 17.4     16.8, 20.1
    if output.dim() == 4 and not output.is_contiguous():
        rows = output.permute(0, 2, 3, 1)
        return rows.flatten(1, 2).index_select(1, source).view(rows.shape).permute(0, 3, 1, 2)
    plane = output.flatten(-2)
    return plane.gather(-1, source.expand_as(plane)).view(output.shape)


def attach(conv: nn.Conv2d, height: int, width: int, fill: str, name: str = "") -> None:
    """Make a convolution masked, with everything computed at first.

    Args:
        conv: a Conv2d or a subclass of it; its class changes.
        height: of its output plane.
        width: of its output plane.
        fill: ``"bias"``, ``"nearest"`` or ``"mean"``.
        name: what errors call it.

    Raises:
        ModelError: if it is masked already or has a ``mask`` of its own.
        MaskError: if the plane is empty or the fill unknown.
    """
    # A convolution that is the whole model has an empty name.
    name = name or "the convolution"
    if isinstance(conv, MaskedConv2d):
        raise ModelError(f"{name} is already masked; detach it first.")
    for attribute in _ATTRIBUTES:
        if hasattr(conv, attribute):
            raise ModelError(
                f"{name} cannot be masked, because its class {type(conv).__name__} has an "
                f"attribute {attribute!r} of its own; rename that."
            )
    mask = torch.ones(height, width, dtype=torch.bool)
    sources = sources_of(mask, fill)
    _set_class(conv, _masked_class(type(conv)))
    layer = cast(MaskedConv2d, conv)
    layer.fill = fill
    layer.layer_name = name
    layer.register_buffer("mask", mask.to(conv.weight.device))
    buffers = {}
    if fill != "bias":
        # gather wants int64 indices.
        buffers["_source"] = sources[0].flatten(-2).long()
    if fill == "mean":
        # The bits as integers, which half() and double() leave as they are.
        buffers["_share"] = sources[1].view(torch.int32)
    for buffer, tensor in buffers.items():
        layer.register_buffer(buffer, tensor.to(conv.weight.device), persistent=False)


def detach(conv: nn.Conv2d) -> None:
    """Make a masked convolution the plain one it was.

    Raises:
        ModelError: if it is not masked.
    """
    if not isinstance(conv, MaskedConv2d):
        raise ModelError("the convolution is not masked, so there is nothing to detach.")
    _set_class(conv, _plain_class(type(conv)))
    for attribute in _ATTRIBUTES:
        if hasattr(conv, attribute):
            delattr(conv, attribute)


def masked_layers(model: nn.Module) -> dict[str, MaskedConv2d]:
    """The masked convolutions by name, in the order of ``named_modules``; shared ones once."""
    return {name: m for name, m in model.named_modules() if isinstance(m, MaskedConv2d)}


@contextlib.contextmanager
def masking_disabled(model: nn.Module) -> Iterator[None]:
    """Within the context the masked convolutions are plain ones, of their plain class.

    Their ``mask`` and ``fill`` stay where they are.
    """
    masked = [m for m in model.modules() if isinstance(m, MaskedConv2d)]
    classes = [type(layer) for layer in masked]
    for layer, cls in zip(masked, classes, strict=True):
        _set_class(layer, _plain_class(cls))
    try:
        yield
    finally:
        for layer, cls in zip(masked, classes, strict=True):
            _set_class(layer, cls)


_MASKED_CLASSES: dict[type[nn.Conv2d], type[MaskedConv2d]] = {nn.Conv2d: MaskedConv2d}


def _masked_class(plain: type[nn.Conv2d]) -> type[MaskedConv2d]:
    if plain not in _MASKED_CLASSES:
        made = type(f"Masked{plain.__name__}", (MaskedConv2d, plain), {})
        _MASKED_CLASSES[plain] = cast(type[MaskedConv2d], made)
    return _MASKED_CLASSES[plain]


def _plain_class(masked: type[MaskedConv2d]) -> type[nn.Conv2d]:
    return cast(type[nn.Conv2d], masked.__bases__[-1])


def _set_class(conv: nn.Conv2d, cls: type[nn.Conv2d]) -> None:
    conv.__class__ = cls


def _blank(plain: type[nn.Conv2d]) -> MaskedConv2d:
    cls = _masked_class(plain)
    return cls.__new__(cls)


def _by(shape: torch.Size) -> str:
    return "x".join(str(int(side)) for side in shape)
