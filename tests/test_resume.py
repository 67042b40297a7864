"""Runs that are killed, stopped, cut short of space or handed damaged files, and go on."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, TrainingError
from semisparse.training import checkpoints, history, run
from semisparse.training.progress import RunProgress, bars
from semisparse.training.settings import TrainSettings

# Five steps an epoch.
QUICK = {
    "model": "semisparse/resnet8",
    "data": "digits",
    "image_size": 8,
    "batch_size": 240,
    "epochs": 2,
    "checkpoint_steps": 2,
}
SPARSE = {**QUICK, "sparsity": SparsityConfig(0.3, fill="bias", begin=0.1, end=0.9)}


@pytest.fixture(autouse=True, scope="module")
def without_export():
    """Exporting takes longer than training here, and nothing of it depends on an interruption."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "export_onnx", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    """An image folder, which is augmented by random crops and flips."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for index in range(60):
            pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return f"imagefolder:{folder}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a sparse run that nothing interrupted."""
    return finish(SPARSE, tmp_path_factory.mktemp("runs") / "whole")


def finish(chosen: dict, out: Path, *, resume: bool = False) -> Path:
    run.train(TrainSettings(**chosen), out, resume=resume, progress=Progress(disable=True))
    return out


def start(launch, chosen: dict, out: Path):
    """The command of these settings, or the one that goes on, in a process of its own."""
    if (out / "config.json").exists():
        return launch(["train", "--resume", str(out)], out)
    path = out.with_suffix(".json")
    path.write_text(json.dumps(TrainSettings(**chosen).to_dict()))
    return launch(["train", "--config", str(path), "--out", str(out)], out)


def wait_for_checkpoints(process, out: Path, count: int) -> None:
    """Until so many more have been written, or the run has ended."""
    path = out / "checkpoints" / "last.ckpt"
    seen = {path.stat().st_ino if path.exists() else 0}
    for _ in range(60_000):
        # The last one is away for a moment, while it becomes the previous one.
        with suppress(FileNotFoundError):
            seen.add(path.stat().st_ino)
        if len(seen) > count or not process.is_alive():
            return
        time.sleep(0.001)
    raise TimeoutError(f"{path} was written {len(seen) - 1} times in a minute, not {count}")


def same(out: Path, expected: Path) -> None:
    found, wanted = (torch.load(path / "model.pt", weights_only=True) for path in (out, expected))
    assert found["model"].keys() == wanted["model"].keys()
    for name, value in wanted["model"].items():
        assert torch.equal(found["model"][name], value), name
    if wanted["sparsifier"]:
        for name, mask in wanted["sparsifier"]["masks"].items():
            assert torch.equal(found["sparsifier"]["masks"][name], mask), name
        assert (out / "masks.h").read_bytes() == (expected / "masks.h").read_bytes()
    assert (out / "result.json").read_text() == (expected / "result.json").read_text()
    assert list(out.rglob(".*")) == []
    rows = [history.read(path / "metrics.csv") for path in (out, expected)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"sparsity": SPARSE["sparsity"], "workers": 1, "ema": 0.9},
        {"data": "photos", "batch_size": 24, "sparsity": SparsityConfig(0.3, begin=0.1, end=0.9)},
    ],
    ids=["dense", "sparse with workers and averaged weights", "sparse with augmentation"],
)
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(launch, changed, photos, tmp_path):
    chosen = {**QUICK, **changed}
    if chosen["data"] == "photos":
        chosen["data"] = photos
    expected = finish(chosen, tmp_path / "whole")
    moments, out, codes = random.Random(), tmp_path / "killed", []
    for _ in range(2):
        process = start(launch, chosen, out)
        wait_for_checkpoints(process, out, moments.randint(1, 2))
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        codes.append(process.exitcode)
    # On a fast machine the second process may have reached the end.
    assert codes[0] == -signal.SIGKILL
    assert codes[1] in (-signal.SIGKILL, 0)
    same(finish(chosen, out, resume=True), expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_writes_what_it_needs_to_go_on(launch, number, whole, tmp_path):
    chosen, out = {**SPARSE, "checkpoint_steps": 0}, tmp_path / "stopped"
    process = start(launch, chosen, out)
    curves = out / "tensorboard"
    while not any(path.stat().st_size > 500 for path in curves.glob("events.*")):
        time.sleep(0.01)
        assert process.is_alive()
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode != 0
    errors = out.with_suffix(".err").read_text()
    assert f"go on with: semisparse train --resume {out}\n" in errors
    assert "Traceback" not in errors
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < state["global_step"] < 10
    same(finish(chosen, out, resume=True), whole)


class Event(Progress):
    """Progress that calls something when the bar reaches a step."""

    def __init__(self, step: int, action) -> None:
        super().__init__(disable=True)
        self.step, self.action = step, action

    def update(self, task_id, **fields):
        super().update(task_id, **fields)
        if fields.get("completed") == self.step:
            self.action()


def test_a_full_disk_is_one_error_and_loses_nothing(whole, tmp_path):
    out = tmp_path / "full"
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    # More than curves need and less than a checkpoint does.
    limit = [100_000, unlimited[1]]
    fill_up = Event(6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    try:
        with pytest.raises(ConfigError, match=rf"{out} cannot be written .* make room"):
            run.train(TrainSettings(**SPARSE), out, progress=fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 5
    same(finish(SPARSE, out, resume=True), whole)


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    half = len(content) // 2
    with zipfile.ZipFile(path) as archive:
        tensor = max((archive.read(name) for name in archive.namelist()), key=len)
    weight = content.index(tensor) + len(tensor) // 2
    path.write_bytes(
        {
            "empty": b"",
            "one byte": content[:1],
            "half": content[:half],
            "all but one byte": content[:-1],
            "zeros": bytes(len(content)),
            "a bit of a weight": content[:weight]
            + bytes([content[weight] ^ 1])
            + content[weight + 1 :],
            "another file": b"epoch,step\n0,7\n",
        }[how]
    )


@pytest.fixture
def kept(whole, tmp_path) -> Path:
    """The folder of a run that was interrupted after its last step."""
    out = tmp_path / "kept"
    shutil.copytree(whole, out, ignore=shutil.ignore_patterns("model.*", "masks.h", "result.json"))
    return out


@pytest.mark.parametrize(
    "how",
    ["empty", "one byte", "half", "all but one byte", "zeros", "a bit of a weight", "another file"],
)
def test_a_damaged_checkpoint_is_told_and_the_previous_one_taken(kept, how):
    folder, console = kept / "checkpoints", Console(record=True, width=1000)
    assert checkpoints.resumable(folder, console) == folder / "last.ckpt"
    damage(folder / "last.ckpt", how)
    assert checkpoints.resumable(folder, None) == folder / "previous.ckpt"
    assert checkpoints.resumable(folder, console) == folder / "previous.ckpt"
    assert f"{folder}/last.ckpt cannot be read" in (text := console.export_text())
    assert f"going on from {folder}/previous.ckpt" in text
    assert checkpoints.resumable(folder, console) == folder / "previous.ckpt"
    assert console.export_text() == ""
    damage(folder / "previous.ckpt", how)
    with pytest.raises(ConfigError, match=rf"previous.ckpt cannot be read .*remove {folder}"):
        checkpoints.resumable(folder, console)


def test_a_checkpoint_may_be_cut_anywhere(kept):
    path, moments = kept / "checkpoints" / "last.ckpt", random.Random()
    content = path.read_bytes()
    for _ in range(20):
        path.write_bytes(content[: moments.randrange(len(content))])
        assert checkpoints.resumable(path.parent, None) == path.with_name("previous.ckpt")


def test_a_run_goes_on_from_the_previous_checkpoint(kept, whole):
    damage(kept / "checkpoints" / "last.ckpt", "half")
    same(finish(SPARSE, kept, resume=True), whole)
    names = {path.name for path in (kept / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "previous.ckpt", "best.ckpt", "damaged.ckpt"}


def test_what_follows_the_last_step_is_done_again(kept, whole):
    before = (kept / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    same(finish(SPARSE, kept, resume=True), whole)
    assert (kept / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_the_time_left_is_told_from_the_steps_of_this_process():
    clock = iter(range(10_000))
    with bars(Console(quiet=True)) as progress:
        progress.get_time = lambda: float(next(clock))
        callback = RunProgress(progress, "run")
        trainer = SimpleNamespace(
            is_global_zero=True, estimated_stepping_batches=1000, global_step=900
        )
        callback.on_train_start(trainer, None)
        for trainer.global_step in range(901, 911):
            callback.on_train_batch_end(trainer, None, None, None, 0)
        (task,) = progress.tasks
        assert task.completed == 910
        # At a step a second, give or take the bar's own looks at the clock.
        assert 60 <= task.time_remaining <= 270


def test_a_loss_that_is_not_finite_ends_the_run_and_not_its_checkpoints(tmp_path):
    """A learning rate that no training survives."""
    diverging = {**QUICK, "learning_rate": 1e30, "clip_gradient": 0.0, "checkpoint_steps": 0}
    out = tmp_path / "diverged"
    with pytest.raises(
        TrainingError, match=r"The loss is \S+ at step 2 of 10 \(learning rate 9.76e\+29\)"
    ):
        finish(diverging, out)
    # It ends before its first epoch does.
    assert not list((out / "checkpoints").glob("*"))


def test_weights_that_are_not_finite_reach_no_checkpoint(tmp_path, monkeypatch):
    module: list[torch.nn.Module] = []
    create = run.Classifier

    def watched(*arguments, **options):
        module.append(create(*arguments, **options))
        return module[-1]

    def spoil():
        module[0].model.fc.weight.data[0] = -torch.inf

    monkeypatch.setattr(run, "Classifier", watched)
    out = tmp_path / "spoilt"
    last = out / "checkpoints" / "last.ckpt"
    with pytest.raises(TrainingError, match=rf"not finite after step 6 .*--weights {last}"):
        run.train(TrainSettings(**{**QUICK, "checkpoint_steps": 1}), out, progress=Event(6, spoil))
    assert torch.load(last, weights_only=True)["global_step"] == 5
    with pytest.raises(ConfigError, match=rf"learning_rate: 0.01, not 0.1.*--weights {last}"):
        finish({**QUICK, "checkpoint_steps": 1, "learning_rate": 0.01}, out, resume=True)
    finish({**QUICK, "learning_rate": 0.01, "weights": str(last)}, tmp_path / "anew")


def test_a_run_goes_on_with_other_workers_but_not_with_another_recipe(kept, whole):
    free = {"workers": 1, "data_root": "/elsewhere", "checkpoint_steps": 1, "accelerator": "cpu"}
    with pytest.raises(ConfigError, match=r"devices: 2, not 1"):
        finish({**SPARSE, "devices": 2}, kept, resume=True)
    with pytest.raises(ConfigError, match=r"batch_size: 20, not 240"):
        finish({**SPARSE, **free, "batch_size": 20}, kept, resume=True)
    (kept / "checkpoints" / "last.ckpt").unlink()
    same(finish({**SPARSE, **free}, kept, resume=True), whole)
