"""The operator library against a float64 reference, for every instruction set of this machine."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semisparse import native
from semisparse.errors import LibraryError

ISAS = [name for name, usable in native.isa_names().items() if usable]
every_isa = pytest.mark.parametrize("isa", ISAS)

ACTIVATIONS = {
    "identity": lambda v: v,
    "relu": lambda v: np.maximum(v, 0),
    "clip": lambda v: np.clip(v, -0.5, 1.5),
    "leaky_relu": lambda v: np.where(v < 0, 0.1 * v, v),
    "silu": lambda v: v / (1 + np.exp(-v)),
    "hard_swish": lambda v: v * np.clip(v / 6 + 0.5, 0, 1),
    "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
    "hard_sigmoid": lambda v: np.clip(v / 6 + 0.5, 0, 1),
    "gelu": lambda v: 0.5 * v * (1 + np.vectorize(math.erf, otypes=[float])(v / math.sqrt(2))),
}
PARAMETERS = {"clip": (-0.5, 1.5), "leaky_relu": (0.1, 0.0)}


@dataclass(frozen=True)
class Problem:
    """One convolution: sizes and options; its arrays follow from the seed."""

    batch: int
    height: int
    width: int
    group: int
    in_per_group: int
    out_per_group: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    sparsity: float | None
    fill: str
    activation: str
    bias: bool
    residual: bool
    seed: int

    @property
    def out_size(self) -> tuple[int, int]:
        top, left, bottom, right = self.pads
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        return (
            (self.height + top + bottom - reach[0]) // self.strides[0] + 1,
            (self.width + left + right - reach[1]) // self.strides[1] + 1,
        )

    def arrays(self):
        """x, weights, bias, mask, residual."""
        rng = np.random.default_rng(self.seed)

        def normal(*shape):
            return rng.standard_normal(shape).astype(np.float32)

        channels = self.group * self.in_per_group
        outputs = self.group * self.out_per_group
        plane = self.out_size
        mask = None
        if self.sparsity is not None:
            mask = rng.random(plane) >= self.sparsity
            if self.fill != "bias" and not mask.any():
                mask.flat[rng.integers(mask.size)] = True
        return (
            normal(self.batch, self.height, self.width, channels),
            normal(outputs, self.in_per_group, *self.kernel),
            normal(outputs) if self.bias else None,
            mask,
            normal(self.batch, *plane, outputs) if self.residual else None,
        )


def nearest(mask: np.ndarray) -> np.ndarray:
    """Source map of fill "nearest": a search through all computed positions."""
    computed = [(y, x) for y, x in itertools.product(*map(range, mask.shape)) if mask[y, x]]
    source = np.empty(mask.shape, np.int32)
    for y, x in itertools.product(*map(range, mask.shape)):
        # min keeps the first of equals, and the positions come in row-major order.
        v, u = min(computed, key=lambda p: (p[0] - y) ** 2 + (p[1] - x) ** 2)
        source[y, x] = v * mask.shape[1] + u
    return source


def means(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two sources of fill "mean" and the second one's weight, by such a search."""
    computed = [(y, x) for y, x in itertools.product(*map(range, mask.shape)) if mask[y, x]]
    sources, weight = np.empty((2, *mask.shape), np.int32), np.zeros(mask.shape, np.float32)
    for y, x in itertools.product(*map(range, mask.shape)):
        by_distance = sorted((math.dist(p, (y, x)), p) for p in computed)
        (near, first), (far, second) = (by_distance * 2)[:2]
        if mask[y, x] or len(computed) == 1:
            second = first
        else:
            weight[y, x] = near / (near + far)
        sources[:, y, x] = [v * mask.shape[1] + u for v, u in (first, second)]
    return sources, weight


def source_of(mask: np.ndarray | None, fill: str) -> dict[str, np.ndarray]:
    """What a masked convolution is made with."""
    if mask is None:
        return {}
    if fill == "nearest":
        return {"source": nearest(mask)}
    if fill == "mean":
        return dict(zip(("source", "weight"), means(mask), strict=True))
    own = np.arange(mask.size).reshape(mask.shape)
    return {"source": np.where(mask, own, -1).astype(np.int32)}


def im2col(x: np.ndarray, problem: Problem) -> np.ndarray:
    """[N, P, kh * kw, C] float64."""
    top, left, bottom, right = problem.pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    (out_height, out_width), (sh, sw), (dh, dw) = (
        problem.out_size,
        problem.strides,
        problem.dilations,
    )
    taps = [
        padded[:, i * dh :: sh, j * dw :: sw][:, :out_height, :out_width]
        for i, j in itertools.product(*map(range, problem.kernel))
    ]
    return np.stack(taps, 3).reshape(x.shape[0], out_height * out_width, len(taps), x.shape[3])


def reference(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The output in float64, and how far a float32 computation of it may be off."""
    x, weights, bias, mask, residual = problem.arrays()
    columns = im2col(x, problem)
    if mask is not None:
        columns[:, ~mask.ravel()] = 0
    outputs = weights.shape[0]
    shape = (problem.batch, *problem.out_size, outputs)
    w = weights.astype(np.float64).reshape(
        problem.group, problem.out_per_group, problem.in_per_group, -1
    )
    columns = columns.reshape(*columns.shape[:3], problem.group, problem.in_per_group)

    def linear(columns, w):
        return np.einsum("nptgc,goct->npgo", columns, w).reshape(problem.batch, -1, outputs)

    value, size = linear(columns, w), np.sqrt(linear(columns**2, w**2))
    if mask is not None and problem.fill == "nearest":
        source = nearest(mask).ravel()
        value, size = value[:, source], size[:, source]
    if mask is not None and problem.fill == "mean":
        sources, weight = means(mask)
        first, second = sources.reshape(2, -1)
        share = weight.astype(np.float64).reshape(-1, 1)
        value, size = (
            (1 - share) * array[:, first] + share * array[:, second] for array in (value, size)
        )
    value, size = value.reshape(shape), size.reshape(shape)
    for term in (bias, residual):
        if term is not None:
            value, size = value + term, size + abs(term)
    # K + 2 roundings of partial sums that have about the root of the sum of squared terms as their
    # size make a random walk; 8 standard deviations. No activation is steeper than 1.5, and its
    # exponential may be some units off.
    roundings = problem.in_per_group * math.prod(problem.kernel) + 2
    bound = 1.5 * 8 * math.sqrt(roundings) * 2.0**-24 * size + 1e-6 * (1 + abs(value))
    return ACTIVATIONS[problem.activation](value), bound


def create(problem: Problem, isa: str, **source: np.ndarray) -> native.Conv:
    _, weights, bias, _, _ = problem.arrays()
    a, b = PARAMETERS.get(problem.activation, (0.0, 0.0))
    return native.Conv(
        weights,
        bias,
        **source,
        group=problem.group,
        strides=problem.strides,
        pads=problem.pads,
        dilations=problem.dilations,
        activation=problem.activation,
        activation_a=a,
        activation_b=b,
        isa=isa,
    )


def check(problem: Problem, isa: str, threads: int = 1) -> None:
    x, _, _, mask, residual = problem.arrays()
    conv = create(problem, isa, **source_of(mask, problem.fill))
    assert conv.output_size(problem.height, problem.width) == problem.out_size
    expected, bound = reference(problem)
    actual = conv.run(x, residual, threads=threads)
    assert actual.shape == expected.shape
    excess = abs(actual - expected) - bound
    assert (excess <= 0).all(), (
        f"{conv.kernel}: off by {abs(actual - expected).max()} "
        f"at {np.unravel_index(np.nanargmax(excess), excess.shape)}"
    )


def sizes(low: int, high: int, count: int = 2):
    return st.tuples(*[st.integers(low, high)] * count)


@st.composite
def problems(draw, depthwise: bool) -> Problem:
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 2), (5, 5), (1, 3), (4, 2), (7, 7)]))
    dilations = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)]))
    strides = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 2), (3, 1)]))
    pads = draw(st.one_of(st.just((0,) * 4), st.just((1,) * 4), sizes(0, 3, 4)))
    smallest = [
        max(1, (k - 1) * d + 1 - low - high)
        for k, d, low, high in zip(kernel, dilations, pads[:2], pads[2:], strict=True)
    ]
    group, in_per_group, out_per_group = (
        draw(st.tuples(st.integers(1, 70), st.just(1), st.sampled_from([1, 1, 1, 2, 3])))
        if depthwise
        else draw(
            st.tuples(st.sampled_from([1, 1, 1, 2, 3]), st.integers(1, 24), st.integers(1, 70))
        )
    )
    return Problem(
        batch=draw(st.integers(1, 3)),
        height=draw(st.integers(smallest[0], smallest[0] + 10)),
        width=draw(st.integers(smallest[1], smallest[1] + 14)),
        group=group,
        in_per_group=in_per_group,
        out_per_group=out_per_group,
        kernel=kernel,
        strides=strides,
        pads=pads,
        dilations=dilations,
        sparsity=draw(st.sampled_from([None, 0.0, 0.1, 0.3, 0.5, 0.9, 1.0])),
        fill=draw(st.sampled_from(["bias", "nearest", "mean"])),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


@every_isa
@settings(max_examples=150, deadline=None)
@given(problem=problems(depthwise=False), threads=st.sampled_from([1, 1, 2]))
def test_convolution(isa, problem, threads):
    check(problem, isa, threads)


@every_isa
@settings(max_examples=60, deadline=None)
@given(
    problem=problems(depthwise=False), inputs=st.integers(2, 700), threads=st.sampled_from([1, 2])
)
def test_gate_is_a_product_with_the_input(isa, problem, inputs, threads):
    problem = replace(problem, kernel=(1, 1), pads=(0,) * 4, group=1, in_per_group=inputs)
    x, weights, bias, mask, residual = problem.arrays()
    options = {"strides": problem.strides, "activation": problem.activation, "isa": isa}
    options |= source_of(mask, problem.fill)
    conv = native.Conv(weights, bias, **options)
    gate = np.random.default_rng(problem.seed).random((len(x), inputs), np.float32)
    expected = conv.run(x * gate[:, None, None], residual, threads=threads)
    actual = conv.run(x, residual, gate=gate, threads=threads)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_gate_that_cannot_be():
    x = np.ones((2, 5, 5, 4), np.float32)
    gate = np.ones((2, 4), np.float32)
    wide = native.Conv(np.ones((3, 4, 3, 3), np.float32))
    with pytest.raises(LibraryError, match="a gate is for convolutions in NHWC with kernel 1"):
        wide.run(x, gate=gate)
    depthwise = native.Conv(np.ones((4, 1, 1, 1), np.float32), group=4)
    with pytest.raises(LibraryError, match="multiply the input by it beforehand"):
        depthwise.run(x, gate=gate)
    pointwise = native.Conv(np.ones((3, 4, 1, 1), np.float32))
    with pytest.raises(LibraryError, match="gate"):
        pointwise.run(x, gate=gate[:1])


@every_isa
@settings(max_examples=100, deadline=None)
@given(problem=problems(depthwise=True), threads=st.sampled_from([1, 1, 2]))
def test_depthwise_convolution(isa, problem, threads):
    check(problem, isa, threads)


# The layers that networks are made of, at their real channel counts.
@every_isa
@pytest.mark.parametrize("fill", ["bias", "nearest", "mean"])
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "size", "group"),
    [
        (3, 64, 7, 2, 64, 1),
        (64, 64, 3, 1, 28, 1),
        (128, 256, 3, 2, 14, 1),
        (512, 512, 3, 1, 7, 1),
        (96, 24, 1, 1, 28, 1),
        (160, 960, 1, 1, 7, 1),
        (144, 144, 3, 2, 28, 144),
        (32, 32, 5, 1, 14, 32),
        (64, 64, 3, 1, 14, 4),
        (48, 96, 7, 2, 28, 48),
    ],
)
def test_layers_of_networks(isa, fill, channels, outputs, kernel, stride, size, group):
    check(
        Problem(
            batch=1,
            height=size,
            width=size,
            group=group,
            in_per_group=channels // group,
            out_per_group=outputs // group,
            kernel=(kernel, kernel),
            strides=(stride, stride),
            pads=(kernel // 2,) * 4,
            dilations=(1, 1),
            sparsity=0.3,
            fill=fill,
            activation="relu",
            bias=True,
            residual=True,
            seed=7,
        ),
        isa,
        threads=2,
    )


@settings(max_examples=200, deadline=None)
@given(plane=sizes(1, 9), sparsity=st.floats(0, 1), seed=st.integers(0, 2**16))
def test_source_map(plane, sparsity, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(plane) >= sparsity
    bias = source_of(mask, "bias")["source"]
    np.testing.assert_array_equal(native.source_map(mask, "bias"), bias)
    mask.flat[rng.integers(mask.size)] = True
    np.testing.assert_array_equal(native.source_map(mask, "nearest"), nearest(mask))
    sources, weight = native.mean_sources(mask)
    expected, expected_weight = means(mask)
    np.testing.assert_array_equal(sources, expected)
    np.testing.assert_allclose(weight, expected_weight, rtol=1e-6)


PLAIN = Problem(
    batch=1,
    height=9,
    width=11,
    group=1,
    in_per_group=5,
    out_per_group=37,
    kernel=(3, 3),
    strides=(1, 1),
    pads=(1, 1, 1, 1),
    dilations=(1, 1),
    sparsity=0.4,
    fill="bias",
    activation="identity",
    bias=True,
    residual=False,
    seed=3,
)
DEPTHWISE = Problem(**{**vars(PLAIN), "group": 37, "in_per_group": 1, "out_per_group": 1})
both_families = pytest.mark.parametrize("problem", [PLAIN, DEPTHWISE], ids=["conv", "depthwise"])


@every_isa
@both_families
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 3e38])
def test_special_values_stay_in_the_windows_that_see_them(isa, problem, special):
    x, _, bias, mask, _ = problem.arrays()
    x[0, 4, 5, 2] = special
    with np.errstate(invalid="ignore", over="ignore"):
        dense = create(problem, isa).run(x)
        for fill in ("bias", "nearest", "mean"):
            actual = create(problem, isa, **source_of(mask, fill)).run(x)
            np.testing.assert_allclose(actual[:, mask], dense[:, mask], rtol=1e-4, atol=1e-4)
            masked = actual[0][~mask]
            if fill == "bias":
                np.testing.assert_array_equal(masked, np.broadcast_to(bias, masked.shape))
            elif fill == "nearest":
                copied = actual.reshape(-1, masked.shape[1])[nearest(mask)[~mask]]
                np.testing.assert_array_equal(masked, copied)
            else:
                sources, weight = (array[..., ~mask] for array in means(mask))
                first, second = actual.reshape(-1, masked.shape[1])[sources] - bias
                share = weight[:, None]
                mean = (1 - share) * first + share * second + bias
                np.testing.assert_allclose(masked, mean, rtol=1e-4, atol=1e-4)
    # The dense result itself: every window that holds the value, and no other.
    sees = np.zeros(problem.out_size, bool)
    sees[3:6, 4:7] = True
    channel = slice(2, 3) if problem.in_per_group == 1 else slice(None)
    ordinary = np.abs(dense[0]) < 1e3
    assert ordinary[~sees].all()
    assert not ordinary[sees][:, channel].any()


@every_isa
@both_families
def test_denormals_are_not_flushed(isa, problem):
    x = np.full((1, 9, 11, problem.group * problem.in_per_group), 1e-41, np.float32)
    weights = np.zeros_like(problem.arrays()[1])
    weights[:, 0, 1, 1] = 1
    y = native.Conv(weights, group=problem.group, pads=(1, 1, 1, 1), isa=isa).run(x)
    np.testing.assert_array_equal(y, np.full(y.shape, 1e-41, np.float32))


@every_isa
def test_one_handle_serves_several_threads(isa):
    x, _, _, mask, _ = PLAIN.arrays()
    conv = create(PLAIN, isa, **source_of(mask, "nearest"))
    inputs = [x * scale for scale in range(1, 5)]
    expected = [conv.run(value) for value in inputs]

    def work(index):
        for _ in range(50):
            np.testing.assert_array_equal(conv.run(inputs[index]), expected[index])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


@pytest.mark.parametrize("isa", ISAS)
def test_kernels_belong_to_the_instruction_set_asked_for(isa):
    name = create(PLAIN, isa).kernel
    assert native.kernels()[name]
    assert isa in name


@every_isa
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_pooling_against_torch(isa, data):
    import torch
    from torch.nn import functional

    kind = data.draw(st.sampled_from(["max", "average", "l2"]))
    kernel = data.draw(sizes(1, 4))
    strides = data.draw(sizes(1, 3))
    # torch pools by norms without padding.
    pads = tuple(data.draw(st.integers(0, size // 2 if kind != "l2" else 0)) for size in kernel)
    dilations = data.draw(sizes(1, 2)) if kind == "max" else (1, 1)
    ceil_mode = kind != "l2" and data.draw(st.booleans())
    include = data.draw(st.booleans()) if kind == "average" else False
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    height, width = (max(r, 1) + data.draw(st.integers(0, 8)) for r in reach)
    channels, batch = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    x = rng.standard_normal((batch, height, width, channels)).astype(np.float32)
    nchw = torch.from_numpy(x).permute(0, 3, 1, 2)
    if kind == "max":
        expected = functional.max_pool2d(nchw, kernel, strides, pads, dilations, ceil_mode)
    elif kind == "l2":
        expected = functional.lp_pool2d(nchw, 2.0, kernel, strides)
    else:
        expected = functional.avg_pool2d(nchw, kernel, strides, pads, ceil_mode, include)
    actual = native.pool(
        x,
        kind,
        kernel,
        strides=strides,
        pads=(*pads, *pads),
        dilations=dilations,
        ceil_mode=ceil_mode,
        count_include_pad=include,
        isa=isa,
        threads=data.draw(st.sampled_from([1, 2])),
    )
    np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-6)


@every_isa
def test_max_pool_of_padding_ignores_the_padding(isa):
    x = np.full((1, 3, 3, 5), -1e30, np.float32)
    y = native.pool(x, "max", (3, 3), pads=(2, 0, 1, 2), isa=isa)
    np.testing.assert_array_equal(y, np.full((1, 4, 3, 5), -1e30, np.float32))


@every_isa
def test_max_pool_keeps_nan(isa):
    x = np.zeros((1, 5, 5, 20), np.float32)
    x[0, 2, 2, 7] = np.nan
    y = native.pool(x, "max", (3, 3), isa=isa)
    assert np.isnan(y[..., 7]).all()
    assert not np.isnan(np.delete(y, 7, axis=3)).any()


@every_isa
def test_machine_measurements(isa):
    assert 1e7 < native.measure_fma(isa, 0.02) < 1e13
    assert 1e7 < native.measure_copy(1 << 20, 0.02) < 1e13
