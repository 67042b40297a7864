"""Channel pruning: what goes, what stays, and that a pruned run is a run like others."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from rich.progress import Progress
from torch import nn
from typer.testing import CliRunner

from semisparse.cli import app
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, MissingExtraError, ModelError
from semisparse.layers import masked_layers
from semisparse.training import history, models, run, saved
from semisparse.training.pruning import prune, resize
from semisparse.training.settings import TrainSettings

QUICK = {"data": "digits", "image_size": 16, "batch_size": 160}


def quietly(settings: TrainSettings, out: Path, **options) -> run.RunResult:
    return run.train(settings, out, progress=Progress(disable=True), **options)


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dense"
    quietly(TrainSettings(model="semisparse/resnet8", **QUICK, epochs=1), out)
    return out


@pytest.fixture(scope="module")
def both(dense) -> TrainSettings:
    return TrainSettings(
        model=str(dense),
        **QUICK,
        epochs=3,
        prune_channels=0.3,
        prune_epochs=1,
        sparsity=SparsityConfig(0.3),
    )


@pytest.fixture(scope="module")
def finished(both, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "both"
    quietly(both, out)
    return out


def widths(model: nn.Module) -> list[int]:
    return [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]


def chain() -> nn.Sequential:
    """Three layers, of which every fourth channel does nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 7),
    ).eval()
    with torch.no_grad():
        for index in (0, 1, 3, 4):
            model[index].weight[::4] = 0
            model[index].bias[::4] = 0
        model[3].weight[:, ::4] = 0
        model[8].weight[:, ::4] = 0
    return model


def test_channels_that_do_nothing_go_first():
    model, x = chain(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        prune(model, x, 0.25)
        assert widths(model) == [24, 48]
        torch.testing.assert_close(model(x), expected)


def test_taylor_finds_channels_that_nothing_reads():
    x, classes = torch.randn(16, 3, 8, 8), torch.arange(16) % 7
    model = chain()
    with torch.no_grad():
        # Large, so that their norm would keep them, but read by no one.
        model[0].weight[::4] = 5.0
        model[3].weight[::4] = 5.0
        expected = model(x)
        by_norm = copy.deepcopy(model)
        prune(by_norm, x, 0.25)
        assert (by_norm(x) - expected).norm() > 0.01 * expected.norm()
    prune(model, x, 0.25, "taylor", [(x[:8], classes[:8]), (x[8:], classes[8:])])
    torch.testing.assert_close(model(x), expected)
    assert all(parameter.grad is None for parameter in model.parameters())


# Residual sums, depthwise convolutions with squeeze-and-excitation, concatenation, and groups.
@pytest.mark.parametrize(
    ("name", "multiple"),
    [
        ("semisparse/resnet8", 8),
        ("torchvision/mobilenet_v3_small", 4),
        ("torchvision/squeezenet1_1", 8),
        ("torchvision/regnet_x_400mf", 1),
    ],
)
def test_a_pruned_model_is_rebuilt_from_its_weights(name, multiple):
    torch.manual_seed(0)
    model, x = models.create(name, 10).eval(), torch.randn(1, 3, 64, 64)
    before = sum(parameter.numel() for parameter in model.parameters())
    prune(model, x, 0.3)
    after = sum(parameter.numel() for parameter in model.parameters())
    assert 0.35 < after / before < 0.65
    assert not [width for width in widths(model)[:-1] if width % multiple]
    assert model(x).shape == (1, 10)
    fresh = models.create(name, 10).eval()
    resize(fresh, model.state_dict())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    for mine, theirs in zip(fresh.modules(), model.modules(), strict=True):
        assert mine.extra_repr() == theirs.extra_repr()


def test_the_mode_of_training_is_kept():
    model = models.create("semisparse/resnet8", 10)
    prune(model, torch.randn(1, 3, 32, 32), 0.5)
    assert all(module.training for module in model.modules())


def test_what_cannot_be_pruned_is_refused(monkeypatch):
    x = torch.randn(1, 3, 32, 32)
    for fraction in (0, 1, -0.1):
        with pytest.raises(ConfigError, match=f"prune is {fraction}"):
            prune(chain(), x, fraction)
    with pytest.raises(ConfigError, match="magnitude, taylor"):
        prune(chain(), x, 0.3, "taste")
    with pytest.raises(ConfigError, match="give batches"):
        prune(chain(), x, 0.3, "taylor")
    with pytest.raises(ModelError, match="larger share"):
        prune(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)), x, 0.3)
    with pytest.raises(ModelError, match="ShuffleNetV2 cannot be pruned"):
        prune(models.create("torchvision/shufflenet_v2_x0_5", 10), torch.randn(1, 3, 64, 64), 0.3)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        prune(chain(), x, 0.3)


class Reshaping(nn.Module):
    """Has a size that is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3)
        self.head = nn.Linear(32, 2)
        self.width = 32

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)).reshape(-1, self.width))


def test_sizes_outside_of_layers_are_noticed():
    with pytest.raises(ModelError, match="Reshaping cannot be pruned"):
        prune(Reshaping(), torch.randn(1, 3, 8, 8), 0.5)


def test_a_run_prunes_then_masks(finished, both):
    rows = history.read(finished / "metrics.csv")
    assert [row["sparsity"] > 0 for row in rows] == [False, True, True]
    assert rows[-1]["sparsity"] == pytest.approx(0.3)
    model, example, config = saved.load_run(finished)
    assert widths(model) == [8, 8, 8, 24, 24, 24, 48, 48, 48]
    assert set(masked_layers(model)) == set(
        json.loads((finished / "result.json").read_text())["sparsities"]
    )
    assert config == both.sparsity
    assert model(example).shape == (1, 10)
    proto = onnx.load(finished / "model.onnx")
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    assert any(array.shape == (48, 24, 3, 3) for array in weights.values())


@pytest.mark.parametrize("step", [3, 16])
def test_an_interrupted_pruned_run_resumes_to_the_same_weights(
    train_until, finished, both, tmp_path, step
):
    out = tmp_path / "run"
    train_until(both, out, step)
    quietly(both, out, resume=True)
    expected = torch.load(finished / "model.pt", weights_only=True)["model"]
    found = torch.load(out / "model.pt", weights_only=True)["model"]
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_an_already_pruned_run_is_gone_on_from(finished, tmp_path):
    out, exported = tmp_path / "again", tmp_path / "again.onnx"
    options = ["--data", "digits", "--image-size", 16, "--batch-size", 160, "--epochs", 1]
    options = [str(option) for option in ("--model", finished, *options, "--out", out)]
    result = CliRunner().invoke(app, ["train", *options])
    assert result.exit_code == 0, result.output
    model, _, config = saved.load_run(out)
    assert config is None
    assert masked_layers(model) == {}
    assert widths(model) == [8, 8, 8, 24, 24, 24, 48, 48, 48]
    # What a run needs is in its own folder.
    (finished / "model.pt").rename(finished / "away.pt")
    try:
        result = CliRunner().invoke(app, ["export", "--run", str(out), "--out", str(exported)])
    finally:
        (finished / "away.pt").rename(finished / "model.pt")
    assert result.exit_code == 0, result.output
    assert exported.is_file()


def test_settings_that_make_no_sense_are_refused(dense, tmp_path):
    named = {"model": "semisparse/resnet8", **QUICK}
    with pytest.raises(ConfigError, match="nothing is pruned"):
        TrainSettings(**named, prune_epochs=2)
    with pytest.raises(ConfigError, match="more epochs"):
        TrainSettings(**named, epochs=2, prune_channels=0.3, prune_epochs=2)
    with pytest.raises(ConfigError, match="weights are random"):
        quietly(TrainSettings(**named, prune_channels=0.3), tmp_path / "random")
    both = TrainSettings(model=str(dense), **QUICK, weights="DEFAULT")
    with pytest.raises(ConfigError, match="weights of its own"):
        quietly(both, tmp_path / "two")
    with pytest.raises(ConfigError, match="not a run folder"):
        quietly(TrainSettings(model=str(tmp_path), **QUICK), tmp_path / "none")
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(12):
            Image.new("RGB", (16, 16)).save(tmp_path / "images" / name / f"{index}.png")
    other = {"data": f"imagefolder:{tmp_path / 'images'}", "image_size": 16, "batch_size": 2}
    with pytest.raises(ModelError, match="cannot take images"):
        quietly(TrainSettings(model=str(dense), **other), tmp_path / "classes")


def test_masks_follow_the_epochs_of_pruning():
    settings = TrainSettings(
        model="a:b", data="digits", epochs=10, prune_channels=0.3, prune_epochs=4,
        sparsity=SparsityConfig(0.3, begin=0.1, end=1.0, initial=0.1),
    )  # fmt: skip
    assert settings.masks.begin == pytest.approx(0.4 + 0.6 * 0.1)
    assert settings.masks.end == 1
    assert settings.masks.initial == 0.1
    plain = TrainSettings(model="a:b", data="digits", sparsity=SparsityConfig(0.3))
    assert plain.masks is plain.sparsity
