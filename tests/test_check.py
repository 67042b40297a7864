"""`check`: what agrees, what does not, and what is no file of ours."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import semisparse
from semisparse.check import check, relative_error
from semisparse.errors import FileFormatError, LibraryError
from semisparse.sparsifier import Sparsifier

X = torch.randn(1, 3, 10, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2)
    ).eval()
    config = semisparse.SparsityConfig(sparsity=0.25)
    Sparsifier(model, X, config, total_steps=1).freeze()
    return semisparse.export_onnx(model, X, tmp_path_factory.mktemp("check") / "m.onnx").path


@pytest.fixture
def file(exported, tmp_path):
    """A copy to damage."""
    path = tmp_path / "m.onnx"
    path.write_bytes(exported.read_bytes())
    return path


def change(path, how):
    model = onnx.load(path)
    how(model)
    path.write_bytes(model.SerializeToString())


def set_metadata(model, key, value):
    next(entry for entry in model.metadata_props if entry.key == key).value = value


def initializer(model, name):
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def test_agreement(exported):
    report = check(exported)
    assert report.ok
    assert report.path == exported
    assert report.version == semisparse.__version__
    assert report.sparsity == {"0": 14 / 56, "3": 2 / 9}
    assert len(report.masks_sha256) == 64
    assert set(report.errors) == {"output"}
    assert 0 < report.errors["output"] < 1e-6


def test_seed_draws_the_inputs(exported):
    assert check(exported).errors == check(exported).errors
    assert check(exported).errors != check(exported, seed=1).errors


def test_disagreement(file):
    """A body that computes something else than the operator does."""

    def negate(model):
        body = next(f for f in model.functions if f.name == "ConvFillNearest")
        body.node[-1].op_type = "Neg"

    change(file, negate)
    report = check(file)
    assert not report.ok
    assert report.errors["output"] == pytest.approx(2, rel=1e-5)


def test_needs_neither_torch_nor_onnx(exported):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'onnx', 'onnx_ir', 'onnxscript']));"
        f"from semisparse.check import check; assert check({str(exported)!r}).ok"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_library(exported, monkeypatch, tmp_path):
    monkeypatch.setenv("SEMISPARSE_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(LibraryError, match="SEMISPARSE_LIBRARY"):
        check(exported)


# Files that are not ours, or not any more


def test_no_file(tmp_path):
    with pytest.raises(FileFormatError, match="not a file"):
        check(tmp_path / "none.onnx")
    with pytest.raises(FileFormatError, match="not a file"):
        check(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"not a model", b"\x08\x08" * 1000])
def test_no_model(content, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"m\.onnx"):
        check(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_truncated(part, file):
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(FileFormatError):
        check(file)


def test_damaged_at_random_places_never_crashes(exported, tmp_path):
    """In a process of its own, so that a crash is seen as one."""
    code = f"""
import numpy as np
from pathlib import Path
from semisparse.check import check
from semisparse.errors import SemisparseError
original, path = Path({str(exported)!r}).read_bytes(), Path({str(tmp_path / "m.onnx")!r})
rng = np.random.default_rng(0)
for _ in range(150):
    content = bytearray(original)
    for place in rng.integers(len(content), size=rng.integers(1, 8)):
        content[place] = rng.integers(256)
    path.write_bytes(content)
    try:
        check(path)
    except SemisparseError:
        pass
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_model_of_another_origin(tmp_path):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(FileFormatError, match=r"semisparse\.format None"):
        check(tmp_path / "m.onnx")


def test_later_format(file):
    change(file, lambda model: set_metadata(model, "semisparse.format", "2"))
    with pytest.raises(FileFormatError, match="'2' in its metadata and this version reads '1'"):
        check(file)


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "x"}', '{"a": [1]}'])
def test_metadata_that_is_no_json_of_sparsities(text, file):
    change(file, lambda model: set_metadata(model, "semisparse.sparsity", text))
    with pytest.raises(FileFormatError, match=r"semisparse\.sparsity"):
        check(file)


def test_source_out_of_the_plane(file):
    def point_outside(model):
        tensor = initializer(model, "0.source")
        source = numpy_helper.to_array(tensor).copy()
        source[0, 0] = 10_000
        tensor.CopyFrom(numpy_helper.from_array(source, "0.source"))

    change(file, point_outside)
    with pytest.raises(FileFormatError):
        check(file)


def test_source_of_another_size(file):
    def crop(model):
        tensor = initializer(model, "0.source")
        source = numpy_helper.to_array(tensor)[:4]
        tensor.CopyFrom(numpy_helper.from_array(source, "0.source"))

    change(file, crop)
    with pytest.raises(FileFormatError):
        check(file)


def test_weights_that_are_an_input(file):
    def open_weights(model):
        weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
        value = helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, weight.dims)
        model.graph.input.append(value)

    change(file, open_weights)
    with pytest.raises(FileFormatError, match="constant"):
        check(file)


# The measure


def test_relative_error():
    a = np.array([3.0, 4.0])
    assert relative_error(a, a) == 0
    assert relative_error(np.array([3, 4 + 5e-5]), a) == pytest.approx(1e-5)
    assert relative_error(np.array([0.5]), np.array([0.0])) == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_never_equal(bad):
    for computed, expected in ((bad, 1.0), (1.0, bad), (bad, bad)):
        assert relative_error(np.array([computed]), np.array([expected])) == np.inf


def test_shapes_that_differ_are_never_equal():
    assert relative_error(np.ones((2, 1)), np.ones((1, 2))) == np.inf
