"""From torch's layout (NCHW) to NHWC, with a transpose only where an operation cannot follow.

The pass walks the graph once and gives values twins in NHWC. A convolution computes its twin from
its input's, which a transpose makes if there is none yet; operations that can run in NHWC follow
where an input has a twin. All others keep reading NCHW, which a transpose restores from the twin.
The old nodes then have no readers and go.

At last the convolutions of few channels, which are those of a network's inputs, take over the
transposes that only they read.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
from onnx_ir.passes import common as passes

from semisparse import ops
from semisparse.export import carry
from semisparse.export.fuse import is_conv
from semisparse.export.graph import remove_unused
from semisparse.export.twins import TO_NHWC, Twins

# With fewer channels than these (kShortTap in core/conv.cc) the library copies the input in any
# case, and transposes it as it does so.
_FEW_CHANNELS = 16


def to_nhwc(model: ir.Model) -> None:
    """Make convolutions and the pools behind them operators of `semisparse`, in NHWC."""
    graph = model.graph
    twins = Twins(model)
    for node in list(graph):
        twins.here = node
        if not _follow(twins, node):
            for index, value in enumerate(node.inputs):
                if value in twins:
                    assert value is not None
                    node.replace_input_with(index, twins.restore(value))
    for index, value in enumerate(graph.outputs):
        if value in twins:
            graph.outputs[index] = twins.restore(value)
    model.opset_imports[ops.DOMAIN] = ops.VERSION
    passes.IdentityEliminationPass()(model)
    remove_unused(model)


def read_nchw(model: ir.Model) -> None:
    """Let convolutions of few channels read NCHW, where a transpose is made for one alone."""
    for node in model.graph:
        nchw = nchw_input(node) if is_conv(node) else None
        if nchw is not None:
            op = dataclasses.replace(ops.ConvOp.parse(node.op_type), nchw=True)
            node.op_type = op.name
            node.replace_input_with(0, nchw)
    remove_unused(model)


def nchw_input(conv: ir.Node) -> ir.Value | None:
    """What a convolution of few channels could read in NCHW instead: where its input is transposed
    for it alone.
    """
    x = conv.inputs[0]
    transpose = x.producer() if x is not None else None
    if x is None or transpose is None or transpose.op_type != "Transpose":
        return None
    assert x.shape is not None
    channels = x.shape[3]
    suits = (
        tuple(transpose.attributes.get_ints("perm", [])) == TO_NHWC
        and len(x.uses()) == 1
        and not x.is_graph_output()
        and isinstance(channels, int)
        and channels < _FEW_CHANNELS
    )
    return transpose.inputs[0] if suits else None


def transposes(model: ir.Model) -> int:
    """How many transposes are in the graph."""
    return sum(node.op_type == "Transpose" for node in model.graph)


def _follow(twins: Twins, node: ir.Node) -> bool:
    if node.op_type == "Conv":
        return carry.conv(twins, node)
    if node.op_type == "Transpose":
        return carry.transpose(twins, node)
    rule = carry.RULES.get(node.op_type)
    if rule is None or not any(value in twins for value in node.inputs):
        return False
    known = all(value is None or value.shape is not None for value in (*node.inputs, *node.outputs))
    return known and rule(twins, node)
