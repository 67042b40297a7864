"""The filters of a convolution in torch's layout, in the precision that folding needs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from semisparse.export.graph import constant, is_constant

Array = NDArray[np.float64]


def is_convolution(node: ir.Node) -> bool:
    """Whether a node is a 2-d convolution of constant filters."""
    if node.op_type != "Conv" or node.domain:
        return False
    weights = node.inputs[1]
    return (
        all(map(is_constant, node.inputs[1:]))
        and weights is not None
        and weights.shape is not None
        and weights.shape.rank() == 4
    )


def filters(conv: ir.Node) -> tuple[Array, Array]:
    """Weights `[C_out, C_in / group, kh, kw]` and bias `[C_out]`."""
    weights = array(conv.inputs[1])
    return weights, array(conv.inputs[2]) if len(conv.inputs) > 2 else np.zeros(len(weights))


def set_filters(model: ir.Model, conv: ir.Node, weights: Array, bias: Array) -> None:
    """Give a convolution filters of its own."""
    conv.resize_inputs(3)
    for index, (kind, values) in enumerate((("weight", weights), ("bias", bias)), start=1):
        value = constant(model, f"{conv.name}.{kind}", values.astype(np.float32))
        conv.replace_input_with(index, value)


def array(value: ir.Value | None) -> Array:
    """The values of a constant."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float64)
