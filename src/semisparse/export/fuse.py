"""Residual additions and activations fused into the convolution before them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from semisparse import ops
from semisparse.export.graph import is_constant, remove_unused


def fuse(model: ir.Model) -> None:
    """Fuse what follows each convolution of `semisparse`, where nothing else reads between."""
    for node in list(model.graph):
        fused: ir.Node | None = node if is_conv(node) else None
        while fused is not None:
            fused = _fuse_next(model.graph, fused)
    remove_unused(model)


def is_conv(node: ir.Node) -> bool:
    """Whether a node is a convolution of `semisparse`."""
    return node.domain == ops.DOMAIN and ops.is_conv(node.op_type)


def _fuse_next(graph: ir.Graph, conv: ir.Node) -> ir.Node | None:
    """The convolution with one more operation in it; None if there is nothing to fuse."""
    op = ops.ConvOp.parse(conv.op_type)
    out = conv.outputs[0]
    readers = [usage.node for usage in out.uses()]
    if op.activation is not None or out.is_graph_output():
        return None
    if len(readers) == 2:
        gated = _gate(out, readers)
        fused_op = dataclasses.replace(op, activation="Silu")
        return _replace(graph, conv, fused_op, gated) if gated is not None else None
    if len(readers) != 1 or readers[0].domain:
        return None
    reader = readers[0]
    if reader.op_type == "Add" and not op.residual:
        residual = reader.inputs[1] if reader.inputs[0] is out else reader.inputs[0]
        if residual is None or residual is out or not _same_shape(residual, out):
            return None
        return _replace(graph, conv, dataclasses.replace(op, residual=True), reader, residual)
    attributes = _activation(reader)
    if attributes is None:
        return None
    fused_op = dataclasses.replace(op, activation=reader.op_type)
    return _replace(graph, conv, fused_op, reader, attributes=attributes)


def _gate(out: ir.Value, readers: Sequence[ir.Node]) -> ir.Node | None:
    """The multiplication of `x * sigmoid(x)`."""
    for sigmoid, product in (readers, readers[::-1]):
        if (
            sigmoid.op_type == "Sigmoid"
            and product.op_type == "Mul"
            and set(product.inputs) == {out, sigmoid.outputs[0]}
            and len(sigmoid.outputs[0].uses()) == 1
            and not sigmoid.outputs[0].is_graph_output()
        ):
            return product
    return None


def _activation(node: ir.Node) -> dict[str, float] | None:
    """The operator's attributes for an activation; None if the node is not one."""
    if node.op_type in ("Relu", "HardSwish", "Sigmoid"):
        return {}
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


def _replace(
    graph: ir.Graph,
    conv: ir.Node,
    op: ops.ConvOp,
    last: ir.Node,
    residual: ir.Value | None = None,
    attributes: dict[str, float] | None = None,
) -> ir.Node:
    """The fused convolution in the place of `last`, where all its inputs are computed."""
    kept: dict[str, Any] = {key: value.value for key, value in conv.attributes.items()}
    fused = ir.node(
        op.name,
        [*conv.inputs, residual] if residual is not None else conv.inputs,
        {**kept, **(attributes or {})},
        domain=ops.DOMAIN,
        name=conv.name,
    )
    ir.convenience.replace_nodes_and_values(
        graph, last, [last], [fused], last.outputs, fused.outputs
    )
    return fused
