"""Positions that nothing reads, masked: they would be computed for nothing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from semisparse import ops
from semisparse.export.fuse import is_conv
from semisparse.export.graph import constant, remove_unused
from semisparse.export.mask import fill_arrays

Plane = NDArray[np.bool_]


def mask_unread(model: ir.Model) -> None:
    """Mask what no reader of a convolution's output reads, which changes no output of the model.

    A masked pointwise convolution reads its computed positions only, so the convolution before it
    needs no others; a masked 3x3 one reads them and their neighbours. What works position by
    position, as activations, sums and a layer normalisation of the channels do, reads what is read
    of it, so that in ConvNeXt a mask on a block's last layer reaches all three, and the layer
    normalisation computes no more either. What nobody reads holds the bias where the convolution
    was dense, and else the fill that it had. One whose fill is the mean keeps its own mask. The
    stages of a chain do without it by themselves.
    """
    known: dict[ir.Value, Plane | None] = {}
    # Readers come after what they read, so this reaches backwards through any number of them.
    for node in reversed(list(model.graph)):
        read = read_positions(node.outputs[0], known) if _can_mask(node) else None
        if read is None:
            continue
        if not is_conv(node):
            _mask_layer_norm(model, node, read)
            continue
        sources = _sources(node)
        needed = np.zeros(sources.shape, bool)
        needed.flat[sources[read & (sources >= 0)]] = True
        if not needed.any():
            needed.flat[sources.max()] = True  # of a nearest position there has to be a source
        if needed.sum() < _computed(node).sum():
            _mask(model, node, needed)
    remove_unused(model)


def read_positions(value: ir.Value, known: dict[ir.Value, Plane | None]) -> Plane | None:
    """Which positions of a value are read, `[H, W]`.

    None where something else than the inputs of convolutions reads it, at once or by way of what
    works position by position, which may read all.

    Args:
        value: on a plane, in NHWC.
        known: of values behind it; what is found is added.
    """
    if value in known:
        return known[value]
    known[value] = None
    if value.is_graph_output():
        return None
    read = np.zeros(_plane(value), bool)
    for node, index in value.uses():
        if is_conv(node) and index == 0:
            _add_reads(node, read)
            continue
        if not _is_by_position(node, value):
            return None
        for output in node.outputs:
            behind = read_positions(output, known)
            if behind is None:
                return None
            read |= behind
    known[value] = read
    return read


def _is_by_position(node: ir.Node, value: ir.Value) -> bool:
    """Whether what a node puts out at a position depends on the value there only."""
    axis = node.attributes.get("axis")
    return ops.is_by_position(
        node.domain, node.op_type, None if axis is None else axis.as_int()
    ) and all(_same_plane(output, value) for output in node.outputs)


def _same_plane(one: ir.Value, other: ir.Value) -> bool:
    shapes = one.shape, other.shape
    return all(s is not None and s.rank() == 4 for s in shapes) and _plane(one) == _plane(other)


def _can_mask(node: ir.Node) -> bool:
    if ops.is_layer_norm(node.domain, node.op_type):
        shape = node.outputs[0].shape
        return shape is not None and shape.rank() == 4
    # Without one of its two sources a mean that is read would be another one.
    return is_conv(node) and ops.ConvOp.parse(node.op_type).fill != "mean"


def _add_reads(node: ir.Node, read: Plane) -> None:
    """Mark what the computed positions of a convolution read."""
    y, x = np.nonzero(_computed(node))
    weights = node.inputs[1]
    assert weights is not None
    assert weights.const_value is not None
    stride = node.attributes.get_ints("strides", [1, 1])
    top, left, *_ = node.attributes.get_ints("pads", [0, 0, 0, 0])
    dilation = node.attributes.get_ints("dilations", [1, 1])
    for ky, kx in np.ndindex(*weights.const_value.shape.numpy()[2:]):
        rows = y * stride[0] - top + ky * dilation[0]
        columns = x * stride[1] - left + kx * dilation[1]
        inside = (rows >= 0) & (rows < read.shape[0]) & (columns >= 0) & (columns < read.shape[1])
        read[rows[inside], columns[inside]] = True


def _sources(node: ir.Node) -> NDArray[np.int64]:
    """The source map of a convolution, also where it is dense or its fill is the bias; of a mean the
    nearest sources.
    """
    fill = ops.ConvOp.parse(node.op_type).fill
    plane = _plane(node.outputs[0])
    own = np.arange(math.prod(plane)).reshape(plane)
    if fill is None:
        return own
    given = node.inputs[3]
    assert given is not None
    assert given.const_value is not None
    array = given.const_value.numpy()
    if fill == "bias":
        return np.where(array != 0, own, -1)
    return (array[0] if fill == "mean" else array).astype(np.int64)


def _computed(node: ir.Node) -> Plane:
    sources = _sources(node)
    computed: Plane = sources == np.arange(sources.size).reshape(sources.shape)
    return computed


def _mask(model: ir.Model, node: ir.Node, computed: Plane) -> None:
    """Let a convolution compute these positions only."""
    op = ops.ConvOp.parse(node.op_type)
    fill = op.fill or "bias"
    ((kind, array),) = fill_arrays(torch.from_numpy(computed), fill).items()
    rest = node.inputs[3 + len(ops.FILL_INPUTS[op.fill]) :]
    own = node.inputs[3] if op.fill is not None else None
    if own is not None and own.name is not None and len(own.uses()) == 1:
        del model.graph.initializers[own.name]  # which leaves its name to the new one
    inputs = [*node.inputs[:3], _shared(model, f"{node.name}.{kind}", array), *rest]
    node.op_type = dataclasses.replace(op, fill=fill).name
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)


def _mask_layer_norm(model: ir.Model, node: ir.Node, read: Plane) -> None:
    """Let a layer normalisation compute these positions only."""
    if read.all():
        return
    node.op_type = "LayerNormMasked"
    node.resize_inputs(4)
    node.replace_input_with(3, _shared(model, f"{node.name}.mask", read.astype(np.uint8)))


def _shared(model: ir.Model, name: str, array: NDArray[Any]) -> ir.Value:
    """An initializer of these values, that of another layer if there is one."""
    for value in model.graph.initializers.values():
        found = value.const_value
        if (
            found is not None
            and found.dtype.numpy() == array.dtype
            and found.shape.numpy() == array.shape
            and np.array_equal(found.numpy(), array)
        ):
            return value
    return constant(model, name, array)


def _plane(value: ir.Value) -> tuple[int, int]:
    assert value.shape is not None
    height, width = (size for size in value.shape[1:3] if isinstance(size, int))
    return height, width
