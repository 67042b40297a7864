"""The chain operators in ONNX Runtime: planes that run in bands, and files that do not fit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from semisparse import native, ops
from semisparse.runtime import InferenceSession

NAME = "ExpandDepthwiseProjectFillNearestAddClip"
MEAN = "ExpandDepthwiseProjectFillMeanAddClip"
SIZE = 80  # with 24 channels in between larger than half of any second-level cache here


def parts(size=SIZE, name=NAME):
    """Constants and feeds of a block with stride 2, by input name."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    half = size // 2
    arrays = {"X": normal(2, size, size, 6)}
    for stage, weights, plane in (
        ("expand", normal(24, 6, 1, 1), size),
        ("depthwise", normal(24, 1, 3, 3), half),
        ("project", normal(8, 24, 1, 1), half),
    ):
        arrays[f"W_{stage}"] = weights
        arrays[f"B_{stage}"] = normal(weights.shape[0])
        mask = rng.random((plane, plane)) < 0.6
        if name == MEAN:
            arrays[f"sources_{stage}"], arrays[f"share_{stage}"] = native.mean_sources(mask)
        else:
            arrays[f"source_{stage}"] = native.source_map(mask, "nearest")
    return arrays | {"R": normal(2, half, half, 8)}


def model(arrays, fed=("X", "R"), name=NAME, **attributes) -> bytes:
    """A file with one node; what is fed has free sizes, all else is constant."""
    attributes = {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 24, **attributes}
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(arrays[name].dtype), [None] * arrays[name].ndim
        )
        for name in fed
    ]
    constants = [
        numpy_helper.from_array(array, name) for name, array in arrays.items() if name not in fed
    ]
    node = helper.make_node(name, [*arrays], ["Y"], domain=ops.DOMAIN, **attributes)
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * 4)
    return helper.make_model(
        helper.make_graph([node], "one", inputs, [output], constants),
        ir_version=ops.IR_VERSION,
        opset_imports=[helper.make_opsetid("", ops.OPSET), helper.make_opsetid(ops.DOMAIN, 1)],
        functions=ops.portable_bodies(name),
    ).SerializeToString()


def run(file, arrays, fed=("X", "R"), **options):
    return InferenceSession(file, **options).run(None, {name: arrays[name] for name in fed})[0]


@pytest.mark.parametrize("name", [NAME, MEAN])
def test_large_planes_are_those_of_the_portable_body(name):
    arrays = parts(name=name)
    file = model(arrays, name=name)
    assert onnx.load_from_string(file).functions
    np.testing.assert_allclose(
        run(file, arrays), run(file, arrays, library=False), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("W_expand", lambda w: w[:, :, 0], r"expansion's weights of shape \[24, 6, 1\]"),
        ("B_expand", lambda b: b[:-1], r"expansion's bias has shape \[23\]"),
        ("W_depthwise", lambda w: w[:-1], r"weights of shape \[23, 1, 3, 3\] need \[23\]"),
        ("source_depthwise", lambda s: s[0], "depthwise source map of shape"),
        ("source_expand", lambda s: s[:-2], "source map says|mask is"),
        ("source_project", lambda s: s + 1, "source map says"),
        ("W_project", lambda w: w[:, :-1], "24 output channels .* 23 input channels"),
        ("B_project", lambda b: b * np.nan, "bias 0 is nan"),
    ],
)
def test_constants_that_do_not_fit_are_refused(name, change, message):
    arrays = parts(8)
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    with pytest.raises(Exception, match=f"semisparse.{NAME}.*({message})"):
        InferenceSession(model(arrays))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sources_depthwise", lambda s: s[0]),
        ("sources_depthwise", lambda s: s[:, :, :-1]),
        ("sources_project", lambda s: s + 1),
        ("sources_expand", lambda s: np.stack([s[0], np.arange(64).reshape(8, 8)])),
        ("share_expand", lambda w: w[:-1]),
        ("share_depthwise", lambda w: w + 1),
        ("share_project", lambda w: w * np.nan),
    ],
)
def test_constants_of_means_that_do_not_fit_are_refused(name, change):
    arrays = parts(8, MEAN)
    arrays[name] = np.ascontiguousarray(change(arrays[name])).astype(arrays[name].dtype)
    with pytest.raises(Exception, match=f"semisparse.{MEAN}"):
        InferenceSession(model(arrays, name=MEAN))


@pytest.mark.parametrize("name", ["W_expand", "B_depthwise", "source_project"])
def test_constants_that_are_fed_are_refused(name):
    arrays = parts(8)
    with pytest.raises(Exception, match="must be a constant initializer"):
        InferenceSession(model(arrays, fed=("X", name, "R")))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"group": 1}, "depthwise stage of the chain has group 1"),
        ({"strides": [2]}, "attribute strides has 1 values"),
        ({"pads": [1, 1, -1, 1]}, "pads -1"),
        ({"min": 2.0, "max": 1.0}, "are not a range"),
        ({"strides": [1, 1]}, "the mask is"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(attributes, message):
    with pytest.raises(Exception, match=message):
        InferenceSession(model(parts(8), **attributes))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("X", (1, 8, 8, 5), r"must be \[N, H, W, 6\]"),
        ("X", (1, 8, 9, 6), "the mask is"),
        ("R", (1, 4, 4, 8), "the residual has shape"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(name, shape, message):
    arrays = parts(8)
    session = InferenceSession(model(arrays))
    feeds = {"X": arrays["X"], "R": arrays["R"], name: np.zeros(shape, np.float32)}
    with pytest.raises(Exception, match=message):
        session.run(None, feeds)
    assert session.run(None, {"X": arrays["X"], "R": arrays["R"]})[0].shape == arrays["R"].shape
