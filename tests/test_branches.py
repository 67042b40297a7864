"""Parallel convolutions of one input are one convolution in the file, and compute what they did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import semisparse
from semisparse._torchvision import ensure
from semisparse.config import SparsityConfig
from semisparse.export import ExportReport
from semisparse.runtime import InferenceSession
from semisparse.sparsifier import Sparsifier

CLOSE = 1e-5


def randomized(model: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            for values in (module.running_mean, module.weight, module.bias):
                nn.init.normal_(values)
    return model.eval()


def exported(model: nn.Module, x: Tensor, folder: Path) -> ExportReport:
    """What export wrote, which computes what torch does with and without the library."""
    report = semisparse.export_onnx(model, x, folder / "model.onnx")
    assert max(report.errors.values()) < CLOSE
    return report


class Sum(nn.Module):
    """Branches of one input, added one after the other; then a normalisation."""

    def __init__(self, *branches: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(sum(branch(x) for branch in self.branches))


def conv(outputs: int, kernel: int, groups: int = 1, inputs: int = 8, **options: int) -> nn.Conv2d:
    padding = options.pop("padding", kernel // 2)
    return nn.Conv2d(inputs, outputs, kernel, padding=padding, groups=groups, **options)


def normed(layer: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels))


MERGED = {
    "repvgg": lambda: Sum(normed(conv(8, 3)), normed(conv(8, 1)), nn.BatchNorm2d(8)),
    "strided": lambda: Sum(normed(conv(8, 3, stride=2)), conv(8, 1, stride=2)),
    "depthwise": lambda: Sum(conv(8, 7, 8), conv(8, 3, 8), conv(8, 1, 8), nn.Identity()),
    "repeated inputs": lambda: Sum(conv(16, 5, 8), conv(16, 3, 8), channels=16),
    "groups within groups": lambda: Sum(conv(16, 3, 2), conv(16, 3, 4), channels=16),
    "dilated": lambda: Sum(conv(8, 3, padding=2, dilation=2), conv(8, 1)),
    "without bias": lambda: Sum(conv(8, 3, bias=False), conv(8, 1, bias=False)),
}


@pytest.mark.parametrize("name", MERGED)
def test_branches_are_one_layer(name, tmp_path):
    torch.manual_seed(0)
    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), MERGED[name](), nn.ReLU()))
    report = exported(model, torch.randn(1, 3, 16, 14), tmp_path)
    # Named after the module that holds the branches, since none of them is in the file.
    expected = "StemDepthwiseRelu" if name == "depthwise" else "ConvRelu"
    assert report.layers[1].op == expected
    assert len(report.layers) == 2
    assert report.layers[1].name in ("2", "2.branches")


class Shifted(nn.Module):
    """`x + gain * (mixed - normed)`, as FastViT mixes tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Sequential(conv(8, 3, 8), nn.BatchNorm2d(8))
        self.normed = nn.BatchNorm2d(8)
        self.gain = nn.Parameter(torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * (self.mixed(x) - self.normed(x))


def test_differences_and_scales(tmp_path):
    torch.manual_seed(0)
    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Shifted(), nn.ReLU()))
    report = exported(model, torch.randn(1, 3, 12, 12), tmp_path)
    assert [layer.op for layer in report.layers] == ["StemDepthwiseRelu"] * 2


KEPT = {
    # One filter for both would have more weights than they have together.
    "pointwise and wide depthwise": lambda: Sum(conv(8, 1), conv(8, 7, 8)),
    "other dilation": lambda: Sum(conv(8, 3, padding=2, dilation=2), conv(8, 3)),
}


@pytest.mark.parametrize("name", KEPT)
def test_branches_that_stay(name, tmp_path):
    report = exported(KEPT[name]().eval(), torch.randn(1, 8, 9, 9), tmp_path)
    assert {layer.name for layer in report.layers} == {"branches.0", "branches.1", "norm"}


def test_a_value_that_is_read_elsewhere_stays(tmp_path):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = conv(8, 3), conv(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.one(x)
            return (y + self.other(x)) * torch.sigmoid(y)

    report = exported(Twice().eval(), torch.randn(1, 8, 9, 9), tmp_path)
    assert [layer.name for layer in report.layers] == ["one", "other"]


@settings(max_examples=15, deadline=None)
@given(
    kernels=st.tuples(*2 * [st.tuples(st.integers(1, 5), st.integers(1, 5))]),
    pads=st.tuples(*2 * [st.tuples(st.integers(0, 2), st.integers(0, 2))]),
    dilations=st.tuples(*2 * [st.integers(1, 2)]),
    strides=st.tuples(*2 * [st.sampled_from([1, 1, 2])]),
    groups=st.tuples(*2 * [st.sampled_from([1, 2, 4])]),
    seed=st.integers(0, 99),
)
def test_any_two_convolutions(tmp_path_factory, kernels, pads, dilations, strides, groups, seed):
    torch.manual_seed(seed)

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(
                nn.Conv2d(4, 8, k, s, p, d, g)
                for k, p, d, s, g in zip(kernels, pads, dilations, strides, groups, strict=True)
            )

        def forward(self, x: Tensor) -> Tensor:
            one, other = (layer(x) for layer in self.layers)
            height, width = (min(a, b) for a, b in zip(one.shape[2:], other.shape[2:], strict=True))
            return one[..., :height, :width] - other[..., :height, :width]

    exported(Two().eval(), torch.randn(1, 4, 16, 17), tmp_path_factory.mktemp("two"))


def masked(model: nn.Module, x: Tensor, **options: object) -> nn.Module:
    sparsifier = Sparsifier(model, x, SparsityConfig(0.5, **options), 1)
    sparsifier.step()
    sparsifier.freeze()
    return model


def test_a_masked_branch_stays_what_it_is(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 16)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), MERGED["repvgg"](), nn.ReLU())
    masked(randomized(model), x, only=["1.branches.0.0"])
    report = exported(model, x, tmp_path)
    sparsities = {layer.name: layer.sparsity for layer in report.layers}
    assert sparsities.pop("1.branches.0.0") == pytest.approx(0.5, abs=0.01)
    assert sparsities == {"0": 0, "1.branches.1.0": 0, "1.branches.2": 0, "1.norm": 0}


@pytest.mark.parametrize(
    ("name", "layers"),
    [("repvgg_a0", 23), ("fastvit_t8", 53)],
)
def test_networks_that_are_trained_in_branches(name, layers, tmp_path):
    ensure()
    import timm
    from timm.utils.model import reparameterize_model

    torch.manual_seed(0)
    model = randomized(timm.create_model(name, num_classes=10))
    x = torch.randn(1, 3, 64, 64)
    report = exported(model, x, tmp_path)
    assert len(report.layers) == layers
    # As many as are left where timm merges them.
    (tmp_path / "by_timm").mkdir()
    by_timm = exported(reparameterize_model(model), x, tmp_path / "by_timm")
    assert len(by_timm.layers) == layers
    (here,) = InferenceSession(report.path).run(None, {"input": x.numpy()})
    (there,) = InferenceSession(by_timm.path).run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.tensor(here), torch.tensor(there), rtol=1e-3, atol=1e-4)
