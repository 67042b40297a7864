"""The operators of an exported file: names, attributes, portable bodies (docs/format.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx
import onnx.parser

DOMAIN = "semisparse"
VERSION = 1
OPSET = 18
IR_VERSION = 8

_FILLS = {"bias": "FillBias", "nearest": "FillNearest"}

_ACTIVATION_BODIES = {
    "Relu": "Y = Relu(y)",
    "Clip": "low = Constant<value_float: float = @min>()\n"
    "high = Constant<value_float: float = @max>()\n"
    "Y = Clip(y, low, high)",
    "LeakyRelu": "Y = LeakyRelu<alpha: float = @alpha>(y)",
    "Silu": "gate = Sigmoid(y)\nY = Mul(y, gate)",
    "HardSwish": "Y = HardSwish(y)",
    "Sigmoid": "Y = Sigmoid(y)",
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
}

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
}

_NAME = re.compile(f"Conv({'|'.join(_FILLS.values())})?(Add)?({'|'.join(_ACTIVATION_BODIES)})?")


@dataclass(frozen=True)
class ConvOp:
    """Which convolution: what masked positions hold, and what is fused behind it.

    Attributes:
        fill: "bias", "nearest", or None for a dense convolution.
        residual: whether a tensor of the output's shape is added before the activation.
        activation: one of Relu, Clip, LeakyRelu, Silu, HardSwish, Sigmoid, or None.
    """

    fill: str | None = None
    residual: bool = False
    activation: str | None = None

    @property
    def name(self) -> str:
        """The operator's name in the file."""
        fill = _FILLS[self.fill] if self.fill else ""
        return f"Conv{fill}{'Add' if self.residual else ''}{self.activation or ''}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs in order."""
        fill = {None: (), "bias": ("mask",), "nearest": ("source",)}[self.fill]
        return ("X", "W", "B", *fill, *(("R",) if self.residual else ()))

    @classmethod
    def parse(cls, name: str) -> ConvOp:
        """The inverse of `name`.

        Raises:
            ValueError: no convolution has that name.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is not the name of a convolution of {DOMAIN!r}.")
        fills = {value: key for key, value in _FILLS.items()}
        return cls(fills.get(match[1]), bool(match[2]), match[3])


def portable_body(name: str) -> onnx.FunctionProto:
    """The operator as a model-local function of standard operators.

    Args:
        name: a convolution's name, `MaxPool`, `AveragePool` or `GlobalAveragePool`.

    Raises:
        ValueError: no operator has that name.
    """
    if name in _POOL_ATTRIBUTES:
        return _function(name, ("X",), _POOL_ATTRIBUTES[name], _pool_body(name))
    op = ConvOp.parse(name)
    attributes = {**_CONV_ATTRIBUTES, **_ACTIVATION_ATTRIBUTES.get(op.activation or "", {})}
    steps = ["x = Transpose<perm = [0, 3, 1, 2]>(X)"]
    steps.append(_FILL_BODIES[op.fill].format(geometry=_references(_CONV_ATTRIBUTES)))
    steps.append("y = Add(biased, R)" if op.residual else "y = Identity(biased)")
    steps.append(_ACTIVATION_BODIES[op.activation] if op.activation else "Y = Identity(y)")
    return _function(name, op.inputs, attributes, "\n".join(steps))


def _pool_body(name: str) -> str:
    references = _references(_POOL_ATTRIBUTES[name])
    return (
        "x = Transpose<perm = [0, 3, 1, 2]>(X)\n"
        f"y = {name}{references}(x)\n"
        "Y = Transpose<perm = [0, 2, 3, 1]>(y)"
    )


def _references(attributes: dict[str, str]) -> str:
    """Attributes of a body's node that are those of the function."""
    listed = (f"{key}: {value.split()[0]} = @{key}" for key, value in attributes.items())
    return f"<{', '.join(listed)}>" if attributes else ""


def _function(
    name: str, inputs: tuple[str, ...], attributes: dict[str, str], body: str
) -> onnx.FunctionProto:
    declared = ", ".join(f"{key}: {value}" for key, value in attributes.items())
    declared = f" <{declared}>" if declared else ""
    return onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>\n'
        f"{name}{declared} ({', '.join(inputs)}) => (Y)\n{{\n{body}\n}}"
    )
