"""The command line as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from onnx import numpy_helper
from typer.testing import CliRunner

import semisparse
from semisparse.cli import app
from semisparse.cli.console import tables_console
from semisparse.errors import FileFormatError

UINT8 = onnx.TensorProto.UINT8
COMMANDS = [
    "demo",
    "train",
    "apply",
    "tune",
    "export",
    "run",
    "compare",
    "bench",
    "check",
    "doctor",
]
DOCTOR = str(files("semisparse").joinpath("doctor.onnx"))


@pytest.fixture(scope="module")
def exported(invoke, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    invoke(
        *("export", "--model", "semisparse/resnet8", "--num-classes", 10, "--image-size", 32),
        *("--sparsity", 0.3, "--skip", "1x1", "--out", path, "--header", path.with_name("masks.h")),
    )
    return path


def test_help_lists_every_command_in_order(invoke):
    text = invoke("--help").stdout
    places = [text.index(f"│ {name} ") for name in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(invoke, command):
    text = invoke(command, "--help").stdout
    assert f"semisparse {command}" in text[text.index("Examples:") :]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_option_is_shown_as_written(command):
    """What looks like markup would be swallowed."""
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "1000"}).stdout
    options = typer.main.get_command(app).commands[command].params
    assert options
    for option in options:
        if option.help:
            assert option.help in text


def test_version(invoke):
    assert invoke("--version").stdout.strip() == semisparse.__version__


def test_no_command_is_help(invoke):
    assert "Commands" in invoke(code=2).output


@pytest.mark.parametrize("arguments", [["walk"], ["run"], ["run", "x.onnx", "--repeats", "0"]])
def test_misuse_is_exit_code_two(invoke, arguments):
    assert "Traceback" not in invoke(*arguments, code=2).output


def test_expected_error_is_one_line(refused):
    line = refused("run", "/nowhere/a[b]model.onnx")
    assert line.startswith("error: /nowhere/a[b]model.onnx is not a file")


def test_debug_shows_the_traceback():
    result = CliRunner().invoke(app, ["--debug", "run", "nothing.onnx"])
    assert isinstance(result.exception, FileFormatError)


def test_run_prints_output_and_latency(invoke):
    result = json.loads(invoke("run", DOCTOR, "--repeats", 5, "--threads", 1, "--json").stdout)
    latency = result["latency_ms"]
    assert 0 < latency["lower_quartile"] <= latency["median"] <= latency["upper_quartile"]
    assert result["repeats"] == 5
    assert result["threads"] == 1
    assert result["inputs"] == {"input": [1, 1, 2, 2]}
    assert result["outputs"][0]["shape"] == [1, 1, 2, 2]
    assert Path(result["library"]).is_file()
    text = invoke("run", DOCTOR, "--repeats", 1).stdout
    assert "1x1x2x2" in text
    assert "ms median of 1 runs" in text


def test_run_counts_its_threads(invoke):
    assert "1 thread, with" in invoke("run", DOCTOR, "--repeats", 1, "--threads", 1).stdout
    assert "2 threads, with" in invoke("run", DOCTOR, "--repeats", 1, "--threads", 2).stdout


def test_tables_in_a_file_are_as_wide_as_it_takes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    assert tables_console().width == 90
    monkeypatch.delenv("COLUMNS")
    assert tables_console().width == 200


def test_run_reads_the_input(invoke, refused, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array([1, 2, 3, 4], np.float32).reshape(1, 1, 2, 2))
    result = json.loads(invoke("run", DOCTOR, "--input", path, "--top", 2, "--json").stdout)
    assert result["outputs"][0]["top"] == [{"index": 3, "value": 5.0}, {"index": 2, "value": 3.0}]
    np.save(path, np.zeros((1, 1, 3, 3), np.float32))
    assert "[1, 1, 3, 3]" in refused("run", DOCTOR, "--input", path)


def test_run_of_a_size_that_the_masks_were_not_made_for(refused, exported, tmp_path):
    model = onnx.load(exported)
    for place, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 40, 40), np.float32))
    line = refused("run", tmp_path / "model.onnx", "--input", tmp_path / "x.npy")
    assert "does not run on input [1, 3, 40, 40]" in line


def test_run_with_and_without_the_library(invoke, refused, exported):
    results = [
        json.loads(invoke("run", exported, "--repeats", 1, "--json", flag).stdout)
        for flag in ("--library", "--no-library")
    ]
    tops = [[entry["index"] for entry in result["outputs"][0]["top"]] for result in results]
    assert tops[0] == tops[1]
    assert results[0]["library"]
    assert results[1]["library"] is None
    assert "ConvFillNearestRelu" in refused("run", DOCTOR, "--no-library")


def test_export_writes_model_and_header(exported):
    assert onnx.load(exported).opset_import
    assert "static const uint8_t" in exported.with_name("masks.h").read_text()


def test_export_masks_whole_blocks(invoke, tmp_path):
    path = tmp_path / "model.onnx"
    arguments = ("--model", "semisparse/resnet8", "--num-classes", 10, "--image-size", 32)
    invoke("export", *arguments, "--sparsity", 0.5, "--fill", "bias", "--block", 4, "--out", path)
    initializers = onnx.load(path).graph.initializer
    masks = [numpy_helper.to_array(entry) for entry in initializers if entry.data_type == UINT8]
    assert {mask.shape for mask in masks} == {(32, 32), (16, 16), (8, 8)}
    whole = [mask for mask in masks if mask.mean() == 0.5]
    assert {mask.shape for mask in whole} == {(32, 32), (16, 16), (8, 8)}
    for mask in whole:
        tiles = mask.reshape(mask.shape[0] // 4, 4, mask.shape[1] // 4, 4)
        assert (tiles == tiles[:, :1, :, :1]).all()
    for mask in masks:  # of some, positions that nothing reads are missing too
        assert any(m.shape == mask.shape and (mask <= m).all() for m in whole)


def test_export_fills_with_means(invoke, tmp_path):
    path = tmp_path / "model.onnx"
    arguments = ("--model", "semisparse/resnet8", "--num-classes", 10, "--image-size", 32)
    masks = ("--sparsity", 0.5, "--fill", "mean", "--only", "block-last")
    invoke("export", *arguments, *masks, "--out", path)
    found = [node for node in onnx.load(path).graph.node if "FillMean" in node.op_type]
    assert {node.op_type for node in found} == {"ConvFillMeanAddRelu"}
    assert len(found) == 3


def test_export_reports_its_layers(invoke, tmp_path):
    arguments = ("--model", "semisparse/resnet8", "--num-classes", 10, "--image-size", 32)
    path = tmp_path / "model.onnx"
    figures = json.loads(
        invoke("export", *arguments, "--sparsity", 0.5, "--out", path, "--json").stdout
    )
    assert figures["size"] == path.stat().st_size
    assert figures["errors"]["library"] < 1e-5
    masked = [layer for layer in figures["layers"] if layer["sparsity"] > 0]
    assert masked
    for layer in masked:
        plane = layer["height"] * layer["width"]
        assert layer["sparsity"] == pytest.approx(round(0.5 * plane) / plane)
    text = invoke("export", *arguments, "--out", path).stdout
    assert "32x32" in text
    assert "0.000" in text


def test_export_takes_height_and_width(invoke, tmp_path):
    path = tmp_path / "model.onnx"
    arguments = ("--model", "semisparse/resnet8", "--num-classes", 10, "--image-size", "24x40")
    text = invoke("export", *arguments, "--sparsity", 0.3, "--out", path).stdout
    for plane in ("24x40", "12x20", "6x10"):
        assert f" {plane} " in text
    sizes = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in sizes][1:] == [3, 24, 40]
    invoke("check", path)
    ran = json.loads(invoke("run", path, "--repeats", 1, "--json").stdout)
    assert ran["inputs"] == {"input": [1, 3, 24, 40]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --run"),
        (["--model", "semisparse/resnet8", "--image-size", "24 x 40"], "'24 x 40'; give HEIGHTx"),
        (["--model", "semisparse/resnet8", "--image-size", 0], "image_size is '0'"),
        (["--run", "a", "--model", "b"], "either --run"),
        (["--run", "/nowhere"], "/nowhere"),
        (["--model", "torchvision/resnet81"], "resnet18"),
        (["--model", "semisparse/resnet8", "--sparsity", 1], "sparsity"),
        (["--model", "semisparse/resnet8", "--sparsity", 0.2, "--fill", "zero"], "zero"),
        (["--model", "semisparse/resnet8", "--sparsity", 0.2, "--skip", "9x9"], "9x9"),
        (["--model", "semisparse/resnet8", "--sparsity", 0.2, "--block", 0], "block must be"),
        (["--model", "semisparse/resnet8", "--out", "/nowhere/m.onnx"], "/nowhere"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_export_refuses(refused, arguments, message, tmp_path):
    out = [] if "--out" in arguments else ["--out", tmp_path / "model.onnx"]
    assert message in refused("export", "--image-size", 32, *arguments, *out)
    assert list(tmp_path.iterdir()) == []


def test_check_agrees(invoke, exported):
    found = json.loads(invoke("check", exported, "--json").stdout)
    assert found["ok"]
    assert max(found["errors"].values()) < 1e-5
    assert "agrees" in invoke("check", exported).stdout


def test_check_sees_a_portable_body_that_differs(invoke, exported, tmp_path):
    model = onnx.load(exported)
    changed = 0
    for function in model.functions:
        for node in function.node:
            if node.op_type == "Relu":
                node.op_type = "Neg"
                changed += 1
    assert changed
    path = tmp_path / "tampered.onnx"
    onnx.save(model, path)
    assert "does not agree" in invoke("check", path, code=1).stdout
    assert not json.loads(invoke("check", path, "--json", code=1).stdout)["ok"]


def test_check_refuses_a_foreign_file(refused):
    assert "semisparse.format" in refused("check", DOCTOR) or "ConvFill" in refused("check", DOCTOR)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", [["run", DOCTOR, "--no-library"], ["check", DOCTOR]], ids=str)
def test_errors_of_onnxruntime_are_said_once(command):
    """In a process of its own: ONNX Runtime writes its log past Python's standard error."""
    code = f"sys.argv = ['semisparse', *{command!r}]\nfrom semisparse.__main__ import main\nmain()"
    result = python(code)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_the_command_says_so(package):
    result = python(
        f"sys.modules[{package!r}] = None\nfrom semisparse.__main__ import main\nmain()"
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "pip install 'semisparse[cli]'" in line


def test_without_torch_the_training_commands_say_so():
    code = """
sys.modules["torch"] = None
sys.argv = ["semisparse", "export", "--model", "semisparse/resnet8"]
from semisparse.__main__ import main
main()
"""
    result = python(code)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "torch" in line
    assert "pip install 'semisparse[train]'" in line


def test_the_command_needs_no_click():
    """typer brings its own copy; another package may or may not have installed click."""
    result = python("sys.modules['click'] = None\nimport semisparse.cli")
    assert result.returncode == 0, result.stderr


def test_console_script():
    result = subprocess.run(
        [Path(sys.executable).with_name("semisparse"), "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.strip() == semisparse.__version__
