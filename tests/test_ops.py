"""The operators: their names, and their portable bodies against float64 torch."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from semisparse import ops
from semisparse.masks import source_map
from semisparse.runtime import InferenceSession

ACTIVATIONS = {
    None: lambda y: y,
    "Relu": torch.relu,
    "Clip": lambda y: y.clamp(-0.25, 0.75),
    "LeakyRelu": lambda y: torch.nn.functional.leaky_relu(y, 0.2),
    "Silu": torch.nn.functional.silu,
    "HardSwish": torch.nn.functional.hardswish,
    "Sigmoid": torch.sigmoid,
}
PARAMETERS = {"Clip": {"min": -0.25, "max": 0.75}, "LeakyRelu": {"alpha": 0.2}}
ALL = [
    ops.ConvOp(*parts)
    for parts in itertools.product((None, "bias", "nearest"), (False, True), ACTIVATIONS)
]


def one_node(name, constants, attributes, feeds) -> bytes:
    """A model of one operator; the graph's inputs are the feeds, in the operator's order."""
    inputs = [
        helper.make_tensor_value_info(key, TensorProto.FLOAT, ["N", *array.shape[1:]])
        for key, array in feeds.items()
    ]
    initializers = [numpy_helper.from_array(array, key) for key, array in constants.items()]
    order = ["X", *constants, *(["R"] if "R" in feeds else [])]
    node = helper.make_node(name, order, ["Y"], domain=ops.DOMAIN, **attributes)
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * 4)
    model = helper.make_model(
        helper.make_graph([node], "one", inputs, [output], initializers),
        ir_version=ops.IR_VERSION,
        opset_imports=[helper.make_opsetid("", ops.OPSET), helper.make_opsetid(ops.DOMAIN, 1)],
        functions=[ops.portable_body(name)],
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def run(file: bytes, feeds, library: bool):
    session = InferenceSession(file, library=library)
    assert session.get_modelmeta()
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_name_tells_the_operator(op):
    assert ops.ConvOp.parse(op.name) == op


def test_names_are_those_of_the_format():
    assert ops.ConvOp().name == "Conv"
    assert ops.ConvOp("bias").name == "ConvFillBias"
    assert ops.ConvOp("nearest", True, "Relu").name == "ConvFillNearestAddRelu"
    assert len({op.name for op in ALL}) == 42


@pytest.mark.parametrize(
    "name", ["", "conv", "ConvReluAdd", "ConvFillZero", "ConvReluRelu", "Gemm"]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="not the name of a convolution"):
        ops.ConvOp.parse(name)
    with pytest.raises(ValueError, match="not the name of a convolution"):
        ops.portable_body(name)


@settings(max_examples=60)
@given(data=st.data(), op=st.sampled_from(ALL))
def test_convolution(data, op):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    group = draw(st.sampled_from([1, 2, 3]))
    c_in, c_out = group * draw(st.integers(1, 3)), group * draw(st.integers(1, 3))
    kernel, strides, dilations = (
        [draw(st.integers(1, limit)) for _ in range(2)] for limit in (3, 3, 2)
    )
    pads = [draw(st.integers(0, 2)) for _ in range(4)]
    size = [draw(st.integers(5, 9)) for _ in range(2)]
    x = rng.normal(size=(draw(st.integers(1, 3)), *size, c_in)).astype(np.float32)
    weight = rng.normal(size=(c_out, c_in // group, *kernel)).astype(np.float32)
    bias = rng.normal(size=c_out).astype(np.float32)

    top, left, bottom, right = pads
    padded = torch.nn.functional.pad(
        torch.from_numpy(x).double().permute(0, 3, 1, 2), (left, right, top, bottom)
    )
    linear = torch.nn.functional.conv2d(
        padded,
        torch.from_numpy(weight).double(),
        stride=strides,
        dilation=dilations,
        groups=group,
    ).permute(0, 2, 3, 1)
    height, width = linear.shape[1:3]
    mask = torch.from_numpy(rng.random((height, width)) < 0.6)
    mask[rng.integers(height), rng.integers(width)] = True

    constants = {"W": weight, "B": bias}
    filled = linear.clone()
    if op.fill == "bias":
        constants["mask"] = mask.numpy().astype(np.uint8)
        filled[:, ~mask] = 0
    elif op.fill == "nearest":
        source = source_map(mask, "nearest")
        constants["source"] = source.numpy()
        filled = linear.flatten(1, 2)[:, source.flatten().long()].reshape(linear.shape)
    feeds = {"X": x}
    expected = filled + torch.from_numpy(bias).double()
    if op.residual:
        feeds["R"] = rng.normal(size=expected.shape).astype(np.float32)
        expected = expected + torch.from_numpy(feeds["R"]).double()
    expected = ACTIVATIONS[op.activation](expected)

    attributes = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    attributes |= PARAMETERS.get(op.activation, {})
    file = one_node(op.name, constants, attributes, feeds)
    for library in (False, True):
        np.testing.assert_allclose(run(file, feeds, library), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("library", [False, True])
def test_masked_positions_do_not_see_an_infinite_input(library):
    x = np.full((1, 2, 2, 1), np.inf, dtype=np.float32)
    x[0, 0, 0, 0] = 2
    constants = {
        "W": np.ones((1, 1, 1, 1), np.float32),
        "B": np.array([0.5], np.float32),
        "mask": np.array([[1, 0], [0, 0]], np.uint8),
    }
    attributes = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
    y = run(one_node("ConvFillBias", constants, attributes, {"X": x}), {"X": x}, library)
    np.testing.assert_array_equal(y.ravel(), [2.5, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("name", ["MaxPool", "AveragePool"])
def test_pooling(name, ceil_mode, library):
    x = np.random.default_rng(0).normal(size=(2, 8, 7, 3)).astype(np.float32)
    attributes = {
        "kernel_shape": [3, 2],
        "strides": [2, 2],
        "pads": [1, 1, 1, 1],
        "ceil_mode": ceil_mode,
    }
    planes = torch.from_numpy(x).permute(0, 3, 1, 2)
    if name == "MaxPool":
        attributes["dilations"] = [1, 1]
        pooled = torch.nn.functional.max_pool2d(planes, (3, 2), 2, 1, ceil_mode=bool(ceil_mode))
    else:
        attributes["count_include_pad"] = 1
        pooled = torch.nn.functional.avg_pool2d(planes, (3, 2), 2, 1, ceil_mode=bool(ceil_mode))
    y = run(one_node(name, {}, attributes, {"X": x}), {"X": x}, library)
    np.testing.assert_allclose(y, pooled.permute(0, 2, 3, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("library", [False, True])
def test_global_average_pool(library):
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    y = run(one_node("GlobalAveragePool", {}, {}, {"X": x}), {"X": x}, library)
    np.testing.assert_allclose(y, x.mean((1, 2), keepdims=True), rtol=1e-5, atol=1e-6)
