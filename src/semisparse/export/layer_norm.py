"""Layer normalisations as operators of `semisparse`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from semisparse import ops
from semisparse.export.graph import constant, is_constant, remove_unused


def own_layer_norms(model: ir.Model) -> None:
    """Let the library normalise the channels of positions, and of rows of anything else.

    In ConvNeXt ONNX Runtime's takes as long at any sparsity, 6% of the dense network and 13% of one
    with masks of 0.75 on the last layers of blocks (Atto; EPYC, Zen 4, one thread); the library's
    takes half of that, and computes what is read only.
    """
    for node in list(model.graph):
        if _is_of_channels(node):
            _replace(model, node)
    remove_unused(model)


def _is_of_channels(node: ir.Node) -> bool:
    """Whether a node normalises the last axis, with constants of each channel."""
    if node.domain or node.op_type != "LayerNormalization":
        return False
    x, scale, *rest = node.inputs
    shift = rest[0] if rest else None
    if x is None or x.shape is None or x.dtype != ir.DataType.FLOAT or x.shape.rank() < 2:
        return False
    axis = node.attributes.get_int("axis", -1)
    only = not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    given = [value for value in (scale, shift) if value is not None]
    return (
        axis in (-1, x.shape.rank() - 1)
        and isinstance(x.shape[-1], int)
        and only
        and all(is_constant(value) and value.shape == ir.Shape([x.shape[-1]]) for value in given)
    )


def _replace(model: ir.Model, node: ir.Node) -> None:
    x, scale, *rest = node.inputs
    assert scale is not None
    assert scale.shape is not None
    shift = rest[0] if rest else None
    if shift is None:
        zeros = np.zeros(scale.shape.numpy(), np.float32)
        shift = constant(model, f"{node.name}.shift", zeros)
    norm = ir.node(
        "LayerNorm",
        [x, scale, shift],
        {"epsilon": node.attributes.get_float("epsilon", 1e-5)},
        domain=ops.DOMAIN,
        name=node.name,
    )
    old = node.outputs[:1]
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [norm], old, norm.outputs)
