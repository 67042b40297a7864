from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from semisparse.config import SparsityConfig
from semisparse.errors import DataError
from semisparse.sparsifier import Sparsifier
from semisparse.training.calibrate import recalibrate, run, statistics_of


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.BatchNorm2d(6, momentum=None),
        nn.Flatten(),
        nn.Linear(6 * 3 * 3, 5),
        nn.BatchNorm1d(5, affine=False),
    )


def images(count: int) -> torch.Tensor:
    # Unlike one another, so that batches have other means than all images.
    generator = torch.Generator().manual_seed(1)
    levels = torch.linspace(-3, 3, count)[:, None, None, None]
    return levels + torch.randn(count, 2, 8, 8, generator=generator)


@pytest.mark.parametrize("batch_size", [7, 50, 1000])
def test_statistics_are_those_of_all_values_in_float64(batch_size):
    model, batch = network(), images(50)
    assert recalibrate(model, batch, batch_size) == 3
    first = model[0].double()(batch.double()).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[1].running_mean.double(), first.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        model[1].running_var.double(), first.var(1, correction=1), rtol=1e-5, atol=1e-6
    )


def test_in_one_batch_they_are_those_of_torch():
    model, batch = network(), images(20)
    expected = copy.deepcopy(model)
    expected[3] = nn.Identity()
    update_bn([batch], expected)
    recalibrate(model, batch)
    for index in (1, 5, 8):
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(
                getattr(model[index], name), getattr(expected[index], name), rtol=1e-4, atol=1e-5
            )


def test_with_statistics_of_before_they_change_by_what_changed():
    model, batch = network().double(), images(20).double()
    recalibrate(model, 3 + 2 * images(500).double())
    mean, variance = model[1].running_mean.clone(), model[1].running_var.clone()
    before = statistics_of(model, batch, 8)
    old = model[0](batch).transpose(0, 1).flatten(1)
    with torch.no_grad():
        model[0].weight.mul_(2)
    new = model[0](batch).transpose(0, 1).flatten(1)
    assert recalibrate(model, batch, 8, before) == 3
    torch.testing.assert_close(model[1].running_mean, mean + new.mean(1) - old.mean(1))
    scale = (new.var(1) + model[1].eps) / (old.var(1) + model[1].eps)
    torch.testing.assert_close(
        model[1].running_var, (variance + model[1].eps) * scale - model[1].eps
    )


def test_where_nothing_changed_the_statistics_of_training_stay():
    model, batch = network(), images(6)
    # A channel that is always zero.
    nn.init.zeros_(model[0].weight[:1])
    nn.init.zeros_(model[0].bias[:1])
    recalibrate(model, 3 + 2 * images(500))
    trained = copy.deepcopy(model.state_dict())
    recalibrate(model, batch, 4, statistics_of(model, batch, 4))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, trained[name], rtol=1e-5, atol=1e-6)


def test_nothing_but_the_statistics_changes():
    model, batch = network().train(), images(20)
    model[3].eval()
    sparsifier = Sparsifier(model, batch[:1], SparsityConfig(0.3), 1)
    sparsifier.freeze()
    before = copy.deepcopy(model)
    recalibrate(model, batch, 8)
    changed = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {f"{i}.running_{what}" for i in (1, 5, 8) for what in ("mean", "var")}
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [model[i].momentum for i in (1, 5, 8)] == [0.3, None, 0.1]


def test_recalibrated_outputs_repeat():
    model, batch = network(), images(20)
    recalibrate(model, batch, 8)
    once = run(model.eval(), batch, 8)
    recalibrate(model, batch, 8)
    assert torch.equal(run(model, batch, 8), once)


def test_layers_that_the_images_do_not_reach_keep_their_statistics():
    model = network()
    model.add_module("unused", nn.BatchNorm2d(3))
    model.forward = lambda x: nn.Sequential(*list(model)[:9])(x)
    assert recalibrate(model, images(4)) == 3
    assert torch.equal(model.unused.running_var, torch.ones(3))


def test_a_model_without_batch_norm_is_left_alone():
    assert recalibrate(nn.Sequential(nn.Conv2d(2, 4, 3)), images(4)) == 0


def test_one_image_is_refused():
    with pytest.raises(DataError, match="1 image"):
        recalibrate(network(), images(1))


def test_a_model_that_fails_is_left_as_it_was():
    model = network().train()
    with pytest.raises(RuntimeError):
        recalibrate(model, torch.zeros(4, 9, 8, 8))
    assert all(module.training for module in model.modules())
    assert model[1].momentum == 0.3
    assert int(model[1].num_batches_tracked) == 0
