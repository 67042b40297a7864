from __future__ import annotations

import dataclasses
import json

import pytest

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError
from semisparse.training.settings import TrainSettings

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
    with pytest.raises(ConfigError, match=f"{name} is {value!r}"):
        TrainSettings(**{**LEAST, **wrong})


def test_every_setting_survives_the_json_form():
    settings = TrainSettings(
        **LEAST,
        sparsity=SparsityConfig(0.3, skip=["1x1"], per_layer={"layer3.*": 0.1}),
        download=True,
        optimizer="adamw",
        learning_rate=1e-5,
        ema=0.999,
        distill_alpha=1,
        teacher="runs/dense",
        clip_gradient=0,
    )
    assert TrainSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_settings_of_an_older_release_take_the_defaults_of_what_came_since():
    newer = {"optimizer", "ema", "teacher", "devices"}
    values = {k: v for k, v in TrainSettings(**LEAST).to_dict().items() if k not in newer}
    assert TrainSettings.from_dict(values) == TrainSettings(**LEAST)
    assert newer <= {field.name for field in dataclasses.fields(TrainSettings)}
