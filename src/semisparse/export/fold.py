"""What is linear folded into one convolution: batch normalisation, scales by channel, branches.

Exact for masked convolutions too: with `y = a * (fill(W * x) + b) + c` per channel, the scale `a`
goes into the weights, and `a * b + c` is the folded bias that masked positions hold.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from semisparse.export.branches import merge_branches
from semisparse.export.filters import Array, array, filters, is_convolution, set_filters
from semisparse.export.graph import is_constant, only_reader, remove_unused


def fold(model: ir.Model, masked: Collection[str]) -> None:
    """Fold every 2-d batch normalisation into the convolution before it, and branches into one.

    Where there is no convolution before a normalisation, or its output is used elsewhere too, a
    depthwise 1x1 convolution takes its place. A convolution that is called twice gets its own
    weights for each call. Products with a constant of each channel, as layer scale is (arXiv
    2103.17239), are folded where they can be.

    Args:
        model: in torch's layout.
        masked: names of the layers with masks, which `branches` leaves alone.
    """
    # In order: what normalises a sum of branches finds the one convolution that they have become.
    for node in list(model.graph):
        if not merge_branches(model, node, masked):
            _fold_affine(model, node)
    remove_unused(model)


# What is normalised or scaled, and scale and shift per channel.
_Affine = tuple[ir.Value, Array, Array]


def _fold_affine(model: ir.Model, node: ir.Node) -> None:
    affine = _batch_norm(node) or _channel_scale(node)
    if affine is None:
        return
    x, scale, shift = affine
    conv = x.producer()
    if conv is not None and is_convolution(conv) and only_reader(x) is not None:
        weights, bias = filters(conv)
        set_filters(model, conv, weights * scale[:, None, None, None], bias * scale + shift)
        y = node.outputs[0]
        ir.convenience.replace_all_uses_with(y, x, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        x.name = y.name
    elif node.op_type == "BatchNormalization":
        _replace(model, node, scale, shift)


def _batch_norm(node: ir.Node) -> _Affine | None:
    x = node.inputs[0] if node.inputs else None
    if node.op_type != "BatchNormalization" or not all(map(is_constant, node.inputs[1:])):
        return None
    if x is None or x.shape is None or x.shape.rank() != 4:
        return None
    gamma, beta, mean, variance = (array(value) for value in node.inputs[1:])
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
        scale = array(factor)
        if scale.shape in ((x.shape[1], 1, 1), (1, x.shape[1], 1, 1)):
            return x, scale.ravel(), np.zeros(scale.size)
    return None


def _replace(model: ir.Model, node: ir.Node, scale: Array, shift: Array) -> None:
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
    set_filters(model, conv, scale.reshape(channels, 1, 1, 1), shift)
    ir.convenience.replace_nodes_and_values(
        model.graph, node, [node], [conv], [out], [conv.outputs[0]]
    )
