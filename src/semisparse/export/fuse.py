"""Residual additions and activations fused into the convolution before them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from semisparse import ops
from semisparse.export.graph import is_constant, only_reader, remove_unused


def fuse(model: ir.Model) -> None:
    """Fuse what is around each convolution of `semisparse`, where nothing else reads between."""
    for node in list(model.graph):
        fused: ir.Node | None = node if is_conv(node) else None
        while fused is not None:
            fused = _fuse_next(model.graph, fused)
    remove_unused(model)


def is_conv(node: ir.Node) -> bool:
    """Whether a node is a convolution of `semisparse`."""
    return node.domain == ops.DOMAIN and ops.is_conv(node.op_type)


def is_pointwise(node: ir.Node) -> bool:
    """Whether a node is a convolution with kernel and group 1 and without padding."""
    if not is_conv(node):
        return False
    weights = node.inputs[1]
    assert weights is not None
    assert weights.const_value is not None
    return (
        tuple(weights.const_value.shape.numpy())[2:] == (1, 1)
        and node.attributes.get_int("group", 1) == 1
        and set(node.attributes.get_ints("pads", [0, 0])) == {0}
    )


def _fuse_next(graph: ir.Graph, conv: ir.Node) -> ir.Node | None:
    """The convolution with one more operation in it; None if there is nothing to fuse."""
    op = ops.ConvOp.parse(conv.op_type)
    out = conv.outputs[0]
    readers = [usage.node for usage in out.uses()]
    if op.activation is not None or out.is_graph_output():
        return None
    if len(readers) == 2:
        for activation, last in (("Silu", _gate(out, readers)), ("Gelu", _gelu(out, readers))):
            if last is not None:
                fused_op = dataclasses.replace(op, activation=activation)
                return replace_conv(graph, conv, fused_op, last, conv.inputs)
        return None
    if len(readers) != 1 or readers[0].domain:
        return None
    reader = readers[0]
    if reader.op_type == "Add" and not op.residual:
        residual = reader.inputs[1] if reader.inputs[0] is out else reader.inputs[0]
        if residual is None or residual is out or not _same_shape(residual, out):
            return None
        inputs = [*conv.inputs, residual]
        return replace_conv(graph, conv, dataclasses.replace(op, residual=True), reader, inputs)
    attributes = _activation(reader)
    if attributes is None:
        return None
    fused_op = dataclasses.replace(op, activation=reader.op_type)
    return replace_conv(graph, conv, fused_op, reader, conv.inputs, attributes)


def _gate(out: ir.Value, readers: Sequence[ir.Node]) -> ir.Node | None:
    """The multiplication of `x * sigmoid(x)`."""
    for sigmoid, product in (readers, readers[::-1]):
        if (
            sigmoid.op_type == "Sigmoid"
            and product.op_type == "Mul"
            and set(product.inputs) == {out, sigmoid.outputs[0]}
            and only_reader(sigmoid.outputs[0]) is product
        ):
            return product
    return None


def _gelu(out: ir.Value, readers: Sequence[ir.Node]) -> ir.Node | None:
    """The last multiplication of `x * ((erf(x / sqrt(2)) + 1) * 0.5)`."""
    for scaled, product in (readers, readers[::-1]):
        value: ir.Value | None = out
        for op_type, constant in (("Div", 2**0.5), ("Erf", None), ("Add", 1.0), ("Mul", 0.5)):
            node = scaled if value is out else only_reader(value)
            if node is None or node.op_type != op_type or node.domain:
                break
            if constant is not None and not _has_constant(node, constant):
                break
            value = node.outputs[0]
        else:
            if product.op_type == "Mul" and set(product.inputs) == {out, value}:
                return product if only_reader(value) is product else None
    return None


def _has_constant(node: ir.Node, wanted: float) -> bool:
    """Whether one operand is that number; the divisor of a division."""
    operands = node.inputs[1:] if node.op_type == "Div" else node.inputs
    return any(
        value is not None
        and is_constant(value)
        and value.const_value is not None
        and value.const_value.size == 1
        and math.isclose(_scalar(value) or 0.0, wanted, rel_tol=1e-6)
        for value in operands
    )


def _activation(node: ir.Node) -> dict[str, float] | None:
    """The operator's attributes for an activation; None if the node is not one."""
    if node.op_type in ("Relu", "HardSwish", "Sigmoid"):
        return {}
    if node.op_type == "HardSigmoid":
        slope = node.attributes.get_float("alpha", 0.2)
        middle = node.attributes.get_float("beta", 0.5)
        return {} if math.isclose(slope, 1 / 6, rel_tol=1e-6) and middle == 0.5 else None
    if node.op_type == "LeakyRelu":
        return {"alpha": node.attributes.get_float("alpha", 0.01)}
    if node.op_type == "Clip":
        limits = [*node.inputs[1:], None, None][:2]
        if any(limit is not None and not is_constant(limit) for limit in limits):
            return None
        low, high = (_scalar(limit) for limit in limits)
        largest = float(np.finfo(np.float32).max)
        return {"min": -largest if low is None else low, "max": largest if high is None else high}
    return None


def _scalar(value: ir.Value | None) -> float | None:
    if value is None:
        return None
    assert value.const_value is not None
    return float(value.const_value.numpy().item())


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    return a.shape is not None and a.shape == b.shape and a.dtype == b.dtype


def replace_conv(
    graph: ir.Graph,
    conv: ir.Node,
    op: ops.ConvOp,
    last: ir.Node,
    inputs: Sequence[ir.Value | None],
    attributes: dict[str, float] | None = None,
) -> ir.Node:
    """A convolution fused with others, in the place of `last`, where all its inputs are computed."""
    kept: dict[str, Any] = {key: value.value for key, value in conv.attributes.items()}
    fused = ir.node(
        op.name,
        inputs,
        {**kept, **(attributes or {})},
        domain=ops.DOMAIN,
        name=conv.name,
    )
    ir.convenience.replace_nodes_and_values(
        graph, last, [last], [fused], last.outputs, fused.outputs
    )
    return fused
