"""Weights that learn to make up for masks, without labels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, DataError, TrainingError
from semisparse.layers import masked_layers
from semisparse.sparsifier import Sparsifier
from semisparse.training.apply import Change
from semisparse.training.self_distillation import Recipe, self_distill

QUICK = {"learning_rate": 3e-3, "batch_size": 8}


@pytest.fixture
def teacher() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 6 * 6, 5),
    )
    # Far from the same answer to all images.
    nn.init.normal_(model[-1].weight, std=0.3)
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(40, 2, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, (12, 12), mode="bicubic")


@pytest.fixture
def masked(teacher, images) -> nn.Module:
    model = copy.deepcopy(teacher)
    Sparsifier(model, images[:1], SparsityConfig(0.5, fill="bias"), 1).freeze()
    return model


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def differing(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in values(model).items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(("height", "width"), [(36, 64), (64, 36), (48, 48)])
def test_crops_have_the_shape_of_the_images_but_for_a_third(height, width):
    """The channels of an image tell its coordinates, and so how far a crop is stretched."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    images = torch.stack([columns, rows]).double().float().expand(64, 2, height, width)
    seen = []

    class Watching(nn.Conv2d):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            seen.append(batch.detach())
            return super().forward(batch).mean((2, 3))

    watching, other = (Watching(2, 3, 3) for _ in range(2))
    self_distill(other, watching, images, Recipe(12, 1e-6, batch_size=8))
    crops = torch.cat([batch for batch in seen if len(batch) == 8])
    assert crops.shape[2:] == (height, width)
    across = (crops[:, 0, :, -1] - crops[:, 0, :, 0]).mean(1).abs() / width
    down = (crops[:, 1, -1] - crops[:, 1, 0]).mean(1) / height
    stretched = across / down
    assert 0.65 < float(stretched.min()) < 0.85
    assert 1.2 < float(stretched.max()) < 1.5


def test_images_that_were_not_learned_from_are_answered_more_alike(masked, teacher, images):
    before = values(masked)
    random_state = torch.get_rng_state()
    told = []
    learned = self_distill(
        masked, teacher, images, Recipe(60, **QUICK), lambda *step: told.append(step)
    )
    assert learned.kept
    assert (learned.learned, learned.held_out) == (30, 10)
    assert learned.after.divergence < 0.5 * learned.before.divergence
    with torch.no_grad():
        change = Change.between(masked(images[::4]), teacher(images[::4]))
    assert change == learned.after
    # Masks and statistics stay, every weight moves.
    assert differing(masked, before) == {name for name, _ in masked.named_parameters()}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert told == [(step, 60) for step in range(61)]
    assert not masked.training


@pytest.mark.parametrize("choice", [{"in_place": True}, {"region": ["#..", "##."]}])
def test_images_in_their_place_are_taken_as_they_are(masked, images, teacher, choice):
    seen = []
    teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    self_distill(masked, teacher, images, Recipe(6, **QUICK), **choice)
    learned = torch.cat([batch for batch in seen if len(batch) == 8])
    given = {image.numpy().tobytes() for image in images}
    assert len(learned) == 48
    assert {image.numpy().tobytes() for image in learned} <= given


def test_a_seed_repeats_what_is_learned(masked, teacher, images):
    models = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        models[name] = copy.deepcopy(masked)
        self_distill(models[name], teacher, images, Recipe(3, seed=seed, **QUICK))
    assert not differing(models["again"], values(models["one"]))
    assert differing(models["other"], values(models["one"]))


def test_the_teacher_stays_as_it_is(masked, teacher, images):
    before = values(teacher)
    self_distill(masked, teacher, images, Recipe(3, **QUICK))
    assert not differing(teacher, before)
    assert not masked_layers(teacher)


def test_weights_that_are_further_away_are_not_kept(masked, teacher, images):
    before = values(masked)
    learned = self_distill(masked, teacher, images, Recipe(2, learning_rate=0.3, batch_size=8))
    assert not learned.kept
    assert learned.after.divergence > learned.before.divergence
    assert not differing(masked, before)


def test_a_divergence_that_is_not_finite_ends_it(masked, teacher, images):
    before = values(masked)
    with pytest.raises(TrainingError, match=r"at step \d+ is .*below 1e\+20"):
        self_distill(masked, teacher, images, Recipe(9, learning_rate=1e20, batch_size=8))
    assert not differing(masked, before)


def test_an_interruption_leaves_the_weights(masked, teacher, images):
    def interrupt(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    before = values(masked)
    with pytest.raises(KeyboardInterrupt):
        self_distill(masked, teacher, images, Recipe(9, **QUICK), interrupt)
    assert not differing(masked, before)


def test_too_few_images_are_refused(masked, teacher, images):
    with pytest.raises(DataError, match="Of 20 images 15 are to learn from, but a step takes 16"):
        self_distill(masked, teacher, images[:20], Recipe(1))


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1, "batch_size": 0}, "batch_size is 0"),
        ({"steps": 1, "learning_rate": float("nan")}, "learning_rate is nan"),
        ({"steps": 1, "learning_rate": 0.0}, "learning_rate is 0"),
    ],
)
def test_a_recipe_out_of_range_is_refused(entries, problem):
    with pytest.raises(ConfigError, match=problem):
        Recipe(**entries)
