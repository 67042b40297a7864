from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torch import nn
from typer.testing import CliRunner

from semisparse.cli import app
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError
from semisparse.layers import masked_layers
from semisparse.training import models, recipe, run, saved  # before Lightning
from semisparse.training.averaging import MovingAverage
from semisparse.training.callback import SparsityCallback
from semisparse.training.data import ImageData
from semisparse.training.module import Classifier
from semisparse.training.settings import TrainSettings

import lightning.pytorch as lightning  # isort: skip

QUICK = {"model": "semisparse/resnet8", "data": "digits", "image_size": 8, "batch_size": 160}


def options(**changes) -> TrainSettings:
    return TrainSettings(**{**QUICK, **changes})


@pytest.mark.parametrize(
    ("name", "expected", "values"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.8}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.8}),
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {}),
    ],
)
def test_weights_decay_but_not_biases_and_batch_norm(name, expected, values):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1, bias=False))
    model[2].weight.requires_grad = False
    chosen = options(optimizer=name, learning_rate=0.03, momentum=0.8, weight_decay=0.01)
    optimizer = recipe.optimizer(model.parameters(), chosen)
    assert type(optimizer) is expected
    decayed, rest = optimizer.param_groups
    assert decayed["params"] == [model[0].weight]
    assert rest["params"] == [model[0].bias, model[1].weight, model[1].bias]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.01, 0)
    for group in optimizer.param_groups:
        assert {"lr": 0.03, **values}.items() <= group.items()


@pytest.mark.parametrize(
    ("name", "half"), [("linear", 0.2 * 0.505), ("cosine", 0.2 * (0.01 + 0.99 / 2))]
)
def test_the_learning_rate_falls_to_a_hundredth(name, half):
    chosen = options(learning_rate=0.2, schedule=name)
    optimizer = recipe.optimizer([nn.Parameter(torch.zeros(2, 2))], chosen)
    schedule = recipe.schedule(optimizer, chosen, 100)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(100):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == 0.2
    assert rates[50] == pytest.approx(half)
    assert rates[100] == pytest.approx(0.002)
    assert rates == sorted(rates, reverse=True)


class Trace(lightning.Callback):
    """Averages in float64 what the model is after every step, by the formula."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.averages: dict[str, torch.Tensor] = {}
        self.steps = 0
        self.validated: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.steps else 0
        for name, value in pl_module.model.state_dict().items():
            if value.is_floating_point():
                before = self.averages.get(name, torch.zeros_like(value, dtype=torch.float64))
                self.averages[name] = decay * before + (1 - decay) * value.double()
        self.steps += 1

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.validated.append({k: v.clone() for k, v in pl_module.model.state_dict().items()})

    def on_validation_batch_end(self, trainer, pl_module, *_):
        for name, value in self.averages.items():
            torch.testing.assert_close(
                pl_module.model.state_dict()[name].double(), value, rtol=1e-4, atol=1e-5
            )


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return ImageData("digits", image_size=8, batch_size=200)


@pytest.mark.parametrize("end", [0.6, 1.0])
def test_validation_and_the_final_model_have_the_averages_and_the_masks(digits, end):
    model = models.create("semisparse/resnet8", 10, input_channels=1)
    masks = SparsityConfig(0.3, fill="nearest", end=end)
    sparsity = SparsityCallback(masks, digits.example_input, target="model")
    trace = Trace(0.8)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[sparsity, MovingAverage(0.8), trace],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    module = Classifier(model, 10, options())
    trainer.fit(module, digits)
    assert trace.steps == 12
    assert len(trace.validated) == 2
    for name, value in trace.averages.items():
        torch.testing.assert_close(model.state_dict()[name].double(), value, rtol=1e-4, atol=1e-5)
    frozen = sparsity.sparsifier.masks
    for name, layer in masked_layers(model).items():
        assert torch.equal(layer.mask, frozen[name])
        if end < 1:
            assert torch.equal(trace.validated[-1][f"{name}.mask"], frozen[name])
        # What the forward pass reads is of the same mask.
        assert set(layer._source.tolist()) == set(frozen[name].flatten().nonzero()[:, 0].tolist())


def weights(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / "model.pt", weights_only=True)["model"]


def test_a_run_with_averages_resumes_to_the_same_ones(train_until, tmp_path):
    chosen = options(epochs=2, ema=0.9, sparsity=SparsityConfig(0.2), checkpoint_steps=2)
    run.train(chosen, tmp_path / "whole", progress=Progress(disable=True))
    train_until(chosen, tmp_path / "cut", 10)
    resumed = run.train(chosen, tmp_path / "cut", resume=True, progress=Progress(disable=True))
    expected = weights(tmp_path / "whole")
    for name, value in weights(tmp_path / "cut").items():
        assert torch.equal(value, expected[name]), name
    # The best checkpoint's state is the averages', that of the last epoch the exported one.
    checkpoint = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in expected.items():
        assert torch.equal(checkpoint["state_dict"][f"model.{name}"], value), name
    assert not torch.equal(
        checkpoint["current_model_state"]["model.fc.weight"], expected["fc.weight"]
    )
    # The process died between the last epoch's checkpoint and the export.
    for name in ("model.pt", "model.onnx", "result.json"):
        (tmp_path / "cut" / name).unlink()
    again = run.train(chosen, tmp_path / "cut", resume=True, progress=Progress(disable=True))
    assert again == resumed
    for name, value in weights(tmp_path / "cut").items():
        assert torch.equal(value, expected[name]), name


def test_fp16_on_a_cpu_is_refused(tmp_path):
    chosen = options(precision="fp16", accelerator="cpu")
    with pytest.raises(ConfigError, match="use bf16 or fp32"):
        run.train(chosen, tmp_path / "run", progress=Progress(disable=True))


def test_a_yaml_file_and_options_above_it_make_a_run(tmp_path):
    """And the run's own settings repeat it, in bf16, which leaves the weights in fp32."""
    (tmp_path / "run.yaml").write_text(
        "model: semisparse/resnet8\ndata: digits\nimage-size: 8\nbatch-size: 160\nepochs: 3\n"
        "optimizer: rmsprop\nprecision: bf16\nlearning-rate: 1e-3\nsparsity: 0.3\nsparsity-end: 0.5\n"
        "skip: [1x1]\nper_layer: {'layer1.*': 0.1}\n"
    )
    out = tmp_path / "run"
    chosen = ["--config", str(tmp_path / "run.yaml"), "--epochs", "1", "--ema", "0.9"]
    result = CliRunner().invoke(app, ["train", *chosen, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["sparsities"]["layer1.0.conv1"] == pytest.approx(0.1, abs=0.01)
    assert "layer2.0.downsample.0" not in figures["sparsities"]

    again = ["train", "--config", str(out / "config.json"), "--out", str(tmp_path / "again")]
    result = CliRunner().invoke(app, [*again, "--json"])
    assert result.exit_code == 0, result.output
    for name, value in weights(tmp_path / "again").items():
        assert torch.equal(value, weights(out)[name]), name
        assert value.dtype != torch.bfloat16
    _, _, masks = saved.load_run(out)
    assert masks.end == 0.5
    settings = json.loads((out / "config.json").read_text())
    assert (settings["optimizer"], settings["epochs"], settings["ema"]) == ("rmsprop", 1, 0.9)

    resumed = CliRunner().invoke(app, ["train", "--resume", str(out), *chosen])
    assert resumed.exit_code == 0, resumed.output
    refused = CliRunner().invoke(app, ["train", "--resume", str(out), "--optimizer", "adam"])
    assert refused.exit_code == 1
    assert "optimizer: adam, not rmsprop" in refused.stderr
