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
from semisparse.masks import mean_sources, source_map
from semisparse.runtime import InferenceSession

ACTIVATIONS = {
    None: lambda y: y,
    "Relu": torch.relu,
    "Clip": lambda y: y.clamp(-0.25, 0.75),
    "LeakyRelu": lambda y: torch.nn.functional.leaky_relu(y, 0.2),
    "Silu": torch.nn.functional.silu,
    "HardSwish": torch.nn.functional.hardswish,
    "Sigmoid": torch.sigmoid,
    "HardSigmoid": torch.nn.functional.hardsigmoid,
    "Gelu": torch.nn.functional.gelu,
}
PARAMETERS = {"Clip": {"min": -0.25, "max": 0.75}, "LeakyRelu": {"alpha": 0.2}}
ALL = [
    ops.ConvOp(*parts, nchw=read == "nchw", gated=read == "gated")
    for *parts, read in itertools.product(
        (None, "bias", "nearest", "mean"), (False, True), ACTIVATIONS, ("nhwc", "nchw", "gated")
    )
]
CHAINS = [
    ops.ChainOp(*parts)
    for parts in itertools.product(
        ops.CHAIN_FORMS,
        (None, "bias", "nearest", "mean"),
        (False, True),
        (None, *ops.CHAIN_ACTIVATIONS),
    )
    if parts[0].endswith("Project") or not parts[2]
]
SQUEEZE_EXCITES = [
    ops.SqueezeExciteOp(*parts)
    for parts in itertools.product(ops.SQUEEZE_ACTIVATIONS, ops.EXCITE_ACTIVATIONS, (False, True))
]


def one_node(name, constants, attributes, feeds) -> bytes:
    """A model of one operator; the graph's inputs are the feeds, in the operator's order."""
    order = ["X", *constants, *(key for key in ("G", "R") if key in feeds)]
    node = helper.make_node(name, order, ["Y"], domain=ops.DOMAIN, **attributes)
    return model_of([node], constants, feeds)


def model_of(nodes, constants, feeds) -> bytes:
    inputs = [
        helper.make_tensor_value_info(key, TensorProto.FLOAT, ["N", *array.shape[1:]])
        for key, array in feeds.items()
    ]
    initializers = [numpy_helper.from_array(array, key) for key, array in constants.items()]
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * 4)
    model = helper.make_model(
        helper.make_graph(nodes, "graph", inputs, [output], initializers),
        ir_version=ops.IR_VERSION,
        opset_imports=[helper.make_opsetid("", ops.OPSET), helper.make_opsetid(ops.DOMAIN, 1)],
        functions={
            body.name: body for node in nodes for body in ops.portable_bodies(node.op_type)
        }.values(),
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def run(file: bytes, feeds, library: bool):
    session = InferenceSession(file, library=library)
    assert session.get_modelmeta()
    return session.run(None, feeds)[0]


def convolution(x, weight, bias, geometry, op, mask, residual=None):
    """The operator in float64."""
    top, left, bottom, right = geometry["pads"]
    padded = torch.nn.functional.pad(
        torch.as_tensor(x).double().permute(0, 3, 1, 2), (left, right, top, bottom)
    )
    linear = torch.nn.functional.conv2d(
        padded,
        torch.from_numpy(weight).double(),
        stride=geometry["strides"],
        dilation=geometry["dilations"],
        groups=geometry["group"],
    ).permute(0, 2, 3, 1)
    filled = linear.clone()
    if op.fill == "bias":
        filled[:, ~mask] = 0
    elif op.fill == "nearest":
        source = source_map(mask, "nearest")
        filled = linear.flatten(1, 2)[:, source.flatten().long()].reshape(linear.shape)
    elif op.fill == "mean":
        sources, weight = mean_sources(mask)
        first, second = (linear.flatten(1, 2)[:, source] for source in sources.flatten(1).long())
        share = weight.double().flatten()[:, None]
        filled = ((1 - share) * first + share * second).reshape(linear.shape)
    biased = filled + torch.from_numpy(bias).double()
    if op.residual:
        biased = biased + torch.from_numpy(residual).double()
    return ACTIVATIONS[op.activation](biased)


def random_mask(rng, plane):
    mask = torch.from_numpy(rng.random(tuple(plane)) < 0.6)
    mask[rng.integers(plane[0]), rng.integers(plane[1])] = True
    return mask


def fill_of(op, mask):
    """The mask or sources that the operator takes, by the names of its inputs."""
    if op.fill is None:
        return {}
    if op.fill == "bias":
        return {"mask": mask.numpy().astype(np.uint8)}
    if op.fill == "nearest":
        return {"source": source_map(mask, "nearest").numpy()}
    sources, weight = mean_sources(mask)
    return {"sources": sources.numpy(), "share": weight.numpy()}


@pytest.mark.parametrize("op", [*ALL, *CHAINS, *SQUEEZE_EXCITES], ids=lambda op: op.name)
def test_name_tells_the_operator(op):
    assert type(op).parse(op.name) == op


def test_names_are_those_of_the_format():
    assert ops.ConvOp().name == "Conv"
    assert ops.ConvOp("bias").name == "ConvFillBias"
    assert ops.ConvOp("nearest", True, "Relu").name == "ConvFillNearestAddRelu"
    assert ops.ConvOp("bias", nchw=True).name == "ConvNchwFillBias"
    assert ops.ConvOp("mean", True, "Relu").name == "ConvFillMeanAddRelu"
    assert ops.ConvOp("mean", True).inputs == ("X", "W", "B", "sources", "share", "R")
    assert ops.ConvOp("nearest", True, gated=True).name == "ConvGatedFillNearestAdd"
    assert ops.ConvOp("bias", True, gated=True).inputs == ("X", "W", "B", "mask", "G", "R")
    assert len({op.name for op in ALL}) == 216
    assert ops.ChainOp("ExpandDepthwise").name == "ExpandDepthwise"
    residual = ops.ChainOp("ExpandDepthwiseProject", "nearest", True, "Clip")
    assert residual.name == "ExpandDepthwiseProjectFillNearestAddClip"
    mean = ops.ChainOp("DepthwiseProject", "mean", True, "Clip")
    assert mean.name == "DepthwiseProjectFillMeanAddClip"
    assert len({op.name for op in CHAINS}) == 224
    gate = ops.SqueezeExciteOp("Relu", "HardSigmoid")
    assert gate.name == "SqueezeExciteReluHardSigmoid"
    assert ops.SqueezeExciteOp("Silu", "Sigmoid", True).name == "SqueezeExciteScaleSiluSigmoid"
    assert gate.inputs == ("X", "W_squeeze", "B_squeeze", "W_excite", "B_excite")


@pytest.mark.parametrize(
    "name",
    ["", "conv", "ConvReluAdd", "ConvFillZero", "ConvReluRelu", "ConvNchwGated", "Gemm"],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="not the name of a convolution"):
        ops.ConvOp.parse(name)
    with pytest.raises(ValueError, match="not the name of a convolution"):
        ops.portable_bodies(name)


@pytest.mark.parametrize(
    "name", ["ExpandDepthwiseAdd", "DepthwiseProjectSigmoid", "ExpandProject", "DepthwiseProjectx"]
)
def test_other_names_of_chains_are_refused(name):
    with pytest.raises(ValueError, match="not the name of a chain"):
        ops.ChainOp.parse(name)


@pytest.mark.parametrize("name", ["SqueezeExcite", "SqueezeExciteRelu", "SqueezeExciteClipSigmoid"])
def test_other_names_of_squeeze_and_excitation_are_refused(name):
    with pytest.raises(ValueError, match="no squeeze and excitation"):
        ops.portable_bodies(name)


@settings(max_examples=120)
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
    if op.gated:
        group, c_in, kernel, pads = 1, c_in + 1, [1, 1], [0] * 4
    size = [draw(st.integers(5, 9)) for _ in range(2)]
    x = rng.normal(size=(draw(st.integers(1, 3)), *size, c_in)).astype(np.float32)
    weight = rng.normal(size=(c_out, c_in // group, *kernel)).astype(np.float32)
    bias = rng.normal(size=c_out).astype(np.float32)

    attributes = {"strides": strides, "pads": pads, "dilations": dilations, "group": group}
    plane = [
        (n + pads[i] + pads[i + 2] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i, n in enumerate(size)
    ]
    mask = random_mask(rng, plane)
    constants = {"W": weight, "B": bias, **fill_of(op, mask)}
    feeds = {"X": np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if op.nchw else x}
    if op.residual:
        feeds["R"] = rng.normal(size=(len(x), *plane, c_out)).astype(np.float32)
    if op.gated:
        feeds["G"] = rng.random(size=(len(x), 1, 1, c_in)).astype(np.float32)
        x = x * feeds["G"]
    expected = convolution(x, weight, bias, attributes, op, mask, feeds.get("R"))

    attributes |= PARAMETERS.get(op.activation, {})
    file = one_node(op.name, constants, attributes, feeds)
    for library in (False, True):
        np.testing.assert_allclose(run(file, feeds, library), expected, rtol=1e-4, atol=1e-4)


POINTWISE = {"strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
DEPTHWISE = [
    ((3, 3), {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1]}),
    ((3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1]}),
    ((5, 5), {"strides": [2, 1], "pads": [0, 2, 3, 1], "dilations": [1, 1]}),
    ((3, 2), {"strides": [1, 2], "pads": [2, 0, 1, 1], "dilations": [2, 1]}),
]


@pytest.mark.parametrize("op", CHAINS, ids=lambda op: op.name)
def test_chain(op):
    """Against float64, and against its convolutions as nodes of their own."""
    rng = np.random.default_rng(CHAINS.index(op))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    c_in, wide, c_out = rng.integers([3, 9, 3], [20, 40, 20])
    kernel, geometry = DEPTHWISE[CHAINS.index(op) % len(DEPTHWISE)]
    geometry = {**geometry, "group": int(wide)}
    stem_kernel, stem = DEPTHWISE[CHAINS.index(op) // len(DEPTHWISE) % len(DEPTHWISE)]
    value = x = normal(2, 9, 11, wide if op.form.startswith("Depthwise") else c_in)
    if "Stem" in op.stages:
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    feeds, constants, nodes = {"X": x}, {}, []
    for stage, conv in op.stages.items():
        shape = {
            "Expand": (wide, c_in, 1, 1),
            "Stem": (wide, c_in, *stem_kernel),
            "Depthwise": (wide, 1, *kernel),
            "Project": (c_out, wide, 1, 1),
        }[stage]
        attributes = {"Stem": {**stem, "group": 1}, "Depthwise": geometry}.get(stage, POINTWISE)
        weight, bias = (
            normal(*shape) / np.sqrt(np.prod(shape[1:]), dtype=np.float32),
            normal(shape[0]),
        )
        dense = convolution(value, weight, bias, attributes, ops.ConvOp(), None)
        # The masks of two stages in three, so that there is every pair of masked and dense.
        full = torch.ones(dense.shape[1:3], dtype=torch.bool)
        mask = random_mask(rng, full.shape) if rng.random() < 2 / 3 else full
        if conv.residual:
            feeds["R"] = normal(*dense.shape)
        value = convolution(value, weight, bias, attributes, conv, mask, feeds.get("R"))
        own = {
            f"{key}_{stage.lower()}": array
            for key, array in {"W": weight, "B": bias, **fill_of(conv, mask)}.items()
        }
        constants |= own
        before = nodes[-1].output[0] if nodes else "X"
        inputs = [before, *own, *(["R"] if conv.residual else [])]
        last = stage == [*op.stages][-1]
        attributes = attributes | PARAMETERS.get(conv.activation, {})
        nodes.append(
            helper.make_node(
                conv.name, inputs, ["Y" if last else stage], domain=ops.DOMAIN, **attributes
            )
        )
    assert op.inputs == ("X", *constants, *(["R"] if op.residual else []))
    separate = model_of(nodes, constants, feeds)
    attributes = geometry | PARAMETERS.get(op.activation, {})
    if "Stem" in op.stages:
        attributes |= {name: stem[own] for name, own in ops.STEM_ATTRIBUTES.items()}
    chain = one_node(op.name, constants, attributes, feeds)
    for library in (False, True):
        y = run(chain, feeds, library)
        np.testing.assert_allclose(y, value, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(y, run(separate, feeds, library), rtol=1e-5, atol=1e-5)


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
@pytest.mark.parametrize("computed", [[[1, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 1]]])
def test_computed_positions_of_a_mean_keep_what_is_infinite(computed, library):
    x = np.array([[3, np.nan, 4], [5, 6, np.inf]], np.float32).reshape(1, 2, 3, 1)
    mask = torch.tensor(computed, dtype=torch.bool)
    constants = {
        "W": np.ones((1, 1, 1, 1), np.float32),
        "B": np.array([0.5], np.float32),
        **fill_of(ops.ConvOp("mean"), mask),
    }
    y = run(one_node("ConvFillMean", constants, POINTWISE, {"X": x}), {"X": x}, library)
    np.testing.assert_array_equal(y[:, mask], x[:, mask] + 0.5)
    flat, sources = (x + 0.5).ravel(), mean_sources(mask)[0].flatten(1).numpy()
    with np.errstate(invalid="ignore"):
        expected = np.where(sources[0] == sources[1], flat[sources[0]], flat[sources].mean(0))
    masked = ~mask.numpy()
    np.testing.assert_array_equal(y[0, ..., 0][masked], expected.reshape(mask.shape)[masked])


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize("shape", [(2, 9, 11, 40), (2, 5, 7, 768), (3, 50, 33), (4, 16)])
def test_layer_norm(shape, library):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) + 3).astype(np.float32)
    constants = {
        "Scale": rng.normal(size=shape[-1]).astype(np.float32),
        "Shift": rng.normal(size=shape[-1]).astype(np.float32),
    }
    exact = [torch.from_numpy(array).double() for array in (x, *constants.values())]
    expected = torch.nn.functional.layer_norm(exact[0], shape[-1:], *exact[1:], 1e-6)
    model = one_node("LayerNorm", constants, {"epsilon": 1e-6}, {"X": x})
    np.testing.assert_allclose(run(model, {"X": x}, library), expected, rtol=1e-5, atol=1e-5)
    if len(shape) != 4:
        return
    mask = rng.random(shape[1:3]) < 0.4
    model = one_node(
        "LayerNormMasked",
        {**constants, "mask": mask.astype(np.uint8)},
        {"epsilon": 1e-6},
        {"X": x},
    )
    expected *= torch.from_numpy(mask)[:, :, None]
    np.testing.assert_allclose(run(model, {"X": x}, library), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("constants", "x", "message"),
    [
        ({"Scale": (8,), "Shift": (8,)}, (1, 3, 4, 7), "its last axis must be C"),
        ({"Scale": (8,), "Shift": (7,)}, (1, 3, 4, 8), "both must be"),
        ({"Scale": (8,), "Shift": (8,), "mask": (3, 4)}, (1, 4, 3, 8), "a mask of shape"),
        ({"Scale": (8,), "Shift": (8,), "mask": (3, 4)}, (1, 12, 8), "a mask of shape"),
        ({"Scale": (8,), "Shift": (8,), "mask": (12,)}, (1, 3, 4, 8), "it must be"),
    ],
)
def test_what_does_not_fit_a_layer_norm_is_named(constants, x, message):
    name = "LayerNormMasked" if "mask" in constants else "LayerNorm"
    arrays = {
        key: np.ones(shape, np.uint8 if key == "mask" else np.float32)
        for key, shape in constants.items()
    }
    feeds = {"X": np.ones(x, np.float32)}
    with pytest.raises(Exception, match=message):
        run(one_node(name, arrays, {}, feeds), feeds, True)


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize("op", SQUEEZE_EXCITES, ids=lambda op: op.name)
def test_squeeze_excite(op, library):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 11, 40)).astype(np.float32)
    constants = {
        "W_squeeze": rng.normal(size=(6, 40, 1, 1)).astype(np.float32),
        "B_squeeze": rng.normal(size=6).astype(np.float32),
        "W_excite": rng.normal(size=(40, 6, 1, 1)).astype(np.float32),
        "B_excite": rng.normal(size=40).astype(np.float32),
    }
    assert tuple(constants) == op.inputs[1:]
    y = run(one_node(op.name, constants, {}, {"X": x}), {"X": x}, library)
    exact = {key: torch.from_numpy(array).double() for key, array in constants.items()}
    means = torch.from_numpy(x).double().mean((1, 2))
    squeezed = means @ exact["W_squeeze"][:, :, 0, 0].T + exact["B_squeeze"]
    excited = ACTIVATIONS[op.squeeze](squeezed) @ exact["W_excite"][:, :, 0, 0].T
    gates = ACTIVATIONS[op.excite](excited + exact["B_excite"])[:, None, None]
    expected = torch.from_numpy(x) * gates if op.scales else gates
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=1e-5)


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
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GlobalAveragePool", lambda x: x.mean((1, 2), keepdims=True)),
        ("GlobalL2Pool", lambda x: np.sqrt((x * x).sum((1, 2), keepdims=True))),
    ],
)
def test_global_pools(name, expected, library):
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    y = run(one_node(name, {}, {}, {"X": x}), {"X": x}, library)
    np.testing.assert_allclose(y, expected(x), rtol=1e-5, atol=1e-6)
