"""Positions that nothing reads: what the exporter leaves out is what torch does not depend on."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import semisparse
from semisparse.errors import ExportError
from semisparse.export import exporter
from semisparse.sparsifier import Sparsifier

X = torch.randn(1, 3, 13, 11, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def conv(c_in=4, c_out=4, kernel=1, **options):
    return nn.Conv2d(c_in, c_out, kernel, **{"padding": kernel // 2, **options})


def masked(model, sparsity, fill="nearest"):
    """The model with masks on the layers of `sparsity`."""
    config = semisparse.SparsityConfig(
        sparsity=0.5, only=list(sparsity), per_layer=sparsity, fill=fill
    )
    Sparsifier(model.eval(), X, config, total_steps=1).freeze()
    return model


def computed(path):
    """What the convolutions of a file compute, `{name: [H, W]}`; None for a dense one."""
    model = onnx.load(path)
    values = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    result = {}
    for node in model.graph.node:
        if not node.op_type.startswith("Conv"):
            continue
        result[node.name] = None
        if "Fill" in node.op_type:
            value = values[node.input[3]]
            if "FillMean" in node.op_type:
                value = value[0]
            own = np.arange(value.size).reshape(value.shape)
            result[node.name] = value != 0 if "FillBias" in node.op_type else value == own
    return result


def read_in_torch(model, name):
    """Positions of a layer's linear part that the output depends on, by its gradient."""
    layer = model.get_submodule(name)
    kept = {}

    def keep(_module, _args, out):
        kept["out"] = out
        out.retain_grad()

    # In double precision, with positive weights, no two paths to the output cancel.
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    handle = layer.register_forward_hook(keep)
    outputs = model(X.double().abs())
    sum(out.sum() for out in (outputs if isinstance(outputs, tuple) else (outputs,))).backward()
    handle.remove()
    return (kept["out"].grad.abs().sum((0, 1)) > 0).numpy()


def after_a(forward):
    """A forward that reads what layer `a` gives."""
    return lambda m, x: forward(m, m.a(x))


def by_position(m, y):
    """Channels normalised by the layer `n`."""
    return m.n(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def gated_halves(m, y):
    """Half of the channels times the other half, beside a third part, as MambaOut's blocks have."""
    gate, value, rest = y.split((1, 1, 2), 1)
    return torch.cat([torch.tanh(gate) * value, rest.abs()], 1)


def three(m, x):
    return m.c(m.b(m.a(x).relu()).relu())


# (forward, layers, sparsities, dense layers that are masked in the file)
KINDS = {
    "before a pointwise one": (
        lambda m, x: m.b(m.a(x).relu()),
        {"a": conv(3, 4, 3), "b": conv()},
        {"b": 0.5},
        {"a"},
    ),
    "before a strided one": (
        lambda m, x: m.b(m.a(x)),
        {"a": conv(3), "b": conv(stride=2)},
        {"b": 0.5},
        {"a"},
    ),
    "before a filter with neighbours": (
        lambda m, x: m.b(m.a(x)),
        {"a": conv(3), "b": conv(kernel=3, stride=(1, 2), dilation=(2, 1), padding=(2, 0))},
        {"b": 0.9},
        {"a"},
    ),
    "through several": (
        three,
        {"a": conv(3, kernel=3), "b": conv(kernel=3, groups=2), "c": conv()},
        {"c": 0.95},
        {"a", "b"},
    ),
    "two readers": (
        after_a(lambda m, y: m.b(y) * m.c(y)),
        {"a": conv(3), "b": conv(), "c": conv()},
        {"b": 0.7, "c": 0.6},
        {"a"},
    ),
    "before a normalisation": (
        after_a(lambda m, y: m.b(by_position(m, y))),
        {"a": conv(3, kernel=3), "b": conv(), "n": nn.LayerNorm(4)},
        {"b": 0.5},
        {"a"},
    ),
    "before what works position by position": (
        after_a(lambda m, y: m.b(gated_halves(m, y))),
        {"a": conv(3, kernel=3), "b": conv(3)},
        {"b": 0.5},
        {"a"},
    ),
    "before a gate by itself": (
        after_a(lambda m, y: m.b(y * torch.sqrt(y.sigmoid()))),
        {"a": conv(3), "b": conv()},
        {"b": 0.5},
        {"a"},
    ),
    "with a residual of its own": (
        lambda m, x: m.c((m.b(m.a(x)) + m.d(x)).relu()),
        {"a": conv(3), "b": conv(), "c": conv(), "d": conv(3)},
        {"c": 0.5},
        {"a", "b"},
    ),
}


@pytest.mark.parametrize("fill", ["bias", "nearest", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_torch_does_not_depend_on_is_left_out(kind, fill, tmp_path):
    forward, layers, sparsity, left_out = KINDS[kind]
    torch.manual_seed(0)
    model = masked(Net(forward, **copy.deepcopy(layers)), sparsity, fill)
    # The export itself compares with torch in float64.
    report = semisparse.export_onnx(model, X, tmp_path / "m.onnx")
    assert max(report.errors.values()) < 1e-5
    found = computed(tmp_path / "m.onnx")
    for name in left_out:
        np.testing.assert_array_equal(found[name], read_in_torch(model, name))
        assert not found[name].all()
    # Sparsities are those of the model's own masks.
    assert {layer.name for layer in report.layers if layer.sparsity} == set(sparsity)


def test_a_masked_layer_keeps_what_is_copied_from_it(tmp_path):
    """A nearest position that is read holds what it held, from a source that nobody reads."""
    torch.manual_seed(0)
    model = masked(Net(lambda m, x: m.b(m.a(x)), a=conv(3), b=conv()), {"a": 0.3, "b": 0.6})
    rows = torch.arange(13)[:, None].expand(13, 11)
    model.a.set_mask(rows % 2 == 0)
    model.b.set_mask(rows == 3)
    report = semisparse.export_onnx(model, X, tmp_path / "m.onnx")
    assert max(report.errors.values()) < 1e-5
    found = computed(tmp_path / "m.onnx")["a"]
    # Row 3 copies row 2, the lower of its two neighbours.
    np.testing.assert_array_equal(found, rows.numpy() == 2)


def test_a_layer_whose_fill_is_the_mean_keeps_its_own_mask(tmp_path):
    """Also where less of it is read; what is before it has to compute what that mask reads."""
    torch.manual_seed(0)
    model = masked(Net(three, a=conv(3), b=conv(), c=conv()), {"b": 0.3, "c": 0.6}, "mean")
    report = semisparse.export_onnx(model, X, tmp_path / "m.onnx")
    assert max(report.errors.values()) < 1e-5
    found = computed(tmp_path / "m.onnx")
    assert not model.b.mask.all()
    np.testing.assert_array_equal(found["b"], model.b.mask)
    np.testing.assert_array_equal(found["c"], model.c.mask)
    np.testing.assert_array_equal(found["a"], model.b.mask)


UNTOUCHED = {
    "an output": after_a(lambda m, y: (m.b(y), y)),
    "a pool": after_a(lambda m, y: m.b(y) + nn.functional.avg_pool2d(y, 1)),
    "a residual": after_a(lambda m, y: m.b(y) + y),
    "a dense convolution": after_a(lambda m, y: m.b(y) * m.c(y)),
    "a normalisation that all is read of": after_a(
        lambda m, y: m.b(by_position(m, y)) + by_position(m, y)
    ),
    "a gate of its average": after_a(
        lambda m, y: m.b(torch.tanh(y) * y.mean((2, 3), keepdim=True))
    ),
    "parts along the plane": after_a(
        lambda m, y: m.b(torch.cat(y.abs().split((5, 8), 2)[::-1], 2))
    ),
    "a normalisation across positions": after_a(
        lambda m, y: m.b(nn.functional.layer_norm(y, (11,)))
    ),
}


@pytest.mark.parametrize("reader", UNTOUCHED)
def test_what_is_read_elsewhere_is_computed(reader, tmp_path):
    model = Net(UNTOUCHED[reader], a=conv(3), b=conv(), c=conv(), n=nn.LayerNorm(4))
    model = masked(model, {"b": 0.5})
    semisparse.export_onnx(model, X, tmp_path / "m.onnx")
    found = computed(tmp_path / "m.onnx")
    assert found["b"] is not None
    assert found["a"] is None


def test_equal_masks_are_in_the_file_once(tmp_path):
    model = masked(Net(three, a=conv(3), b=conv(), c=conv()), {"c": 0.5}, fill="bias")
    semisparse.export_onnx(model, X, tmp_path / "m.onnx")
    nodes = onnx.load(tmp_path / "m.onnx").graph.node
    assert len({node.input[3] for node in nodes if node.domain == "semisparse"}) == 1


def test_a_wrong_layer_is_named_where_it_is_read(monkeypatch, tmp_path):
    """What a layer before it holds where nothing reads it is no error."""
    model = Net(three, a=conv(3, 4, 3), b=conv(), c=conv())
    model = masked(model, {"b": 0.5})
    fuse = exporter.fuse

    def spoiled(graph_model):
        fuse(graph_model)
        weights = next(n for n in graph_model.graph if n.name == "b").inputs[1]
        array = weights.const_value.numpy().copy()
        array[0] += 1
        weights.const_value = exporter.ir.tensor(array)

    monkeypatch.setattr(exporter, "fuse", spoiled)
    with pytest.raises(ExportError, match="first layer that is off is 'b'"):
        semisparse.export_onnx(model, X, tmp_path / "m.onnx")
