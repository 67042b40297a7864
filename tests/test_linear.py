"""Linear layers on planes, `[N, H, W, C]`: the same in everything as the 1x1 convolutions they are."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import semisparse
from semisparse.bench.work import name_layers, work_of
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, MaskError, ModelError
from semisparse.importance import measure
from semisparse.layers import MaskedLinear, attach, detach, masking_disabled
from semisparse.sparsifier import Sparsifier
from semisparse.trace import trace

fills = pytest.mark.parametrize("fill", ["bias", "nearest", "mean"])
X = torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


class Norm(nn.LayerNorm):
    """Of the channels of `[N, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """ConvNeXt's (arXiv 2201.03545), by linear layers or by 1x1 convolutions."""

    def __init__(self, channels: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.spatial = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = Norm(channels)
        wide = 2 * channels
        self.expand = nn.Linear(channels, wide) if linear else nn.Conv2d(channels, wide, 1)
        self.project = nn.Linear(wide, channels) if linear else nn.Conv2d(wide, channels, 1)
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spatial(x))
        if self.linear:
            y = self.project(nn.functional.gelu(self.expand(y.permute(0, 2, 3, 1))))
            y = y.permute(0, 3, 1, 2)
        else:
            y = self.project(nn.functional.gelu(self.expand(y)))
        return x + self.scale * y


class Net(nn.Module):
    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, stride=2)
        self.one, self.two = Block(8, linear), Block(8, linear)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.stem(x))).mean((2, 3)))


def pair() -> tuple[Net, Net]:
    """The network by linear layers, and by convolutions of the same weights."""
    torch.manual_seed(0)
    linear, convolutional = Net(True).eval(), Net(False).eval()
    shapes = convolutional.state_dict()
    convolutional.load_state_dict(
        {name: value.view(shapes[name].shape) for name, value in linear.state_dict().items()}
    )
    return linear, convolutional


def masked(model: nn.Module, x: Tensor = X, sparsity: float = 0.4, **options: object) -> nn.Module:
    config = SparsityConfig(sparsity=sparsity, **options)
    Sparsifier(model.eval(), x, config, total_steps=1).freeze()
    return model


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


# In torch


@fills
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_a_convolution(fill: str, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3, 4, bias=bias).double()
    conv = nn.Conv2d(3, 4, 1, bias=bias).double()
    state = linear.state_dict()
    conv.load_state_dict({**state, "weight": state["weight"][:, :, None, None]})
    mask = torch.rand(5, 6) > 0.4
    for layer in (linear, conv):
        attach(layer, 5, 6, fill)
        layer.set_mask(mask)
    x = torch.randn(2, 5, 6, 3, dtype=torch.float64, requires_grad=True)
    ours, theirs = linear(x), conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(linear(x[1]), theirs[1])
    weights = torch.randn_like(ours)
    for own, other in zip(
        torch.autograd.grad((ours * weights).sum(), [x, *linear.parameters()]),
        torch.autograd.grad((theirs * weights).sum(), [x, *conv.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(own, other.view(own.shape))


@fills
def test_a_masked_layer_is_kept_copied_and_restored(fill: str) -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for cls in (nn.Linear, Own):
        layer = cls(3, 4)
        x = torch.randn(1, 5, 6, 3)
        plain = layer(x)
        attach(layer, 5, 6, fill, name="mlp")
        assert isinstance(layer, MaskedLinear)
        assert isinstance(layer, cls)
        layer.set_mask(torch.eye(5, 6, dtype=torch.bool))
        expected = layer(x)
        with masking_disabled(layer):
            assert torch.equal(layer(x), plain)
        same = copy.deepcopy(layer)
        restored = copy.deepcopy(layer)
        restored.set_mask(torch.ones(5, 6, dtype=torch.bool))
        restored.load_state_dict(layer.state_dict())
        copies = [same, restored]
        if cls is nn.Linear:  # a class within a function cannot be pickled
            copies.append(pickle.loads(pickle.dumps(layer)))
        assert all(torch.equal(other(x), expected) for other in copies)
        detach(layer)
        assert type(layer) is cls
        assert torch.equal(layer(x), plain)


def test_another_plane_is_refused() -> None:
    layer = nn.Linear(3, 4)
    attach(layer, 5, 6, "nearest", name="mlp")
    with pytest.raises(MaskError, match=r"of mlp was made for an output plane of 5x6, but .* 6x5"):
        layer(torch.zeros(1, 6, 5, 3))


# What is masked


@fills
def test_a_network_computes_what_it_does_with_convolutions(fill: str) -> None:
    linear, convolutional = pair()
    for model in (linear, convolutional):
        masked(model.double(), X.double(), fill=fill)
    torch.testing.assert_close(linear(X.double()), convolutional(X.double()))


def test_roles_and_planes_are_those_of_convolutions() -> None:
    found = []
    for model in pair():
        layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        found.append(trace(model, layers, (X,), {}))
    assert found[0] == found[1]
    assert found[0]["two.project"].roles == {"block-last"}
    assert found[0]["two.project"].residual_block == 2
    assert found[0]["one.expand"].planes == {(6, 5)}
    assert not found[0]["head"].planes


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ("linear", {"one.expand", "one.project", "two.expand", "two.project"}),
        ("1x1", {"one.expand", "one.project", "two.expand", "two.project"}),
        ("pointwise", {"one.expand", "one.project", "two.expand", "two.project"}),
        ("block-last", {"one.project", "two.project"}),
        ("*.expand", {"one.expand", "two.expand"}),
        ("5x5", {"one.spatial", "two.spatial"}),
    ],
)
def test_rules_pick_linear_layers(only: str, expected: set[str]) -> None:
    sparsifier = Sparsifier(pair()[0], X, SparsityConfig(0.4, only=[only], block="auto"), 1)
    sparsifier.freeze()
    assert set(sparsifier.sparsities) == expected
    assert all(0.3 < sparsity < 0.5 for sparsity in sparsifier.sparsities.values())


def test_a_classifier_is_no_layer_on_a_plane() -> None:
    with pytest.raises(ConfigError, match="'head' in skip matches no convolution"):
        masked(pair()[0], skip=["head"])
    with pytest.raises(ModelError, match="has no convolution"):
        masked(nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 10, 2)))


@pytest.mark.parametrize("fill", ["bias", "nearest"])
def test_importance_is_that_of_convolutions(fill: str) -> None:
    ours, theirs = (measure(model, X, fill) for model in pair())
    assert ours.keys() == theirs.keys() == {(6, 5)}
    torch.testing.assert_close(ours[6, 5], theirs[6, 5], rtol=1e-4, atol=0)


# In files


@fills
def test_the_file_is_that_of_convolutions(fill: str, tmp_path: Path) -> None:
    files = []
    for index, model in enumerate(pair()):
        report = semisparse.export_onnx(masked(model, fill=fill), X, tmp_path / f"{index}.onnx")
        assert max(report.errors.values()) < 1e-5
        assert report.dynamic_batch
        files.append(report)
    assert files[0].layers == files[1].layers
    found = [operators(report.path) for report in files]
    assert found[0] == found[1]
    name = {"bias": "Bias", "nearest": "Nearest", "mean": "Mean"}[fill]
    assert found[0][f"ConvFill{name}Gelu"] == found[0][f"ConvFill{name}Add"] == 2
    # Layer scale is folded, and only the input is brought into another layout.
    assert found[0]["MatMul"] == found[0]["Mul"] == found[0]["Transpose"] == 0


def test_a_dense_network_is_exported_likewise(tmp_path: Path) -> None:
    report = semisparse.export_onnx(pair()[0], X, tmp_path / "m.onnx")
    assert [layer.name for layer in report.layers] == [
        "stem",
        *(
            f"{block}.{layer}"
            for block in ("one", "two")
            for layer in ("spatial", "expand", "project")
        ),
        "head",
    ]
    assert operators(report.path)["ConvGelu"] == 2


class Apart(nn.Module):
    """Linear layers where a plane is not, or where they do not meet convolutions."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


@pytest.mark.parametrize(
    ("forward", "layers", "expected"),
    [
        (
            lambda m, x: m.b(m.a(x.permute(0, 2, 3, 1)).relu()),
            {"a": nn.Linear(3, 4), "b": nn.Linear(4, 2, bias=False)},
            {"Conv": 1, "ConvRelu": 1, "MatMul": 0},
        ),
        (
            lambda m, x: m.a(m.a(x.permute(0, 2, 3, 1)).tanh()),
            {"a": nn.Linear(3, 3)},
            {"Conv": 2, "MatMul": 0},
        ),
        # Along the width: a plane of channels and rows.
        (
            lambda m, x: m.c(m.a(x)).relu() + m.b(x),
            {"a": nn.Linear(10, 10), "b": nn.Linear(10, 10), "c": nn.Conv2d(3, 3, 3, padding=1)},
            {"MatMul": 0},
        ),
        # Tokens, which are no plane.
        (
            lambda m, x: m.a(m.c(x).flatten(2).transpose(1, 2)),
            {"a": nn.Linear(4, 5), "c": nn.Conv2d(3, 4, 3)},
            {"MatMul": 1, "Conv": 1},
        ),
        # A sum that is not a bias of channels.
        (
            lambda m, x: m.a(x.permute(0, 2, 3, 1)) + torch.arange(10.0)[:, None],
            {"a": nn.Linear(3, 4, bias=False)},
            {"Conv": 1, "Add": 1, "MatMul": 0},
        ),
    ],
    ids=["without convolutions", "called twice", "along the width", "tokens", "another sum"],
)
def test_linear_layers_anywhere(forward, layers, expected, tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = semisparse.export_onnx(Apart(forward, **layers).eval(), X, tmp_path / "m.onnx")
    assert max(report.errors.values()) < 1e-5
    found = Counter(name.replace("ConvNchw", "Conv") for name in operators(report.path).elements())
    assert {name: found[name] for name in expected} == expected


@fills
def test_masks_without_convolutions(fill: str, tmp_path: Path) -> None:
    model = Apart(
        lambda m, x: m.b(m.a(x.permute(0, 2, 3, 1)).relu()),
        a=nn.Linear(3, 4),
        b=nn.Linear(4, 2),
    )
    report = semisparse.export_onnx(masked(model, fill=fill), X, tmp_path / "m.onnx")
    assert [round(layer.sparsity, 1) for layer in report.layers] == [0.4, 0.4]
    assert max(report.errors.values()) < 1e-5


def test_operations_are_counted_as_in_the_other_engines_file(tmp_path: Path) -> None:
    model = pair()[0]
    torch.onnx.export(model, (X[:1],), tmp_path / "dense.onnx", dynamo=True, verbose=False)
    name_layers(tmp_path / "dense.onnx")
    semisparse.export_onnx(model, X[:1], tmp_path / "ours.onnx")
    dense, ours = (work_of(onnx.load(tmp_path / f"{name}.onnx")) for name in ("dense", "ours"))
    assert dense.flops == ours.flops
    # 12 x 10 pixels in 2x2 patches, 30 positions; two blocks; the head.
    assert ours.flops == 2 * (30 * 8 * 12 + 2 * 30 * (8 * 25 + 2 * 8 * 16) + 5 * 8)
    assert [layer.name for layer in dense.layers] == [layer.name for layer in ours.layers]
