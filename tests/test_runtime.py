"""Sessions with the operator library, as a user opens them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import semisparse
from semisparse.errors import ConfigError, DataError, FileFormatError, LibraryError
from semisparse.feeds import load_feeds, random_feeds
from semisparse.runtime import InferenceSession, library_path

MODEL = files("semisparse").joinpath("doctor.onnx").read_bytes()
INPUT = np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 2, 2)
OUTPUT = [0, 0, 3, 5]


def conv_model(
    weights: np.ndarray | None = None,
    source: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    constant: bool = True,
    size: int = 8,
) -> bytes:
    """`ConvFillNearest` on NHWC input, with no portable body."""
    values = {
        "weights": np.ones((4, 3, 3, 3), np.float32) if weights is None else weights,
        "bias": np.zeros(4, np.float32) if bias is None else bias,
        "source": np.arange(size * size, dtype=np.int32).reshape(size, size)
        if source is None
        else source,
    }
    node = helper.make_node(
        "ConvFillNearest",
        ["input", *values],
        ["output"],
        name="layer.conv",
        domain="semisparse",
        strides=[1, 1],
        pads=[1, 1, 1, 1],
        dilations=[1, 1],
        group=1,
    )
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", "h", "w", 3])]
    if not constant:
        inputs.append(
            helper.make_tensor_value_info("weights", TensorProto.FLOAT, values["weights"].shape)
        )
    graph = helper.make_graph(
        [node],
        "conv",
        inputs,
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", "h", "w", 4])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("semisparse", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return model.SerializeToString()


def test_session_is_an_onnxruntime_session():
    session = semisparse.InferenceSession(MODEL)
    assert isinstance(session, onnxruntime.InferenceSession)
    assert session.run(None, {"input": INPUT})[0].ravel().tolist() == OUTPUT


def test_path_of_any_kind(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(MODEL)
    for given in (path, str(path)):
        assert InferenceSession(given).run(None, {"input": INPUT})[0].ravel().tolist() == OUTPUT


def test_library_path_is_for_register_custom_ops_library():
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(semisparse.library_path()))
    session = onnxruntime.InferenceSession(MODEL, options)
    assert session.run(None, {"input": INPUT})[0].ravel().tolist() == OUTPUT


def test_options_serve_several_sessions():
    options = onnxruntime.SessionOptions()
    for _ in range(3):
        session = InferenceSession(MODEL, sess_options=options, threads=1)
        assert session.run(None, {"input": INPUT})[0].ravel().tolist() == OUTPUT
    assert options.intra_op_num_threads == 1


def test_without_the_library_its_operators_are_unknown():
    with pytest.raises(FileFormatError, match="ConvFillNearestRelu"):
        InferenceSession(MODEL, library=False)


def test_profile_shows_the_layer(tmp_path):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = InferenceSession(conv_model(), sess_options=options)
    session.run(None, {"input": np.ones((1, 8, 8, 3), np.float32)})
    assert "layer.conv_kernel_time" in Path(session.end_profiling()).read_text()


def test_many_sessions_in_one_process():
    x = np.ones((1, 8, 8, 3), np.float32)
    sessions = [InferenceSession(conv_model(), threads=1) for _ in range(20)]
    outputs = [session.run(None, {"input": x})[0] for session in sessions]
    assert all(np.array_equal(output, outputs[0]) for output in outputs)
    del sessions[::2]
    assert np.array_equal(sessions[0].run(None, {"input": x})[0], outputs[0])


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"", "empty"), (b"hello, world", "foreign"), (MODEL[:200], "truncated"), (None, "missing")],
)
def test_bad_file(content, what, tmp_path):
    path = tmp_path / f"{what}.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileFormatError, match=what):
        InferenceSession(path)


def test_folder_is_not_a_file(tmp_path):
    with pytest.raises(FileFormatError, match="not a file"):
        InferenceSession(tmp_path)


def test_damaged_files_never_crash():
    """In a process of its own, so that a crash is one failed test."""
    code = """
import sys
import numpy as np
from semisparse.runtime import FileFormatError, InferenceSession, ORT_ERRORS
whole = sys.stdin.buffer.read()
loaded = 0
for seed in range(200):
    rng = np.random.default_rng(seed)
    damaged = bytearray(whole)
    for place in rng.integers(len(damaged), size=rng.integers(1, 8)):
        damaged[place] = rng.integers(256)
    try:
        session = InferenceSession(bytes(damaged), threads=1)
        loaded += 1
        session.run(None, {"input": np.ones((1, 8, 8, 3), np.float32)})
    except (FileFormatError, *ORT_ERRORS):
        pass
print(loaded)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], input=conv_model(), capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    # Some files must have come through to the operator for this to say anything.
    assert 0 < int(result.stdout) < 200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": np.full((4, 3, 3, 3), np.nan, np.float32)}, "finite"),
        ({"bias": np.full(4, np.inf, np.float32)}, "finite"),
        ({"bias": np.zeros(3, np.float32)}, "bias"),
        ({"source": np.full((8, 8), 99, np.int32)}, "source"),
        ({"source": np.arange(16, dtype=np.int32)}, "H_out, W_out"),
        ({"constant": False}, "constant"),
    ],
    ids=[
        "NaN weights",
        "infinite bias",
        "short bias",
        "wild source",
        "flat source",
        "not constant",
    ],
)
def test_operator_refuses_a_bad_model(changes, message):
    with pytest.raises(FileFormatError, match=message):
        InferenceSession(conv_model(**changes))


@pytest.mark.parametrize("shape", [(1, 9, 8, 3), (1, 8, 7, 3), (1, 4, 16, 3)])
def test_input_of_another_size_is_refused_at_run(shape):
    session = InferenceSession(conv_model())
    with pytest.raises(Exception, match=r"8 ?x ?8"):
        session.run(None, {"input": np.ones(shape, np.float32)})
    # The session lives on.
    assert session.run(None, {"input": np.ones((2, 8, 8, 3), np.float32)})[0].shape == (2, 8, 8, 4)


def test_special_values_pass_through_the_session():
    x = np.zeros((1, 8, 8, 3), np.float32)
    x[0, 4, 4, 1] = np.nan
    (y,) = InferenceSession(conv_model()).run(None, {"input": x})
    expected = np.zeros((8, 8), bool)
    expected[3:6, 3:6] = True
    np.testing.assert_array_equal(np.isnan(y[0]).all(2), expected)
    assert (y[0][~expected] == 0).all()


def test_threads_must_be_positive():
    with pytest.raises(ConfigError, match="threads is 0"):
        InferenceSession(MODEL, threads=0)


def test_library_named_by_the_environment_must_be_there(monkeypatch, tmp_path):
    monkeypatch.setenv("SEMISPARSE_LIBRARY", str(tmp_path / "nothing.so"))
    with pytest.raises(LibraryError, match=r"nothing\.so"):
        library_path()
    with pytest.raises(LibraryError, match=r"nothing\.so"):
        InferenceSession(MODEL)


def test_library_that_is_none_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "libsemisparse.so"
    path.write_text("not a library")
    monkeypatch.setenv("SEMISPARSE_LIBRARY", str(path))
    with pytest.raises(LibraryError, match="cannot load"):
        InferenceSession(MODEL)


def test_library_missing_from_the_package(monkeypatch, tmp_path):
    monkeypatch.delenv("SEMISPARSE_LIBRARY", raising=False)
    monkeypatch.setattr(semisparse, "__path__", [str(tmp_path)])
    with pytest.raises(LibraryError, match="reinstall"):
        library_path()
    (tmp_path / "libsemisparse.so").touch()
    assert library_path() == tmp_path / "libsemisparse.so"


def test_forced_instruction_set_that_cannot_run_is_said(tmp_path):
    code = "import semisparse, sys; semisparse.InferenceSession(sys.stdin.buffer.read())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=MODEL,
        env={**os.environ, "SEMISPARSE_ISA": "mmx"},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 1
    assert b"mmx" in result.stderr


def test_random_feeds_fit_the_session():
    session = InferenceSession(MODEL)
    feeds = random_feeds(session, seed=1)
    assert feeds["input"].shape == (1, 1, 2, 2)
    np.testing.assert_array_equal(feeds["input"], random_feeds(session, seed=1)["input"])
    with pytest.raises(DataError, match="no random values"):
        random_feeds(InferenceSession(conv_model()), seed=0)


def test_feeds_from_files(tmp_path):
    session = InferenceSession(MODEL)
    np.save(tmp_path / "x.npy", INPUT)
    np.savez(tmp_path / "x.npz", input=INPUT)
    for name in ("x.npy", "x.npz"):
        np.testing.assert_array_equal(load_feeds(session, tmp_path / name)["input"], INPUT)


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path: None, "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_text("1, 2, 3"), "cannot be read"),
        (
            lambda path: np.save(path.open("wb"), np.array([{}]), allow_pickle=True),
            "cannot be read",
        ),
        (lambda path: np.save(path.open("wb"), INPUT.astype(np.float64)), "float64"),
        (lambda path: np.save(path.open("wb"), INPUT[0]), r"\[1, 2, 2\]"),
        (lambda path: np.savez(path.open("wb"), x=INPUT), "the model's inputs are input"),
        (lambda path: np.savez(path.open("wb"), input=np.array([{}])), "cannot be read"),
    ],
    ids=["missing", "empty", "text", "pickle", "dtype", "rank", "names", "pickle in npz"],
)
def test_bad_feeds(save, message, tmp_path):
    path = tmp_path / "x.npy"
    save(path)
    with pytest.raises(DataError, match=message):
        load_feeds(InferenceSession(MODEL), path)
