"""The operators of an exported file: names, inputs, portable bodies (docs/format.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
import onnx.parser

DOMAIN = "semisparse"
VERSION = 1
OPSET = 18
IR_VERSION = 8

_FILLS = {"bias": "FillBias", "nearest": "FillNearest", "mean": "FillMean"}
# What tells a convolution or a stage where it is masked, behind weights and bias.
FILL_INPUTS = {None: (), "bias": ("mask",), "nearest": ("source",), "mean": ("sources", "share")}

_ACTIVATION_BODIES = {
    "Relu": "Y = Relu(y)",
    "Clip": "low = Constant<value_float: float = @min>()\n"
    "high = Constant<value_float: float = @max>()\n"
    "Y = Clip(y, low, high)",
    "LeakyRelu": "Y = LeakyRelu<alpha: float = @alpha>(y)",
    "Silu": "gate = Sigmoid(y)\nY = Mul(y, gate)",
    "HardSwish": "Y = HardSwish(y)",
    "Sigmoid": "Y = Sigmoid(y)",
    "HardSigmoid": "Y = HardSigmoid<alpha: float = 0.16666667, beta: float = 0.5>(y)",
    "Gelu": "root = Constant<value_float = 1.41421356>()\n"
    "unit = Constant<value_float = 1.0>()\n"
    "half = Constant<value_float = 0.5>()\n"
    "scaled = Div(y, root)\n"
    "error = Erf(scaled)\n"
    "doubled = Add(error, unit)\n"
    "gate = Mul(doubled, half)\n"
    "Y = Mul(y, gate)",
}

# Where would be Mul, an infinite input would turn masked positions into NaN.
_FILL_BODIES = {
    None: "linear = Conv{geometry}(x, W, B)\nbiased = Transpose<perm = [0, 2, 3, 1]>(linear)",
    "bias": "linear = Conv{geometry}(x, W)\n"
    "computed = Cast<to = 9>(mask)\n"
    "zero = Constant<value_float = 0.0>()\n"
    "filled = Where(computed, linear, zero)\n"
    "rows = Transpose<perm = [0, 2, 3, 1]>(filled)\n"
    "biased = Add(rows, B)",
    "nearest": "linear = Conv{geometry}(x, W)\n"
    "flat = Constant<value_ints = [0, 0, -1]>()\n"
    "positions = Reshape(linear, flat)\n"
    "filled = Gather<axis = 2>(positions, source)\n"
    "rows = Transpose<perm = [0, 2, 3, 1]>(filled)\n"
    "biased = Add(rows, B)",
    # Where again: the mean of an infinite value and itself would be NaN.
    "mean": "linear = Conv{geometry}(x, W)\n"
    "flat = Constant<value_ints = [0, 0, -1]>()\n"
    "positions = Reshape(linear, flat)\n"
    "zero = Constant<value_int = 0>()\n"
    "one = Constant<value_int = 1>()\n"
    "source = Gather<axis = 0>(sources, zero)\n"
    "second_source = Gather<axis = 0>(sources, one)\n"
    "first = Gather<axis = 2>(positions, source)\n"
    "second = Gather<axis = 2>(positions, second_source)\n"
    "whole = Constant<value_float = 1.0>()\n"
    "rest = Sub(whole, share)\n"
    "of_first = Mul(first, rest)\n"
    "of_second = Mul(second, share)\n"
    "mean = Add(of_first, of_second)\n"
    "single = Equal(source, second_source)\n"
    "filled = Where(single, first, mean)\n"
    "rows = Transpose<perm = [0, 2, 3, 1]>(filled)\n"
    "biased = Add(rows, B)",
}

# Calls within a body write out all of them: not every runtime knows the defaults of a function
# within a function.
_CONV_ATTRIBUTES = {
    "strides": "ints = [1, 1]",
    "pads": "ints = [0, 0, 0, 0]",
    "dilations": "ints = [1, 1]",
    "group": "int = 1",
}
_ACTIVATION_ATTRIBUTES = {
    "LeakyRelu": {"alpha": "float = 0.01"},
    "Clip": {"min": "float = 0.0", "max": "float = 6.0"},
}
_POOL_ATTRIBUTES = {
    "MaxPool": {
        "kernel_shape": "ints = [1, 1]",
        "strides": "ints = [1, 1]",
        "pads": "ints = [0, 0, 0, 0]",
        "dilations": "ints = [1, 1]",
        "ceil_mode": "int = 0",
    },
    "AveragePool": {
        "kernel_shape": "ints = [1, 1]",
        "strides": "ints = [1, 1]",
        "pads": "ints = [0, 0, 0, 0]",
        "ceil_mode": "int = 0",
        "count_include_pad": "int = 0",
    },
    "GlobalAveragePool": {},
    "GlobalL2Pool": {},
}

_LAYER_NORMS = {
    "LayerNorm": ("X", "Scale", "Shift"),
    "LayerNormMasked": ("X", "Scale", "Shift", "mask"),
}

# ONNX's operations that work on every number by itself: of one tensor, and of several that are
# broadcast to one another.
UNARY = frozenset(
    {
        *("Abs", "Cast", "Clip", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu"),
        *("Log", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Tanh"),
    }
)
BROADCASTING = frozenset({"Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub", "Where"})
# Those that work along one axis, with that if it is not written.
_ALONG_AXIS = {"Concat": None, "LayerNormalization": -1, "Softmax": -1, "Split": 0}

CHAIN_FORMS = {
    "ExpandDepthwiseProject": ("Expand", "Depthwise", "Project"),
    "StemDepthwiseProject": ("Stem", "Depthwise", "Project"),
    "ExpandDepthwise": ("Expand", "Depthwise"),
    "StemDepthwise": ("Stem", "Depthwise"),
    "DepthwiseProject": ("Depthwise", "Project"),
}
# A chain's own attributes are those of its depthwise stage; a stem's have names of their own.
STEM_ATTRIBUTES = {"stem_strides": "strides", "stem_pads": "pads", "stem_dilations": "dilations"}
STAGE_SEPARATOR = "+"
# Not Sigmoid and HardSigmoid, which are a gate's: the layers of a block do not have them between.
CHAIN_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Silu", "HardSwish", "Gelu")

# Of the two layers of squeeze and excitation.
SQUEEZE_ACTIVATIONS = ("Relu", "Silu", "HardSwish", "Gelu")
EXCITE_ACTIVATIONS = ("Sigmoid", "HardSigmoid")

_FILL_OF = {value: key for key, value in _FILLS.items()}
_FILL = "|".join(_FILL_OF)
_NAME = re.compile(f"Conv(Nchw|Gated)?({_FILL})?(Add)?({'|'.join(_ACTIVATION_BODIES)})?")
_CHAIN_NAME = re.compile(
    f"({'|'.join(CHAIN_FORMS)})({_FILL})?(Add)?({'|'.join(CHAIN_ACTIVATIONS)})?"
)
_SQUEEZE_EXCITE_NAME = re.compile(
    f"SqueezeExcite(Scale)?({'|'.join(SQUEEZE_ACTIVATIONS)})({'|'.join(EXCITE_ACTIVATIONS)})"
)


@dataclass(frozen=True)
class ConvOp:
    """Which convolution: what masked positions hold, and what is fused behind it.

    Attributes:
        fill: "bias", "nearest", "mean", or None for a dense convolution.
        residual: whether a tensor of the output's shape is added before the activation.
        activation: one of Relu, Clip, LeakyRelu, Silu, HardSwish, Sigmoid, HardSigmoid, Gelu, or
            None.
        nchw: whether the input is NCHW; the output is NHWC either way.
        gated: whether the input is multiplied by a gate of each channel, as in squeeze and
            excitation (arXiv 1709.01507). Not with `nchw`.
    """

    fill: str | None = None
    residual: bool = False
    activation: str | None = None
    nchw: bool = False
    gated: bool = False

    @property
    def name(self) -> str:
        """The operator's name in the file."""
        stem = "ConvNchw" if self.nchw else "ConvGated" if self.gated else "Conv"
        return _name(stem, self.fill, self.residual, self.activation)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs in order."""
        gate, residual = ("G",) if self.gated else (), ("R",) if self.residual else ()
        return ("X", "W", "B", *FILL_INPUTS[self.fill], *gate, *residual)

    @classmethod
    def parse(cls, name: str) -> ConvOp:
        """The inverse of `name`.

        Raises:
            ValueError: no convolution has that name.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is not the name of a convolution of {DOMAIN!r}.")
        read, fill, residual, activation = match.groups()
        return cls(_FILL_OF.get(fill), bool(residual), activation, read == "Nchw", read == "Gated")


@dataclass(frozen=True)
class ChainOp:
    """Convolutions of an inverted residual (arXiv 1801.04381), or a network's first convolution
    and what follows it, as one operator.

    Attributes:
        form: one of `CHAIN_FORMS`.
        fill: "bias", "nearest" or "mean" of all stages, or None where all are dense.
        residual: whether a tensor of the output's shape is added to the projection.
        activation: of the stages before the projection, one of `CHAIN_ACTIVATIONS` or None.
    """

    form: str
    fill: str | None = None
    residual: bool = False
    activation: str | None = None

    @property
    def name(self) -> str:
        """The operator's name in the file."""
        return _name(self.form, self.fill, self.residual, self.activation)

    @property
    def stages(self) -> dict[str, ConvOp]:
        """The convolution of each stage, in order."""
        active = ConvOp(self.fill, activation=self.activation)
        convs = {
            "Stem": replace(active, nchw=True),
            "Expand": active,
            "Depthwise": active,
            "Project": ConvOp(self.fill, self.residual),
        }
        return {name: convs[name] for name in CHAIN_FORMS[self.form]}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs in order."""
        constants = ConvOp(self.fill).inputs[1:]
        staged = (f"{key}_{stage.lower()}" for stage in self.stages for key in constants)
        return ("X", *staged, *(("R",) if self.residual else ()))

    @classmethod
    def parse(cls, name: str) -> ChainOp:
        """The inverse of `name`.

        Raises:
            ValueError: no chain has that name.
        """
        match = _CHAIN_NAME.fullmatch(name)
        if match is None or (match[3] and not match[1].endswith("Project")):
            raise ValueError(f"{name!r} is not the name of a chain of {DOMAIN!r}.")
        return cls(match[1], _FILL_OF.get(match[2]), bool(match[3]), match[4])


@dataclass(frozen=True)
class SqueezeExciteOp:
    """A gate for each channel from the mean of its plane (arXiv 1709.01507), as one operator.

    Attributes:
        squeeze: the activation of the first layer, one of `SQUEEZE_ACTIVATIONS`.
        excite: that of the second, one of `EXCITE_ACTIVATIONS`.
        scales: whether the output is the input times the gates, else the gates.
    """

    squeeze: str
    excite: str
    scales: bool = False

    @property
    def name(self) -> str:
        """The operator's name in the file."""
        return f"SqueezeExcite{'Scale' if self.scales else ''}{self.squeeze}{self.excite}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs in order."""
        return ("X", "W_squeeze", "B_squeeze", "W_excite", "B_excite")

    @property
    def layers(self) -> tuple[ConvOp, ConvOp]:
        """The convolutions of a plane of one position that it has."""
        return ConvOp(activation=self.squeeze), ConvOp(activation=self.excite)

    @classmethod
    def parse(cls, name: str) -> SqueezeExciteOp:
        """The inverse of `name`.

        Raises:
            ValueError: there is no such operator.
        """
        match = _SQUEEZE_EXCITE_NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is no squeeze and excitation of {DOMAIN!r}.")
        return cls(match[2], match[3], bool(match[1]))


def _name(stem: str, fill: str | None, residual: bool, activation: str | None) -> str:
    return f"{stem}{_FILLS[fill] if fill else ''}{'Add' if residual else ''}{activation or ''}"


def is_conv(name: str) -> bool:
    """Whether an operator of the domain with that name is a convolution."""
    return name.startswith("Conv")


def reads_otherwise(name: str) -> bool:
    """Whether what an operator of that name reads is not its layer's input in NHWC."""
    return name.startswith(("ConvNchw", "ConvGated", "SqueezeExcite", "Stem"))


def is_chain(name: str) -> bool:
    """Whether an operator of the domain with that name is a chain of convolutions."""
    return name.startswith(tuple(CHAIN_FORMS))


def is_squeeze_excite(name: str) -> bool:
    """Whether an operator of the domain with that name is squeeze and excitation."""
    return name.startswith("SqueezeExcite")


def parse(name: str) -> ConvOp | ChainOp | SqueezeExciteOp:
    """The operator of that name, if it has convolutions.

    Raises:
        ValueError: there is none.
    """
    if is_squeeze_excite(name):
        return SqueezeExciteOp.parse(name)
    return ChainOp.parse(name) if is_chain(name) else ConvOp.parse(name)


def layers_of(op_type: str, name: str) -> list[str]:
    """Names of the layers in a node of that name: one, or those that it has in a row."""
    several = is_chain(op_type) or is_squeeze_excite(op_type)
    return name.split(STAGE_SEPARATOR) if several else [name]


def is_layer_norm(domain: str, op_type: str) -> bool:
    """Whether an operator is a layer normalisation of `semisparse`."""
    return domain == DOMAIN and op_type in _LAYER_NORMS


def is_by_position(domain: str, op_type: str, axis: int | None) -> bool:
    """Whether an operation computes a position of `[N, H, W, C]` from that position alone.

    Args:
        domain: the operation's; "" is that of ONNX.
        op_type: in the domain, none of whose inputs is spread over the plane.
        axis: the attribute; None if it is not written.
    """
    if domain:
        return is_layer_norm(domain, op_type)
    if op_type in _ALONG_AXIS:
        return (_ALONG_AXIS[op_type] if axis is None else axis) in (-1, 3)
    return op_type in UNARY or op_type in BROADCASTING


def plane_of(
    op_type: str,
    index: int,
    x: Sequence[int],
    y: Sequence[int],
    kernel: Sequence[int],
    attributes: Mapping[str, Sequence[int]],
) -> tuple[int, int]:
    """`[H_out, W_out]` of a layer of a convolution or a chain.

    Args:
        op_type: of the node.
        index: which of its layers; all but the first of a chain share the plane of its output.
        x: shape of the node's input.
        y: shape of its output.
        kernel: `[kh, kw]` of its first layer.
        attributes: the node's; only a stem's are read.
    """
    if index == 0 and op_type.startswith("Stem"):
        strides = attributes.get("stem_strides", (1, 1))
        pads = attributes.get("stem_pads", (0,) * 4)
        dilations = attributes.get("stem_dilations", (1, 1))
        height, width = (
            (size + pads[i] + pads[i + 2] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
            for i, size in enumerate(x[2:4])
        )
    else:
        height, width = (x if index == 0 and op_type.startswith("Expand") else y)[1:3]
    return height, width


def portable_bodies(name: str) -> list[onnx.FunctionProto]:
    """The operator as a model-local function, after the functions that it calls.

    Args:
        name: of a convolution, a chain, squeeze and excitation, a layer normalisation, or a pool.

    Raises:
        ValueError: no operator has that name.
    """
    if name in _POOL_ATTRIBUTES:
        return [_pool(name)]
    if name in _LAYER_NORMS:
        return [_layer_norm(name)]
    op = parse(name)
    if isinstance(op, SqueezeExciteOp):
        return [_pool("GlobalAveragePool"), *map(_conv, op.layers), _squeeze_excite(op)]
    if isinstance(op, ChainOp):
        return [*map(_conv, dict.fromkeys(op.stages.values())), _chain(op)]
    return [_conv(op)]


def _chain(op: ChainOp) -> onnx.FunctionProto:
    activation = _ACTIVATION_ATTRIBUTES.get(op.activation or "", {})
    of_stem = {name: _CONV_ATTRIBUTES[own] for name, own in STEM_ATTRIBUTES.items()}
    geometries = {
        "Depthwise": _linked(_CONV_ATTRIBUTES),
        "Stem": {STEM_ATTRIBUTES[name]: link for name, link in _linked(of_stem).items()}
        | {"group": _CONV_ATTRIBUTES["group"]},
    }
    steps, value = [], "X"
    for stage, conv in op.stages.items():
        geometry = geometries.get(stage, _CONV_ATTRIBUTES)
        given = _listed({**geometry, **_linked(activation if conv.activation else {})})
        own = (key if key == "R" else f"{key}_{stage.lower()}" for key in conv.inputs[1:])
        result = "Y" if stage == CHAIN_FORMS[op.form][-1] else stage.lower()
        steps.append(f"{result} = {DOMAIN}.{conv.name}{given}({', '.join((value, *own))})")
        value = result
    attributes = {**_CONV_ATTRIBUTES, **(of_stem if "Stem" in op.stages else {}), **activation}
    return _function(op.name, op.inputs, attributes, "\n".join(steps))


def _conv(op: ConvOp) -> onnx.FunctionProto:
    attributes = {**_CONV_ATTRIBUTES, **_ACTIVATION_ATTRIBUTES.get(op.activation or "", {})}
    steps = ["x = Identity(X)" if op.nchw else "x = Transpose<perm = [0, 3, 1, 2]>(X)"]
    if op.gated:
        steps = ["gated = Mul(X, G)", "x = Transpose<perm = [0, 3, 1, 2]>(gated)"]
    steps.append(_FILL_BODIES[op.fill].format(geometry=_listed(_linked(_CONV_ATTRIBUTES))))
    steps.append("y = Add(biased, R)" if op.residual else "y = Identity(biased)")
    steps.append(_ACTIVATION_BODIES[op.activation] if op.activation else "Y = Identity(y)")
    return _function(op.name, op.inputs, attributes, "\n".join(steps))


def _squeeze_excite(op: SqueezeExciteOp) -> onnx.FunctionProto:
    given = _listed(_CONV_ATTRIBUTES)
    squeeze, excite = op.layers
    body = (
        f"means = {DOMAIN}.GlobalAveragePool(X)\n"
        f"squeezed = {DOMAIN}.{squeeze.name}{given}(means, W_squeeze, B_squeeze)\n"
        f"gates = {DOMAIN}.{excite.name}{given}(squeezed, W_excite, B_excite)\n"
        f"Y = {'Mul(X, gates)' if op.scales else 'Identity(gates)'}"
    )
    return _function(op.name, op.inputs, {}, body)


def _layer_norm(name: str) -> onnx.FunctionProto:
    result = "Y" if name == "LayerNorm" else "normed"
    steps = [
        f"{result} = LayerNormalization<axis = -1, epsilon: float = @epsilon>(X, Scale, Shift)"
    ]
    if name == "LayerNormMasked":
        steps += [
            "computed = Cast<to = 9>(mask)",
            "last = Constant<value_ints = [-1]>()",
            "rows = Unsqueeze(computed, last)",
            "zero = Constant<value_float = 0.0>()",
            "Y = Where(rows, normed, zero)",
        ]
    return _function(name, _LAYER_NORMS[name], {"epsilon": "float = 0.00001"}, "\n".join(steps))


def _pool(name: str) -> onnx.FunctionProto:
    attributes = _POOL_ATTRIBUTES[name]
    body = (
        "x = Transpose<perm = [0, 3, 1, 2]>(X)\n"
        f"y = {name}{_listed(_linked(attributes))}(x)\n"
        "Y = Transpose<perm = [0, 2, 3, 1]>(y)"
    )
    if name == "GlobalL2Pool":
        body = "axes = Constant<value_ints = [1, 2]>()\nY = ReduceL2<keepdims = 1>(X, axes)"
    return _function(name, ("X",), attributes, body)


def _linked(attributes: dict[str, str]) -> dict[str, str]:
    """Attributes of a body's node that are those of the function."""
    return {key: f"{value.split()[0]} = @{key}" for key, value in attributes.items()}


def _listed(attributes: dict[str, str]) -> str:
    """Attributes as they stand in the text of a function."""
    listed = ", ".join(f"{key}: {value}" for key, value in attributes.items())
    return f"<{listed}>" if listed else ""


def _function(
    name: str, inputs: tuple[str, ...], attributes: dict[str, str], body: str
) -> onnx.FunctionProto:
    return onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}, "{DOMAIN}": {VERSION}]>\n'
        f"{name}{_listed(attributes)} ({', '.join(inputs)}) => (Y)\n{{\n{body}\n}}"
    )
