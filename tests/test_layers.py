from __future__ import annotations

import contextlib
import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semisparse.errors import MaskError, ModelError
from semisparse.layers import MaskedConv2d, attach, detach, masked_layers, masking_disabled
from semisparse.masks import mean_sources, source_map


def random_mask(height: int, width: int, seed: int = 0) -> Tensor:
    mask = torch.from_numpy(np.random.default_rng(seed).random((height, width)) > 0.4)
    mask[0, 0] = True
    return mask


def masked(conv: nn.Conv2d, x: Tensor, fill: str, seed: int = 0) -> nn.Conv2d:
    height, width = conv(x).shape[-2:]
    attach(conv, height, width, fill, name="stem")
    conv.set_mask(random_mask(height, width, seed))
    return conv


def reference(conv: nn.Conv2d, x: Tensor, mask: Tensor, fill: str) -> Tensor:
    """im2col in float64 with the masked columns zeroed or replaced, one group at a time."""
    weight = conv.weight.detach().double()
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        pads = [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    elif conv.padding == "valid":
        pads = [0, 0, 0, 0]
    else:
        pads = [conv.padding[1]] * 2 + [conv.padding[0]] * 2
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = nn.functional.pad(x.double(), pads, mode=mode)
    columns = nn.functional.unfold(
        padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride
    )
    if fill == "bias":
        columns = columns * mask.flatten()
    elif fill == "nearest":
        columns = columns[:, :, source_map(mask, "nearest").flatten().long()]
    else:
        sources, of_second = mean_sources(mask)
        first, second = (columns[:, :, source] for source in sources.flatten(1).long())
        share = of_second.flatten().double()
        columns = (1 - share) * first + share * second
    parts = [
        w.flatten(1) @ c
        for w, c in zip(weight.chunk(conv.groups), columns.chunk(conv.groups, dim=1), strict=True)
    ]
    y = torch.cat(parts, dim=1)
    if conv.bias is not None:
        y = y + conv.bias.detach().double()[:, None]
    return y.view(*y.shape[:2], *mask.shape)


CONVS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3, "padding": 1},
    "no bias": {"kernel_size": 3, "padding": 1, "bias": False},
    "strided": {"kernel_size": 3, "stride": (2, 1), "padding": (0, 1)},
    "dilated": {"kernel_size": 3, "dilation": (1, 2), "padding": 2},
    "grouped": {"kernel_size": (3, 1), "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 4, "padding": 1},
    "pointwise": {"kernel_size": 1},
    "same": {"kernel_size": (4, 3), "padding": "same", "dilation": 2},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
}
fills = pytest.mark.parametrize("fill", ["bias", "nearest", "mean"])


@fills
@pytest.mark.parametrize("kind", CONVS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_forward_zeroes_or_copies_columns(
    kind: str, fill: str, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 11, 8).to(memory_format=memory_format)
    plain = nn.Conv2d(4, 8, **CONVS[kind]).to(memory_format=memory_format)
    conv = masked(plain, x, fill)
    y = conv(x)
    expected = reference(conv, x, conv.mask, fill)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    assert y.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(conv(x[1]), y[1], rtol=1e-4, atol=1e-5)


@fills
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_match_finite_differences(
    fill: str, bias: bool, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64).to(memory_format=memory_format)
    plain = nn.Conv2d(3, 2, 3, padding=1, bias=bias).double().to(memory_format=memory_format)
    conv = masked(plain, x, fill)
    parameters = dict(conv.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Any:
        return torch.func.functional_call(conv, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *parameters.values()))


@fills
def test_masked_inputs_have_no_gradient_and_nan_there_does_not_spread(fill: str) -> None:
    conv = masked(nn.Conv2d(2, 2, 1), torch.zeros(1, 2, 4, 4), fill)
    x = torch.randn(1, 2, 4, 4)
    x[:, :, ~conv.mask] = float("nan")
    x.requires_grad_()
    y = conv(x)
    assert y.isfinite().all()
    y.sum().backward()
    assert (x.grad[:, :, ~conv.mask] == 0).all()


@fills
def test_computed_positions_keep_what_is_infinite(fill: str) -> None:
    conv = masked(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 4, 4), fill)
    x = torch.full((1, 1, 4, 4), float("inf"))
    with masking_disabled(conv):
        dense = conv(x)
    assert torch.equal(conv(x)[..., conv.mask], dense[..., conv.mask])
    only = torch.zeros(4, 4, dtype=torch.bool)
    only[1, 2] = True
    conv.set_mask(only)
    y = conv(x)
    assert torch.equal(y[..., 1, 2], dense[..., 1, 2])
    assert fill == "bias" or torch.equal(y, dense)


def test_weights_of_a_mean_survive_a_change_of_type() -> None:
    x = torch.randn(1, 2, 6, 6)
    conv = masked(nn.Conv2d(2, 3, 3, bias=False), x, "mean")
    nn.init.ones_(conv.weight)
    y = conv(x)
    torch.testing.assert_close(conv.double()(x.double()).float(), y)
    assert torch.equal(conv.half().float()(x), y)


@fills
def test_shared_frozen_and_wrapped_convolutions(fill: str) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 2, 3, padding=1).requires_grad_(False)
            self.second = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    model = Twice()
    x = torch.randn(1, 2, 6, 6)
    masked(model.first, x, fill)
    once = reference(model.first, x, model.first.mask, fill)
    expected = reference(model.first, once, model.first.mask, fill)
    torch.testing.assert_close(model(x).double(), expected, rtol=1e-4, atol=1e-5)
    assert list(masked_layers(model)) == ["first"]
    assert not any(p.requires_grad for p in model.parameters())


class DoublingConv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input)


@fills
def test_subclasses_keep_their_own_forward_and_parametrizations(fill: str) -> None:
    x = torch.randn(1, 2, 5, 5)
    conv = masked(DoublingConv2d(2, 3, 3), x, fill)
    expected = reference(conv, 2 * x, conv.mask, fill)
    torch.testing.assert_close(conv(x).double(), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(conv, DoublingConv2d)
    detach(conv)
    assert type(conv) is DoublingConv2d

    normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    before = type(normed)
    masked(normed, x, fill)
    expected = reference(normed, x, normed.mask, fill)
    torch.testing.assert_close(normed(x).double(), expected, rtol=1e-4, atol=1e-5)
    detach(normed)
    assert type(normed) is before


@fills
@pytest.mark.parametrize("cls", [nn.Conv2d, DoublingConv2d])
def test_detach_restores_the_convolution(cls: type[nn.Conv2d], fill: str) -> None:
    conv = cls(2, 3, 3)
    x = torch.randn(1, 2, 6, 6)
    before, attributes, keys = conv(x), set(vars(conv)), list(conv.state_dict())
    masked(conv, x, fill)
    assert list(conv.state_dict()) == [*keys, "mask"]
    assert not torch.equal(conv(x), before)
    detach(conv)
    assert type(conv) is cls
    assert set(vars(conv)) == attributes
    assert list(conv.state_dict()) == keys
    assert torch.equal(conv(x), before)
    attach(conv, 4, 4, fill)


@fills
def test_state_dict_restores_mask_and_sources(fill: str) -> None:
    x = torch.randn(1, 2, 6, 7)
    conv = masked(nn.Conv2d(2, 3, 3), x, fill, seed=1)
    for assign in (False, True):
        other = masked(nn.Conv2d(2, 3, 3), x, fill, seed=2)
        assert not torch.equal(other(x), conv(x))
        other.load_state_dict(conv.state_dict(), assign=assign)
        assert torch.equal(other(x), conv(x))


@fills
@pytest.mark.parametrize("cls", [nn.Conv2d, DoublingConv2d])
def test_copies_are_equal_and_independent(cls: type[nn.Conv2d], fill: str) -> None:
    x = torch.randn(1, 2, 6, 7)
    conv = masked(cls(2, 3, 3), x, fill)
    y = conv(x)
    file = io.BytesIO()
    pickle.dump(conv, file)
    file.seek(0)
    for twin in (copy.deepcopy(conv), pickle.load(file)):
        assert type(twin) is type(conv)
        assert torch.equal(twin(x), y)
        twin.set_mask(torch.ones_like(conv.mask))
        assert torch.equal(conv(x), y)


@fills
def test_masking_disabled_is_the_plain_convolution(fill: str) -> None:
    x = torch.randn(1, 2, 6, 6)
    plain = nn.Conv2d(2, 2, 3)
    model = nn.Sequential(copy.deepcopy(plain), nn.ReLU())
    masked(model[0], x, fill)
    y = model(x)
    with masking_disabled(model):
        assert torch.equal(model[0](x), plain(x))
        assert type(model[0]) is nn.Conv2d
    assert torch.equal(model(x), y)
    with contextlib.suppress(KeyError), masking_disabled(model):
        raise KeyError
    assert torch.equal(model(x), y)


@fills
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_low_precision(fill: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 2, 6, 6)
    conv = masked(nn.Conv2d(2, 3, 3), x, fill)
    with torch.autocast("cpu", dtype=dtype):
        y = conv(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), conv(x), rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32
    assert conv.half().mask.dtype == torch.bool


@fills
def test_export_and_compile_see_one_graph_without_breaks(fill: str) -> None:
    x = torch.randn(2, 2, 6, 6)
    conv = masked(nn.Conv2d(2, 3, 3), x, fill)
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(conv, (x,), dynamic_shapes=(batch,)).module()
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    for n in (2, 5):
        x = torch.randn(n, 2, 6, 6)
        torch.testing.assert_close(exported(x), conv(x))
        torch.testing.assert_close(compiled(x), conv(x))
    conv.set_mask(random_mask(4, 4, seed=9))
    torch.testing.assert_close(compiled(x), conv(x))


@fills
def test_other_input_size_is_refused_with_name_and_sizes(fill: str) -> None:
    conv = masked(nn.Conv2d(2, 3, 3), torch.zeros(1, 2, 6, 8), fill)
    with pytest.raises(MaskError, match=r"stem .* 4x6, but this input gives 6x4"):
        conv(torch.zeros(1, 2, 8, 6))


@pytest.mark.parametrize("fill", ["nearest", "mean"])
def test_bad_masks_are_refused_and_change_nothing(fill: str) -> None:
    conv = masked(nn.Conv2d(2, 3, 3), torch.zeros(1, 2, 6, 6), fill)
    before = conv.mask.clone()
    for mask, message in [
        (torch.ones(4, 5, dtype=torch.bool), "4x5 does not fit stem, .* is 4x4"),
        (torch.ones(4, 4), "bool"),
        (torch.zeros(4, 4, dtype=torch.bool), "no computed position"),
    ]:
        with pytest.raises(MaskError, match=message):
            conv.set_mask(mask)
        assert torch.equal(conv.mask, before)
    with pytest.raises(RuntimeError, match="size mismatch for mask"):
        conv.load_state_dict(
            masked(nn.Conv2d(2, 3, 3), torch.zeros(1, 2, 9, 9), "bias").state_dict()
        )


def test_bad_attach_and_detach_are_refused() -> None:
    conv = nn.Conv2d(2, 3, 3)
    with pytest.raises(ModelError, match="not masked"):
        detach(conv)
    with pytest.raises(MaskError, match="fill is 'zero'"):
        attach(conv, 4, 4, "zero")
    with pytest.raises(MaskError, match=r"\[0, 4\]"):
        attach(conv, 0, 4, "bias")
    assert type(conv) is nn.Conv2d
    attach(conv, 4, 4, "bias", name="stem")
    assert isinstance(conv, MaskedConv2d)
    with pytest.raises(ModelError, match="stem is already masked"):
        attach(conv, 4, 4, "bias", name="stem")
    other = nn.Conv2d(2, 3, 3)
    other.register_buffer("mask", torch.ones(1))
    with pytest.raises(ModelError, match="attribute 'mask' of its own"):
        attach(other, 4, 4, "bias")
