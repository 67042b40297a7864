"""The examples run as they are, on less."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from semisparse.training import models

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        "own_loop.py",
        "accelerate_loop.py",
        "lightning_callback.py",
        "fixed_camera.py",
        "resnet18_flowers102.sh",
    }


@pytest.mark.parametrize("name", ["own_loop", "accelerate_loop", "lightning_callback"])
def test_a_loop_of_ones_own_learns_and_exports(name, tmp_path, monkeypatch, capsys):
    if name == "accelerate_loop":
        pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--epochs", "4", "--out", "digits.onnx"])
    # In this process, since importing torch takes longer than training here.
    space = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "accuracy" in capsys.readouterr().out
    images = torch.from_numpy(space["load_digits"]().images).float()[:, None] / 16
    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx")
    (logits,) = session.run(None, {"input": images.numpy()})
    accuracy = (logits.argmax(1) == space["load_digits"]().target).mean()
    assert accuracy > 0.8


def test_a_fixed_camera_needs_the_belt_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["fixed_camera", "--steps", "40", "--out", f"{tmp_path}/b.onnx"]
    )
    space = runpy.run_path(str(EXAMPLES / "fixed_camera.py"), run_name="__main__")
    assert "of the belt's pixels keep their class" in capsys.readouterr().out
    images, _ = space["scenes"](8, seed=2)
    found = []
    for name in ("b.onnx", "b.whole.onnx"):
        session = onnxruntime.InferenceSession(tmp_path / name)
        found.append(session.run(None, {"input": images.numpy()})[0])
    belt = space["belt"]()[::2, ::2].numpy()
    assert (np.equal(*(logits.argmax(1) for logits in found))[:, belt]).mean() > 0.98
    assert not np.allclose(*found, atol=1e-2)


def test_the_run_of_the_paper_takes_options_above_its_own(tmp_path):
    """Its data and weights are downloads, so it gets others here."""
    rng = np.random.default_rng(0)
    for label in ("iris", "rose"):
        folder = tmp_path / "flowers" / label
        folder.mkdir(parents=True)
        for index in range(12):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    torch.save(models.create("torchvision/resnet18", 2).state_dict(), tmp_path / "weights.pt")
    command = tmp_path / "bin" / "semisparse"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m semisparse "$@"\n')
    command.chmod(0o755)
    chosen = {
        "data": f"imagefolder:{tmp_path / 'flowers'}",
        "weights": tmp_path / "weights.pt",
        "image-size": 32,
        "epochs": 1,
        "batch-size": 8,
        "workers": 0,
        "out": tmp_path / "run",
    }
    options = [f"--{name}={value}" for name, value in chosen.items()]
    result = subprocess.run(
        [EXAMPLES / "resnet18_flowers102.sh", *options],
        env={**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "test accuracy" in result.stdout
    assert (tmp_path / "run" / "model.onnx").exists()
