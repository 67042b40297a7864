"""From torch's layout (NCHW) to NHWC, with a transpose only where an operation cannot follow.

The pass walks the graph once and gives values a twin that holds the same tensor in NHWC. A
convolution computes twins from a twin, made by a transpose if there is none yet; operations that
can run in NHWC follow where an input has a twin. All others keep reading NCHW, which a transpose
restores from the twin. The old nodes then have no readers and go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from semisparse import ops
from semisparse.export.graph import constant, is_constant, remove_unused

TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)

_UNARY = frozenset(
    (
        "Abs",
        "Cast",
        "Ceil",
        "Clip",
        "Cos",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "HardSigmoid",
        "HardSwish",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Tanh",
        "ThresholdedRelu",
    )
)
_BROADCASTING = frozenset(
    (
        "Add",
        "And",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Mean",
        "Min",
        "Mod",
        "Mul",
        "Or",
        "PRelu",
        "Pow",
        "Sub",
        "Sum",
        "Where",
        "Xor",
    )
)
_ALONG_AXIS = frozenset(["Concat", "Split", "Softmax", "LogSoftmax"])
_REDUCTIONS = frozenset(
    (
        "ReduceL1",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
    )
)
_RESHAPES = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze"])

_Attributes = dict[str, Any]


def to_nhwc(model: ir.Model) -> None:
    """Make convolutions and the pools behind them operators of `semisparse`, in NHWC."""
    _Layout(model).run()
    model.opset_imports[ops.DOMAIN] = ops.VERSION
    remove_unused(model)


def transposes(model: ir.Model) -> int:
    """How many transposes are in the graph."""
    return sum(node.op_type == "Transpose" for node in model.graph)


class _Layout:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.twins: dict[ir.Value, ir.Value] = {}
        self.restored: dict[ir.Value, ir.Value] = {}
        self.node: ir.Node

    def run(self) -> None:
        graph = self.model.graph
        for node in list(graph):
            self.node = node
            if not self.follow(node):
                for index, value in enumerate(node.inputs):
                    if value in self.twins:
                        node.replace_input_with(index, self.restore(value))
        for index, value in enumerate(graph.outputs):
            if value in self.twins:
                graph.outputs[index] = restored = self.restore(value)
                value.name, restored.name = f"{value.name}_dense", value.name

    def follow(self, node: ir.Node) -> bool:
        """Give the node's outputs twins; False if it has to stay in NCHW."""
        if node.domain:
            return False
        if node.op_type == "Conv":
            return self.conv(node)
        if node.op_type == "Transpose":
            return self.transpose(node)
        if node.op_type in _RESHAPES and self.shuffle(node):
            return True
        if not any(value in self.twins for value in node.inputs if value is not None):
            return False
        carry = _CARRY.get(node.op_type)
        return carry is not None and carry(self, node)

    def emit(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: _Attributes | None = None,
        *,
        like: Sequence[ir.Value],
        domain: str = "",
        name: str | None = None,
    ) -> list[ir.Value]:
        """New node before the present one; its outputs are of the same types as `like`."""
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=len(like), name=name)
        for out, value in zip(node.outputs, like, strict=True):
            out.type = value.type
        self.model.graph.insert_before(self.node, node)
        return list(node.outputs)

    def emit_twins(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        attributes: _Attributes | None = None,
        *,
        op_type: str | None = None,
        domain: str = "",
    ) -> bool:
        """The node again, on and with twins."""
        if attributes is None:
            attributes = {key: attribute.value for key, attribute in node.attributes.items()}
        outs = self.emit(
            op_type or node.op_type,
            inputs,
            attributes,
            like=node.outputs,
            domain=domain,
            name=node.name,
        )
        for value, twin in zip(node.outputs, outs, strict=True):
            self.pair(value, twin)
        return True

    def pair(self, value: ir.Value, twin: ir.Value) -> None:
        twin.name = f"{value.name}_nhwc"
        if value.shape is not None:
            twin.shape = ir.Shape([value.shape[axis] for axis in TO_NHWC])
        self.twins[value] = twin

    def twin(self, value: ir.Value) -> ir.Value:
        if value not in self.twins:
            assert value.shape is not None
            _, c, h, w = value.shape
            if c == 1 or (h, w) == (1, 1):
                target = self.ints([0, h, w, c])
                (out,) = self.emit("Reshape", [value, target], like=[value])
            else:
                (out,) = self.emit("Transpose", [value], {"perm": TO_NHWC}, like=[value])
            self.pair(value, out)
        return self.twins[value]

    def restore(self, value: ir.Value) -> ir.Value:
        """The NCHW form of a value that has a twin."""
        if value not in self.restored:
            twin = self.twins[value]
            assert value.shape is not None
            _, c, h, w = value.shape
            if c == 1 or (h, w) == (1, 1):
                target = self.ints([0, c, h, w])
                (out,) = self.emit("Reshape", [twin, target], like=[value])
            else:
                (out,) = self.emit("Transpose", [twin], {"perm": TO_NCHW}, like=[value])
            out.name, out.shape = f"{value.name}_nchw", value.shape
            self.restored[value] = out
        return self.restored[value]

    def ints(self, values: Sequence[Any]) -> ir.Value:
        array = np.array(values, dtype=np.int64)
        name = "ints_" + "_".join(map(str, values))
        existing = self.model.graph.initializers.get(name)
        return existing or constant(self.model, name, array)

    def conv(self, node: ir.Node) -> bool:
        x, weight, *biases = node.inputs
        assert x is not None
        if (
            _rank(x) != 4
            or x.dtype != ir.DataType.FLOAT
            or not all(map(is_constant, node.inputs[1:]))
            or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
        ):
            return False
        if not biases:
            zeros = np.zeros(_array(weight).shape[0], np.float32)
            biases = [constant(self.model, f"{node.name}.bias", zeros)]
        attributes = {
            "strides": node.attributes.get_ints("strides", [1, 1]),
            "pads": node.attributes.get_ints("pads", [0, 0, 0, 0]),
            "dilations": node.attributes.get_ints("dilations", [1, 1]),
            "group": node.attributes.get_int("group", 1),
        }
        inputs = [self.twin(x), weight, *biases]
        return self.emit_twins(node, inputs, attributes, domain=ops.DOMAIN)

    def max_pool(self, node: ir.Node) -> bool:
        if len(node.outputs) > 1 or not _is_float_plane(node):
            return False
        return self.pool(node, {"dilations": node.attributes.get_ints("dilations", [1, 1])})

    def average_pool(self, node: ir.Node) -> bool:
        if not _is_float_plane(node):
            return False
        counted = node.attributes.get_int("count_include_pad", 0)
        return self.pool(node, {"count_include_pad": counted})

    def pool(self, node: ir.Node, more: _Attributes) -> bool:
        attributes = {
            "kernel_shape": node.attributes["kernel_shape"].as_ints(),
            "strides": node.attributes.get_ints("strides", [1, 1]),
            "pads": node.attributes.get_ints("pads", [0, 0, 0, 0]),
            "ceil_mode": node.attributes.get_int("ceil_mode", 0),
            **more,
        }
        return self.emit_twins(node, [self.input_twin(node)], attributes, domain=ops.DOMAIN)

    def global_average_pool(self, node: ir.Node) -> bool:
        if not _is_float_plane(node):
            return False
        return self.emit_twins(
            node, [self.input_twin(node)], {}, op_type="GlobalAveragePool", domain=ops.DOMAIN
        )

    def reduce(self, node: ir.Node) -> bool:
        axes = _constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None or not axes:
            return False
        axes = sorted(axis % 4 for axis in axes)
        keep = node.attributes.get_int("keepdims", 1)
        if node.op_type == "ReduceMean" and axes == [2, 3] and keep and _is_float_plane(node):
            return self.global_average_pool(node)
        moved = self.ints([TO_NHWC.index(axis) for axis in axes])
        if keep:
            return self.emit_twins(node, [self.input_twin(node), moved])
        remaining = [axis for axis in TO_NHWC if axis not in axes]
        if remaining != sorted(remaining):
            return False
        attributes = {key: attribute.value for key, attribute in node.attributes.items()}
        return self.replace(node, node.op_type, [self.input_twin(node), moved], attributes)

    def replace(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: _Attributes | None = None,
    ) -> bool:
        """Compute the node's one output, which has no layout, in another way."""
        (out,) = self.emit(op_type, inputs, attributes, like=node.outputs, name=node.name)
        ir.convenience.replace_nodes_and_values(
            self.model.graph, node, [], [], list(node.outputs), [out]
        )
        return True

    def input_twin(self, node: ir.Node) -> ir.Value:
        assert node.inputs[0] is not None
        return self.twin(node.inputs[0])

    def unary(self, node: ir.Node) -> bool:
        return self.emit_twins(node, [self.input_twin(node), *node.inputs[1:]])

    def broadcasting(self, node: ir.Node) -> bool:
        operands = [self.operand(value) for value in node.inputs]
        if any(operand is None for operand in operands):
            return False
        return self.emit_twins(node, operands)

    def operand(self, value: ir.Value | None) -> ir.Value | None:
        """What stands for an operand in NHWC; None if nothing does."""
        assert value is not None
        if _rank(value) == 4 and not is_constant(value):
            return self.twin(value)
        if value.shape is not None and all(dim == 1 for dim in value.shape):
            return value
        if not is_constant(value):
            return None
        array = _array(value)
        if array.ndim > 4:
            return None
        array = array.reshape((1,) * (4 - array.ndim) + array.shape).transpose(TO_NHWC)
        return constant(self.model, f"{value.name}_nhwc", np.ascontiguousarray(array))

    def along_axis(self, node: ir.Node) -> bool:
        inputs = list(node.inputs)
        data = inputs if node.op_type == "Concat" else inputs[:1]
        if any(value is None or _rank(value) != 4 for value in data):
            return False
        default = -1 if "Softmax" in node.op_type else 0
        axis = node.attributes.get_int("axis", default) % 4
        attributes = {key: attribute.value for key, attribute in node.attributes.items()}
        attributes["axis"] = TO_NHWC.index(axis)
        twins = [self.twin(value) for value in data if value is not None]
        return self.emit_twins(node, [*twins, *inputs[len(data) :]], attributes)

    def slice(self, node: ir.Node) -> bool:
        axes = _constant_ints(node.inputs[3]) if len(node.inputs) > 3 else None
        if axes is None:
            return False
        moved = self.ints([TO_NHWC.index(axis % 4) for axis in axes])
        starts_ends, steps = node.inputs[1:3], node.inputs[4:]
        return self.emit_twins(node, [self.input_twin(node), *starts_ends, moved, *steps])

    def pad(self, node: ir.Node) -> bool:
        amounts = _constant_ints(node.inputs[1])
        if amounts is None or len(amounts) != 8 or len(node.inputs) > 3:
            return False
        begin, end = amounts[:4], amounts[4:]
        moved = self.ints([begin[a] for a in TO_NHWC] + [end[a] for a in TO_NHWC])
        return self.emit_twins(node, [self.input_twin(node), moved, *node.inputs[2:]])

    def resize(self, node: ir.Node) -> bool:
        # ONNX Runtime resizes in NHWC by the nearest pixel and bilinearly, not bicubically.
        mode = node.attributes.get_string("mode", "nearest")
        out, inputs = node.outputs[0], list(node.inputs)
        if mode not in ("nearest", "linear") or "axes" in node.attributes or _rank(out) != 4:
            return False
        assert out.shape is not None
        scales = inputs[2] if len(inputs) > 2 else None
        if scales is not None:
            if not is_constant(scales):
                return False
            factors = _array(scales)[list(TO_NHWC)]
            moved = constant(self.model, f"{scales.name}_nhwc", factors)
            return self.emit_twins(node, [self.input_twin(node), None, moved])
        height, width = out.shape[2], out.shape[3]
        if not isinstance(height, int) or not isinstance(width, int):
            return False
        attributes = {key: attribute.value for key, attribute in node.attributes.items()}
        attributes["axes"] = [1, 2]
        sizes = self.ints([height, width])
        return self.emit_twins(node, [self.input_twin(node), None, None, sizes], attributes)

    def transpose(self, node: ir.Node) -> bool:
        x, out = node.inputs[0], node.outputs[0]
        perm = node.attributes.get_ints("perm")
        assert x is not None
        assert perm is not None
        if x in self.twins:
            combined = [TO_NCHW[axis] for axis in perm]
            if combined == sorted(combined) and not out.is_graph_output():
                ir.convenience.replace_all_uses_with(out, self.twins[x])
                return True
            return self.replace(node, "Transpose", [self.twins[x]], {"perm": combined})
        if tuple(perm) == TO_NCHW:
            self.twins[out] = x
            return True
        return False

    def reshape(self, node: ir.Node) -> bool:
        """A plane of one position has the same order in memory in both layouts."""
        x, out = node.inputs[0], node.outputs[0]
        assert x is not None
        if x.shape is None or out.shape is None or (x.shape[2], x.shape[3]) != (1, 1):
            return False
        sizes = [d if isinstance(d, int) else -1 for d in out.shape]
        if sizes.count(-1) > 1:
            return False
        return self.replace(node, "Reshape", [self.twins[x], self.ints(sizes)])

    def shuffle(self, node: ir.Node) -> bool:
        """A channel shuffle, which is split, swap, merge: in NHWC the channels are last."""
        merged = node.inputs[0]
        assert merged is not None
        swap = merged.producer()
        if swap is None or swap.op_type != "Transpose":
            return False
        if list(swap.attributes["perm"].as_ints()) != [0, 2, 1, 3, 4]:
            return False
        split_out = swap.inputs[0]
        assert split_out is not None
        split = split_out.producer()
        if split is None or split.op_type != "Reshape" or split_out.shape is None:
            return False
        x = split.inputs[0]
        twin = self.twins.get(self.original(x)) if x is not None else None
        out = node.outputs[0]
        if twin is None or out.shape is None or twin.shape is None or _rank(out) != 4:
            return False
        _, groups, per_group, height, width = split_out.shape
        if [out.shape[a] for a in TO_NHWC][1:] != [twin.shape[1], twin.shape[2], twin.shape[3]]:
            return False
        parts = self.ints([0, height, width, groups, per_group])
        (wide,) = self.emit("Reshape", [twin, parts], like=[out])
        (swapped,) = self.emit("Transpose", [wide], {"perm": [0, 1, 2, 4, 3]}, like=[out])
        whole = self.ints([0, height, width, twin.shape[3]])
        (result,) = self.emit("Reshape", [swapped, whole], like=[out])
        self.pair(out, result)
        return True

    def original(self, value: ir.Value) -> ir.Value:
        return next((v for v, restored in self.restored.items() if restored is value), value)


_CARRY: dict[str, Callable[[_Layout, ir.Node], bool]] = {
    "MaxPool": _Layout.max_pool,
    "AveragePool": _Layout.average_pool,
    "GlobalAveragePool": _Layout.global_average_pool,
    "Slice": _Layout.slice,
    "Pad": _Layout.pad,
    "Resize": _Layout.resize,
    **dict.fromkeys(_UNARY, _Layout.unary),
    **dict.fromkeys(_BROADCASTING, _Layout.broadcasting),
    **dict.fromkeys(_ALONG_AXIS, _Layout.along_axis),
    **dict.fromkeys(_REDUCTIONS, _Layout.reduce),
    **dict.fromkeys(_RESHAPES, _Layout.reshape),
}


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else value.shape.rank()


def _is_float_plane(node: ir.Node) -> bool:
    x = node.inputs[0]
    return x is not None and _rank(x) == 4 and x.dtype == ir.DataType.FLOAT


def _constant_ints(value: ir.Value | None) -> list[int] | None:
    if value is None or not is_constant(value):
        return None
    return [int(i) for i in _array(value).reshape(-1)]


def _array(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()
