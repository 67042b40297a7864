"""The arithmetic of an ONNX file: which layers it has, and what each computes."""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from semisparse.errors import MissingExtraError

if TYPE_CHECKING:
    import onnx

DOMAIN = "semisparse"
_STAGES = ("Expand", "Stem", "Depthwise", "Project")
ACTIVATED = "/activated"
_ACTIVATIONS = ("Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product.

    Attributes:
        name: of the layer.
        node: name of the node that computes it, alone or with other layers of a chain.
        weights: shape of the weights, [C_out, C_in / group, kh, kw] for a convolution.
        plane: [H_out, W_out]; for a matrix product the positions of its input, of which [N, C] has
            [1, 1] and [N, T, C] [1, T].
        computed: positions of the plane that are computed.
    """

    name: str
    node: str
    weights: tuple[int, ...]
    plane: tuple[int, int]
    computed: int

    @property
    def positions(self) -> int:
        """Positions of the plane."""
        return math.prod(self.plane)

    @property
    def sparsity(self) -> float:
        """Fraction of the positions that is masked."""
        return 1 - self.computed / self.positions

    @property
    def flops(self) -> int:
        """Operations on one image; a multiplication and an addition are two."""
        return 2 * math.prod(self.weights) * self.computed


@dataclass(frozen=True)
class Work:
    """The layers of a file, in the order of its nodes."""

    layers: tuple[Layer, ...]

    @property
    def flops(self) -> int:
        """Operations on one image in convolutions and matrix products, without masked positions."""
        return sum(layer.flops for layer in self.layers)

    def dense(self) -> Work:
        """The same layers with every position computed."""
        return Work(tuple(replace(layer, computed=layer.positions) for layer in self.layers))


def read(path: Path) -> onnx.ModelProto:
    """The model in a file.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"Counting the operations of {path} needs {error.name}, which is not installed; "
            "run pip install 'semisparse[bench]'."
        ) from error
    return onnx.load(path)


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions replaced by their bodies of standard operators."""
    import onnx.inliner

    result: onnx.ModelProto = onnx.inliner.inline_local_functions(model)
    for opset in [entry for entry in result.opset_import if entry.domain == DOMAIN]:
        result.opset_import.remove(opset)
    return result


def name_layers(path: Path) -> None:
    """Names every layer of a torch export, and what it puts out, after the layer's weights or, where
    the export has transposed those, the module that was called.

    ONNX Runtime's profile names a convolution after its node, or, where it runs in the blocked
    NCHWc layout, after its output or that of the activation fused into it.
    """
    import onnx

    model = onnx.load(path)
    graph = model.graph
    layers: dict[str, str] = {}
    calls: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        layer, _, kind = node.input[1].rpartition(".")
        if kind != "weight":
            layer = _module(node)
        if layer:
            calls[layer] += 1
            node.name = layer if calls[layer] == 1 else f"{layer}#{calls[layer]}"
            layers[node.output[0]] = node.name
    renamed = dict(layers)
    for node in graph.node:
        if node.op_type in _ACTIVATIONS and node.input[0] in layers:
            renamed[node.output[0]] = layers[node.input[0]] + ACTIVATED
    for value in graph.output:
        renamed.pop(value.name, None)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    # They hold the old names; whoever needs the shapes infers them.
    del graph.value_info[:]
    onnx.save(model, path)


def _module(node: onnx.NodeProto) -> str:
    """Name of the module that a node of a torch export is from; empty if it does not say."""
    told = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(told.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""


def work_of(model: onnx.ModelProto) -> Work:
    """What a model computes.

    A masked convolution is one of the operators of the domain `semisparse`, whose mask or sources
    tell which positions are computed. A chain is several of them, and squeeze and excitation two.
    """
    from onnx import numpy_helper, shape_inference

    from semisparse import ops

    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    constants: dict[str, onnx.TensorProto] = {t.name: t for t in inferred.initializer}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output, *inferred.input)
    }

    def layer(name: str, node: onnx.NodeProto, first: int, plane: Sequence[int]) -> Layer:
        """The layer whose weights are the node's input number `first`, bias and mask behind."""
        height, width = plane
        computed = height * width
        if "FillBias" in node.op_type:
            mask = numpy_helper.to_array(constants[node.input[first + 2]])
            computed = int(np.count_nonzero(mask))
        elif "FillNearest" in node.op_type:
            source = numpy_helper.to_array(constants[node.input[first + 2]]).ravel()
            computed = int(np.count_nonzero(source == np.arange(source.size)))
        elif "FillMean" in node.op_type:
            nearest = numpy_helper.to_array(constants[node.input[first + 2]])[0].ravel()
            computed = int(np.count_nonzero(nearest == np.arange(nearest.size)))
        weights = tuple(constants[node.input[first]].dims)
        return Layer(name, node.name, weights, (height, width), computed)

    layers = []
    for node in inferred.node:
        stages = [stage for stage in _STAGES if stage in node.op_type]
        if node.domain == DOMAIN and stages:
            inputs = 2 + ("Fill" in node.op_type) + ("FillMean" in node.op_type)
            for index, name in enumerate(_layers_in(node, stages)):
                of_layer = ops.plane_of(
                    node.op_type,
                    index,
                    shapes[node.input[0]],
                    shapes[node.output[0]],
                    constants[node.input[1]].dims[2:],
                    {a.name: a.ints for a in node.attribute},
                )
                layers.append(layer(name, node, 1 + index * inputs, of_layer))
        elif node.domain == DOMAIN and node.op_type.startswith("SqueezeExcite"):
            for index, name in enumerate(_layers_in(node, ("squeeze", "excite"))):
                layers.append(layer(name, node, 1 + 2 * index, (1, 1)))
        elif node.domain == DOMAIN and node.op_type.startswith("Conv"):
            layers.append(layer(node.name, node, 1, shapes[node.output[0]][1:3]))
        elif node.op_type == "Conv":
            layers.append(layer(node.name, node, 1, shapes[node.output[0]][2:4]))
        elif node.op_type in ("Gemm", "MatMul") and node.input[1] in constants:
            plane = [1, 1, *shapes[node.output[0]][1:-1]][-2:]
            layers.append(layer(node.name, node, 1, plane))
    return Work(tuple(layers))


def _layers_in(node: onnx.NodeProto, stages: Sequence[str]) -> Sequence[str]:
    """Names of a node's layers, or of its stages where another tool has renamed the node."""
    names = node.name.split("+")
    return names if len(names) == len(stages) else [f"{node.name} {stage}" for stage in stages]
