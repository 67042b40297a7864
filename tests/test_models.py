from __future__ import annotations

import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from semisparse.errors import ModelError
from semisparse.training import models


def output_shape(model: nn.Module, channels: int, size: int = 32) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(model.eval()(torch.zeros(2, channels, size, size)).shape)


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("semisparse/resnet8", 1, 32),
        ("semisparse/resnet20", 3, 33),
        ("torchvision/resnet18", 3, 64),
        ("torchvision/mobilenet_v3_small", 1, 64),
        ("timm/mobilenetv2_100", 1, 64),
    ],
)
def test_models_take_the_channels_and_give_the_classes_asked_for(name, channels, size):
    model = models.create(name, 7, input_channels=channels)
    assert output_shape(model, channels, size) == (2, 7)


@pytest.mark.parametrize(("blocks", "layers"), [(1, 8), (3, 20)])
def test_small_resnets_have_the_depth_in_their_name(blocks, layers):
    model = models.create(f"semisparse/resnet{layers}", 10)
    on_path = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and "downsample" not in name
    ]
    assert len(on_path) == layers == 6 * blocks + 2


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("torchvision/resnet81", "torchvision/resnet"),
        ("timm/mobilenetv2_10", "timm/mobilenetv2_1"),
        ("semisparse/resnet9", "semisparse/resnet8"),
        ("resnet18", "torchvision/resnet18"),
        ("nothing-like-it", "torchvision/NAME"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(name, suggestion):
    with pytest.raises(ModelError, match=suggestion):
        models.create(name, 10)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_come_from_a_file(tmp_path, suffix):
    source = models.create("semisparse/resnet8", 10)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    loaded = models.create("semisparse/resnet8", 10, weights=path)
    for name, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_only_the_head_and_the_input_layer_may_differ_from_the_weights(tmp_path):
    source = models.create("semisparse/resnet8", 10, input_channels=3)
    path = tmp_path / "weights.pt"
    torch.save(source.state_dict(), path)
    loaded = models.create("semisparse/resnet8", 4, weights=path, input_channels=1)
    assert torch.equal(loaded.layer3[0].conv2.weight, source.layer3[0].conv2.weight)
    assert output_shape(loaded, 1) == (2, 4)

    state = source.state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(8, 16, 3, 3)
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"layer1\.0\.conv1\.weight .*\(8, 16, 3, 3\)"):
        models.create("semisparse/resnet8", 10, weights=path)


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(models.create("semisparse/resnet20", 10).state_dict(), path)
    with pytest.raises(ModelError, match="unknown"):
        models.create("semisparse/resnet8", 10, weights=path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ModelError, match="none of the tensors"):
        models.create("semisparse/resnet8", 10, weights=path)


class Mischief:
    def __reduce__(self):
        return print, ("code in a weights file ran",)


def test_weights_that_are_missing_corrupt_or_code_are_refused(tmp_path, capsys):
    with pytest.raises(ModelError, match="no weights file"):
        models.create("semisparse/resnet8", 10, weights=tmp_path / "none.pt")
    for name, content in [
        ("a.pt", b"not a checkpoint"),
        ("b.safetensors", b"\xff" * 64),
        ("c.pt", pickle.dumps(Mischief())),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read"):
            models.create("semisparse/resnet8", 10, weights=tmp_path / name)
    assert "ran" not in capsys.readouterr().out


def test_own_networks_have_no_published_weights():
    with pytest.raises(ModelError, match="no published weights"):
        models.create("semisparse/resnet8", 10, weights="DEFAULT")


def test_a_factory_is_found_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def tiny(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(4, num_classes))\n"
        "def wrong():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert output_shape(models.create("my_networks:tiny", 6, input_channels=1), 1) == (2, 6)
    with pytest.raises(ModelError, match="returned int"):
        models.create("my_networks:wrong", 6)
    with pytest.raises(ModelError, match="cannot be loaded"):
        models.create("my_networks:absent", 6)
    with pytest.raises(ModelError, match="cannot be loaded"):
        models.create("no_such_module:tiny", 6)
