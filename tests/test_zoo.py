"""Networks that people use, masked at 0.3 with both fills, against torch in float64."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest
import torch
from torch import nn

import semisparse
from semisparse.check import check
from semisparse.export import exporter
from semisparse.sparsifier import Sparsifier

FULL, HEAD, TAIL = "ExpandDepthwiseProject", "ExpandDepthwise", "DepthwiseProject"
STEM = "StemDepthwiseProject"

# Input size, transposes that have to be in the graph (a VGG's classifier reads its last plane in
# NCHW), other operations than convolutions, pools and the classifier's, and how many chains of
# which form and squeezes and excitations there are.
ZOO = {
    "torchvision/resnet18": (64, 0, set(), {}),
    "torchvision/mobilenet_v2": (64, 0, set(), {STEM: 1, FULL: 16}),
    "torchvision/vgg11": (224, 1, {"Relu"}, {}),
    # Behind a concatenation batch norm is a depthwise 1x1 convolution.
    "torchvision/densenet121": (64, 0, {"Concat"}, {TAIL: 3}),
    "torchvision/squeezenet1_0": (64, 0, {"Concat"}, {}),
    "torchvision/mobilenet_v3_small": (
        64,
        0,
        set(),
        {FULL: 2, HEAD: 8, "SqueezeExciteReluHardSigmoid": 9},
    ),
    "torchvision/mnasnet0_5": (64, 0, set(), {STEM: 1, FULL: 16}),
    "torchvision/efficientnet_b0": (
        64,
        0,
        set(),
        {"StemDepthwise": 1, HEAD: 15, "SqueezeExciteSiluSigmoid": 16},
    ),
    "torchvision/regnet_y_400mf": (64, 0, set(), {"SqueezeExciteReluSigmoid": 16}),
    "timm/mobilenetv2_100": (64, 0, set(), {STEM: 1, FULL: 16}),
    "timm/efficientnet_lite0": (64, 0, set(), {STEM: 1, FULL: 15}),
}
ALWAYS = {"Transpose", "Reshape", "Gemm", "MaxPool", "AveragePool", "GlobalAveragePool"}


def build(name):
    from semisparse._torchvision import ensure

    ensure()
    library, _, model = name.partition("/")
    if library == "timm":
        import timm

        return timm.create_model(model, num_classes=10)
    import torchvision

    # Of a VGG's 133 million weights 120 million are its classifier's.
    small = {"init_weights": False} if model.startswith("vgg") else {}
    net = torchvision.models.get_model(model, weights=None, num_classes=10, **small)
    if model.startswith("vgg"):
        net.classifier = nn.Sequential(nn.Linear(512 * 49, 32), nn.ReLU(), nn.Linear(32, 10))
    return net


def randomise(model):
    """Statistics as after training: folding must not find an identity."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)


@pytest.mark.parametrize("name", ZOO)
def test_export(name, monkeypatch, tmp_path):
    size, transposes, others, chains = ZOO[name]
    torch.manual_seed(0)
    model = build(name).eval()
    randomise(model)
    x = torch.randn(1, 3, size, size)

    # Tracing takes most of the time and knows nothing of masks.
    traced = exporter.trace(model, (x,))
    monkeypatch.setattr(exporter, "trace", lambda *_: traced.clone())
    for fill in ("bias", "nearest", "mean"):
        config = semisparse.SparsityConfig(sparsity=0.3, fill=fill)
        sparsifier = Sparsifier(model, x, config, total_steps=1)
        sparsifier.freeze()
        report = semisparse.export_onnx(model, x, tmp_path / f"{fill}.onnx")
        assert report.dynamic_batch
        assert report.transposes == transposes
        nodes = onnx.load(report.path).graph.node
        assert {node.op_type for node in nodes if not node.domain} <= ALWAYS | others
        stages = [node.op_type.partition("Fill")[0] for node in nodes if "+" in node.name]
        assert Counter(stages) == chains
        expected = {name: s for name, s in sparsifier.sparsities.items() if s > 0}
        found = {layer.name: layer.sparsity for layer in report.layers if layer.sparsity > 0}
        assert found == pytest.approx(expected)
        assert check(report.path).ok
        sparsifier.detach()
