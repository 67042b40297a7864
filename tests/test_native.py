"""Bad calls: through the binding each is an exception, through the C API a status, never a crash."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest

from semisparse import native
from semisparse.errors import ConfigError, LibraryError, MaskError

OK, INVALID_ARGUMENT, UNSUPPORTED = 0, 1, 2


def weights(*shape):
    return np.ones(shape, np.float32)


@pytest.fixture
def dense():
    return native.Conv(weights(4, 3, 3, 3), pads=(1, 1, 1, 1))


def test_versions():
    import semisparse

    assert native.version() == semisparse.__version__
    assert native.load().semisparse_abi_version() == native.ABI_VERSION


def test_isa_in_force_is_the_best_usable_one(monkeypatch):
    monkeypatch.delenv("SEMISPARSE_ISA", raising=False)
    assert native.isa() == next(name for name, usable in native.isa_names().items() if usable)


def test_isa_is_forced_by_the_environment(monkeypatch):
    names = native.isa_names()
    for name, usable in names.items():
        monkeypatch.setenv("SEMISPARSE_ISA", name)
        if usable:
            assert native.isa() == name
        else:
            with pytest.raises(LibraryError, match=name):
                native.isa()
    monkeypatch.setenv("SEMISPARSE_ISA", "mmx")
    with pytest.raises(LibraryError, match="mmx"):
        native.isa()


def test_unusable_isa_is_refused():
    with pytest.raises(LibraryError, match="mmx"):
        native.Conv(weights(4, 3, 3, 3), isa="mmx")
    with pytest.raises(LibraryError, match="mmx"):
        native.pool(weights(1, 4, 4, 2), "max", (2, 2), isa="mmx")
    with pytest.raises(LibraryError, match="mmx"):
        native.measure_fma("mmx")


@pytest.mark.parametrize(
    "values",
    [
        np.ones((4, 3, 3, 3), np.float64),
        np.ones((4, 3, 3), np.float32),
        np.ones((4, 3, 3, 6), np.float32)[..., ::2],
    ],
    ids=["dtype", "rank", "strided"],
)
def test_weights_of_another_kind_are_refused(values):
    with pytest.raises(LibraryError, match=r"weights is .*; give a C-contiguous float32 array"):
        native.Conv(values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "tanh"}, "tanh"),
        ({"strides": (1,)}, "strides"),
        ({"pads": (1, 1)}, "pads"),
        ({"dilations": (1, 1, 1)}, "dilations"),
    ],
)
def test_options_of_another_kind_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        native.Conv(weights(4, 3, 3, 3), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"strides": (0, 1)},
        {"strides": (1, -1)},
        {"dilations": (0, 1)},
        {"pads": (-1, 0, 0, 0)},
        {"group": 0},
        {"group": 3},
        {"group": -2},
        {"activation": "clip", "activation_a": 2.0, "activation_b": 1.0},
        {"activation": "clip", "activation_a": float("nan"), "activation_b": 1.0},
        {"strides": (2**62, 2**62)},
        {"pads": (2**62,) * 4},
        {"dilations": (2**62, 2**62)},
    ],
    ids=str,
)
def test_geometry_that_does_not_fit_is_refused(options):
    with pytest.raises(LibraryError):
        native.Conv(weights(4, 2, 3, 3), **options).run(weights(1, 8, 8, 2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_and_bias_must_be_finite(value):
    w, b = weights(4, 3, 3, 3), weights(4)
    w[1, 2, 0, 1] = value
    with pytest.raises(LibraryError, match="finite"):
        native.Conv(w, b)
    b[3] = value
    with pytest.raises(LibraryError, match="finite"):
        native.Conv(weights(4, 3, 3, 3), b)


@pytest.mark.parametrize(
    "source",
    [
        [[0, 1], [2, 4]],
        [[0, 1], [2, -2]],
        [[0, 1], [2, np.iinfo(np.int32).max]],
        [[1, 0], [2, 3]],
        [[0, 0], [1, 3]],
    ],
    ids=["past the end", "negative", "huge", "both masked", "copies a masked position"],
)
def test_source_map_must_be_one(source):
    with pytest.raises(LibraryError):
        native.Conv(weights(4, 3, 1, 1), source=np.array(source, np.int32))


PAIR = [[[0, 1], [2, 2]], [[0, 1], [2, 0]]]


@pytest.mark.parametrize(
    ("source", "weight"),
    [
        ([PAIR[0], [[0, 1], [2, 4]]], 0.5),
        ([PAIR[0], [[0, 1], [2, -1]]], 0.5),
        ([[[0, 1], [2, -1]], PAIR[1]], 0.5),
        ([PAIR[0], [[0, 1], [2, 3]]], 0.5),
        ([PAIR[0], [[0, 1], [0, 0]]], 0.5),
        (PAIR, 1.5),
        (PAIR, -0.5),
        (PAIR, np.nan),
    ],
    ids=[
        "past the end",
        "second negative",
        "first negative",
        "second masked",
        "computed once",
        "weight above 1",
        "weight below 0",
        "weight NaN",
    ],
)
def test_sources_of_a_mean_must_be_some(source, weight):
    share = np.array([[0, 0], [0, weight]], np.float32)
    source = np.array(source, np.int32)
    with pytest.raises(LibraryError):
        native.Conv(weights(4, 3, 1, 1), source=source, weight=share)


def test_shapes_of_a_mean_must_fit():
    sources, weight = np.array(PAIR, np.int32), np.array([[0, 0], [0, 0.25]], np.float32)
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    y = native.Conv(weights(1, 3, 1, 1), source=sources, weight=weight).run(x)
    np.testing.assert_allclose(y.ravel(), [3, 12, 21, 0.75 * 21 + 0.25 * 3])
    for source, share, message in (
        (sources, weight[:1], r"weight is .*\[1, 2\]"),
        (sources, weight.astype(np.float64), "weight is float64"),
        (sources[0], weight, r"source is int32 of shape \[2, 2\]"),
        (sources, None, r"source is int32 of shape \[2, 2, 2\]"),
        (None, weight, r"weight is of shape \[2, 2\], but there is no source"),
    ):
        with pytest.raises(LibraryError, match=message):
            native.Conv(weights(1, 3, 1, 1), source=source, weight=share)


def test_input_of_another_size_than_the_source_map_is_refused():
    conv = native.Conv(weights(4, 3, 1, 1), source=np.arange(4, dtype=np.int32).reshape(2, 2))
    assert conv.run(weights(1, 2, 2, 3)).shape == (1, 2, 2, 4)
    for size in ((2, 3), (3, 2), (1, 4), (1, 1)):
        with pytest.raises(LibraryError, match=r"2 ?x ?2"):
            conv.run(weights(1, *size, 3))


def test_arrays_that_do_not_fit_are_refused(dense):
    with pytest.raises(LibraryError, match="x is"):
        dense.run(weights(1, 8, 8, 4))
    with pytest.raises(LibraryError, match="residual is"):
        dense.run(weights(1, 8, 8, 3), weights(1, 8, 7, 4))
    with pytest.raises(LibraryError, match="bias is"):
        native.Conv(weights(4, 3, 3, 3), weights(3))
    with pytest.raises(ConfigError, match="threads is 0"):
        dense.run(weights(1, 8, 8, 3), threads=0)


def test_empty_output_is_refused():
    with pytest.raises(LibraryError):
        native.Conv(weights(4, 3, 5, 5)).run(weights(1, 4, 8, 3))
    with pytest.raises(LibraryError):
        native.pool(weights(1, 2, 2, 3), "max", (3, 3))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": (0, 2)},
        {"strides": (0, 1)},
        {"pads": (-1, 0, 0, 0)},
        {"pads": (2, 2, 2, 2)},
        {"dilations": (0, 1)},
        {"kernel": (2**62, 2)},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["max", "average", "l2"])
def test_pooling_that_does_not_fit_is_refused(kind, options):
    with pytest.raises(LibraryError):
        native.pool(weights(1, 8, 8, 3), kind, **{"kernel": (2, 2), **options})


def test_masks_without_a_computed_position():
    mask = np.zeros((3, 4), bool)
    assert (native.source_map(mask, "bias") == -1).all()
    with pytest.raises(MaskError):
        native.source_map(mask, "nearest")
    with pytest.raises(MaskError):
        native.mean_sources(mask)
    for call in (lambda values: native.source_map(values, "bias"), native.mean_sources):
        with pytest.raises(MaskError, match="float64"):
            call(np.ones((3, 4)))
    with pytest.raises(ConfigError, match="zero"):
        native.source_map(mask, "zero")


def test_index_past_the_end_has_no_name():
    library = native.load()
    usable = ctypes.c_int()
    for index in (len(native.isa_names()), 2**40):
        assert library.semisparse_isa_name(index, ctypes.byref(usable)) is None
    assert library.semisparse_kernel_name(2**40, ctypes.byref(usable)) is None
    assert library.semisparse_isa_name(0, None) is not None


def conv_create(desc, w, source=None, height=0, width=0, out=True):
    handle = ctypes.c_void_p()
    data = None if w is None else w.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    places = None if source is None else source.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
    return native.load().semisparse_conv_create(
        desc, data, None, places, None, height, width, None, ctypes.byref(handle) if out else None
    ), handle


def desc(**changes):
    fields = {
        "in_channels": 3,
        "out_channels": 4,
        "group": 1,
        "kernel": (1, 1),
        "strides": (1, 1),
        "pads": (0, 0, 0, 0),
        "dilations": (1, 1),
    }
    return native.ConvDesc(**{**fields, **changes})


@pytest.mark.parametrize(
    "arguments",
    [
        {"desc": None},
        {"w": None},
        {"out": False},
        {"desc": desc(in_channels=0)},
        {"desc": desc(out_channels=-4)},
        {"desc": desc(kernel=(0, 1))},
        {"desc": desc(in_channels=2**62, out_channels=2**62)},
        {"desc": desc(activation=99)},
        {"source": np.zeros(4, np.int32)},
        {"source": np.zeros(4, np.int32), "height": -2, "width": -2},
        {"source": np.zeros(4, np.int32), "height": 2**40, "width": 2**40},
    ],
    ids=lambda arguments: ",".join(arguments),
)
def test_c_api_refuses_bad_arguments(arguments):
    status, handle = conv_create(**{"desc": desc(), "w": weights(4, 3, 1, 1), **arguments})
    assert status == INVALID_ARGUMENT
    assert not handle.value
    assert native.load().semisparse_last_error().decode().endswith(".")


def test_c_api_refuses_null_and_negative_at_run(dense):
    library = native.load()
    x, y = weights(1, 8, 8, 3), weights(1, 8, 8, 4)
    floats = ctypes.POINTER(ctypes.c_float)
    a, b = x.ctypes.data_as(floats), y.ctypes.data_as(floats)
    serial = native._ParallelFor()
    run = library.semisparse_conv_run
    handle = dense._handle
    assert run(handle, a, 1, 8, 8, None, None, b, serial, None) == OK
    assert run(None, a, 1, 8, 8, None, None, b, serial, None) == INVALID_ARGUMENT
    assert run(handle, None, 1, 8, 8, None, None, b, serial, None) == INVALID_ARGUMENT
    assert run(handle, a, 1, 8, 8, None, None, None, serial, None) == INVALID_ARGUMENT
    assert run(handle, a, -1, 8, 8, None, None, b, serial, None) == INVALID_ARGUMENT
    assert run(handle, a, 1, -8, 8, None, None, b, serial, None) == INVALID_ARGUMENT
    assert run(handle, a, 1, 0, 8, None, None, b, serial, None) == INVALID_ARGUMENT
    library.semisparse_conv_destroy(None)


def test_c_api_says_unsupported_for_an_instruction_set():
    result = ctypes.c_double()
    status = native.load().semisparse_measure_fma(b"mmx", 0.01, ctypes.byref(result))
    assert status == UNSUPPORTED


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), 1e9])
def test_measurements_of_impossible_length_are_refused(seconds):
    with pytest.raises(LibraryError, match="seconds"):
        native.measure_fma(native.isa(), seconds)
    with pytest.raises(LibraryError, match="seconds"):
        native.measure_copy(1 << 20, seconds)


def test_copy_of_nothing_is_refused():
    with pytest.raises(LibraryError):
        native.measure_copy(0)


def block(channels=3, hidden=5, outputs=4, **depthwise):
    """Stages of an inverted residual."""
    return [
        native.Stage(weights(hidden, channels, 1, 1)),
        native.Stage(
            weights(hidden, 1, 3, 3), **{"group": hidden, "pads": (1, 1, 1, 1), **depthwise}
        ),
        native.Stage(weights(outputs, hidden, 1, 1)),
    ]


@pytest.mark.parametrize("form", native.CHAINS)
@pytest.mark.parametrize("size", [(9, 11), (150, 150)], ids=["by stages", "in bands"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("fill", ["nearest", "mean"])
def test_chain_is_its_convolutions_in_a_row(form, size, threads, fill):
    rng = np.random.default_rng(0)

    def stage(outputs, inputs, kernel, group=1, input_layout="nhwc"):
        mask = rng.random(size) < 0.7
        source, share = native.source_map(mask, "nearest"), None
        if fill == "mean":
            source, share = native.mean_sources(mask)
        return native.Stage(
            rng.standard_normal((outputs, inputs, kernel, kernel)).astype(np.float32),
            rng.standard_normal(outputs).astype(np.float32),
            source,
            share,
            group=group,
            pads=(kernel // 2,) * 4,
            activation="clip",
            activation_b=6.0,
            input_layout=input_layout,
        )

    first = stage(20, 3, 5, input_layout="nchw") if form[0] == "s" else stage(20, 6, 1)
    stages = [first, stage(20, 1, 3, 20), stage(7, 20, 1)]
    stages = stages[1:] if form[0] == "d" else stages[: form.count("_") + 1]
    x = rng.standard_normal((2, *size, stages[0].in_channels)).astype(np.float32)
    if form[0] == "s":
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    y = x
    for each in stages:
        options = {
            key: value for key, value in vars(each).items() if key not in ("weights", "bias")
        }
        y = native.Conv(each.weights, each.bias, **options).run(y)
    chain = native.Chain(form, stages)
    assert chain.output_size(*size) == size
    np.testing.assert_allclose(chain.run(x, threads=threads), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("threads", [1, 2])
def test_input_in_either_layout(channels, threads):
    x = weights(2, 11, 9, channels)
    options = {"pads": (1, 0, 2, 1), "strides": (2, 1)}
    expected = native.Conv(weights(5, channels, 3, 3), **options).run(x)
    conv = native.Conv(weights(5, channels, 3, 3), input_layout="nchw", **options)
    got = conv.run(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), threads=threads)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(LibraryError, match="x"):
        conv.run(weights(2, 11, 9, channels + 1))


def test_unknown_input_layout_is_refused():
    with pytest.raises(ConfigError, match="input_layout is 'chwn'"):
        native.Conv(weights(4, 3, 3, 3), input_layout="chwn")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([block()[1], *block()[1:]], "not possible|pointwise"),
        ([*block()[:2], native.Stage(weights(4, 5, 3, 3))], "the projection .* no pointwise"),
        ([*block()[:2], native.Stage(weights(4, 5, 1, 1), pads=(0, 1, 0, 0))], "no pointwise"),
        (block(group=1), "depthwise stage .* group 1"),
        ([block(hidden=6)[0], *block()[1:]], "6 output channels .* 5 input channels"),
        ([*block()[:2], block(hidden=6)[2]], "5 output channels .* 6 input channels"),
    ],
)
def test_chain_of_other_convolutions_is_refused(stages, message):
    with pytest.raises(LibraryError, match=message):
        native.Chain("expand_depthwise_project", stages)


def test_stem_of_another_kind_is_refused():
    _, depthwise, project = block()
    for options, message in (
        ({}, "the stem .* input_layout 0; it must be NCHW"),
        ({"input_layout": "nchw", "group": 5}, "the stem .* group 5"),
    ):
        group = options.get("group", 1)
        stem = native.Stage(weights(5, 5 // group, 3, 3), pads=(1, 1, 1, 1), **options)
        with pytest.raises(LibraryError, match=message):
            native.Chain("stem_depthwise_project", [stem, depthwise, project])


def test_chain_whose_masks_do_not_follow_one_another_is_refused():
    def masked(stage, *size):
        source = np.arange(np.prod(size), dtype=np.int32).reshape(size)
        return dataclasses.replace(stage, source=source)

    first, second, third = block(strides=(2, 2))
    form = "expand_depthwise_project"
    assert native.Chain(form, [masked(first, 8, 8), masked(second, 4, 4), masked(third, 4, 4)])
    for stages in (
        [masked(first, 8, 8), second, masked(third, 4, 5)],
        [masked(first, 8, 8), masked(second, 5, 4), third],
        [first, masked(second, 4, 4), masked(third, 4, 3)],
    ):
        with pytest.raises(LibraryError, match="the mask is"):
            native.Chain(form, stages)


def test_chain_of_another_length_or_form_is_refused():
    with pytest.raises(ConfigError, match="has 2 stages; 3 were given"):
        native.Chain("expand_depthwise", block())
    with pytest.raises(ConfigError, match="form is 'project'"):
        native.Chain("project", block())


def test_residual_of_a_chain_without_a_projection_is_refused():
    chain = native.Chain("expand_depthwise", block()[:2])
    with pytest.raises(LibraryError, match="adds no residual"):
        chain.run(weights(1, 8, 8, 3), weights(1, 8, 8, 5))
