from __future__ import annotations

import dataclasses
import inspect
import json
import re

import pytest
from typer.testing import CliRunner

from semisparse.cli import app
from semisparse.cli.train import train
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError
from semisparse.training import config_file
from semisparse.training.settings import TrainSettings, names, read
from semisparse.training.settings import masks as settings_of_masks

LEAST = {"model": "semisparse/resnet8", "data": "digits"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": 8},
        {"data": None},
        {"weights": 1.5},
        {"download": "yes"},
        {"epochs": "many"},
        {"epochs": True},
        {"batch_size": 2.5},
        {"image_size": "large"},
        {"image_size": -224},
        {"image_size": [224]},
        {"whole": 1},
        {"learning_rate": "1e-4"},
        {"learning_rate": float("inf")},
        {"optimizer": "lion"},
        {"clip_gradient": -1},
        {"clip_gradient": float("nan")},
        {"ema": 1.0},
        {"precision": "int8"},
        {"accelerator": "abacus"},
        {"devices": 0},
        {"num_nodes": 0},
        {"strategy": "horovod"},
        {"checkpoint_steps": -1},
        {"teacher": 3},
        {"teacher_weights": "DEFAULT"},
        {"distill_alpha": 1.1},
        {"temperature": 0},
        {"prune_channels": 1.0},
        {"prune_importance": "taste"},
        {"prune_epochs": -1},
    ],
)
def test_values_of_the_wrong_type_or_range_are_refused_by_name(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigError, match=re.escape(f"{name} is {value!r}")):
        TrainSettings(**{**LEAST, **wrong})


def test_every_setting_survives_the_json_form():
    settings = TrainSettings(
        **LEAST,
        sparsity=SparsityConfig(0.3, skip=["1x1"], per_layer={"layer3.*": 0.1}),
        download=True,
        image_size=(180, 320),
        whole=True,
        optimizer="adamw",
        learning_rate=1e-5,
        ema=0.999,
        distill_alpha=1,
        teacher="runs/dense",
        clip_gradient=0,
    )
    assert TrainSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_settings_of_an_older_release_take_the_defaults_of_what_came_since():
    newer = {"optimizer", "ema", "teacher", "devices", "whole"}
    values = {k: v for k, v in TrainSettings(**LEAST).to_dict().items() if k not in newer}
    assert TrainSettings.from_dict(values) == TrainSettings(**LEAST)
    assert newer <= {field.name for field in dataclasses.fields(TrainSettings)}


def test_the_flat_form_has_every_setting_under_one_name():
    config = SparsityConfig(0.3, skip=["1x1"], per_layer={"layer3.*": 0.1}, end=0.5, seed=4)
    for sparsity in (config, None):
        settings = TrainSettings(**LEAST, sparsity=sparsity, seed=4, ema=0.9)
        flat = settings.to_flat()
        assert flat.keys() <= set(names())
        assert TrainSettings.from_flat(flat) == settings
    assert flat["sparsity"] == 0


def test_masks_follow_the_seed_of_the_run_unless_they_have_their_own():
    assert TrainSettings.from_flat({**LEAST, "sparsity": 0.2, "seed": 3}).sparsity.seed == 3
    own = {**LEAST, "sparsity": 0.2, "seed": 3, "sparsity_seed": 7}
    assert TrainSettings.from_flat(own).sparsity.seed == 7


def test_differences_are_told_by_the_names_of_the_command_line():
    dense = TrainSettings(**LEAST)
    sparse = TrainSettings(**LEAST, epochs=3, sparsity=SparsityConfig(0.2, begin=0.3, end=0.9))
    other = TrainSettings(**LEAST, epochs=3, sparsity=SparsityConfig(0.2, begin=0.4, end=0.9))
    assert sparse.differences(other) == ["sparsity_begin: 0.3, not 0.4"]
    assert dense.differences(sparse) == ["sparsity: 0.0, not 0.2", "epochs: 20, not 3"]
    assert "sparsity: 0.2, not 0.0" in sparse.differences(dense)
    assert sparse.differences(sparse) == []


def test_a_size_is_the_same_in_whatever_form_it_is_given():
    for forms in ([224, "224", (224, 224), "224x224"], [(180, 320), [180, 320], "180x320"]):
        settings = [TrainSettings(**LEAST, image_size=form) for form in forms]
        assert len(set(settings)) == 1
        assert settings[0].differences(settings[-1]) == []
    assert TrainSettings(**LEAST, image_size="224").to_dict()["image_size"] == 224
    wide = TrainSettings(**LEAST, image_size=(180, 320))
    assert wide.to_dict()["image_size"] == "180x320"
    high = TrainSettings(**LEAST, image_size=(320, 180), whole=True)
    assert wide.differences(high) == ["image_size: 180x320, not 320x180", "whole: False, not True"]


YAML = """
model: semisparse/resnet8   # a comment
data: digits
image-size: 180x320
whole: true
learning-rate: 1e-3
weight_decay: 5e-05
sparsity: 0.2
sparsity-begin: 0.25
sparsity-end: 0.75
skip: [1x1, "layer1.*"]
"""


def test_a_yaml_file_says_what_the_command_line_could(tmp_path):
    (tmp_path / "run.yaml").write_text(YAML)
    settings = TrainSettings.from_flat(config_file.read(tmp_path / "run.yaml"))
    masks = SparsityConfig(0.2, begin=0.25, end=0.75, skip=["1x1", "layer1.*"])
    run = {"image_size": (180, 320), "whole": True, "learning_rate": 1e-3, "weight_decay": 5e-5}
    assert settings == TrainSettings(**LEAST, **run, sparsity=masks)


def test_the_settings_in_a_run_folder_are_a_configuration_file(tmp_path):
    masks = SparsityConfig(0.2, per_layer={"1x1": 0.1}, seed=2)
    settings = TrainSettings(
        **LEAST, image_size=(9, 16), whole=True, learning_rate=1e-5, sparsity=masks, seed=2
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings.to_dict()))
    entries = config_file.read(path)
    assert TrainSettings.from_flat(entries) == settings
    assert TrainSettings.from_flat({**entries, "seed": 5}).sparsity.seed == 5


def test_a_mapping_of_masks_has_rules_and_names_beside_it_win(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("sparsity: {sparsity: 0.3, per_layer: {1x1: 0.1}, fill: nearest}\nfill: bias")
    settings = TrainSettings.from_flat({**LEAST, **config_file.read(path)})
    assert settings.sparsity == SparsityConfig(0.3, per_layer={"1x1": 0.1}, fill="bias")


def test_a_file_of_masks_is_read_alone(tmp_path):
    masks = SparsityConfig(0.2, per_layer={"layer2.*": 0.4}, block=2)
    path = tmp_path / "sparsity.json"
    path.write_text(masks.to_json())
    entries = {**LEAST, **config_file.read_masks(path)}
    assert TrainSettings.from_flat(entries).sparsity == masks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "no setting 'epoch'; did you mean epochs"),
        ("sparsity_start: 0.3", "did you mean sparsity_"),
        ("xyzzy: 3", "semisparse train --help"),
        ("sparsity: {per_layer: {1x1: 0.1}}", "no entry 'sparsity'"),
        ("sparsity: {sparsity: 0.2, blok: 4}", "did you mean 'block'"),
        ("version: 2", "version 2"),
        ("- epochs\n- 3", "not names and values"),
        ("", "not names and values"),
        ("epochs: 3\nepochs: 4", "duplicate"),
        ("epochs: [3", "cannot be read"),
        ("a: !!python/object/apply:os.system ['true']", "cannot be read"),
    ],
)
def test_a_file_that_says_something_else_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refusal:
        config_file.read(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        config_file.read(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        config_file.read(tmp_path)
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        config_file.read(tmp_path / "run.yaml")


@pytest.mark.parametrize("lacking", ["model", "data"])
def test_a_run_without_model_or_data_is_refused(lacking):
    with pytest.raises(ConfigError, match=f"--{lacking}"):
        TrainSettings.from_flat({k: v for k, v in LEAST.items() if k != lacking})


def test_a_setting_of_masks_without_masks_is_refused():
    with pytest.raises(ConfigError, match="fill is given, but no sparsity"):
        TrainSettings.from_flat({**LEAST, "fill": "bias"})
    assert TrainSettings.from_flat({**LEAST, "fill": "bias", "sparsity": 0}).sparsity is None


def test_the_command_line_has_every_setting_with_its_default():
    """Its defaults are only shown: what is not given is left to the settings."""
    options = inspect.signature(train).parameters
    fields = {field.name: field.default for field in dataclasses.fields(TrainSettings)}
    del fields["model"], fields["data"], fields["sparsity"]
    assert {name: options[name].default for name in fields} == fields
    masks = {n: p.default for n, p in options.items() if n in set(names()) - fields.keys()}
    assert masks.keys() > {"fill", "block", "selection", "sparsity_end"}
    assert SparsityConfig(0.5) == settings_of_masks(
        {**masks, "sparsity": 0.5, "skip": (), "only": (), "region": ()}
    )


@pytest.mark.parametrize(("text", "block"), [("4", 4), ("auto", "auto"), ("0", None), ("x", None)])
def test_a_block_is_a_number_or_a_word(tmp_path, text, block):
    chosen = ["--model", "semisparse/resnet9", "--data", "digits", "--sparsity", "0.2"]
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", *chosen, "--block", text, "--out", str(out)])
    assert result.exit_code == 1
    if block is None:
        assert "block" in result.stderr
        assert not out.exists()
    else:
        assert "semisparse/resnet8" in result.stderr
        assert read(out).sparsity.block == block
