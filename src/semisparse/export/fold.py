"""Batch normalisation and scales by channel as part of a convolution.

Exact for masked convolutions too: with `y = a * (fill(W * x) + b) + c` per channel, the scale `a`
goes into the weights, and `a * b + c` is the folded bias that masked positions hold.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from semisparse.export.graph import constant, is_constant, only_reader, remove_unused


def fold_batch_norm(model: ir.Model) -> None:
    """Fold every 2-d batch normalisation into the convolution before it.

    Where there is none, or its output is used elsewhere too, a depthwise 1x1 convolution takes its
    place. A convolution that is called twice gets its own weights for each call. Products with a
    constant of each channel, as layer scale is (arXiv 2103.17239), are folded where they can be.
    """
    for node in list(model.graph):
        affine = _batch_norm(node) or _channel_scale(node)
        if affine is None:
            continue
        x, scale, shift = affine
        conv = x.producer()
        if conv is not None and _can_fold(conv):
            _fold(model, conv, scale, shift)
            y = node.outputs[0]
            ir.convenience.replace_all_uses_with(y, x, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            x.name = y.name
        elif node.op_type == "BatchNormalization":
            _replace(model, node, scale, shift)
    remove_unused(model)


# What is normalised or scaled, and scale and shift per channel in float64.
_Affine = tuple[ir.Value, NDArray[np.float64], NDArray[np.float64]]


def _batch_norm(node: ir.Node) -> _Affine | None:
    x = node.inputs[0] if node.inputs else None
    if node.op_type != "BatchNormalization" or not all(map(is_constant, node.inputs[1:])):
        return None
    if x is None or x.shape is None or x.shape.rank() != 4:
        return None
    gamma, beta, mean, variance = (_array(value) for value in node.inputs[1:])
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return x, scale, beta - mean * scale


def _channel_scale(node: ir.Node) -> _Affine | None:
    if node.op_type != "Mul" or node.domain:
        return None
    for x, factor in (node.inputs, node.inputs[::-1]):
        if x is None or factor is None or not is_constant(factor):
            continue
        if x.shape is None or x.shape.rank() != 4 or not isinstance(x.shape[1], int):
            continue
        scale = _array(factor)
        if scale.shape in ((x.shape[1], 1, 1), (1, x.shape[1], 1, 1)):
            return x, scale.ravel(), np.zeros(scale.size)
    return None


def _can_fold(conv: ir.Node) -> bool:
    return (
        conv.op_type == "Conv"
        and all(map(is_constant, conv.inputs[1:]))
        and only_reader(conv.outputs[0]) is not None
    )


def _fold(
    model: ir.Model, conv: ir.Node, scale: NDArray[np.float64], shift: NDArray[np.float64]
) -> None:
    weights = _array(conv.inputs[1]) * scale[:, None, None, None]
    bias = shift + scale * _array(conv.inputs[2]) if len(conv.inputs) > 2 else shift
    _set_weights(model, conv, weights, bias)


def _replace(
    model: ir.Model, node: ir.Node, scale: NDArray[np.float64], shift: NDArray[np.float64]
) -> None:
    channels = len(scale)
    conv = ir.node(
        "Conv",
        [node.inputs[0]],
        {
            "kernel_shape": [1, 1],
            "strides": [1, 1],
            "pads": [0, 0, 0, 0],
            "dilations": [1, 1],
            "group": channels,
        },
        name=node.name,
    )
    out = node.outputs[0]
    conv.outputs[0].shape, conv.outputs[0].type = out.shape, out.type
    _set_weights(model, conv, scale.reshape(channels, 1, 1, 1), shift)
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [conv], [out], [conv.outputs[0]]
    )


def _set_weights(
    model: ir.Model, conv: ir.Node, weights: NDArray[np.float64], bias: NDArray[np.float64]
) -> None:
    conv.resize_inputs(3)
    for index, (kind, array) in enumerate((("weight", weights), ("bias", bias)), start=1):
        value = constant(model, f"{conv.name}.{kind}", array.astype(np.float32))
        conv.replace_input_with(index, value)


def _array(value: ir.Value | None) -> NDArray[np.float64]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)
