"""`doctor` on a well installation and on broken ones."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from semisparse import doctor, native
from semisparse.cli import app


@pytest.fixture(autouse=True)
def fresh_library():
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def doctor_model() -> onnx.ModelProto:
    """The source of src/semisparse/doctor.onnx."""
    shape = [1, 1, 2, 2]
    nhwc = [1, 2, 2, 1]
    constants = {
        "shape": np.array(nhwc, np.int64),
        "weights": np.full((1, 1, 1, 1), 2, np.float32),
        "bias": np.array([-3], np.float32),
        "source": np.array([[0, 0], [2, 3]], np.int32),
        "nchw": np.array(shape, np.int64),
    }
    nodes = [
        helper.make_node("Reshape", ["input", "shape"], ["x"]),
        helper.make_node(
            "ConvFillNearestRelu",
            ["x", "weights", "bias", "source"],
            ["y"],
            name="conv",
            domain="semisparse",
            strides=[1, 1],
            pads=[0, 0, 0, 0],
            dilations=[1, 1],
            group=1,
        ),
        helper.make_node("Reshape", ["y", "nchw"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "doctor",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("semisparse", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="semisparse")


def test_model_is_the_one_described_here():
    shipped = files("semisparse").joinpath("doctor.onnx").read_bytes()
    assert onnx.load_from_string(shipped) == doctor_model()


def test_model_needs_the_library():
    with pytest.raises(Exception, match="ConvFillNearestRelu"):
        onnxruntime.InferenceSession(doctor_model().SerializeToString())


def test_well_installation():
    found = doctor.diagnose()
    assert found.problems == []
    assert found.healthy
    assert found.accepted
    assert found.isas[found.isa]
    assert any(found.kernels.values())
    assert found.versions["library"] == found.versions["semisparse"]


@pytest.mark.parametrize("isa", [name for name, usable in native.isa_names().items() if usable])
def test_every_instruction_set_runs(isa, monkeypatch):
    monkeypatch.setenv("SEMISPARSE_ISA", isa)
    found = doctor.diagnose()
    assert found.isa == isa
    assert found.accepted


def test_unknown_instruction_set_is_a_problem(monkeypatch):
    monkeypatch.setenv("SEMISPARSE_ISA", "mmx")
    found = doctor.diagnose()
    assert not found.healthy
    assert any("mmx" in problem for problem in found.problems)
    assert not found.accepted


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_broken_library_is_a_problem(content, monkeypatch, tmp_path):
    path = tmp_path / "libsemisparse.so"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("SEMISPARSE_LIBRARY", str(path))
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["healthy"]
    assert found["library"] is None
    assert str(path) in found["problems"][0]


def test_library_of_another_kind_is_a_problem(monkeypatch):
    numpy_core = next(Path(np.__file__).parent.glob("_core/_multiarray_umath*.so"))
    monkeypatch.setenv("SEMISPARSE_LIBRARY", str(numpy_core))
    assert not doctor.diagnose().healthy


def test_command_prints_everything():
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for expected in ("onnxruntime", "instruction sets", "kernels", "All is well."):
        assert expected in result.stdout
