"""Runs on two processes, with Gloo."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from semisparse.training import data, run, saved, settings

# Seven steps an epoch on each of two processes.
QUICK = ["--data", "digits", "--image-size", "8", "--batch-size", "80", "--epochs", "2"]
QUICK += ["--sparsity", "0.3", "--sparsity-begin", "0.1", "--sparsity-end", "0.9", "--fill", "bias"]
TWO = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp"]

# A model that is itself on the first process, and goes wrong on the second.
FACTORIES = """
import os
from semisparse.errors import DataError
from semisparse.sparsifier import Sparsifier
from semisparse.training import models

SECOND = os.environ.get("LOCAL_RANK") == "1"

def resnet():
    return models.create("semisparse/resnet8", 10, input_channels=1)

def other_masks():
    if SECOND:
        draw = Sparsifier._draw
        def reseeded(self):
            self._generator.manual_seed(99)
            return draw(self)
        Sparsifier._draw = reseeded
    return resnet()

def failing_at_step(step, change):
    model, calls = resnet(), []
    def hook(module, inputs, output):
        calls.append(module.training)
        return change(output) if SECOND and calls.count(True) == step else output
    model.register_forward_hook(hook)
    return model

def infinite():
    return failing_at_step(9, lambda output: output / 0)

def broken():
    def fail(output):
        raise DataError("the second disk is gone")
    return failing_at_step(9, fail)
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "factories.py").write_text(FACTORIES)
    return folder


def start(launch, log: Path, *arguments: str) -> list[BaseProcess]:
    """Two processes of one run, as a launcher of clusters starts them."""
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    return [
        launch(["train", *arguments], Path(f"{log}{rank}"), LOCAL_RANK=str(rank), **place)
        for rank in range(2)
    ]


def ended(processes: list[BaseProcess], log: Path) -> tuple[list[int | None], str, str]:
    """Their exit codes, and what both printed and reported."""
    for process in processes:
        process.join(300)
        process.kill()
    printed, errors = (
        "".join(Path(f"{log}{rank}.{name}").read_text() for rank in range(2))
        for name in ("out", "err")
    )
    return [process.exitcode for process in processes], printed, errors


def free_port() -> str:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return str(taken.getsockname()[1])


@pytest.fixture(scope="module")
def two(workplace) -> tuple[Path, dict]:
    """A finished run on two processes that Lightning started, and what it printed."""
    command = [sys.executable, "-m", "semisparse", "train", "--model", "semisparse/resnet8"]
    ran = subprocess.run(
        [*command, *QUICK, *TWO, "--out", "two", "--json"],
        cwd=workplace,
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr
    return workplace / "two", json.loads(ran.stdout)


def test_two_processes_leave_one_run(two):
    out, figures = two
    stored = json.loads((out / "result.json").read_text())
    assert {"out": "two", **stored} == figures
    assert all(0.2 <= value <= 0.4 for value in figures["sparsities"].values())
    assert len((out / "metrics.csv").read_text().splitlines()) == 3
    assert settings.read(out).devices == 2


def test_every_image_is_tested_once(two):
    out, figures = two
    model, _, _ = saved.load_run(out)
    images = data.load("digits", image_size=8).test
    batch, truth = zip(*(images[index] for index in range(len(images))), strict=True)
    with torch.no_grad():
        logits = model(torch.stack(batch))
    truth = torch.tensor(truth)
    # 450 images are no multiple of the two processes' batches.
    right = int((logits.argmax(1) == truth).sum())
    assert figures["test_accuracy"] == pytest.approx(right / 450, abs=1e-6)
    loss = torch.nn.functional.cross_entropy(logits, truth)
    assert figures["test_loss"] == pytest.approx(float(loss), rel=1e-4)


def test_two_processes_go_on_to_the_same_end(launch, two, workplace):
    out, figures = two
    again = workplace / "again"
    finished = shutil.ignore_patterns("last.ckpt", "model.*", "masks.h", "result.json")
    shutil.copytree(out, again, ignore=finished)
    log = workplace / "log-again"
    codes, printed, errors = ended(start(launch, log, "--resume", "again", "--json"), log)
    assert codes == [0, 0], errors
    assert json.loads(printed) == {**figures, "out": "again"}
    first, second = (torch.load(x / "model.pt", weights_only=True) for x in (out, again))
    for name, value in first["model"].items():
        assert torch.equal(second["model"][name], value), name


@pytest.mark.parametrize(
    ("factory", "messages"),
    [
        ("other_masks", [r"masks of stem\.0, .*layer3\.0\.downsample\.0 differ between the 2"]),
        ("infinite", [r"The loss is \S+ at step 9 of 14 \(learning rate 0\.0395\); .*last\.ckpt"]),
        ("broken", [r"One of the 2 processes ended early", r"the second disk is gone"]),
    ],
)
def test_what_goes_wrong_on_one_process_ends_both(launch, workplace, factory, messages):
    log = workplace / f"log-{factory}"
    model = ["--model", f"factories:{factory}"]
    codes, printed, errors = ended(start(launch, log, *model, *QUICK, *TWO, "--out", factory), log)
    assert codes[0] == 1
    assert printed == ""
    assert "Traceback" not in errors
    found = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(found) == len(messages), errors
    for line, message in zip(found, messages, strict=True):
        assert re.search(message, line)
    if factory != "other_masks":
        last = torch.load(workplace / factory / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == 7
        assert all(value.isfinite().all() for value in last["state_dict"].values())


def test_a_stop_is_granted_by_both_after_one_step(launch, workplace):
    log, long = workplace / "log-long", ["--epochs", "50", "--out", "long"]
    model = ["--model", "semisparse/resnet8"]
    processes = start(launch, log, *model, *QUICK, *TWO, *long)
    curves = workplace / "long" / "tensorboard"
    while not any(path.stat().st_size > 500 for path in curves.glob("events.*")):
        assert processes[0].is_alive()
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGINT)
    codes, printed, errors = ended(processes, log)
    assert codes[0] != 0
    assert printed == ""
    assert errors.count("go on with: semisparse train --resume long") == 1
    assert "Traceback" not in errors
    assert (workplace / "long" / "checkpoints" / "last.ckpt").is_file()


def test_a_launcher_of_other_processes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "3")
    options = settings.TrainSettings("semisparse/resnet8", "digits", devices=2, accelerator="cpu")
    with pytest.raises(run.ConfigError, match=r"torchrun started 3 processes, but .* 2 devices"):
        run.train(options, tmp_path / "run")
