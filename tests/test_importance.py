"""How much positions matter, and masks that spare those that do."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
from pathlib import Path

import onnx
import pytest
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from semisparse import importance as importance_module
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, MaskError, ModelError
from semisparse.importance import measure, weigh
from semisparse.sparsifier import Sparsifier
from semisparse.training import run, saved
from semisparse.training.apply import Change, apply

# Before lightning, which imports torchvision.
from semisparse.training.callback import SparsityCallback
from semisparse.training.data import calibration_images
from semisparse.training.settings import TrainSettings
from semisparse.tune import sensitivity
from semisparse.tune.cache import Cache
from semisparse.tune.table import Option, Unit

import lightning.pytorch as lightning  # isort: skip

QUICK = {"model": "semisparse/resnet8", "data": "digits", "image_size": 16, "batch_size": 64}


class Net(nn.Module):
    """Planes of 5x6, twice, and 2x2; activations in place right after convolutions."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate")
        self.second = nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate")
        self.third = nn.Conv2d(3, 4, 3, stride=2, bias=False)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, classes))

    def stages(self) -> list[nn.Module]:
        act = nn.Tanh
        rests = [nn.Sequential(act(), self.second), nn.Sequential(act(), self.third), act()]
        return [self.first, *rests, self.head]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh_()
        x = self.second(x).tanh_()
        return self.head(self.third(x).tanh_())


def divergence(change: Tensor, outputs: Tensor) -> Tensor:
    """Half of the change's square in the Fisher metric of the softmax of the outputs."""
    shares = outputs.softmax(0)
    metric = shares.diag() - shares[:, None] * shares
    return change @ metric @ change / 2


def expected(model: Net, image: Tensor, fill: str) -> dict[tuple[int, int], Tensor]:
    """By the full Jacobian of what follows each convolution, position by position."""
    stages = model.eval().stages()
    found: dict[tuple[int, int], Tensor] = {}
    x = image
    for index, stage in enumerate(stages[:3]):
        y = stage(x)[0].detach()
        rest = nn.Sequential(*stages[index + 1 :])
        jacobians = jacobian(lambda y, rest=rest: rest(y[None])[0], y)
        conv = [model.first, model.second, model.third][index]
        height, width = y.shape[1:]
        importance = torch.zeros(height, width, dtype=torch.float64)
        for i in range(height):
            for j in range(width):
                if fill == "bias":
                    held = [torch.zeros(4) if conv.bias is None else conv.bias.detach()]
                else:
                    near = [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]
                    held = [y[:, a, b] for a, b in near if 0 <= a < height and 0 <= b < width]
                moves = [jacobians[:, :, i, j] @ (value - y[:, i, j]) for value in held]
                costs = [divergence(move, rest(y[None])[0].detach()) for move in moves]
                importance[i, j] = torch.stack(costs).mean()
        found[height, width] = found.get((height, width), 0) + importance
        x = y[None]
    return found


@pytest.mark.parametrize("fill", ["bias", "nearest", "mean"])
def test_importance_is_the_first_order_divergence(fill: str) -> None:
    torch.manual_seed(0)
    model = Net().double()
    two = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    # The signs that estimate it differ from copy to copy, and so by an unlike share of the images.
    found = measure(model, two.repeat(6000, 1, 1, 1), fill, batch_size=5000)
    one, other = (expected(model, image[None], fill) for image in two)
    assert found.keys() == one.keys() == {(5, 6), (2, 2)}
    for plane, importance in found.items():
        mean = (one[plane] + other[plane]) / 2
        torch.testing.assert_close(importance, mean, rtol=0.08, atol=0)
        # Far more than the estimate is off.
        assert mean.max() > 3 * mean.min()


def test_small_changes_diverge_as_much() -> None:
    torch.manual_seed(0)
    model = Net().double().eval()
    image = 1 + 1e-3 * torch.randn(1, 2, 5, 6, dtype=torch.float64)
    importance = expected(model, image, "nearest")[5, 6]
    with torch.no_grad():
        reference = model(image)
        for i, j in [(1, 1), (2, 3)]:
            moved = 0.0
            for conv in (model.first, model.second):
                for a, b in [(i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)]:

                    def copy_to(_conv, _inputs, y, to=(i, j), of=(a, b)):
                        y[:, :, to[0], to[1]] = y[:, :, of[0], of[1]]

                    hook = conv.register_forward_hook(copy_to)
                    moved += Change.between(model(image), reference).divergence / 4
                    hook.remove()
            assert moved == pytest.approx(float(importance[i, j]), rel=0.02)


def test_larger_planes_are_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, images = Large(), torch.randn(2, 1, 40, 24)
    (found,) = measure(model, images).values()
    monkeypatch.setattr(importance_module, "_PARTS", 100)
    (single,) = measure(model, images).values()
    assert len(single.unique()) > 900
    parts = nn.functional.avg_pool2d(single[None], (5, 3))
    torch.testing.assert_close(found, parts[0].repeat_interleave(5, 0).repeat_interleave(3, 1))


def test_measuring_leaves_no_trace_and_repeats_itself() -> None:
    model = Net().train()
    model.second.eval()
    state = copy.deepcopy(model.state_dict())
    images = torch.randn(20, 2, 5, 6)
    generator = torch.get_rng_state()
    one = measure(model, images)
    with torch.no_grad():
        other = measure(model, images)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(one[plane], other[plane]) for plane in one)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training
    assert not model.second.training
    assert not images.requires_grad
    assert not model.first._forward_hooks


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("model", "images", "error", "message"),
    [
        (Net(), torch.zeros(0, 2, 5, 6), MaskError, "no images"),
        (Net(), torch.zeros(1, 3, 5, 6), ModelError, r"cannot take images of \[3, 5, 6\]"),
        (
            nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(2)),
            torch.zeros(1, 2, 5, 6),
            ModelError,
            r"returns \[3, 12\]",
        ),
        (nn.Sequential(nn.Conv2d(2, 3, 3), Pair()), torch.zeros(1, 2, 5, 6), ModelError, "tuple"),
        (Net(), torch.full((1, 2, 5, 6), float("nan")), MaskError, "not finite"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, images, error, message) -> None:
    with pytest.raises(error, match=message):
        measure(model, images)


def test_masked_positions_are_dense_where_they_matter_little() -> None:
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(200, 300, dtype=torch.float64, generator=generator)
    importance = torch.ones(200, 300, dtype=torch.float64)
    importance[:, 100:200], importance[:, 200:] = 4, 0
    for exponent in (0.5, 1.0):
        low = weigh(score, importance, exponent) < 0.1
        ordinary, high = low[:, :100].double().mean(), low[:, 100:200].double().mean()
        assert float(ordinary / high) == pytest.approx(4**exponent, rel=0.12)
        assert low[:, 200:].all()
    torch.testing.assert_close(weigh(score, importance, 0), score)
    # Scores keep their order where all positions matter alike, or none at all.
    for value in (0.0, 1e-300, 7.0):
        even = weigh(score, torch.full_like(score, value), 2.0).flatten()
        assert torch.equal(even.argsort(), score.flatten().argsort())


class Large(nn.Module):
    """Planes of 32x32."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).mean((2, 3)))


def masks_of(measured: dict[tuple[int, int], Tensor] | None, **values: object) -> list[Tensor]:
    config = SparsityConfig(**{"sparsity": 0.5, "importance": 1.0, **values})
    sparsifier = Sparsifier(Large(), torch.zeros(1, 1, 32, 32), config, 1, measured)
    sparsifier.freeze()
    return list(sparsifier.masks.values())


@pytest.mark.parametrize("masks", ["blue-noise", "random"])
@pytest.mark.parametrize("block", [1, 4])
def test_masks_spare_what_matters(masks: str, block: int) -> None:
    importance = torch.ones(32, 32, dtype=torch.float64)
    importance[:, :8] = 0
    importance[:, 16:] = 100
    for mask in masks_of({(32, 32): importance}, masks=masks, block=block):
        assert int(mask.sum()) == 512
        assert not mask[:, :8].any()
        assert 0.8 < float(mask[:, 16:].double().mean()) <= 1
        blocks = mask.double().unfold(0, block, block).unfold(1, block, block).flatten(2)
        assert torch.equal(blocks.amin(2), blocks.amax(2))
    even = {(32, 32): torch.full((32, 32), 0.3, dtype=torch.float64)}
    plain = masks_of(None, masks=masks, block=block, importance=0)
    for given in (even, {}):
        for one, other in zip(masks_of(given, masks=masks, block=block), plain, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (None, "importance 1, but how much the positions matter is not known"),
        ({(32, 32): torch.ones(32, 32)}, "float32"),
        ({(32, 32): torch.ones(16, 32, dtype=torch.float64)}, r"\[16, 32\]"),
        ({(32, 32): torch.full((32, 32), -1, dtype=torch.float64)}, "negative"),
        ({(32, 32): torch.full((32, 32), float("inf"), dtype=torch.float64)}, "not finite"),
    ],
)
def test_masks_without_good_importance_are_refused(importance, message) -> None:
    with pytest.raises((ConfigError, MaskError), match=message):
        masks_of(importance)


def test_the_state_carries_what_was_measured() -> None:
    images = torch.randn(8, 1, 32, 32)
    config = SparsityConfig(0.4, importance=1.0, begin=0.2, end=0.8)
    model = Large()
    whole = Sparsifier(model, images[:1], config, 10, measure(model, images))
    for _ in range(4):
        whole.step()
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    again = Sparsifier(Large(), images[:1], config, 10)
    again.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(4):
        whole.step()
        again.step()
        for name, mask in whole.masks.items():
            assert torch.equal(again.masks[name], mask)
    # One of a release that knew of no importance.
    plain = Sparsifier(Large(), images[:1], dataclasses.replace(config, importance=0.0), 10)
    state = plain.state_dict()
    del state["importance"]
    plain.load_state_dict(state)
    assert plain.importance is None


class Plain(lightning.LightningModule):
    """A user's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Large()

    def training_step(self, batch, batch_idx):
        return self.model(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


def fit(callback: SparsityCallback, folder: Path, epochs: int, ckpt_path: Path | None = None):
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, lightning.callbacks.ModelCheckpoint(folder, "last"), Stop(epochs)],
    )
    images = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(images, batch_size=2)
    trainer.fit(Plain(), loader, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return callback.sparsifier


class Stop(lightning.Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


def test_the_callback_measures_once_before_the_first_step(tmp_path: Path) -> None:
    images = torch.rand(10, 1, 32, 32)
    calls = []

    def callback(config: SparsityConfig) -> SparsityCallback:
        def drawn() -> Tensor:
            calls.append(1)
            return images

        return SparsityCallback(config, images[:1], "model", drawn)

    config = SparsityConfig(0.4, importance=1.0, begin=0.0, end=0.9)
    whole = fit(callback(config), tmp_path / "whole", 4)
    torch.manual_seed(0)
    expected = measure(Plain().model, images)
    assert torch.equal(whole.importance[32, 32], expected[32, 32])
    fit(callback(config), tmp_path / "part", 2)
    assert len(calls) == 2
    again = fit(callback(config), tmp_path / "part", 4, tmp_path / "part" / "last.ckpt")
    assert len(calls) == 2
    for name, mask in whole.masks.items():
        assert torch.equal(again.masks[name], mask)
    fit(callback(dataclasses.replace(config, importance=0.0)), tmp_path / "none", 1)
    assert len(calls) == 2
    with pytest.raises(ConfigError, match="no images to measure importance 1"):
        fit(SparsityCallback(config, images[:1], "model"), tmp_path / "lacking", 1)


# What a user does.


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dense"
    run.train(TrainSettings(**QUICK, epochs=2), out, progress=Progress(disable=True))
    return out


def test_a_run_is_masked_by_its_own_importance(invoke, refused, dense, train_until, tmp_path):
    options = ["--data", "digits", "--image-size", 16, "--epochs", 2, "--sparsity", 0.5]
    options += ["--importance", 1, "--learning-rate", 0.02]
    out = tmp_path / "masked"
    invoke("train", "--model", dense, *options, "--out", out)
    model = saved.FinishedRun(dense).dense()
    images = calibration_images("digits", 500, image_size=16)
    importance = measure(model, images)
    config = SparsityConfig(0.5, importance=1.0)
    expected = Sparsifier(model, images[:1], config, 1, importance)
    expected.freeze()
    masked = saved.load_run(out)[0]
    for name, mask in expected.masks.items():
        assert torch.equal(masked.get_submodule(name).mask, mask), name
    assert not torch.equal(
        expected.masks["layer1.0.conv1"], plain_masks(dense, images)["layer1.0.conv1"]
    )

    # Interrupted, it ends with the same masks and weights.
    settings = TrainSettings.from_dict(json.loads((out / "config.json").read_text()))
    train_until(settings, tmp_path / "cut", 22)
    invoke("train", "--resume", tmp_path / "cut")
    again = saved.load_run(tmp_path / "cut")[0].state_dict()
    for name, value in masked.state_dict().items():
        assert torch.equal(again[name], value), name

    fresh = ["--model", "semisparse/resnet8", *options, "--out", tmp_path / "fresh"]
    assert "importance is 1, but which positions matter" in refused("train", *fresh)


def plain_masks(dense: Path, images: Tensor) -> dict[str, Tensor]:
    model = saved.FinishedRun(dense).dense()
    sparsifier = Sparsifier(model, images[:1], SparsityConfig(0.5), 1)
    sparsifier.freeze()
    return sparsifier.masks


def test_apply_and_tune_take_it(invoke, dense, tmp_path):
    images = calibration_images("digits", 60, image_size=16)
    only = ["layer1.0.conv1"]
    config = SparsityConfig(0.4, importance=2.0, block=4, only=only)
    model = saved.FinishedRun(dense).dense()
    with torch.no_grad():
        reference = model(images)
        importance = measure(model, images)
        Sparsifier(model, images[:1], config, 1, importance).freeze()
        divergence = Change.between(model(images), reference).divergence

    model = saved.FinishedRun(dense).dense()
    unweighted = dataclasses.replace(config, importance=0.0)
    option = Option(("layer1.0.conv1",), 4, 0.4, 0.3, 0.01)
    unit = Unit(option.layers, ((16, 16, 3, 3),), ((16, 16),), 1e-5, (option,))
    cache = Cache(tmp_path / "costs.json", sensitivity.key(model, images, config))
    costs = sensitivity.measure(model, images, [(unit, option)], config, cache)
    assert costs[unit.name, option] == pytest.approx(divergence, rel=1e-4)
    sparsifier = Sparsifier(model, images[:1], unweighted, 1, importance)
    sparsifier.freeze()
    with torch.no_grad():
        apart = Change.between(model(images), reference).divergence
    sparsifier.detach()
    assert apart != pytest.approx(divergence, rel=0.01)
    assert sensitivity.key(model, images, unweighted) != sensitivity.key(model, images, config)

    applied = apply(model, images, config, draws=1)
    assert applied.before.divergence == pytest.approx(divergence, rel=1e-4)

    out = tmp_path / "masked.onnx"
    chosen = ["--model", dense, "--sparsity", 0.4, "--block", 4, "--only", "layer1.0.conv1"]
    chosen += ["--importance", 2, "--alternate", "--images", 60, "--draws", 1]
    chosen += ["--out", out, "--json"]
    figures = json.loads(invoke("apply", *chosen).stdout)
    assert figures["before"]["divergence"] == pytest.approx(divergence, rel=1e-3)
    (written,) = (p.value for p in onnx.load(out).metadata_props if p.key == "semisparse.config")
    assert SparsityConfig.from_json(written).alternate

    out = tmp_path / "tuned.json"
    goal = ["--max-drop", 60, "--importance", 0.5, "--images", 60]
    invoke("tune", dense, *goal, "--rounds", 40, "--sparsities", "0.4,0.6", "--out", out)
    tuned = SparsityConfig.from_json(out.read_text())
    assert tuned.importance == 0.5
