"""Linear layers of a plane's channels as 1x1 convolutions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes
from onnxscript import rewriter
from onnxscript.rewriter.rules import common as rules

from semisparse.export.graph import constant, is_constant, only_reader, remove_unused
from semisparse.export.twins import TO_NCHW, TO_NHWC


def linear_to_conv(model: ir.Model) -> None:
    """Replace every linear layer of `[N, H, W, C]` by a 1x1 convolution between two transposes.

    Those meet the ones that a model has around such layers, as ConvNeXt (arXiv 2201.03545) does,
    and go, so that what follows can be folded into the convolution. The library computes both alike
    where nothing is masked.
    """
    for node in list(model.graph):
        if _is_linear(node):
            _replace(model, node)
    rewriter.RewritePass((rules.transpose_transpose_rule, rules.no_op_transpose_rule))(model)
    passes.IdentityEliminationPass()(model)
    remove_unused(model)


def _is_linear(node: ir.Node) -> bool:
    if node.op_type != "MatMul" or node.domain:
        return False
    x, weights = node.inputs
    return (
        x is not None
        and x.shape is not None
        and x.shape.rank() == 4
        and x.dtype == ir.DataType.FLOAT
        and all(isinstance(size, int) for size in x.shape[1:])
        and weights is not None
        and is_constant(weights)
        and weights.shape is not None
        and weights.shape.rank() == 2
    )


def _replace(model: ir.Model, matmul: ir.Node) -> None:
    x, weights = matmul.inputs
    out = matmul.outputs[0]
    assert x is not None
    assert x.shape is not None
    assert weights is not None
    assert weights.const_value is not None
    filters = np.ascontiguousarray(weights.const_value.numpy().T)[:, :, None, None]
    inputs = [constant(model, f"{matmul.name}.filters", filters)]
    replaced = [matmul]
    adding = only_reader(out)
    bias = _bias(adding, out, len(filters)) if adding is not None else None
    if adding is not None and bias is not None:
        inputs.append(bias)
        replaced = [adding, matmul]
    result = replaced[0].outputs[0]
    into = ir.node("Transpose", [x], {"perm": TO_NCHW})
    conv = ir.node("Conv", [into.outputs[0], *inputs], {"kernel_shape": [1, 1]}, name=matmul.name)
    back = ir.node("Transpose", conv.outputs, {"perm": TO_NHWC})
    batch, height, width, channels = x.shape
    for node, shape in (
        (into, [batch, channels, height, width]),
        (conv, [batch, len(filters), height, width]),
        (back, [batch, height, width, len(filters)]),
    ):
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), result.type
    ir.convenience.replace_nodes_and_values(
        model.graph, replaced[0], replaced, [into, conv, back], [result], back.outputs
    )


def _bias(node: ir.Node, product: ir.Value, channels: int) -> ir.Value | None:
    """What a node adds to each channel of a product; None if it does something else."""
    if node.op_type != "Add" or node.domain:
        return None
    bias = node.inputs[1] if node.inputs[0] is product else node.inputs[0]
    return bias if is_constant(bias) and bias is not None and _is_vector(bias, channels) else None


def _is_vector(value: ir.Value, size: int) -> bool:
    return value.const_value is not None and tuple(value.const_value.shape.numpy()) == (size,)
