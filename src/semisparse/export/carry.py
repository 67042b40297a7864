"""How each operation runs in NHWC.

A rule takes the twins so far and a node with a twin among its inputs. It computes the twins of the
node's outputs and returns True, or returns False where the node has to stay in NCHW.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from semisparse import ops
from semisparse.export.graph import constant, is_constant, only_reader
from semisparse.export.twins import TO_NCHW, TO_NHWC, Twins, attributes_of

Rule = Callable[[Twins, ir.Node], bool]


def conv(twins: Twins, node: ir.Node) -> bool:
    """A 2-d convolution with constant weights, whether its input has a twin or not."""
    x, weight, *biases = node.inputs
    if not _is_float_plane(x) or not all(map(is_constant, node.inputs[1:])):
        return False
    if not biases:
        zeros = np.zeros(_array(weight).shape[0], np.float32)
        biases = [constant(twins.model, f"{node.name}.bias", zeros)]
    attributes = {
        "strides": node.attributes.get_ints("strides", [1, 1]),
        "pads": node.attributes.get_ints("pads", [0, 0, 0, 0]),
        "dilations": node.attributes.get_ints("dilations", [1, 1]),
        "group": node.attributes.get_int("group", 1),
    }
    return twins.carry(node, [twins.of(x), weight, *biases], attributes, domain=ops.DOMAIN)


def transpose(twins: Twins, node: ir.Node) -> bool:
    """A transpose of a twin, or one that is itself from NHWC to NCHW."""
    x, out = node.inputs[0], node.outputs[0]
    perm = node.attributes.get_ints("perm", [])
    assert x is not None
    if x in twins:
        combined = [TO_NCHW[axis] for axis in perm]
        if combined == sorted(combined):
            return twins.replace(node, "Identity", [twins.of(x)])
        return twins.replace(node, "Transpose", [twins.of(x)], {"perm": combined})
    if tuple(perm) == TO_NCHW:
        twins.pair(out, x)
        return True
    return False


def _max_pool(twins: Twins, node: ir.Node) -> bool:
    if len(node.outputs) > 1 or not _is_float_plane(node.inputs[0]):
        return False
    dilations = node.attributes.get_ints("dilations", [1, 1])
    window = _as_floor(node, _window(node), dilations)
    return twins.operator(node, "MaxPool", {**window, "dilations": dilations})


def _average_pool(twins: Twins, node: ir.Node) -> bool:
    if not _is_float_plane(node.inputs[0]):
        return False
    counted = node.attributes.get_int("count_include_pad", 0)
    # An average that counts padding does not count what ceil_mode adds.
    window = _window(node) if counted else _as_floor(node, _window(node), [1, 1])
    return twins.operator(node, "AveragePool", {**window, "count_include_pad": counted})


def _global_average_pool(twins: Twins, node: ir.Node) -> bool:
    return _is_float_plane(node.inputs[0]) and twins.operator(node, "GlobalAveragePool", {})


def _squeezed_average(twins: Twins, node: ir.Node) -> bool:
    """The average of a plane as `[N, C]`: ONNX Runtime's takes six times as long in NHWC."""
    x, out = node.inputs[0], node.outputs[0]
    channels = out.shape[1] if out.shape is not None else None
    if not _is_float_plane(x) or not isinstance(channels, int):
        return False
    assert x is not None
    assert x.shape is not None
    (average,) = twins.emit("GlobalAveragePool", [twins.of(x)], {}, like=[out], domain=ops.DOMAIN)
    average.shape = ir.Shape([x.shape[0], 1, 1, channels])
    return twins.replace(node, "Reshape", [average, twins.ints([-1, channels])])


def _window(node: ir.Node) -> dict[str, Any]:
    return {
        "kernel_shape": node.attributes["kernel_shape"].as_ints(),
        "strides": node.attributes.get_ints("strides", [1, 1]),
        "pads": node.attributes.get_ints("pads", [0, 0, 0, 0]),
        "ceil_mode": node.attributes.get_int("ceil_mode", 0),
    }


def _as_floor(node: ir.Node, window: dict[str, Any], dilations: Sequence[int]) -> dict[str, Any]:
    """Padding behind the plane instead of `ceil_mode`, which ONNX Runtime 1.17 computes wrongly."""
    pads = list(window["pads"])
    sizes = zip(_plane(node.inputs[0]), _plane(node.outputs[0]), strict=True)
    for axis, (size, out) in enumerate(sizes):
        reach = (window["kernel_shape"][axis] - 1) * dilations[axis] + 1
        needed = (out - 1) * window["strides"][axis] + reach - size - pads[axis]
        pads[axis + 2] = max(pads[axis + 2], needed)
    return {**window, "pads": pads, "ceil_mode": 0}


def _reduce(twins: Twins, node: ir.Node) -> bool:
    axes = [axis % 4 for axis in _ints(node.inputs[1])] if len(node.inputs) > 1 else []
    keep = node.attributes.get_int("keepdims", 1)
    if node.op_type == "ReduceMean" and sorted(axes) == [2, 3]:
        return _global_average_pool(twins, node) if keep else _squeezed_average(twins, node)
    if node.op_type == "ReduceL2" and sorted(axes) == [2, 3] and keep:
        return _is_float_plane(node.inputs[0]) and twins.operator(node, "GlobalL2Pool", {})
    remaining = [axis for axis in TO_NHWC if axis not in axes]
    if not axes or (not keep and remaining != sorted(remaining)):
        return False
    inputs = [twins.of(node.inputs[0]), twins.ints([TO_NHWC.index(axis) for axis in axes])]
    if keep:
        return twins.carry(node, inputs)
    return twins.replace(node, node.op_type, inputs, attributes_of(node))


def _unary(twins: Twins, node: ir.Node) -> bool:
    return twins.carry(node, [twins.of(node.inputs[0]), *node.inputs[1:]])


def _broadcasting(twins: Twins, node: ir.Node) -> bool:
    operands = [_operand(twins, value) for value in node.inputs]
    return None not in operands and twins.carry(node, operands)


def _operand(twins: Twins, value: ir.Value | None) -> ir.Value | None:
    """What stands for an operand in NHWC; None if nothing does."""
    assert value is not None
    if value.shape is None or value.shape.rank() > 4:
        return None
    if all(size == 1 for size in value.shape):
        return value
    if is_constant(value):
        array = _array(value)
        aligned = array.reshape((1,) * (4 - array.ndim) + array.shape).transpose(TO_NHWC)
        return constant(twins.model, f"{value.name}_nhwc", np.ascontiguousarray(aligned))
    return twins.of(value) if value.shape.rank() == 4 else None


def _along_axis(twins: Twins, node: ir.Node) -> bool:
    data = 1 if node.op_type != "Concat" else len(node.inputs)
    default = -1 if "Softmax" in node.op_type else 0
    axis = node.attributes.get_int("axis", default) % 4
    attributes = {**attributes_of(node), "axis": TO_NHWC.index(axis)}
    moved = [twins.of(value) for value in node.inputs[:data]]
    return twins.carry(node, [*moved, *node.inputs[data:]], attributes)


def _slice(twins: Twins, node: ir.Node) -> bool:
    axes = _ints(node.inputs[3]) if len(node.inputs) > 3 else []
    if not axes:
        return False
    moved = twins.ints([TO_NHWC.index(axis % 4) for axis in axes])
    data, steps = twins.of(node.inputs[0]), node.inputs[4:]
    return twins.carry(node, [data, *node.inputs[1:3], moved, *steps])


def _pad(twins: Twins, node: ir.Node) -> bool:
    amounts = _ints(node.inputs[1])
    if len(amounts) != 8 or len(node.inputs) > 3:
        return False
    begin, end = amounts[:4], amounts[4:]
    moved = twins.ints([*(begin[axis] for axis in TO_NHWC), *(end[axis] for axis in TO_NHWC)])
    return twins.carry(node, [twins.of(node.inputs[0]), moved, *node.inputs[2:]])


def _resize(twins: Twins, node: ir.Node) -> bool:
    # ONNX Runtime resizes in NHWC by the nearest pixel and bilinearly, not bicubically.
    mode = node.attributes.get_string("mode", "nearest")
    if mode not in ("nearest", "linear") or "axes" in node.attributes:
        return False
    data, scales, out = twins.of(node.inputs[0]), node.inputs[2], node.outputs[0]
    if scales is not None and list(scales.shape or []) != [0]:
        if not is_constant(scales):
            return False
        factors = _array(scales)[list(TO_NHWC)]
        moved = constant(twins.model, f"{scales.name}_nhwc", factors)
        return twins.carry(node, [data, None, moved])
    # Not the attribute axes, which ONNX Runtime 1.31's own transpose optimizer overlooks.
    assert out.shape is not None
    (batch,) = twins.emit("Shape", [data], {"start": 0, "end": 1}, like=[twins.ints([0])])
    rest = twins.ints([out.shape[axis] for axis in TO_NHWC[1:]])
    (sizes,) = twins.emit("Concat", [batch, rest], {"axis": 0}, like=[batch])
    return twins.carry(node, [data, None, None, sizes])


def _reshape(twins: Twins, node: ir.Node) -> bool:
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    if x.shape is None or out.shape is None or list(x.shape[2:]) != [1, 1]:
        return _shuffle(twins, node)
    # A plane of one position has the same order in memory in both layouts.
    sizes = [size if isinstance(size, int) else -1 for size in out.shape]
    if sizes.count(-1) > 1:
        return False
    return twins.replace(node, "Reshape", [twins.of(x), twins.ints(sizes)])


def _shuffle(twins: Twins, node: ir.Node) -> bool:
    """A channel shuffle: split the channels in two axes, swap these, merge them."""
    split = node.outputs[0]
    swap = _only_reader(split, "Transpose")
    merge = _only_reader(swap.outputs[0], "Reshape") if swap else None
    x = node.inputs[0]
    if swap is None or merge is None or x is None or split.shape is None or x.shape is None:
        return False
    out = merge.outputs[0]
    if (
        list(swap.attributes.get_ints("perm", [])) != [0, 2, 1, 3, 4]
        or list(split.shape[3:]) != list(x.shape[2:])
        or out.shape != x.shape
    ):
        return False
    _, channels, height, width = x.shape
    parts = twins.ints([0, height, width, *split.shape[1:3]])
    (wide,) = twins.emit("Reshape", [twins.of(x), parts], like=[out])
    (swapped,) = twins.emit("Transpose", [wide], {"perm": [0, 1, 2, 4, 3]}, like=[out])
    whole = twins.ints([0, height, width, channels])
    return twins.carry(merge, [swapped, whole], {"allowzero": 0})


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    reader = only_reader(value)
    return reader if reader is not None and reader.op_type == op_type else None


def _is_float_plane(value: ir.Value | None) -> bool:
    return (
        value is not None
        and value.shape is not None
        and value.shape.rank() == 4
        and value.dtype == ir.DataType.FLOAT
    )


def _plane(value: ir.Value | None) -> list[int]:
    """Height and width, which the example input fixes."""
    assert value is not None
    assert value.shape is not None
    return [size for size in value.shape[2:] if isinstance(size, int)]


def _ints(value: ir.Value | None) -> list[int]:
    """The integers of a constant; none if it is not one."""
    return [int(i) for i in _array(value).reshape(-1)] if is_constant(value) else []


def _array(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


RULES: dict[str, Rule] = {
    **dict.fromkeys(ops.UNARY, _unary),
    **dict.fromkeys(ops.BROADCASTING, _broadcasting),
    "AveragePool": _average_pool,
    "Concat": _along_axis,
    "Flatten": _reshape,
    "GlobalAveragePool": _global_average_pool,
    "LogSoftmax": _along_axis,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "ReduceL2": _reduce,
    "ReduceMax": _reduce,
    "ReduceMean": _reduce,
    "ReduceMin": _reduce,
    "ReduceSum": _reduce,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _along_axis,
    "Split": _along_axis,
    "Squeeze": _reshape,
}
