"""Squeeze and excitation as one operator."""

from __future__ import annotations

import onnx_ir as ir

from semisparse import ops
from semisparse.export.fuse import is_conv, is_pointwise
from semisparse.export.graph import only_reader, remove_unused


def fuse_squeeze_excite(model: ir.Model) -> None:
    """Fuse a plane's mean, the two layers behind it and, if nothing else reads them, the product.

    As in arXiv 1709.01507. Each takes some microseconds, of which most is the way into ONNX Runtime
    and back, and none is enough work for two threads.
    """
    for node in list(model.graph):
        _fuse(model.graph, node)
    remove_unused(model)


def is_squeeze_excite(node: ir.Node) -> bool:
    """Whether a node is squeeze and excitation of `semisparse`."""
    return node.domain == ops.DOMAIN and ops.is_squeeze_excite(node.op_type)


def _fuse(graph: ir.Graph, excite: ir.Node) -> None:
    squeeze = _only_producer(excite)
    pool = None if squeeze is None else _only_producer(squeeze)
    if squeeze is None or pool is None:
        return
    if (pool.domain, pool.op_type) != (ops.DOMAIN, "GlobalAveragePool"):
        return
    activations = [_activation(squeeze), _activation(excite)]
    if activations[0] not in ops.SQUEEZE_ACTIVATIONS:
        return
    if activations[1] not in ops.EXCITE_ACTIVATIONS:
        return
    plane, gates = pool.inputs[0], excite.outputs[0]
    assert plane is not None
    reader = only_reader(gates)
    last = reader if reader is not None and _is_product(reader, plane, gates) else excite
    op = ops.SqueezeExciteOp(str(activations[0]), str(activations[1]), scales=last is not excite)
    node = ir.node(
        op.name,
        [plane, *squeeze.inputs[1:], *excite.inputs[1:]],
        domain=ops.DOMAIN,
        name=ops.STAGE_SEPARATOR.join((squeeze.name or "", excite.name or "")),
    )
    replaced = list(dict.fromkeys([last, excite, squeeze, pool]))
    ir.convenience.replace_nodes_and_values(
        graph, last, replaced, [node], last.outputs, node.outputs
    )


def _only_producer(conv: ir.Node) -> ir.Node | None:
    """What a layer's input comes from, if the layer alone reads it."""
    x = conv.inputs[0] if conv.inputs else None
    return x.producer() if x is not None and only_reader(x) is conv else None


def _activation(conv: ir.Node) -> str | None:
    """Of a dense pointwise convolution, if that is all that is fused into it."""
    if not is_conv(conv) or not is_pointwise(conv) or ops.STAGE_SEPARATOR in (conv.name or ""):
        return None
    op = ops.ConvOp.parse(conv.op_type)
    strided = set(conv.attributes.get_ints("strides", [1, 1])) != {1}
    alone = op == ops.ConvOp(activation=op.activation) and not strided
    return op.activation if alone else None


def _is_product(node: ir.Node, plane: ir.Value, gates: ir.Value) -> bool:
    return (node.domain, node.op_type) == ("", "Mul") and set(node.inputs) == {plane, gates}
