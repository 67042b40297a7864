from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from rich.progress import Progress
from typer.testing import CliRunner

from semisparse.cli import app
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, DataError, ModelError
from semisparse.layers import masked_layers
from semisparse.training import data, history, run, saved, settings
from semisparse.training.settings import TrainSettings

# Seven steps an epoch at a quarter of the usual area.
QUICK = {"model": "semisparse/resnet8", "data": "digits", "image_size": 16, "batch_size": 160}
SPARSE = TrainSettings(**QUICK, sparsity=SparsityConfig.paper(0.3), epochs=3)


class Notes(Progress):
    """A bar that keeps what it was told to note."""

    def __init__(self) -> None:
        super().__init__(disable=True)
        self.noted = []

    def update(self, task_id, **fields):
        if "note" in fields:
            self.noted.append(fields["note"])
        super().update(task_id, **fields)


@pytest.fixture(scope="module")
def bar() -> Notes:
    return Notes()


@pytest.fixture(scope="module")
def finished(bar, tmp_path_factory) -> tuple[Path, run.RunResult]:
    out = tmp_path_factory.mktemp("runs") / "finished"
    return out, run.train(SPARSE, out, progress=bar)


def test_a_run_leaves_the_folder_that_its_documentation_lists(finished):
    out, result = finished
    assert {str(p.relative_to(out)) for p in out.rglob("*") if "tensorboard" not in str(p)} == {
        "config.json",
        "checkpoints",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "checkpoints/best.ckpt",
        "metrics.csv",
        "model.pt",
        "model.onnx",
        "masks.h",
        "result.json",
    }
    assert list((out / "tensorboard").glob("events.*"))
    assert settings.read(out) == SPARSE
    stored = json.loads((out / "result.json").read_text())
    assert stored["test_accuracy"] == result.test_accuracy
    assert all(abs(value - 0.3) <= 0.5 / 16 for value in stored["sparsities"].values())
    assert "mask_layer1_0_conv1[16][16]" in (out / "masks.h").read_text()


def test_the_bar_tells_how_far_validation_and_test_are(finished, bar):
    result = finished[1]
    assert bar.noted.count("validating, 1/1 batches") == 4  # after the epochs, and at the end
    validation = f"validation {100 * result.val_accuracy:.1f}%"
    test = f"{validation}, test {100 * result.test_accuracy:.1f}%"
    assert bar.noted[-5:] == [validation, *(f"testing, {n}/3 batches" for n in (1, 2, 3)), test]


def test_the_curves_have_a_row_for_each_epoch(finished):
    rows = history.read(finished[0] / "metrics.csv")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [row["step"] for row in rows] == [7, 14, 21]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    sparsities = [row["sparsity"] for row in rows]
    assert sparsities == sorted(sparsities)
    assert sparsities[-1] == pytest.approx(0.3)


def test_a_loaded_run_and_its_export_repeat_the_test_accuracy(finished):
    out, result = finished
    model, example, config = saved.load_run(out)
    assert config == SPARSE.sparsity
    assert example.shape == (1, 1, 16, 16)
    assert set(masked_layers(model)) == set(result.sparsities)
    test = data.load("digits", image_size=16).test
    images, labels = zip(*(test[index] for index in range(len(test))), strict=True)
    batch, truth = torch.stack(images), torch.tensor(labels)
    with torch.no_grad():
        logits = model(batch)
    assert float((logits.argmax(1) == truth).float().mean()) == pytest.approx(result.test_accuracy)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    exported = session.run(None, {"input": batch.numpy()})[0]
    np.testing.assert_allclose(exported, logits.numpy(), rtol=1e-3, atol=1e-4)


def test_a_run_that_failed_in_its_first_epoch_begins_again(train_until, finished, tmp_path):
    out, result = finished
    again = tmp_path / "run"
    train_until(SPARSE, again, 3)
    assert not (again / "result.json").exists()
    resumed = run.train(SPARSE, again, resume=True, progress=Progress(disable=True))
    assert resumed == result
    expected = torch.load(out / "model.pt", weights_only=True)
    found = torch.load(again / "model.pt", weights_only=True)
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value), name
    for name, mask in expected["sparsifier"]["masks"].items():
        assert torch.equal(found["sparsifier"]["masks"][name], mask), name
    assert (again / "masks.h").read_text() == (out / "masks.h").read_text()
    assert len(history.read(again / "metrics.csv")) == 3


def test_resuming_a_finished_run_changes_nothing(finished):
    out, result = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run.train(SPARSE, out, resume=True) == result
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_dense_run_has_no_masks(tmp_path):
    out = tmp_path / "dense"
    result = run.train(TrainSettings(**QUICK, epochs=1), out, progress=Progress(disable=True))
    assert result.sparsities == {}
    assert not (out / "masks.h").exists()
    model, _, config = saved.load_run(out)
    assert config is None
    assert masked_layers(model) == {}


def test_a_folder_that_holds_something_is_not_overwritten(finished, tmp_path):
    out, _ = finished
    with pytest.raises(ConfigError, match="exists already"):
        run.train(SPARSE, out)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        run.train(SPARSE, tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be written"):
        run.train(SPARSE, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_resume_with_other_settings_shows_the_difference(finished):
    other = TrainSettings(**QUICK, sparsity=SPARSE.sparsity, epochs=5)
    with pytest.raises(ConfigError, match="epochs: 5, not 3"):
        run.train(other, finished[0], resume=True)


def test_what_is_no_finished_run_is_not_loaded(finished, tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        saved.load_run(tmp_path)
    (tmp_path / "config.json").write_text((finished[0] / "config.json").read_text())
    with pytest.raises(ConfigError, match="not finished"):
        saved.load_run(tmp_path)
    (tmp_path / "model.pt").write_bytes((finished[0] / "model.pt").read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be read"):
        saved.load_run(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        saved.load_run(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"label_smoothing": -0.1},
        {"weight_decay": -1.0},
        {"schedule": "step"},
        {"workers": -1},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        TrainSettings(**{**QUICK, **wrong})


def test_settings_survive_their_json_form():
    assert TrainSettings.from_dict(json.loads(json.dumps(SPARSE.to_dict()))) == SPARSE
    with pytest.raises(ConfigError, match="version 9"):
        TrainSettings.from_dict({**SPARSE.to_dict(), "version": 9})
    with pytest.raises(ConfigError, match="colour"):
        TrainSettings.from_dict({**SPARSE.to_dict(), "colour": "red"})


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"model": "semisparse/resnet88"}, ModelError, "did you mean"),
        ({"data": "digit"}, DataError, "did you mean"),
        ({"model": "torchvision/alexnet"}, ModelError, "another image size"),
        ({"model": "torch.nn:Flatten"}, ModelError, "one logit a class"),
    ],
)
def test_a_model_or_data_that_does_not_fit_is_refused_before_training(
    train_until, tmp_path, changed, error, message
):
    with pytest.raises(error, match=message):
        train_until(TrainSettings(**{**QUICK, **changed}), tmp_path / "run", 1)


def test_a_run_that_failed_before_it_learned_anything_may_be_started_over(train_until, tmp_path):
    wrong = TrainSettings(**QUICK, sparsity=SparsityConfig(0.3, skip=["head.*"]))
    with pytest.raises(ConfigError, match=r"head\.\*"):
        run.train(wrong, tmp_path / "run", progress=Progress(disable=True))
    train_until(SPARSE, tmp_path / "run", 1)
    assert settings.read(tmp_path / "run") == SPARSE


def command(*arguments: str):
    return CliRunner().invoke(app, ["train", *arguments])


def test_the_command_trains_and_prints_json(tmp_path):
    out = tmp_path / "run"
    chosen = ["--model", "semisparse/resnet8", "--data", "digits", "--image-size", "16"]
    chosen += ["--batch-size", "160", "--epochs", "1", "--sparsity", "0.2", "--skip", "1x1"]
    chosen += ["--block", "2"]
    result = command(*chosen, "--schedule", "linear", "--out", str(out), "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert 0 <= figures["test_accuracy"] <= 1
    assert "layer1.0.conv1" in figures["sparsities"]
    assert "layer2.0.downsample.0" not in figures["sparsities"]
    assert settings.read(out).sparsity.block == 2
    for mask in masked_layers(saved.load_run(out)[0]).values():
        assert torch.equal(mask.mask[::2, ::2], mask.mask[1::2, 1::2])

    again = command("--resume", str(out), "--skip", "1x1", "--epochs", "1", "--json")
    assert json.loads(again.stdout) == figures
    refused = command("--resume", str(out), "--epochs", "7", "--fill", "bias", "--block", "1")
    assert refused.exit_code == 1
    assert "fill: bias, not nearest" in refused.stderr
    assert "block: 1, not 2" in refused.stderr
    assert "epochs: 7, not 1" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_command_tells_what_is_missing(tmp_path):
    result = command("--model", "semisparse/resnet8", "--out", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert "--data" in result.stderr
    result = command("--resume", str(tmp_path))
    assert result.exit_code == 1
    assert "not a run folder" in result.stderr
