"""The convolutions of an inverted residual, or of a network's beginning, fused into one operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch

from semisparse import ops
from semisparse.export.fuse import is_conv, is_pointwise
from semisparse.export.graph import constant, only_reader, remove_unused
from semisparse.export.layout import nchw_input
from semisparse.export.mask import fill_arrays


def fuse_chains(model: ir.Model) -> None:
    """Fuse depthwise convolutions with the pointwise ones before and behind them.

    Before one there can be a stem instead: a convolution of few channels, which reads NCHW. What is
    between the stages must have no other reader. `docs/format.md` says which activations, fills and
    residuals a chain can have; where three stages do not go together, two may.
    """
    for node in list(model.graph):
        chain = _chain(node)
        if chain is not None:
            _replace(model, *chain)
    remove_unused(model)


def is_chain(node: ir.Node) -> bool:
    """Whether a node is a chain of convolutions of `semisparse`."""
    return node.domain == ops.DOMAIN and ops.is_chain(node.op_type)


def _chain(depthwise: ir.Node) -> tuple[ops.ChainOp, list[ir.Node]] | None:
    """The longest chain around a node, and its stages."""
    if not _is_depthwise(depthwise):
        return None
    own = ops.ConvOp.parse(depthwise.op_type)
    if own.residual or own.activation not in (None, *ops.CHAIN_ACTIVATIONS):
        return None
    stages = {
        "Expand": _expansion(depthwise, _is_pointwise),
        "Stem": _expansion(depthwise, _is_stem),
        "Depthwise": depthwise,
        "Project": _projection(depthwise),
    }
    for form, names in ops.CHAIN_FORMS.items():
        nodes = [node for node in map(stages.get, names) if node is not None]
        found = [ops.ConvOp.parse(node.op_type) for node in nodes]
        fills = {op.fill for op in found if op.fill is not None}
        if len(nodes) == len(names) and len(fills) <= 1:
            # Only a projection has a residual.
            residual = any(op.residual for op in found)
            return ops.ChainOp(form, next(iter(fills), None), residual, own.activation), nodes
    return None


def _expansion(depthwise: ir.Node, suits: Callable[[ir.Node], bool]) -> ir.Node | None:
    x = depthwise.inputs[0]
    node = x.producer() if x is not None else None
    if node is None or not suits(node) or only_reader(node.outputs[0]) is not depthwise:
        return None
    residual = ops.ConvOp.parse(node.op_type).residual
    return node if not residual and _activation(node) == _activation(depthwise) else None


def _projection(depthwise: ir.Node) -> ir.Node | None:
    node = only_reader(depthwise.outputs[0])
    if node is None or not _is_pointwise(node) or node.inputs[0] is not depthwise.outputs[0]:
        return None
    return node if ops.ConvOp.parse(node.op_type).activation is None else None


def _is_depthwise(node: ir.Node) -> bool:
    if not _can_be_stage(node):
        return False
    group = node.attributes.get_int("group", 1)
    return group > 1 and _weights(node)[:2] == (group, 1)


def _is_pointwise(node: ir.Node) -> bool:
    strides = set(node.attributes.get_ints("strides", [1, 1]))
    return _can_be_stage(node) and is_pointwise(node) and strides == {1}


def _is_stem(node: ir.Node) -> bool:
    if not _can_be_stage(node) or _is_pointwise(node):
        return False
    return node.attributes.get_int("group", 1) == 1 and nchw_input(node) is not None


def _can_be_stage(node: ir.Node) -> bool:
    if not is_conv(node) or ops.STAGE_SEPARATOR in (node.name or ""):
        return False
    return not ops.ConvOp.parse(node.op_type).gated


def _activation(node: ir.Node) -> tuple[str | None, list[float | None]]:
    parameters = [node.attributes.get_float(key, None) for key in ("alpha", "min", "max")]
    return ops.ConvOp.parse(node.op_type).activation, parameters


def _weights(node: ir.Node) -> tuple[int, ...]:
    weights = node.inputs[1]
    assert weights is not None
    assert weights.const_value is not None
    return tuple(weights.const_value.shape.numpy())


def _replace(model: ir.Model, op: ops.ChainOp, stages: Sequence[ir.Node]) -> None:
    """One node in the place of the last stage."""
    stem = "Stem" in op.stages
    inputs = [nchw_input(stages[0]) if stem else stages[0].inputs[0]]
    attributes: dict[str, Any] = {}
    for stage, node in zip(op.stages, stages, strict=True):
        inputs += node.inputs[1:3]
        if op.fill is not None:
            own = ops.ConvOp.parse(node.op_type)
            given = node.inputs[3 : 3 + len(ops.FILL_INPUTS[own.fill])]
            inputs += given or _all_computed(model, op.fill, node)
        if stage == "Depthwise":
            attributes |= {key: value.value for key, value in node.attributes.items()}
        elif stage == "Stem":
            attributes = {
                name: node.attributes[key].value
                for name, key in ops.STEM_ATTRIBUTES.items()
                if key in node.attributes
            }
    last = stages[-1]
    if op.residual:
        inputs.append(last.inputs[-1])
    chain = ir.node(
        op.name,
        inputs,
        attributes,
        domain=ops.DOMAIN,
        name=ops.STAGE_SEPARATOR.join(node.name or "" for node in stages),
    )
    ir.convenience.replace_nodes_and_values(
        model.graph, last, stages[::-1], [chain], last.outputs, chain.outputs
    )


def _all_computed(model: ir.Model, fill: str, node: ir.Node) -> list[ir.Value]:
    """The mask or sources of a plane with nothing masked, once in the graph."""
    shape = node.outputs[0].shape
    assert shape is not None
    plane = tuple(size for size in shape[1:3] if isinstance(size, int))
    values = []
    for kind, array in fill_arrays(torch.ones(plane, dtype=torch.bool), fill).items():
        name = f"{kind}_{'x'.join(map(str, plane))}"
        existing = model.graph.initializers.get(name)
        values.append(existing or constant(model, name, array))
    return values
