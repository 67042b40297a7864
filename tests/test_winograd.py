"""Winograd convolutions against float64 torch and against the direct convolution."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from semisparse import native
from semisparse.errors import LibraryError
from semisparse.runtime import InferenceSession

ISAS = [name for name, usable in native.isa_names().items() if usable]
every_isa = pytest.mark.parametrize("isa", ISAS)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def filters(rng: np.random.Generator, outputs: int, channels: int) -> np.ndarray:
    """Weights that give outputs of about the inputs' size."""
    return normal(rng, outputs, channels, 3, 3) / np.float32(np.sqrt(9 * channels))


def exact(x: np.ndarray, weights: np.ndarray, pads: tuple[int, int, int, int]) -> np.ndarray:
    """The linear part [N, H_out, W_out, C_out] in float64."""
    top, left, bottom, right = pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    y = torch.nn.functional.conv2d(
        torch.from_numpy(padded).permute(0, 3, 1, 2), torch.from_numpy(weights).double()
    )
    return y.permute(0, 2, 3, 1).numpy()


def copied(linear: np.ndarray, source: np.ndarray) -> np.ndarray:
    """What every position holds, before bias, residual and activation."""
    batch, height, width, channels = linear.shape
    flat = linear.reshape(batch, height * width, channels)[:, np.maximum(source, 0).ravel()]
    return np.where(source[..., None] >= 0, flat.reshape(linear.shape), 0)


def mean_of(linear: np.ndarray, sources: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Likewise with two sources."""
    first, second = (copied(linear, source) for source in sources)
    share = weight.astype(np.float64)[..., None]
    return (1 - share) * first + share * second


def block_mask(
    rng: np.random.Generator, height: int, width: int, block: int, sparsity: float
) -> np.ndarray:
    """Drops square blocks aligned to the origin, and keeps at least one."""
    blocks = rng.random((-(-height // block), -(-width // block))) >= sparsity
    blocks[0, 0] = True
    return np.ascontiguousarray(blocks.repeat(block, 0).repeat(block, 1)[:height, :width])


def norm_error(y: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


@every_isa
@pytest.mark.parametrize(("size", "channels"), [(28, 64), (28, 128), (14, 256), (7, 512)])
def test_error_of_the_layers_of_a_network(isa, size, channels, monkeypatch):
    rng = np.random.default_rng(size)
    x, weights = normal(rng, 1, size, size, channels), filters(rng, channels, channels)
    expected = exact(x, weights, (1, 1, 1, 1))

    def error(setting: str) -> float:
        monkeypatch.setenv("SEMISPARSE_WINOGRAD", setting)
        conv = native.Conv(weights, pads=(1, 1, 1, 1), isa=isa)
        assert conv.kernel.startswith(
            f"igemm_{isa}" if setting == "0" else f"winograd_{isa}_{setting}x{setting} + igemm"
        )
        y = conv.run(x)
        assert abs(y - expected).max() < 2e-5
        return norm_error(y, expected)

    direct = error("0")
    assert error("2") <= direct
    assert error("4") < 2.5 * direct


@every_isa
@settings(max_examples=40, deadline=None)
@given(
    tile=st.sampled_from(["2", "4"]),
    size=st.tuples(st.integers(3, 27), st.integers(3, 27)),
    channels=st.tuples(st.integers(16, 90), st.integers(16, 90)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    batch=st.integers(1, 3),
    masks=st.sampled_from([None, 1, 2, 4]),
    fill=st.sampled_from(["bias", "nearest", "mean"]),
    residual=st.booleans(),
    activation=st.sampled_from(["identity", "relu", "silu"]),
    threads=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_plane_and_mask(
    isa, tile, size, channels, pads, batch, masks, fill, residual, activation, threads, seed
):
    rng = np.random.default_rng(seed)
    x, weights = normal(rng, batch, *size, channels[0]), filters(rng, channels[1], channels[0])
    bias = normal(rng, channels[1])
    value = exact(x, weights, pads)
    height, width = value.shape[1:3]
    source = weight = None
    if masks is not None:
        mask = block_mask(rng, height, width, masks, 0.4)
        if fill == "mean":
            source, weight = native.mean_sources(mask)
            value = mean_of(value, source, weight)
        else:
            source = native.source_map(mask, fill)
            value = copied(value, source)
    value = value + bias
    added = normal(rng, *value.shape) if residual else None
    if added is not None:
        value = value + added
    if activation == "relu":
        value = np.maximum(value, 0)
    elif activation == "silu":
        value = value / (1 + np.exp(-value))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMISPARSE_WINOGRAD", tile)
        conv = native.Conv(
            weights, bias, source=source, weight=weight, pads=pads, activation=activation, isa=isa
        )
    assert f"winograd_{isa}_{tile}x{tile}" in conv.kernel
    y = conv.run(x, added, threads=threads)
    np.testing.assert_allclose(y, value, rtol=0, atol=3e-5)


@every_isa
@pytest.mark.parametrize("tile", ["2", "4"])
@pytest.mark.parametrize("masked", [False, True])
def test_special_values_stay_in_the_windows_that_see_them(isa, tile, masked, monkeypatch):
    rng = np.random.default_rng(3)
    x, weights = normal(rng, 2, 21, 18, 24), filters(rng, 40, 24)
    # The last one overflows in a transform, but not in the sum.
    for place, special in [
        ((0, 5, 7, 3), np.nan),
        ((0, 20, 17, 0), np.inf),
        ((1, 0, 0, 23), -np.inf),
        ((1, 9, 9, 1), 3e38),
    ]:
        x[place] = special
    source = native.source_map(rng.random((21, 18)) >= 0.2, "nearest") if masked else None

    def run(setting: str) -> tuple[str, np.ndarray]:
        monkeypatch.setenv("SEMISPARSE_WINOGRAD", setting)
        conv = native.Conv(weights, source=source, pads=(1, 1, 1, 1), activation="relu", isa=isa)
        return conv.kernel, conv.run(x, threads=2)

    kernel, y = run(tile)
    direct_kernel, direct = run("0")
    assert f"{tile}x{tile}" in kernel
    assert "winograd" not in direct_kernel
    assert 0 < np.count_nonzero(~np.isfinite(direct)) < direct.size / 10
    np.testing.assert_allclose(y, direct, rtol=1e-5, atol=1e-5)


def test_what_only_masked_blocks_see_does_not_matter():
    rng = np.random.default_rng(4)
    weights = filters(rng, 16, 16)
    mask = np.ones((24, 24), bool)
    mask[8:12, 8:12] = False
    conv = native.Conv(weights, source=native.source_map(mask, "bias"), pads=(1, 1, 1, 1))
    assert "winograd" in conv.kernel
    x = normal(rng, 1, 24, 24, 16)
    y = conv.run(x)
    x[0, 9:11, 9:11] = np.nan
    np.testing.assert_array_equal(conv.run(x), y)


def dense_model(weights: np.ndarray) -> bytes:
    """A `Conv` of any plane, whose weights ONNX Runtime keeps."""
    outputs, channels = weights.shape[:2]
    values = {"W": weights, "B": np.zeros(outputs, np.float32)}
    node = helper.make_node(
        "Conv", ["X", *values], ["Y"], domain="semisparse", pads=[1, 1, 1, 1], strides=[1, 1]
    )
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["n", "h", "w", channels])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["n", "h", "w", outputs])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("semisparse", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def test_a_session_makes_of_its_weights_what_its_runs_need():
    rng = np.random.default_rng(7)
    weights = filters(rng, 80, 64)
    session = InferenceSession(dense_model(weights), threads=2)
    planes = [normal(rng, 1, size, size, 64) for size in (28, 2, 1)]  # by 4x4, by 2x2, directly
    for x in planes * 2:
        (y,) = session.run(None, {"X": x})
        assert norm_error(y, exact(x, weights, (1, 1, 1, 1))) < 2e-6
    # What is not finite is computed directly.
    for x in planes[:2]:
        session = InferenceSession(dense_model(weights), threads=2)
        x[0, 0, 0, 5] = np.inf
        with np.errstate(invalid="ignore"):
            expected = exact(x, weights, (1, 1, 1, 1))
        (y,) = session.run(None, {"X": x})
        assert np.isinf(y[0, :2, :2]).all()
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_the_first_runs_may_come_from_several_threads():
    rng = np.random.default_rng(5)
    x, weights = normal(rng, 1, 28, 28, 64), filters(rng, 64, 64)
    expected = exact(x, weights, (1, 1, 1, 1))
    for _ in range(5):
        conv = native.Conv(weights, pads=(1, 1, 1, 1))
        with ThreadPoolExecutor(4) as pool:
            outputs = list(pool.map(conv.run, [x] * 4))
        assert all(norm_error(y, expected) < 2e-6 for y in outputs)


def test_a_setting_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("SEMISPARSE_WINOGRAD", "3")
    with pytest.raises(LibraryError, match="SEMISPARSE_WINOGRAD is '3'; set it to 0, 2 or 4"):
        native.Conv(np.ones((16, 16, 3, 3), np.float32))


def test_layers_that_would_lose_are_direct():
    rng = np.random.default_rng(6)
    for kernel, strides, channels in [(1, (1, 1), 32), (3, (2, 2), 32), (3, (1, 1), 8)]:
        weights = normal(rng, channels, channels, kernel, kernel)
        assert "winograd" not in native.Conv(weights, strides=strides).kernel
    # Few computed positions, spread over many tiles.
    source = native.source_map(rng.random((28, 28)) >= 0.9, "bias")
    weights = filters(rng, 32, 32)
    assert "winograd" not in native.Conv(weights, source=source, pads=(1, 1, 1, 1)).kernel
