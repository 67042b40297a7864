"""Parallel convolutions as one: what was several branches in training is one layer in the file."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import onnx_ir as ir

from semisparse.export.filters import Array, filters, is_convolution, set_filters
from semisparse.export.graph import only_reader
from semisparse.export.mask import layer_of

_SIGNS = {"Add": 1.0, "Sub": -1.0}


def merge_branches(model: ir.Model, node: ir.Node, masked: Collection[str]) -> bool:
    """Make one convolution of two that a node adds or subtracts and that read the same, or of a
    depthwise one and what that reads.

    So RepVGG (arXiv 2101.03697), MobileOne (2206.04040), FastViT (2303.14189) and RepViT
    (2307.09283), whose blocks are trained in branches, need not be converted before they are
    exported. A convolution that is masked, or that something else reads too, is left alone, and so
    are two that would make one of more operations than the larger of them.

    Args:
        model: in torch's layout.
        node: of the model. Removed if this returns True.
        masked: names of the layers with masks.
    """
    sign = _SIGNS.get(node.op_type)
    if sign is None or node.domain:
        return False
    one, other = (_branch(value, node, masked) for value in node.inputs)
    if one is None and other is not None:
        one = other.source_as_branch(node.inputs[0])
    elif other is None and one is not None:
        other = one.source_as_branch(node.inputs[1])
    if one is None or other is None:
        return False
    merged = one.plus(replace(other, weights=sign * other.weights, bias=sign * other.bias))
    if merged is None:
        return False
    conv = ir.node("Conv", [merged.x], merged.attributes(), name=merged.name)
    out = node.outputs[0]
    conv.outputs[0].shape, conv.outputs[0].type = out.shape, out.type
    set_filters(model, conv, merged.weights, merged.bias)
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [conv], [out], [conv.outputs[0]]
    )
    return True


@dataclass(frozen=True)
class _Branch:
    """A convolution of `x`; `begin` is its padding above and at the left, `end` the other."""

    name: str
    x: ir.Value
    shape: ir.Shape
    weights: Array
    bias: Array
    group: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    def attributes(self) -> dict[str, int | list[int]]:
        return {
            "kernel_shape": list(self.weights.shape[2:]),
            "strides": list(self.strides),
            "pads": [*self.begin, *self.end],
            "dilations": list(self.dilations),
            "group": self.group,
        }

    def source_as_branch(self, value: ir.Value | None) -> _Branch | None:
        """Of the input, as a convolution that leaves it as it is, where `value` is that.

        To add it costs a depthwise convolution up to an eighth of its time (EPYC, Zen 4), others
        nothing, and those can be masked as blocks with a residual.
        """
        channels = len(self.weights)
        if self.group != channels or value is not self.x or value.shape != self.shape:
            return None
        ones, zeros = np.ones((channels, 1, 1, 1)), np.zeros(channels)
        strides, pads = (1,) * len(self.strides), (0,) * len(self.begin)
        name = f"{self.name}.input"
        return _Branch(
            name, self.x, self.shape, ones, zeros, channels, strides, strides, pads, pads
        )

    def plus(self, other: _Branch) -> _Branch | None:
        """The convolution that gives the sum of both; None if there is none as cheap as both."""
        if other.weights.size > self.weights.size:
            return other.plus(self)
        offset = self._offset(other)
        groups, left = divmod(other.group, self.group)
        if self.x is not other.x or self.shape != other.shape or offset is None or left:
            return None
        height, width = other.weights.shape[2:]
        top, side = offset
        weights = self.weights.copy()
        inside = weights[:, :, top : top + height, side : side + width]
        # Of this one's input channels of an output, the other reads one of `groups` parts.
        outputs, channels = other.weights.shape[:2]
        part = np.arange(outputs) // (outputs // other.group) % groups
        for index in range(channels):
            inside[np.arange(outputs), part * channels + index] += other.weights[:, index]
        return replace(
            self,
            name=_common_name(self.name, other.name),
            weights=weights,
            bias=self.bias + other.bias,
        )

    def _offset(self, other: _Branch) -> list[int] | None:
        """Where in this one's filters those of the other belong; None if they do not fit."""
        offset = []
        for axis in (0, 1):
            size, others = self.weights.shape[2 + axis], other.weights.shape[2 + axis]
            dilation = self.dilations[axis]
            first, left = divmod(self.begin[axis] - other.begin[axis], dilation)
            if (
                self.strides[axis] != other.strides[axis]
                or (others > 1 and other.dilations[axis] != dilation)
                or left
                or not 0 <= first <= size - others
            ):
                return None
            offset.append(first)
        return offset


def _branch(value: ir.Value | None, reader: ir.Node, masked: Collection[str]) -> _Branch | None:
    """What gives a value, if it is a convolution that may be merged into its only reader."""
    conv = value.producer() if value is not None else None
    if conv is None or not is_convolution(conv) or only_reader(value) is not reader:
        return None
    x, out, name = conv.inputs[0], conv.outputs[0], conv.name or ""
    if x is None or out.shape is None or out.shape != reader.outputs[0].shape:
        return None
    padded = conv.attributes.get_string("auto_pad", "NOTSET")
    if padded != "NOTSET" or layer_of(name) in masked:
        return None
    pads = tuple(conv.attributes.get_ints("pads", [0, 0, 0, 0]))
    return _Branch(
        name,
        x,
        out.shape,
        *filters(conv),
        conv.attributes.get_int("group", 1),
        tuple(conv.attributes.get_ints("strides", [1, 1])),
        tuple(conv.attributes.get_ints("dilations", [1, 1])),
        pads[:2],
        pads[2:],
    )


def _common_name(one: str, other: str) -> str:
    """That of the module that holds both layers, because neither of them is in the file."""
    pairs = zip(layer_of(one).split("."), layer_of(other).split("."), strict=False)
    common = ".".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return common or f"{one}|{other}"
