"""The README's commands and code, run as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def run(command: list[str], folder: Path) -> None:
    # The console script lies beside the interpreter of the tests.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_python_runs(tmp_path):
    (code,) = blocks("python")
    run([sys.executable, "-c", code], tmp_path)
    assert {"model.onnx", "masks.h"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("block", blocks("bash"), ids=lambda block: block.split("\n")[0])
def test_commands_run(block, tmp_path):
    run(["bash", "-euo", "pipefail", "-c", block], tmp_path)


def test_the_library_path_is_found_as_described(tmp_path):
    (command,) = re.findall(r"`(python -c .*?)`", README)
    run(["bash", "-c", f"test -f $({command})"], tmp_path)


def test_the_library_serves_a_plain_onnxruntime(tmp_path):
    """As in C++ and other languages: no semisparse in the process, only the library's path."""
    import torch

    import semisparse
    from semisparse.training.models import create

    torch.manual_seed(0)
    model, x = create("semisparse/resnet8", 10).eval(), torch.randn(2, 3, 32, 32)
    config = semisparse.SparsityConfig(0.3)
    sparsifier = semisparse.Sparsifier(model, x, config, total_steps=1)
    sparsifier.freeze()
    semisparse.export_onnx(model, x, tmp_path / "model.onnx")
    np.save(tmp_path / "x.npy", x.numpy())
    code = """
import json, sys
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
options.enable_profiling = True
session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
np.save("y.npy", session.run(None, {"input": np.load("x.npy")})[0])
ran = [event.get("args", {}).get("op_name") for event in json.load(open(session.end_profiling()))]
fused = ("ConvNchwFillNearestRelu", "ConvFillNearestRelu", "ConvFillNearestAddRelu")
assert sum(name in fused for name in ran) == 7, ran
assert "semisparse" not in sys.modules
"""
    run([sys.executable, "-c", code, str(semisparse.library_path())], tmp_path)
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-3, atol=1e-5)


def test_make_targets_exist():
    targets = set(re.findall(r"^    make (\w+)", README, re.MULTILINE))
    assert targets == {"demo", "test"}
    for target in targets:
        run(["make", "-n", target], ROOT)


def test_extras_exist():
    from importlib.metadata import metadata

    provided = metadata("semisparse").get_all("Provides-Extra")
    named = re.findall(r'^    pip install "\.\[(\w+)\]"', README, re.MULTILINE)
    assert named
    assert set(named) <= set(provided)


def test_links_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"
