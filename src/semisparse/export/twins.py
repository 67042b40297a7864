"""The values of a graph in both layouts.

A value of the traced graph is NCHW. Its *twin* is another value that holds the same tensor in NHWC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from semisparse import ops
from semisparse.export.graph import constant

TO_NHWC = (0, 2, 3, 1)
TO_NCHW = (0, 3, 1, 2)


class Twins:
    """Twins and what computes them; new nodes go before the node `here`.

    Attributes:
        model: the graph under change.
        here: the node that the walk through the graph has reached.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.here: ir.Node
        self._twins: dict[ir.Value, ir.Value] = {}
        self._restored: dict[ir.Value, ir.Value] = {}

    def __contains__(self, value: ir.Value | None) -> bool:
        return value in self._twins

    def pair(self, value: ir.Value, twin: ir.Value) -> None:
        """Make `twin` the NHWC form of `value`."""
        self._twins[value] = twin

    def of(self, value: ir.Value | None) -> ir.Value:
        """The NHWC form of a value of rank 4, by a transpose if there is none yet."""
        assert value is not None
        if value not in self._twins:
            self.pair(value, self._permute(value, TO_NHWC, f"{value.name}_nhwc"))
        return self._twins[value]

    def restore(self, value: ir.Value) -> ir.Value:
        """The NCHW form of a value that has a twin, by a transpose."""
        if value not in self._restored:
            twin = self._twins[value]
            self._restored[value] = self._permute(twin, TO_NCHW, f"{value.name}_nchw")
        return self._restored[value]

    def carry(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        op_type: str | None = None,
        domain: str = "",
    ) -> bool:
        """Compute twins of a node's outputs by the same node on other inputs; True.

        Args:
            node: of the traced graph.
            inputs: mostly twins.
            attributes: None for the node's own.
            op_type: None for the node's own.
            domain: of the operator.
        """
        twins = self.emit(
            op_type or node.op_type,
            inputs,
            attributes_of(node) if attributes is None else attributes,
            like=node.outputs,
            domain=domain,
            name=node.name,
        )
        for value, twin in zip(node.outputs, twins, strict=True):
            assert value.shape is not None
            twin.name = f"{value.name}_nhwc"
            twin.shape = ir.Shape([value.shape[axis] for axis in TO_NHWC])
            self.pair(value, twin)
        return True

    def operator(self, node: ir.Node, op_type: str, attributes: Mapping[str, Any]) -> bool:
        """Compute the twin of a node's output by an operator of `semisparse` on its input; True."""
        inputs = [self.of(node.inputs[0])]
        return self.carry(node, inputs, attributes, op_type=op_type, domain=ops.DOMAIN)

    def replace(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
    ) -> bool:
        """Compute a node's output itself in another way; True."""
        out = self.emit(op_type, inputs, attributes, like=node.outputs, name=node.name)
        ir.convenience.replace_nodes_and_values(
            self.model.graph, node, [], [], list(node.outputs), out
        )
        return True

    def emit(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        like: Sequence[ir.Value],
        domain: str = "",
        name: str | None = None,
    ) -> list[ir.Value]:
        """Outputs of a new node, of the same element types as `like`."""
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=len(like), name=name)
        for out, value in zip(node.outputs, like, strict=True):
            out.type = value.type
        self.model.graph.insert_before(self.here, node)
        return list(node.outputs)

    def ints(self, values: Sequence[Any]) -> ir.Value:
        """A constant int64 list, once in the graph."""
        name = "ints_" + "_".join(map(str, values))
        existing = self.model.graph.initializers.get(name)
        return existing or constant(self.model, name, np.array(values, dtype=np.int64))

    def _permute(self, value: ir.Value, perm: Sequence[int], name: str) -> ir.Value:
        assert value.shape is not None
        shape = [value.shape[axis] for axis in perm]
        moved = [axis for axis in perm if value.shape[axis] != 1]
        if moved == sorted(moved) and all(isinstance(size, int) for size in shape[1:]):
            # The order in memory is the same, as for one channel or a plane of one position.
            (out,) = self.emit("Reshape", [value, self.ints([0, *shape[1:]])], like=[value])
        else:
            (out,) = self.emit("Transpose", [value], {"perm": perm}, like=[value])
        out.name, out.shape = name, ir.Shape(shape)
        return out


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """A node's attributes by name."""
    return {name: attribute.value for name, attribute in node.attributes.items()}
