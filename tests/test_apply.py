"""Masks on trained models, as a user puts them there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from rich.progress import Progress
from torch import nn

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, ModelError
from semisparse.training import run, saved
from semisparse.training.apply import Change, apply
from semisparse.training.data import calibration_images, load
from semisparse.training.settings import TrainSettings

QUICK = {"model": "semisparse/resnet8", "data": "digits", "image_size": 16, "batch_size": 64}


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dense"
    run.train(TrainSettings(**QUICK, epochs=2), out, progress=Progress(disable=True))
    return out


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return calibration_images("digits", 200, image_size=16)


def test_change_is_relative_to_the_norm_of_each_image():
    reference = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    outputs = torch.tensor([[3.0, 4.5], [2.0, 0.0], [1.0, 0.0]])
    change = Change.between(outputs, reference)
    assert change.error == pytest.approx((0.1 + 2**0.5 + 0) / 3)
    assert change.agreement == pytest.approx(2 / 3)
    p, q = (
        np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (reference.numpy(), outputs.numpy())
    )
    assert change.divergence == pytest.approx((p * np.log(p / q)).sum(1).mean())


def test_the_kept_draw_is_the_nearest_and_can_be_repeated(dense, images):
    model = saved.FinishedRun(dense).dense()
    config = SparsityConfig(0.2, seed=4)
    applied = apply(model, images, config, draws=4)
    assert len(set(applied.divergences)) == 4
    assert applied.after.divergence == min(applied.divergences)
    assert applied.seed == 4 + applied.divergences.index(min(applied.divergences))
    reference = saved.FinishedRun(dense).dense()
    with torch.no_grad():
        assert Change.between(model(images), reference(images)) == applied.after

    again = saved.FinishedRun(dense).dense()
    repeated = apply(again, images, SparsityConfig(0.2, seed=applied.seed), draws=1)
    assert repeated.after == applied.after
    assert repeated.before == applied.before
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_recalibration_brings_outputs_nearer(dense, images):
    model = saved.FinishedRun(dense).dense()
    applied = apply(model, images, SparsityConfig(0.3, fill="bias"), draws=2)
    assert applied.recalibrated == 9
    assert applied.after.error < 0.7 * applied.before.error
    assert applied.after.divergence < 0.7 * applied.before.divergence
    assert applied.after.agreement > applied.before.agreement + 0.2
    assert applied.sparsities["layer1.0.conv1"] == pytest.approx(0.3, abs=0.5 / 256)


def test_few_images_are_enough_for_what_masks_change(dense, images):
    changes = []
    for count in (4, 200):
        model = saved.FinishedRun(dense).dense()
        applied = apply(model, images[:count], SparsityConfig(0.3, fill="bias"), draws=1)
        assert applied.recalibrated == 9
        reference = saved.FinishedRun(dense).dense()
        with torch.no_grad():
            changes.append(Change.between(model(images), reference(images)).divergence)
    # The statistics of four images themselves would be 5 times as far away as those of 200.
    assert changes[0] < 2 * changes[1] < applied.before.divergence


class Named(nn.Sequential):
    """As torchvision's networks for segmentation return theirs."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 2, 3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": super().forward(x)}


def test_changes_of_planes_are_those_of_all_positions_or_of_a_region():
    torch.manual_seed(0)
    outputs, reference = torch.randn(2, 2, 3, 4, 6).unbind(0)
    rows = ("##.", ".#.")
    counted = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2 + [[0, 0, 1, 1, 0, 0]] * 2).bool()
    for region, where in (((), torch.ones(4, 6).bool()), (rows, counted)):
        found = Change.between(outputs, reference, region)
        # As if each position were an image.
        one, other = (v.permute(0, 2, 3, 1)[:, where] for v in (outputs, reference))
        each = Change.between(one.flatten(0, 1), other.flatten(0, 1))
        assert found.agreement == pytest.approx(each.agreement)
        assert found.divergence == pytest.approx(each.divergence)
        apart = (one - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)
        assert found.error == pytest.approx(float(apart.mean()))


def test_statistics_that_take_the_outputs_further_away_are_not_kept():
    # All positions of an image are alike and positive, so the maximum does not see the masks, but
    # the statistics do.
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1, bias=False),
        nn.BatchNorm2d(3),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 4),
    )
    nn.init.ones_(model[0].weight)
    even = torch.linspace(1, 2, 8)[:, None, None, None].expand(8, 1, 6, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    applied = apply(model, even, SparsityConfig(0.3, fill="bias"), draws=2)
    assert applied.after.divergence > 1e-3 > applied.before.divergence
    assert applied.recalibrated == 0
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(2)), r"returns \[2, 196\]"),
        (Named(), "Named returns dict"),
        (nn.Sequential(nn.Conv2d(3, 2, 3)), r"cannot take images of \[1, 16, 16\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(256, 2)), "no convolution"),
    ],
)
def test_what_has_no_classes_for_the_images_is_refused(model, problem, images):
    with pytest.raises(ModelError, match=problem):
        apply(model, images, SparsityConfig(0.2))


def test_no_draws_are_refused(images):
    with pytest.raises(ConfigError, match="draws is 0"):
        apply(nn.Conv2d(1, 2, 3), images, SparsityConfig(0.2), draws=0)


def test_the_command_masks_a_run(invoke, dense, tmp_path):
    out, header = tmp_path / "masked.onnx", tmp_path / "masks.h"
    options = ["--sparsity", 0.2, "--skip", "1x1", "--images", 200, "--draws", 2]
    result = invoke("apply", "--model", dense, *options, "--out", out, "--header", header, "--json")
    figures = json.loads(result.stdout)
    assert figures["images"] == 200
    assert figures["path"] == str(out)
    assert "layer2.0.downsample.0" not in figures["sparsities"]
    assert figures["after"]["divergence"] == min(figures["divergences"])
    assert figures["verification"]["library"] < 1e-5
    assert "mask_layer1_0_conv1[16][16]" in header.read_text()

    test = load("digits", image_size=16).test
    batch = torch.stack([test[index][0] for index in range(len(test))])
    model = saved.FinishedRun(dense).dense()
    with torch.no_grad():
        expected = model(batch)
    session = onnxruntime.InferenceSession(out)
    found = torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])
    # Images that it was not calibrated on.
    assert Change.between(found, expected).agreement > 0.7


def test_means_on_the_last_convolutions_are_nearer_and_run_as_their_portable_bodies(
    invoke, dense, tmp_path
):
    options = ["--model", dense, "--sparsity", 0.4, "--only", "block-last", "--alternate"]
    divergence, out = {}, tmp_path / "masked.onnx"
    for fill in ("bias", "mean"):
        result = invoke("apply", *options, "--fill", fill, "--images", 60, "--out", out, "--json")
        divergence[fill] = json.loads(result.stdout)["before"]["divergence"]
    assert divergence["mean"] < divergence["bias"]
    operators = {node.op_type for node in onnx.load(out).graph.node}
    assert any("FillMean" in name for name in operators)
    invoke("check", out)


def test_the_command_distils_what_masks_changed(invoke, refused, dense, tmp_path):
    options = ["--model", dense, "--sparsity", 0.3, "--images", 120, "--draws", 1]
    options += ["--distill-steps", 20]
    out = tmp_path / "masked.onnx"
    figures = json.loads(
        invoke("apply", *options, "--distill-rate", 3e-4, "--out", out, "--json").stdout
    )
    distilled = figures["distilled"]
    assert distilled["kept"]
    assert (distilled["learned"], distilled["held_out"]) == (90, 30)
    assert distilled["after"]["divergence"] < distilled["before"]["divergence"]

    images = calibration_images("digits", 120, image_size=16)[::4]
    session = onnxruntime.InferenceSession(out)
    found = torch.from_numpy(session.run(None, {"input": images.numpy()})[0])
    reference = saved.FinishedRun(dense).dense()
    with torch.no_grad():
        change = Change.between(found, reference(images))
    assert change.divergence == pytest.approx(distilled["after"]["divergence"], rel=0.01)

    other = tmp_path / "other.onnx"
    text = invoke("apply", *options, "--distill-rate", 1, "--out", other).stdout
    assert "30 of them, not learned from" in text
    assert "--distill-rate" in text
    assert "learning_rate is -1" in refused(
        "apply", *options, "--distill-rate", -1, "--out", tmp_path / "third.onnx"
    )
    assert not (tmp_path / "third.onnx").exists()


def test_the_command_masks_a_model_by_name_on_unlabelled_files(invoke, refused, dense, tmp_path):
    weights = tmp_path / "weights.pt"
    state = saved.FinishedRun(dense).dense().state_dict()
    state["stem.0.weight"] = state["stem.0.weight"].expand(-1, 3, -1, -1) / 3
    torch.save(state, weights)
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{index}.png")
    options = ["--model", "semisparse/resnet8", "--weights", weights, "--num-classes", 10]
    options += ["--calibrate", f"imagefolder:{photos}", "--image-size", 32, "--sparsity", 0.1]
    out = tmp_path / "model.onnx"
    result = invoke("apply", *options, "--draws", 3, "--out", out)
    assert "divergence of 3 draws" in result.stdout
    assert onnxruntime.InferenceSession(out).get_inputs()[0].shape[1:] == [3, 32, 32]
    wrong = [*options[:5], 12, *options[6:]]
    assert "fc.weight" in refused("apply", *wrong, "--out", tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_what_cannot_be_applied_is_one_error(refused, dense, tmp_path):
    out = tmp_path / "model.onnx"
    sparse = ["--sparsity", 0.2, "--out", out]
    named = ["--model", "semisparse/resnet8", *sparse]
    assert "--model" in refused("apply", *sparse)
    assert "--sparsity" in refused("apply", "--model", dense, "--out", out)
    assert "--weights" in refused("apply", *named, "--calibrate", "digits")
    assert "--calibrate" in refused("apply", *named, "--weights", tmp_path / "none.pt")
    assert "none.pt" in refused(
        "apply", *named, "--weights", tmp_path / "none.pt", "--calibrate", "digits"
    )
    assert "did you mean digits" in refused(
        "apply", "--model", dense, *sparse, "--calibrate", "digit"
    )
    assert "weights of its own" in refused(
        "apply", "--model", dense, *sparse, "--weights", "DEFAULT"
    )
    assert "not a run folder" in refused("apply", "--model", tmp_path, *sparse)
    assert "is a folder" in refused("apply", "--model", dense, "--sparsity", 0.2, "--out", tmp_path)
    assert "matches no convolution" in refused(
        "apply", "--model", dense, *sparse, "--skip", "layer9.*"
    )
    assert not out.exists()


def test_a_run_that_has_masks_is_refused(refused, tmp_path):
    sparse = TrainSettings(**QUICK, sparsity=SparsityConfig(0.2))
    (tmp_path / "config.json").write_text(json.dumps(sparse.to_dict()))
    found = refused(
        "apply", "--model", tmp_path, "--sparsity", 0.2, "--out", tmp_path / "model.onnx"
    )
    assert "has masks already" in found
