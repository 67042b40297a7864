"""Exporting networks of every kind: what is in the file, and that it computes what torch does."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections import Counter

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F  # noqa: N812

import semisparse
from semisparse import ops
from semisparse.bench.work import work_of
from semisparse.errors import ExportError, FileFormatError, ModelError
from semisparse.export import exporter, head
from semisparse.masks import mean_sources, source_map
from semisparse.sparsifier import Sparsifier


def after(first, second):
    """A forward that names an intermediate value: `second(m, first(m, x))`."""
    return lambda m, x: second(m, first(m, x))


def in_place(y, x):
    y += x
    return y


def hard_gate(m, y):
    """A gate of each channel by its layer `b`."""
    return F.hardsigmoid(m.b(y.mean((2, 3), keepdim=True)))


def excited(m, y, also=0):
    """Squeeze and excitation (arXiv 1709.01507) by its layers `q` and `e`; `also` times the mean."""
    mean = y.mean((2, 3), keepdim=True)
    gates = m.e(m.q(mean).relu()).sigmoid()
    return gates + also * mean if also else gates


def normed_response(m, y):
    """ConvNeXt V2's normalisation (arXiv 2301.00808), by the layers' parameters."""
    norm = y.norm(p=2, dim=(2, 3), keepdim=True)
    share = norm / (norm.mean(1, keepdim=True) + 1e-6)
    gain, shift = (p.view(1, 4, 1, 1) for p in (m.n.weight, m.n.bias))
    return y + torch.addcmul(shift, gain, y * share)


class Net(nn.Module):
    """Layers by name and a forward given as a function of them and the inputs."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, *inputs):
        return self.run(self, *inputs)


def conv(c_in=4, c_out=4, kernel=3, **options):
    return nn.Conv2d(c_in, c_out, kernel, **{"padding": kernel // 2, **options})


def norm(channels=4):
    layer = nn.BatchNorm2d(channels)
    with torch.no_grad():
        layer.running_mean.normal_(0, 0.5)
        layer.running_var.uniform_(0.5, 2)
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.normal_(0, 0.5)
    return layer


def masked(model, *inputs, fill="nearest", sparsity=0.3, **options):
    config = semisparse.SparsityConfig(sparsity=sparsity, fill=fill, **options)
    example = inputs[0] if len(inputs) == 1 else inputs
    Sparsifier(model.eval(), example, config, total_steps=1).freeze()
    return model


def export(model, *inputs, path):
    return semisparse.export_onnx(model, inputs[0] if len(inputs) == 1 else inputs, path)


def operators(path):
    """How often each operation is in a file, in whatever layout it reads its input."""
    names = (node.op_type for node in onnx.load(path).graph.node)
    return Counter(name.replace("ConvNchw", "Conv") for name in names)


def initializers(path):
    return {x.name: numpy_helper.to_array(x) for x in onnx.load(path).graph.initializer}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


X = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(1))

PADDING_MODES = {"a": "reflect", "b": "replicate", "c": "circular"}

# (forward, layers, operators that must be in the file; "Transpose" counts are exact)
KINDS = {
    "plain": (
        lambda m, x: m.b(m.a(x)),
        {"a": conv(), "b": conv(bias=False)},
        {"ConvFillNearest": 2, "Transpose": 1},
    ),
    "batch norm": (
        lambda m, x: m.n(m.a(x)).relu(),
        {"a": conv(bias=False), "n": norm()},
        {"ConvFillNearestRelu": 1, "BatchNormalization": 0, "Transpose": 1},
    ),
    "batch norm before": (
        lambda m, x: m.b(m.n(m.a(x).relu()).relu()),
        {"a": conv(), "b": conv(), "n": norm()},
        {"StemDepthwiseFillNearestRelu": 1, "ConvFillNearest": 1, "BatchNormalization": 0},
    ),
    "batch norm of a value read twice": (
        after(lambda m, x: m.a(x), lambda m, y: m.n(y) + y),
        {"a": conv(), "n": norm()},
        {"StemDepthwiseFillNearest": 1, "Add": 0, "BatchNormalization": 0},
    ),
    "shared": (
        lambda m, x: m.a(m.a(x).relu()).relu(),
        {"a": conv()},
        {"ConvFillNearestRelu": 2, "Transpose": 1},
    ),
    "shared, two batch norms": (
        lambda m, x: m.n(m.a(m.k(m.a(x)))),
        {"a": conv(), "n": norm(), "k": norm()},
        {"ConvFillNearest": 2, "BatchNormalization": 0},
    ),
    "grouped, depthwise, strided, dilated": (
        lambda m, x: m.c(m.b(m.a(x))),
        {"a": conv(groups=2), "b": conv(4, 8, groups=4)}
        | {"c": conv(8, 4, stride=(2, 1), dilation=(1, 2), padding=(1, 2))},
        {"ConvFillNearest": 3, "Transpose": 1},
    ),
    "same, even kernel": (
        lambda m, x: m.a(x),
        {"a": conv(kernel=4, padding="same")},
        {"ConvFillNearest": 1, "Pad": 0},
    ),
    "asymmetric padding": (
        lambda m, x: m.a(F.pad(x, (0, 1, 2, 0))),
        {"a": conv(padding=0)},
        {"ConvFillNearest": 1, "Pad": 0},
    ),
    "weight norm": (
        lambda m, x: m.a(x),
        {"a": nn.utils.parametrizations.weight_norm(conv())},
        {"ConvFillNearest": 1},
    ),
    "residual": (
        after(lambda m, x: m.s(x), lambda m, y: F.relu(y + m.b(m.a(y).relu()))),
        {"s": conv(), "a": conv(), "b": conv()},
        {"ConvFillNearestAddRelu": 1, "Add": 0, "Transpose": 1},
    ),
    "projected residual": (
        lambda m, x: F.relu(m.n(m.b(m.a(x).relu())) + m.k(m.p(x))),
        {"a": conv(4, 6, stride=2), "b": conv(6, 6), "p": conv(4, 6, 1, stride=2)}
        | {"n": norm(6), "k": norm(6)},
        {"ConvFillNearestAddRelu": 1, "ConvFillNearest": 1, "Add": 0, "Transpose": 2},
    ),
    "residual read twice": (
        after(lambda m, x: m.a(x), lambda m, y: m.b(y).relu() + y),
        {"a": conv(), "b": conv()},
        {"Add": 1},
    ),
    "doubled": (
        after(lambda m, x: m.a(x), lambda m, y: y + y),
        {"a": conv()},
        {"ConvFillNearest": 1},
    ),
    "gate per channel": (
        after(lambda m, x: m.a(x), lambda m, y: y * m.b(y.mean((2, 3), keepdim=True)).sigmoid()),
        {"a": conv(), "b": conv(kernel=1)},
        {"GlobalAveragePool": 1, "ConvSigmoid": 1, "Mul": 1, "Transpose": 1},
    ),
    "gate before a pointwise convolution": (
        after(lambda m, x: m.a(x), lambda m, y: m.c(y * hard_gate(m, y)) + y),
        {"a": conv(), "b": conv(kernel=1), "c": conv(kernel=1)},
        {"ConvHardSigmoid": 1, "ConvGatedFillNearestAdd": 1, "Mul": 0, "Transpose": 1},
    ),
    "gate before a pointwise convolution in the middle of others": (
        after(lambda m, x: m.a(x), lambda m, y: m.e(m.d(m.c(hard_gate(m, y) * y).relu()).relu())),
        {"a": conv(), "b": conv(kernel=1), "c": conv(kernel=1), "d": conv(groups=4)}
        | {"e": conv(kernel=1)},
        {"ConvGatedFillNearestRelu": 1, "Mul": 0, "DepthwiseProjectFillNearestRelu": 1},
    ),
    "response normalisation": (
        after(lambda m, x: m.a(x).relu(), lambda m, y: m.c(normed_response(m, y)) + y),
        {"a": conv(), "c": conv(kernel=1), "n": norm()},
        {"ConvGatedFillNearestAdd": 1, "GlobalL2Pool": 1, "ReduceL2": 0, "Transpose": 1},
    ),
    "scales and shifts without a gate": (
        after(lambda m, x: m.a(x).relu(), lambda m, y: m.c(y + torch.ones(4, 1, 1)) + y),
        {"a": conv(), "c": conv(kernel=1)},
        {"ConvFillNearestAdd": 1, "ConvFillNearestRelu": 1, "Add": 0},
    ),
    "normalisation of what a 3x3 convolution reads": (
        after(lambda m, x: m.a(x).relu(), lambda m, y: m.c(normed_response(m, y)) + y),
        {"a": conv(), "c": conv(), "n": norm()},
        {"ConvFillNearestAdd": 1, "ConvGatedFillNearestAdd": 0, "GlobalL2Pool": 1},
    ),
    "shift that is computed": (
        after(
            lambda m, x: m.a(x).relu(),
            lambda m, y: m.c((y + y.mean((2, 3), keepdim=True)) * hard_gate(m, y)),
        ),
        {"a": conv(), "b": conv(kernel=1), "c": conv(kernel=1)},
        {"ConvGatedFillNearest": 1, "Add": 1, "Mul": 0},
    ),
    "gate before a 3x3 convolution": (
        after(lambda m, x: m.a(x), lambda m, y: m.c(y * hard_gate(m, y))),
        {"a": conv(), "b": conv(kernel=1), "c": conv()},
        {"Mul": 1, "ConvFillNearest": 2, "Transpose": 1},
    ),
    "gate before two convolutions": (
        after(
            lambda m, x: m.a(x),
            after(lambda m, y: y * hard_gate(m, y), lambda m, z: m.c(z) + m.c(z)),
        ),
        {"a": conv(), "b": conv(kernel=1), "c": conv(kernel=1)},
        {"Mul": 1},
    ),
    "squeeze and excitation": (
        after(lambda m, x: m.a(x), after(lambda m, y: y * excited(m, y), lambda m, z: m.c(z) + z)),
        {"a": conv(), "q": conv(4, 2, kernel=1), "e": conv(2, 4, kernel=1), "c": conv(kernel=1)},
        {"SqueezeExciteScaleReluSigmoid": 1, "Mul": 0, "GlobalAveragePool": 0, "Transpose": 1},
    ),
    "squeeze and excitation before a pointwise convolution": (
        after(lambda m, x: m.a(x), lambda m, y: m.c(excited(m, y) * y)),
        {"a": conv(), "q": conv(4, 2, kernel=1), "e": conv(2, 4, kernel=1), "c": conv(kernel=1)},
        {"SqueezeExciteReluSigmoid": 1, "ConvGatedFillNearest": 1, "Mul": 0},
    ),
    "squeeze and excitation of another plane": (
        after(lambda m, x: m.a(x), lambda m, y: m.c(y.relu() * excited(m, y))),
        {"a": conv(), "q": conv(4, 2, kernel=1), "e": conv(2, 4, kernel=1), "c": conv()},
        {"SqueezeExciteReluSigmoid": 1, "Mul": 1},
    ),
    "squeeze and excitation whose mean is read again": (
        after(lambda m, x: m.a(x), lambda m, y: m.c(y * excited(m, y, also=2))),
        {"a": conv(), "q": conv(4, 2, kernel=1), "e": conv(2, 4, kernel=1), "c": conv()},
        {"GlobalAveragePool": 1, "ConvRelu": 1, "ConvSigmoid": 1, "Mul": 2},
    ),
    "gate of positions": (
        after(lambda m, x: m.a(x), lambda m, y: m.c(y * m.b(y).sigmoid())),
        {"a": conv(), "b": conv(4, 1, kernel=1), "c": conv(kernel=1)},
        {"Mul": 1},
    ),
    "average without the plane's axes": (
        after(lambda m, x: m.a(x), lambda m, y: m.l(y.relu().mean((2, 3)))),
        {"a": conv(), "l": nn.Linear(4, 3)},
        {"GlobalAveragePool": 1, "ReduceMean": 0, "Transpose": 0},
    ),
    "gate through linear": (
        after(lambda m, x: m.a(x), lambda m, y: y * m.l(y.mean((2, 3)))[:, :, None, None]),
        {"a": conv(), "l": nn.Linear(4, 4)},
        {"Transpose": 1},
    ),
    "constants": (
        lambda m, x: m.b((m.a(x) * torch.arange(1.0, 5).view(4, 1, 1) - 0.5) / 2),
        {"a": conv(), "b": conv()},
        {"Transpose": 1},
    ),
    "layer scale": (
        lambda m, x: m.b(x + m.a(x) * torch.linspace(0.1, 1, 4).view(4, 1, 1)),
        {"a": conv(), "b": conv()},
        {"ConvFillNearestAdd": 1, "Mul": 0},
    ),
    "layer scale of a value read twice": (
        after(
            lambda m, x: m.a(x),
            lambda m, y: m.b(y + y * torch.linspace(0.1, 1, 4).view(1, 4, 1, 1)),
        ),
        {"a": conv(), "b": conv()},
        {"ConvFillNearest": 2, "Mul": 1},
    ),
    "prelu": (
        lambda m, x: m.b(m.p(m.a(x))),
        {"a": conv(), "b": conv(), "p": nn.PReLU(4)},
        {"PRelu": 1, "Transpose": 1},
    ),
    "gelu": (
        lambda m, x: m.b(F.gelu(m.a(x))),
        {"a": conv(), "b": conv()},
        {"ConvFillNearestGelu": 1, "Erf": 0, "Transpose": 1},
    ),
    "gelu by the tangent": (
        lambda m, x: m.b(F.gelu(m.a(x), approximate="tanh")),
        {"a": conv(), "b": conv()},
        {"ConvFillNearest": 2, "Tanh": 1, "Transpose": 1},
    ),
    "error function that is no gelu": (
        after(lambda m, x: m.a(x), lambda m, y: m.b(y * (torch.erf(y / 1.5) + 1) * 0.5)),
        {"a": conv(), "b": conv()},
        {"ConvFillNearest": 2, "Erf": 1, "Transpose": 1},
    ),
    "concat and split": (
        lambda m, x: m.b(torch.cat([m.a(x)[:, :3], *m.a(x).chunk(2, 1)], 1)),
        {"a": conv(), "b": conv(7, 4)},
        {"Concat": 1, "Split": 1, "Transpose": 2},
    ),
    "crop": (
        lambda m, x: m.b(m.a(x)[:, :, 1:-1, ::2]),
        {"a": conv(), "b": conv()},
        {"Transpose": 1},
    ),
    "addition in place to all channels": (
        lambda m, x: m.b(in_place(torch.cat([m.a(x), m.a(x)], 1)[:, :8], torch.cat([x, x], 1))),
        {"a": conv(), "b": conv(8, 4)},
        {"ScatterND": 0, "Add": 1},
    ),
    "channel shuffle": (
        lambda m, x: m.b(
            m.a(x).view(x.shape[0], 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        ),
        {"a": conv(), "b": conv()},
        {"Transpose": 2},
    ),
    "pools": (
        lambda m, x: m.b(F.avg_pool2d(F.max_pool2d(m.a(x), 3, 2, 1), 2, 1)),
        {"a": conv(), "b": conv()},
        {"MaxPool": 1, "AveragePool": 1, "Transpose": 1},
    ),
    "pools of both modes": (
        lambda m, x: m.b(
            F.avg_pool2d(
                F.max_pool2d(m.a(x), (3, 2), 2, 1, dilation=(2, 1), ceil_mode=True),
                2,
                2,
                1,
                ceil_mode=True,
                count_include_pad=False,
            )
        ),
        {"a": conv(), "b": conv()},
        {"MaxPool": 1, "AveragePool": 1, "Transpose": 1},
    ),
    "classifier": (
        lambda m, x: m.l(F.adaptive_avg_pool2d(m.a(x).relu(), 1).flatten(1)),
        {"a": conv(), "l": nn.Linear(4, 3)},
        {"GlobalAveragePool": 1, "Conv": 1, "Gemm": 0, "Transpose": 0},
    ),
    "classifier of a plane": (
        lambda m, x: m.l(m.a(x).relu().flatten(1)),
        {"a": conv(), "l": nn.Linear(4 * 72, 3)},
        {"Conv": 1, "Gemm": 0, "Transpose": 1},
    ),
    "softmax over channels": (
        lambda m, x: m.b(m.a(x).softmax(1)),
        {"a": conv(), "b": conv()},
        {"Softmax": 1, "Transpose": 1},
    ),
    "channels last inside": (
        lambda m, x: m.b(m.l(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        {"a": conv(), "b": conv(), "l": nn.Linear(4, 4)},
        {"Transpose": 1},
    ),
    "transposed convolution": (
        lambda m, x: m.b(m.n(m.t(m.a(x))).relu()),
        {"a": conv(), "b": conv(), "t": nn.ConvTranspose2d(4, 4, 2, stride=2), "n": norm()},
        {"ConvTranspose": 1, "BatchNormalization": 0, "Transpose": 2},
    ),
    "unet": (
        lambda m, x: m.c(
            torch.cat([m.a(x), F.interpolate(m.b(F.max_pool2d(m.a(x), 2)), size=(9, 8))], 1)
        ),
        {"a": conv(), "b": conv(), "c": conv(8, 4)},
        {"Resize": 1, "Concat": 2, "Transpose": 2},
    ),
    "bilinear": (
        lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2, mode="bilinear")),
        {"a": conv(), "b": conv()},
        {"Resize": 1, "Transpose": 1},
    ),
    "bicubic": (
        lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2, mode="bicubic")),
        {"a": conv(), "b": conv()},
        {"Resize": 1, "Transpose": 2},
    ),
    "one channel": (
        lambda m, x: m.b(m.a(x[:, :1])),
        {"a": conv(1, 4), "b": conv(4, 1)},
        {"Transpose": 0},
    ),
    "padding modes": (
        lambda m, x: m.c(m.b(m.a(x))),
        {name: conv(padding_mode=mode) for name, mode in PADDING_MODES.items()},
        {"ConvFillNearest": 3, "Pad": 3, "Transpose": 1},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_file_computes_what_torch_does(kind, tmp_path):
    forward, layers, expected = KINDS[kind]
    model = masked(Net(forward, **layers), X)
    report = export(model, X, path=tmp_path / "m.onnx")
    assert set(report.errors) == {"portable", "library"}
    found = operators(report.path)
    assert {name: found[name] for name in expected} == expected
    assert report.transposes == found["Transpose"]
    assert report.dynamic_batch
    assert any(layer.sparsity > 0 for layer in report.layers)


@pytest.mark.parametrize("fill", ["bias", "nearest", "mean"])
def test_a_shift_of_the_input_is_part_of_the_fill_but_not_of_the_bias(fill, tmp_path):
    forward, _, _ = KINDS["response normalisation"]
    model = masked(Net(forward, a=conv(), c=conv(kernel=1), n=norm()), X, fill=fill)
    report = export(model, X, path=tmp_path / "m.onnx")
    found = operators(report.path)
    # Where the linear part is zero nothing of the shift is left, so it has to stay before the layer.
    assert any("Gated" in name for name in found) == (fill != "bias")


ACTIVATIONS = {
    "Relu": nn.ReLU(),
    "Clip": nn.ReLU6(),
    "LeakyRelu": nn.LeakyReLU(0.2),
    "Silu": nn.SiLU(),
    "HardSwish": nn.Hardswish(),
    "Sigmoid": nn.Sigmoid(),
    "HardSigmoid": nn.Hardsigmoid(),
    "Gelu": nn.GELU(),
}


@pytest.mark.parametrize("fill", ["bias", "nearest", "mean"])
def test_activations_are_fused(fill, tmp_path):
    def forward(m, x):
        for name, activation in ACTIVATIONS.items():
            x = activation(m.get_submodule(f"{name}1")(x))
            x = activation(x + m.get_submodule(f"{name}2")(x))
        return x

    layers = {f"{name}{i}": conv() for name in ACTIVATIONS for i in (1, 2)}
    model = masked(Net(forward, **layers), X, fill=fill)
    report = export(model, X, path=tmp_path / "m.onnx")
    found = {layer.name: layer.op for layer in report.layers}
    for name in ACTIVATIONS:
        first = name == next(iter(ACTIVATIONS))  # reads the graph's input
        assert found[f"{name}1"] == ops.ConvOp(fill, activation=name, nchw=first).name
        assert found[f"{name}2"] == ops.ConvOp(fill, residual=True, activation=name).name
    assert sum(operators(report.path).values()) == len(layers) + 1


def pointwise(c_in=4, c_out=12, **options):
    return conv(c_in, c_out, 1, **options)


def depthwise(channels=12, kernel=3, **options):
    return conv(channels, channels, kernel, groups=channels, **options)


def gated(m, y):
    return y * m.s(y.mean((2, 3), keepdim=True)).sigmoid()


FULL, HEAD, TAIL = "ExpandDepthwiseProject", "ExpandDepthwise", "DepthwiseProject"

# (forward, layers beside or instead of the usual, operators of e, d and p without their fill)
CHAINS = {
    "residual": (
        lambda m, x: x + m.p(F.relu6(m.d(F.relu6(m.e(x))))),
        {},
        [FULL + "AddClip"] * 3,
    ),
    "residual in the other order, stride 2": (
        lambda m, x: m.p(m.d(m.e(x).relu()).relu()) + m.k(x),
        {"d": depthwise(kernel=5, stride=2), "k": conv(stride=2)},
        [FULL + "AddRelu"] * 3,
    ),
    "no activation": (lambda m, x: m.p(m.d(m.e(x))), {}, [FULL] * 3),
    "batch norm": (
        lambda m, x: m.j(m.p(F.silu(m.l(m.d(F.silu(m.k(m.e(x)))))))),
        {"k": norm(12), "l": norm(12), "j": norm()},
        [FULL + "Silu"] * 3,
    ),
    "dilated, padded on one side": (
        lambda m, x: m.p(F.leaky_relu(m.d(F.pad(F.leaky_relu(m.e(x), 0.2), (0, 1, 2, 0))), 0.2)),
        {"d": depthwise(padding=0, dilation=(2, 1))},
        [FULL + "LeakyRelu"] * 3,
    ),
    "gate": (
        lambda m, x: m.p(gated(m, F.silu(m.d(F.silu(m.e(x)))))),
        {"s": pointwise(12, 12)},
        [HEAD + "Silu", HEAD + "Silu", "ConvGated"],
    ),
    "projection with an activation": (
        lambda m, x: F.relu6(m.p(F.relu6(m.d(F.relu6(m.e(x)))))),
        {},
        [HEAD + "Clip", HEAD + "Clip", "ConvClip"],
    ),
    "projection with a residual and an activation": (
        lambda m, x: F.relu(x + m.p(m.d(m.e(x).relu()).relu())),
        {},
        [HEAD + "Relu", HEAD + "Relu", "ConvAddRelu"],
    ),
    "another activation of the expansion": (
        lambda m, x: m.p(F.hardswish(m.d(m.e(x).relu()))),
        {},
        ["ConvRelu", TAIL + "HardSwish", TAIL + "HardSwish"],
    ),
    "another slope of the expansion": (
        lambda m, x: m.p(F.leaky_relu(m.d(F.leaky_relu(m.e(x), 0.2)), 0.1)),
        {},
        ["ConvLeakyRelu", TAIL + "LeakyRelu", TAIL + "LeakyRelu"],
    ),
    "expansion by 3x3": (
        lambda m, x: m.p(m.d(m.e(x).relu()).relu()),
        {"e": conv(4, 12)},
        ["ConvRelu", TAIL + "Relu", TAIL + "Relu"],
    ),
    "expansion with a stride": (
        lambda m, x: m.p(m.d(m.e(x).relu()).relu()),
        {"e": pointwise(stride=2)},
        ["ConvRelu", TAIL + "Relu", TAIL + "Relu"],
    ),
    "expansion with a residual": (
        lambda m, x: m.p(m.d((m.e(x) + m.k(x)).relu()).relu()),
        {"k": conv(4, 12)},
        ["ConvAddRelu", TAIL + "Relu", TAIL + "Relu"],
    ),
    "projection in groups": (
        lambda m, x: m.p(m.d(m.e(x).relu()).relu()),
        {"p": pointwise(12, 4, groups=2)},
        [HEAD + "Relu", HEAD + "Relu", "Conv"],
    ),
    "grouped, not depthwise": (
        lambda m, x: m.p(m.d(m.e(x).relu()).relu()),
        {"d": conv(12, 12, groups=6)},
        ["ConvRelu", "ConvRelu", "Conv"],
    ),
    "depthwise with more channels out than in": (
        lambda m, x: m.p(m.d(m.e(x).relu()).relu()),
        {"d": conv(12, 24, groups=12), "p": pointwise(24, 4)},
        ["ConvRelu", "ConvRelu", "Conv"],
    ),
    "sigmoid": (
        lambda m, x: m.p(m.d(m.e(x).sigmoid()).sigmoid()),
        {},
        ["ConvSigmoid", "ConvSigmoid", "Conv"],
    ),
    "expanded tensor read twice": (
        after(lambda m, x: m.e(x).relu(), lambda m, y: (m.p(m.d(y).relu()), m.k(y))),
        {"k": conv(12, 4)},
        ["ConvRelu", TAIL + "Relu", TAIL + "Relu"],
    ),
    "expanded tensor is an output": (
        after(lambda m, x: m.e(x).relu(), lambda m, y: (m.p(m.d(y).relu()), y)),
        {},
        ["ConvRelu", TAIL + "Relu", TAIL + "Relu"],
    ),
    "input of the projection is its residual": (
        after(lambda m, x: m.d(m.e(x).relu()).relu(), lambda m, y: y + m.p(y)),
        {"p": pointwise(12, 12)},
        [HEAD + "Relu", HEAD + "Relu", "ConvAdd"],
    ),
    "depthwise output is another layer's residual": (
        lambda m, x: m.p(x) + m.d(m.e(x)),
        {"p": pointwise(4, 12)},
        [HEAD, HEAD, "ConvAdd"],
    ),
    "operations between": (
        lambda m, x: m.p(m.d(F.max_pool2d(m.e(x).relu(), 2)).relu().abs()),
        {},
        ["ConvRelu", "ConvRelu", "Conv"],
    ),
}


def block(forward=lambda m, x: x + m.p(F.relu6(m.d(F.relu6(m.e(x))))), **others):
    """An inverted residual: expansion e, depthwise d, projection p."""
    usual = {"e": pointwise(), "d": depthwise(), "p": pointwise(12, 4)}
    return Net(forward, **{**usual, **others})


def test_chains(monkeypatch, tmp_path):
    # All of them side by side and traced once, which one by one takes half a minute.
    nets = [block(forward, **others) for forward, others, _ in CHAINS.values()]
    model = Net(
        lambda m, x: tuple(net(x) for net in m.children()),
        **{str(index): net for index, net in enumerate(nets)},
    ).eval()
    traced = exporter.trace(model, (X,))
    monkeypatch.setattr(exporter, "trace", lambda *_: traced.clone())
    for fill, written in (("bias", "FillBias"), ("nearest", "FillNearest"), ("mean", "FillMean")):
        sparsifier = Sparsifier(model, X, semisparse.SparsityConfig(0.3, fill=fill), 1)
        sparsifier.freeze()
        report = export(model, X, path=tmp_path / "m.onnx")
        assert max(report.errors.values()) < 1e-6
        found = {layer.name: layer.op.replace(written, "") for layer in report.layers}
        for index, (kind, (_, _, expected)) in enumerate(CHAINS.items()):
            assert [found[f"{index}.{name}"] for name in "edp"] == expected, kind
        dense = [layer.name for layer in report.layers if written not in layer.op]
        assert dense == [f"{[*CHAINS].index('gate')}.s"]
        sparsifier.detach()


STEM = {"e": conv(4, 12, stride=2), "d": depthwise(stride=2)}

# (forward, layers beside or instead of the usual, operators of e, d and p without their fill)
STEMS = {
    "three stages": (
        lambda m, x: m.p(F.relu6(m.d(F.relu6(m.e(x))))),
        STEM,
        ["StemDepthwiseProjectClip"] * 3,
    ),
    "padded on one side": (
        lambda m, x: m.p(m.d(m.e(F.pad(x, (0, 1, 2, 0))))),
        STEM | {"e": nn.Conv2d(4, 12, (2, 5), stride=(1, 2), dilation=(3, 1))},
        ["StemDepthwiseProject"] * 3,
    ),
    "projection with an activation": (
        lambda m, x: m.p(m.d(m.e(x).relu()).relu()).relu(),
        STEM,
        ["StemDepthwiseRelu", "StemDepthwiseRelu", "ConvRelu"],
    ),
    "another activation of the stem": (
        lambda m, x: m.p(m.d(F.silu(m.e(x))).relu()),
        STEM,
        ["ConvNchwSilu", TAIL + "Relu", TAIL + "Relu"],
    ),
    "image read twice": (
        lambda m, x: m.p(m.d(m.e(x).relu()).relu()) + m.k(x),
        STEM | {"k": conv(stride=4)},
        ["ConvRelu", TAIL + "AddRelu", TAIL + "AddRelu"],
    ),
    "stem read twice": (
        after(lambda m, x: m.e(x).relu(), lambda m, y: y + m.p(m.d(y).relu())),
        {"e": conv(4, 12, stride=2), "p": pointwise(12, 12)},
        ["ConvNchwRelu", TAIL + "AddRelu", TAIL + "AddRelu"],
    ),
    "pointwise": (
        lambda m, x: m.p(m.d(m.e(x).relu()).relu()),
        {"d": depthwise(stride=2)},
        [FULL + "Relu"] * 3,
    ),
    "grouped": (
        lambda m, x: m.p(m.d(m.e(x).relu()).relu()),
        STEM | {"e": conv(4, 12, groups=2, stride=2)},
        ["ConvNchwRelu", TAIL + "Relu", TAIL + "Relu"],
    ),
}


HEADS = {
    "activation between": (
        lambda m, y: m.q(F.hardswish(m.p(y))),
        {"p": nn.Linear(4, 9), "q": nn.Linear(9, 3)},
        {"ConvHardSwish": 1, "Conv": 1, "Reshape": 1},
    ),
    "clip between": (
        lambda m, y: m.q(F.relu6(m.p(y))),
        {"p": nn.Linear(4, 9), "q": nn.Linear(9, 3)},
        {"ConvClip": 1, "Conv": 1, "Reshape": 1},
    ),
    "called twice": (
        lambda m, y: m.p(m.p(y).relu()),
        {"p": nn.Linear(4, 4)},
        {"ConvRelu": 1, "Conv": 1},
    ),
    "no bias": (lambda m, y: m.p(y), {"p": nn.Linear(4, 5, bias=False)}, {"Conv": 1, "MatMul": 0}),
    "several heads": (
        lambda m, y: (m.p(y).softmax(1), m.q(y).relu(), y),
        {"p": nn.Linear(4, 5), "q": nn.Linear(4, 2)},
        {"Conv": 1, "ConvRelu": 1, "Softmax": 1},
    ),
    "read twice": (
        after(lambda m, y: m.p(y), lambda m, z: z.relu() + z),
        {"p": nn.Linear(4, 5)},
        {"Conv": 1, "Relu": 1},
    ),
    "another spelling": (
        lambda m, y: torch.addmm(m.p.bias, y, m.p.weight.t(), beta=0.5),
        {"p": nn.Linear(4, 5)},
        {"Gemm": 1},
    ),
    "weights that depend on the input": (
        lambda m, y: y @ y.t(),
        {},
        {"MatMul": 1},
    ),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_convolutions(kind, tmp_path):
    forward, layers, expected = HEADS[kind]
    model = masked(Net(lambda m, x: forward(m, m.a(x).mean((2, 3))), a=conv(), **layers), X)
    report = export(model, X, path=tmp_path / "m.onnx")
    assert max(report.errors.values()) < 1e-6
    found = operators(report.path)
    assert {name: found[name] for name in expected} == expected
    of_head = {layer.name: layer for layer in report.layers if layer.name not in ("a", "p#2")}
    assert of_head.keys() == (layers.keys() if "Conv" in "".join(expected) else set())
    assert all(
        (layer.height, layer.width, layer.sparsity) == (1, 1, 0) for layer in of_head.values()
    )


def test_a_head_that_is_called_again_has_its_weights_once(tmp_path):
    forward, layers, _ = HEADS["called twice"]
    model = Net(lambda m, x: forward(m, m.a(x).mean((2, 3))), a=conv(), **layers).eval()
    report = export(model, X, path=tmp_path / "m.onnx")
    assert [layer.name for layer in report.layers] == ["a", "p", "p#2"]
    assert sum(array.shape == (4, 4, 1, 1) for array in initializers(report.path).values()) == 1


def test_large_linear_layers_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(head, "_MOST_BYTES", 100)
    model = masked(
        Net(
            lambda m, x: m.q(m.p(m.a(x).mean((2, 3)))),
            a=conv(),
            p=nn.Linear(4, 6),
            q=nn.Linear(6, 5),
        ),
        X,
    )
    report = export(model, X, path=tmp_path / "m.onnx")
    assert [layer.name for layer in report.layers] == ["a", "p"]
    assert operators(report.path)["Gemm"] == 1


@pytest.mark.parametrize("kind", STEMS)
@pytest.mark.parametrize("fill", [None, "nearest", "mean"])
def test_a_chain_begins_with_the_stem(kind, fill, tmp_path):
    forward, layers, expected = STEMS[kind]
    model = copy.deepcopy(block(forward, **layers)).eval()
    planes = {}
    for name in "edp":
        getattr(model, name).register_forward_hook(
            lambda _, args, y, name=name: planes.update({name: tuple(y.shape[2:])})
        )
    model(X)
    if fill is not None:
        masked(model, X, fill=fill)
    report = export(model, X, path=tmp_path / "m.onnx")
    assert max(report.errors.values()) < 1e-6
    written = "" if fill is None else f"Fill{fill.title()}"
    found = {layer.name: layer.op.replace(written, "") for layer in report.layers}
    assert [found[name] for name in "edp"] == expected
    nchw = "Nchw" in expected[0] or "Stem" in expected[0]
    assert report.transposes == (1 if nchw else 2)  # the output's is one
    reported = {layer.name: (layer.height, layer.width) for layer in report.layers}
    counted = {layer.name: layer.plane for layer in work_of(onnx.load(report.path)).layers}
    assert reported == counted == reported | planes


def test_chains_can_be_left_apart(tmp_path):
    model = masked(block(), X)
    path = tmp_path / "m.onnx"
    report = semisparse.export_onnx(model, X, path, chains=False)
    names = ["ConvFillNearestClip", "ConvFillNearestClip", "ConvFillNearestAdd"]
    assert [layer.op for layer in report.layers] == names


def test_a_chain_is_named_after_its_layers(tmp_path):
    twice = after(lambda m, x: m.p(m.d(m.e(x))), lambda m, y: m.p(m.d(m.e(y))))
    model = masked(block(twice), X)
    report = export(model, X, path=tmp_path / "m.onnx")
    chains = [node.name for node in onnx.load(report.path).graph.node if node.domain]
    assert chains == ["e+d+p", "e#2+d#2+p#2"]
    assert [layer.name for layer in report.layers] == ["e", "d", "p", "e#2", "d#2", "p#2"]
    assert len({layer.sparsity for layer in report.layers}) == 1


def test_a_layer_whose_name_has_a_plus_is_in_no_chain(tmp_path):
    odd = {"e+1": pointwise()}
    model = masked(block(lambda m, x: m.p(m.d(getattr(m, "e+1")(x))), **odd), X)
    report = export(model, X, path=tmp_path / "m.onnx")
    assert {layer.name: layer.op for layer in report.layers} == {
        "e+1": "ConvNchwFillNearest",
        "d": "DepthwiseProjectFillNearest",
        "p": "DepthwiseProjectFillNearest",
    }


@pytest.mark.parametrize("fill", ["bias", "nearest", "mean"])
def test_stages_with_nothing_masked_have_full_masks(fill, tmp_path):
    forward = after(lambda m, x: m.d(m.e(x).relu()).relu(), lambda m, y: m.p(y))
    model = masked(block(forward, d=depthwise(stride=2)), X, fill=fill, skip=["1x1"])
    report = export(model, X, path=tmp_path / "m.onnx")
    planes = {layer.name: (layer.height, layer.width) for layer in report.layers}
    assert planes == {"e": (9, 8), "d": (5, 4), "p": (5, 4)}
    (chain,) = (node for node in onnx.load(report.path).graph.node if "+" in node.name)
    values = initializers(report.path)
    given = [name for name in chain.input[1:] if values[name].ndim in (2, 3)]
    count = len(given) // 3
    maps = {
        name: [values[key] for key in given[i * count :][:count]] for i, name in enumerate("edp")
    }
    for name in "edp":
        assert {array.shape[-2:] for array in maps[name]} == {planes[name]}
    for name in "ep":
        all_computed = torch.ones(planes[name], dtype=torch.bool)
        if fill == "bias":
            expected = [all_computed]
        elif fill == "nearest":
            expected = [source_map(all_computed, fill)]
        else:
            expected = mean_sources(all_computed)
        for array, wanted in zip(maps[name], expected, strict=True):
            np.testing.assert_array_equal(array, wanted)
    assert not np.array_equal(maps["d"][0], maps["p"][0])


def test_stages_of_different_fills_are_no_chain(tmp_path):
    model = masked(block(), X, fill="nearest", per_layer_fill={"p": "bias"})
    report = export(model, X, path=tmp_path / "m.onnx")
    assert [layer.op for layer in report.layers] == [
        "ExpandDepthwiseFillNearestClip",
        "ExpandDepthwiseFillNearestClip",
        "ConvFillBiasAdd",
    ]


SPELLED_OUT = {
    "Silu": [lambda y: y * torch.sigmoid(y), lambda y: torch.sigmoid(y) * y],
    "HardSwish": [lambda y: y * F.hardsigmoid(y), lambda y: y * F.relu6(y + 3) / 6],
    "Clip": [lambda y: y.clamp(0, 6), lambda y: y.clamp(min=-0.5), lambda y: y.clamp(max=0.5)],
}


def test_spelled_out_activations_are_fused(tmp_path):
    activations = [spelled for kind in SPELLED_OUT.values() for spelled in kind]

    def forward(m, x):
        for layer, activation in zip(m.children(), activations, strict=True):
            x = activation(layer(x))
        return x

    model = masked(Net(forward, **{f"c{i}": conv() for i in range(len(activations))}), X)
    report = export(model, X, path=tmp_path / "m.onnx")
    found = operators(report.path)
    for name, kind in SPELLED_OUT.items():
        assert found[ops.ConvOp("nearest", activation=name).name] == len(kind)
    assert sum(found.values()) == len(activations) + 1


def test_session_takes_and_gives_nchw_at_any_batch_size(tmp_path):
    model = masked(Net(lambda m, x: m.b(m.a(x).relu()), a=conv(), b=conv(4, 6, stride=2)), X)
    path = export(model, X, path=tmp_path / "m.onnx").path
    session = semisparse.InferenceSession(path)
    assert [value.name for value in session.get_inputs()] == ["input"]
    assert [value.name for value in session.get_outputs()] == ["output"]
    assert session.get_inputs()[0].shape == ["batch", 4, 9, 8]
    for batch in (1, 5):
        x = torch.randn(batch, 4, 9, 8)
        (y,) = session.run(None, {"input": x.numpy()})
        np.testing.assert_allclose(y, model(x).detach(), rtol=1e-4, atol=1e-5)


def test_input_of_another_size_is_an_error(tmp_path):
    model = masked(Net(lambda m, x: m.a(x), a=conv()), X)
    path = export(model, X, path=tmp_path / "m.onnx").path
    for library in (False, True):
        session = semisparse.InferenceSession(path, library=library)
        with pytest.raises(Exception, match=r"(?s)index: 2.*Got: 10.*Expected: 9"):
            session.run(None, {"input": np.zeros((1, 4, 10, 8), np.float32)})


def test_several_inputs_and_outputs(tmp_path):
    def forward(m, x, y):
        z = m.a(x) + y
        return {"sum": z, "pooled": (z.mean((2, 3)), m.b(z))}

    model = masked(Net(forward, a=conv(), b=conv()), X, X)
    path = export(model, X, 2 * X, path=tmp_path / "m.onnx").path
    session = semisparse.InferenceSession(path)
    assert [value.name for value in session.get_inputs()] == ["input_0", "input_1"]
    outputs = session.run(None, {"input_0": X.numpy(), "input_1": 2 * X.numpy()})
    expected = model(X, 2 * X)
    for got, want in zip(outputs, [expected["sum"], *expected["pooled"]], strict=True):
        np.testing.assert_allclose(got, want.detach(), rtol=1e-4, atol=1e-5)


def test_output_that_is_given_twice_or_is_the_input(tmp_path):
    model = masked(Net(lambda m, x: (m.a(x), m.a(x), x, m.b(m.a(x))), a=conv(), b=conv()), X)
    path = export(model, X, path=tmp_path / "m.onnx").path
    outputs = semisparse.InferenceSession(path).run(None, {"input": X.numpy()})
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[2], X)


def test_batch_that_the_model_fixes_stays_fixed(tmp_path):
    model = Net(lambda m, x: m.l(m.a(x).reshape(1, 288)), a=conv(), l=nn.Linear(288, 2))
    model = masked(model, X[:1])
    report = export(model, X[:1], path=tmp_path / "m.onnx")
    assert not report.dynamic_batch
    assert semisparse.InferenceSession(report.path).get_inputs()[0].shape == [1, 4, 9, 8]


def test_dense_model_needs_no_masks(tmp_path):
    report = export(Net(lambda m, x: m.a(x).relu(), a=conv()).eval(), X, path=tmp_path / "m.onnx")
    assert operators(report.path)["ConvRelu"] == 1
    assert "semisparse.config" not in metadata_of(report.path)


def test_masks_go_to_their_layers(tmp_path):
    """Equal weights and a shared plane must not lead to a shared mask."""
    model = Net(lambda m, x: m.a(x) + m.b(x) + m.c(x), a=conv(), b=conv(), c=conv())
    model.b.load_state_dict(model.a.state_dict())
    model.c.weight = model.a.weight
    model = masked(model, X, per_layer_fill={"a": "bias"})
    masks = [torch.rand(9, 8) < 0.5 for _ in range(3)]
    for layer, mask in zip((model.a, model.b, model.c), masks, strict=True):
        layer.set_mask(mask)
    path = export(model, X, path=tmp_path / "m.onnx").path
    nodes = {node.name: node for node in onnx.load(path).graph.node}
    values = initializers(path)
    np.testing.assert_array_equal(values[nodes["a"].input[3]], masks[0])
    for name, mask in (("b", masks[1]), ("c", masks[2])):
        np.testing.assert_array_equal(values[nodes[name].input[3]], source_map(mask, "nearest"))


@pytest.mark.parametrize("fill", ["bias", "nearest", "mean"])
def test_one_mask_is_in_the_file_once(fill, tmp_path):
    model = masked(Net(lambda m, x: m.b(m.a(x)), a=conv(), b=conv()), X, fill=fill)
    nodes = onnx.load(export(model, X, path=tmp_path / "m.onnx").path).graph.node
    assert len({tuple(node.input[3:]) for node in nodes if node.domain == ops.DOMAIN}) == 1


def test_nodes_are_named_after_layers(tmp_path):
    block = nn.Sequential(conv(), nn.ReLU())
    model = masked(nn.Sequential(block, conv(), block[0]), X)
    report = export(model, X, path=tmp_path / "m.onnx")
    assert [layer.name for layer in report.layers] == ["0.0", "1", "0.0#2"]


def metadata_of(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_metadata(tmp_path):
    model = masked(Net(lambda m, x: m.b(m.a(x)), a=conv(), b=conv(stride=2)), X, sparsity=0.25)
    path = export(model, X, path=tmp_path / "m.onnx").path
    entries = metadata_of(path)
    assert entries["semisparse.format"] == "1"
    assert entries["semisparse.version"] == semisparse.__version__
    config = semisparse.SparsityConfig.from_json(entries["semisparse.config"])
    assert config.sparsity == 0.25
    assert json.loads(entries["semisparse.sparsity"]) == {"a": 18 / 72, "b": 5 / 20}
    digest = hashlib.sha256()
    for name, layer in (("a", model.a), ("b", model.b)):
        height, width = layer.mask.shape
        digest.update(name.encode() + b"\0")
        digest.update(height.to_bytes(4, "little") + width.to_bytes(4, "little"))
        digest.update(bytes(int(kept) for kept in layer.mask.flatten()))
    assert entries["semisparse.masks_sha256"] == digest.hexdigest()


def test_file_keeps_to_the_format(tmp_path):
    model = masked(Net(lambda m, x: F.max_pool2d(m.a(x), 2).relu(), a=conv()), X)
    file = onnx.load(export(model, X, path=tmp_path / "m.onnx").path)
    onnx.checker.check_model(file)
    assert file.ir_version == 8
    assert {o.domain: o.version for o in file.opset_import} == {"": 18, "semisparse": 1}
    ours = [node for node in file.graph.node if node.domain == "semisparse"]
    assert {f.name for f in file.functions} == {node.op_type for node in ours}
    for node in ours:
        declared = next(f for f in file.functions if f.name == node.op_type).attribute_proto
        assert {a.name for a in node.attribute} == {a.name for a in declared}
    names = {i.name for i in file.graph.input}
    assert not names & {i.name for i in file.graph.initializer}
    assert b"/site-packages/" not in file.SerializeToString()


def test_export_leaves_the_model_as_it_is(tmp_path):
    model = masked(Net(lambda m, x: m.n(m.a(x)), a=conv(), n=norm()), X).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cls = type(model.a)
    export(model, X, path=tmp_path / "m.onnx")
    assert model.training
    assert type(model.a) is cls
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_two_exports_are_equal(tmp_path):
    model = masked(Net(lambda m, x: m.n(m.a(x)).relu(), a=conv(), n=norm()), X)
    files = [export(model, X, path=tmp_path / f"{i}.onnx").path.read_bytes() for i in range(2)]
    assert files[0] == files[1]


# What cannot be exported


def test_no_convolution(tmp_path):
    with pytest.raises(ModelError, match="Sequential has no 2-d float32 convolution"):
        export(nn.Sequential(nn.Flatten(), nn.Linear(288, 2)), X, path=tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value, tmp_path):
    model = Net(lambda m, x: m.a(x), a=conv())
    model.a.weight.data[1, 2] = value
    with pytest.raises(ModelError, match=r"a\.weight has 9 values that are NaN or infinite"):
        export(model, X, path=tmp_path / "m.onnx")


def test_half_precision(tmp_path):
    with pytest.raises(ModelError, match=r"a\.weight is torch\.float16"):
        export(Net(lambda m, x: m.a(x), a=conv()).half(), X, path=tmp_path / "m.onnx")


def test_over_two_gigabytes(tmp_path):
    model = Net(lambda m, x: m.a(x), a=conv())
    model.register_buffer("big", torch.zeros(1).expand(2**29))
    with pytest.raises(ExportError, match="2147484240 bytes of weights"):
        export(model, X, path=tmp_path / "m.onnx")


def test_model_that_torch_cannot_export(tmp_path):
    model = Net(lambda m, x: m.a(x) if x.sum() > 0 else x, a=conv())
    with pytest.raises(ModelError, match="torch cannot export the model"):
        export(model, X, path=tmp_path / "m.onnx")


def test_example_that_does_not_fit(tmp_path):
    with pytest.raises(ModelError, match=r"expected input.* to have 4 channels"):
        export(Net(lambda m, x: m.a(x), a=conv()), X[:, :3], path=tmp_path / "m.onnx")


def test_masked_layer_whose_weights_depend_on_the_input(tmp_path):
    class Dynamic(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight * x.mean(), self.bias)

    model = masked(Net(lambda m, x: m.b(m.a(x)), a=Dynamic(4, 4, 3), b=conv()), X)
    with pytest.raises(ModelError, match=r"masked layers \['a'\]"):
        export(model, X, path=tmp_path / "m.onnx")


def test_dense_layer_whose_weights_depend_on_the_input(tmp_path):
    model = Net(lambda m, x: F.conv2d(m.b(x), m.a.weight * x.mean()), a=conv(), b=conv())
    model = masked(model, X, skip=["a"])
    report = export(model, X, path=tmp_path / "m.onnx")
    assert operators(report.path)["Conv"] == 1
    assert operators(report.path)["ConvFillNearest"] == 1


@pytest.mark.parametrize("where", ["missing/m.onnx", "."])
def test_unwritable_path(where, tmp_path):
    with pytest.raises(ExportError, match="folder"):
        export(Net(lambda m, x: m.a(x), a=conv()), X, path=tmp_path / where)


def test_failing_disk_leaves_nothing(monkeypatch, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"what was there")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ExportError, match="No space left on device"):
        export(Net(lambda m, x: m.a(x), a=conv()), X, path=path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"what was there"


def spoil(node_name):
    """`put_masks`, and then one wrong weight."""
    put_masks = exporter.put_masks

    def spoiled(model, layers):
        put_masks(model, layers)
        node = next(n for n in model.graph if n.name == node_name and n.domain)
        value = node.inputs[1]
        wrong = value.const_value.numpy().copy()
        wrong[0] += 1
        value.const_value = onnx_ir.tensor(wrong)

    return spoiled


def test_a_layer_that_the_head_reads_wrongly_is_named(monkeypatch, tmp_path):
    layers = {"a": conv(), "p": nn.Linear(4, 6), "q": nn.Linear(6, 3)}
    model = masked(Net(lambda m, x: m.q(m.p(m.a(x).mean((2, 3)))), **layers), X)
    for wrong in "ap":
        monkeypatch.setattr(exporter, "put_masks", spoil(wrong))
        reader = {"a": "p", "p": "q"}[wrong]
        with pytest.raises(ExportError, match=f"first layer that is off .* where '{reader}' reads"):
            export(model, X, path=tmp_path / "m.onnx")
        monkeypatch.undo()


def test_wrong_file_is_not_written_and_the_layer_is_named(monkeypatch, tmp_path):
    layers = {name: conv() for name in "abc"}
    model = masked(Net(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), **layers), X)
    monkeypatch.setattr(exporter, "put_masks", spoil("b"))
    with pytest.raises(ExportError, match=r"first layer that is off is 'b'.* where 'c' reads it"):
        export(model, X, path=tmp_path / "m.onnx")
    monkeypatch.undo()
    monkeypatch.setattr(exporter, "put_masks", spoil("c"))
    with pytest.raises(ExportError, match="the last one or what follows it is off"):
        export(model, X, path=tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_wrong_chain_is_named(monkeypatch, tmp_path):
    model = masked(block(lambda m, x: m.k(m.p(m.d(m.e(x)))), k=conv()), X)
    monkeypatch.setattr(exporter, "put_masks", spoil("d"))
    with pytest.raises(ExportError, match=r"that is off is 'e\+d\+p'.* where 'k' reads it"):
        export(model, X, path=tmp_path / "m.onnx")


def test_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("SEMISPARSE_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(semisparse.SemisparseError, match="SEMISPARSE_LIBRARY"):
        export(Net(lambda m, x: m.a(x), a=conv()), X, path=tmp_path / "m.onnx")
    report = semisparse.export_onnx(
        Net(lambda m, x: m.a(x), a=conv()), X, tmp_path / "m.onnx", verify=False
    )
    assert report.errors == {}
    with pytest.raises(FileFormatError):
        semisparse.InferenceSession(b"not a model", library=False)
