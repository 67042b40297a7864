from __future__ import annotations

import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from semisparse.config import SparsityConfig
from semisparse.errors import ModelError
from semisparse.sparsifier import Sparsifier
from semisparse.training import models  # isort: split

import torchvision
from torchvision.transforms.functional import normalize


def output_shape(model: nn.Module, channels: int, size: int = 32) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(model.eval()(torch.zeros(2, channels, size, size)).shape)


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("semisparse/resnet8", 1, 32),
        ("semisparse/resnet20", 3, 33),
        ("torchvision/resnet18", 3, 64),
        ("resnet18", 3, 64),
        ("torchvision/mobilenet_v3_small", 1, 64),
        ("timm/mobilenetv2_100", 1, 64),
        # Several branches read the images.
        ("timm/mobileone_s0", 1, 64),
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
        ("resnet19", "torchvision/resnet18"),
        ("mobilenetv4_conv_small", "timm/mobilenetv4_conv_small"),
        ("nothing-like-it", "torchvision/NAME"),
        ("timm/resnet18.a1_in", "timm/resnet18.a1_in1k"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(name, suggestion):
    with pytest.raises(ModelError, match=suggestion):
        models.create(name, 10)
    if "/" in name and not name.startswith("semisparse/"):
        with pytest.raises(ModelError, match=suggestion):
            models.normalisation(name, "DEFAULT")


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


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: (
            {"state_dict": {"criterion.weight": torch.ones(2)}}
            | {"state_dict": {f"model.{k}": v for k, v in state.items()}}
        ),
    ],
)
def test_weights_may_be_in_a_checkpoint(tmp_path, wrap):
    state = models.create("semisparse/resnet8", 10).state_dict()
    torch.save(wrap(state), tmp_path / "last.ckpt")
    loaded = models.create("semisparse/resnet8", 10, weights=tmp_path / "last.ckpt").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_weights_of_a_sparse_training_come_without_its_masks(tmp_path):
    model = models.create("semisparse/resnet8", 10)
    Sparsifier(model, torch.zeros(1, 3, 32, 32), SparsityConfig(0.2), total_steps=1).freeze()
    state = model.state_dict()
    assert "layer1.0.conv1.mask" in state
    torch.save(state, tmp_path / "weights.pt")
    loaded = models.create("semisparse/resnet8", 10, weights=tmp_path / "weights.pt").state_dict()
    assert loaded.keys() < state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


def test_only_the_head_and_the_input_layer_may_differ_from_the_weights(tmp_path, caplog):
    source = models.create("semisparse/resnet8", 10, input_channels=3)
    path = tmp_path / "weights.pt"
    torch.save(source.state_dict(), path)
    models.create("semisparse/resnet8", 10, weights=path)
    assert not caplog.messages
    loaded = models.create("semisparse/resnet8", 4, weights=path, input_channels=1)
    (message,) = caplog.messages
    assert "fc.weight is (4, 64), not (10, 64)" in message
    assert "stem.0.weight is (16, 1, 3, 3), not (16, 3, 3, 3)" in message
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


def test_published_weights_are_fetched_by_torchvision(monkeypatch, caplog):
    source = torchvision.models.googlenet(init_weights=False)
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: source.state_dict()
    )
    loaded = models.create("torchvision/googlenet", 5, "DEFAULT")
    assert torch.equal(loaded.conv1.conv.weight, source.conv1.conv.weight)
    assert loaded.train()(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
    assert "fc.weight is (5, 1024)" in caplog.text


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_published_weights_out_of_reach_are_one_error(monkeypatch, name):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(ModelError, match=r"cannot be fetched .*no network"):
        models.create(name, 10, "DEFAULT")


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("torchvision/resnet18", "DEFAULT", IMAGENET),
        ("torchvision/resnet18", "weights/resnet18-f37072fd.pth", IMAGENET),
        ("torchvision/resnet18", "mine.pth", None),
        ("torchvision/resnet18", None, None),
        ("torchvision/inception_v3", "DEFAULT", HALF),
        ("inception_v3", "DEFAULT", HALF),
        ("timm/resnet18.a1_in1k", "DEFAULT", IMAGENET),
        ("timm/inception_v3.tf_in1k", "DEFAULT", HALF),
        ("timm/inception_v4", "DEFAULT", HALF),  # published at no address of its own
        ("timm/inception_v4", "mine.pt", None),
        ("timm/resnet18", "mine.safetensors", None),
        ("semisparse/resnet8", "mine.pt", None),
        ("package.module:factory", "mine.pt", None),
    ],
)
def test_published_weights_tell_their_normalisation(name, weights, expected):
    found = models.normalisation(name, weights)
    assert found == (expected and tuple(map(pytest.approx, expected)))


def test_a_rescaling_of_the_input_is_told_as_normalisation():
    """torchvision's GoogLeNet turns images normalised as for ImageNet into [-1, 1] by itself."""
    published = torchvision.models.googlenet(transform_input=True, init_weights=False).eval()
    ours = models.create("torchvision/googlenet", 1000).eval()
    ours.load_state_dict({k: v for k, v in published.state_dict().items() if "aux" not in k})
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = published(normalize(images, *IMAGENET))
        found = ours(normalize(images, *models.normalisation("torchvision/googlenet", "DEFAULT")))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


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
