"""Weights adapted to masks by learning from the model without them, on unlabelled images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from semisparse.errors import ConfigError, DataError, TrainingError
from semisparse.region import within
from semisparse.training.apply import Change
from semisparse.training.calibrate import run
from semisparse.training.data.transforms import crops
from semisparse.training.distillation import distillation_loss

# Of an image, the least that a crop of it shows.
_LEAST_AREA = 0.36
# One image in so many is not learned from.
_HELD_OUT = 4


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to learn.

    Attributes:
        steps: from 1.
        learning_rate: of Adam; it rises for a tenth of the steps and falls along a cosine.
        batch_size: images of a step, from 1.
        seed: of the order, the crops and the flips.

    Raises:
        ConfigError: a value is out of range.
    """

    steps: int
    learning_rate: float = 2e-5
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ConfigError(
                f"steps is {self.steps} and batch_size is {self.batch_size}; give 1 or more of both."
            )
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"learning_rate is {self.learning_rate:g}; give a positive number, such as 2e-5."
            )


@dataclass(frozen=True)
class Distilled:
    """What `self_distill` did.

    Attributes:
        learned: how many images were learned from.
        held_out: how many others the changes are of.
        before, after: how far the model's outputs of those are from the teacher's.
        kept: whether `after` is the nearer; if not, the model has the weights of before.
    """

    learned: int
    held_out: int
    before: Change
    after: Change
    kept: bool


def self_distill(
    model: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    recipe: Recipe,
    progress: Callable[[int, int], object] = lambda done, total: None,
    region: Sequence[str] = (),
    *,
    in_place: bool = False,
) -> Distilled:
    """Train a masked network, in place, to answer as it did without masks.

    The loss is the divergence of the softmax of the outputs, of random crops of the images and
    their mirror images, which the teacher sees too, so it does not matter whether such images
    occur. Where the place matters images are taken as they are, and so with a region, outside of
    which the answers do not count. Batch norm stays in evaluation mode: a step has too few images
    for statistics. One image in four is not learned from; if those say that nothing was gained, the
    weights stay as they were.

    Args:
        model: `[N, C, H, W] -> [N, num_classes]` or `[N, num_classes, H', W']`; left in
            evaluation mode.
        teacher: likewise, on the same device; such as a copy from before the masks.
        images: `[N, C, H, W]`, prepared as for the model.
        recipe: how long and how fast.
        progress: called with (steps done, steps in all).
        region: that the model was masked with; empty for none.
        in_place: whether the place matters without a region too, as for a fixed camera.

    Raises:
        DataError: there are fewer images to learn from than a step takes.
        TrainingError: the divergence is no longer finite; the model has the weights of before.
    """
    held_out = images[::_HELD_OUT]
    learned = images[[i for i in range(len(images)) if i % _HELD_OUT]]
    if len(learned) < recipe.batch_size:
        raise DataError(
            f"Of {len(images)} images {len(learned)} are to learn from, but a step takes "
            f"{recipe.batch_size}; give more images."
        )
    model.eval()
    reference = run(teacher.eval(), held_out)
    before = Change.between(run(model, held_out), reference, region)
    weights = {parameter: parameter.detach().clone() for parameter in model.parameters()}
    kept = False
    try:
        _learn(model, teacher, learned, recipe, progress, region, in_place or bool(region))
        after = Change.between(run(model, held_out), reference, region)
        kept = after.divergence < before.divergence
    finally:
        if not kept:
            with torch.no_grad():
                for parameter, value in weights.items():
                    parameter.copy_(value)
    return Distilled(len(learned), len(held_out), before, after, kept)


def _learn(
    model: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    recipe: Recipe,
    progress: Callable[[int, int], object],
    region: Sequence[str],
    in_place: bool,
) -> None:
    height, width = images.shape[-2:]
    cropped = crops((height, width), _LEAST_AREA)
    augment = v2.Identity() if in_place else v2.Compose([cropped, v2.RandomHorizontalFlip()])
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate)
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        order: list[int] = []
        for step in range(recipe.steps):
            progress(step, recipe.steps)
            if len(order) < recipe.batch_size:
                order = torch.randperm(len(images)).tolist()
            taken, order = order[: recipe.batch_size], order[recipe.batch_size :]
            batch = torch.stack([augment(images[index]) for index in taken]).to(device)
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _share(step, recipe.steps)
            with torch.no_grad():
                target = teacher(batch)
            loss = distillation_loss(within(region, model(batch)), within(region, target), 1.0)
            if not loss.isfinite():
                raise TrainingError(
                    f"The divergence at step {step + 1} is {loss.item():g}; give a learning rate "
                    f"below {recipe.learning_rate:g}."
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    progress(recipe.steps, recipe.steps)


def _share(step: int, steps: int) -> float:
    """Of the learning rate, at a step counted from 0."""
    return min(1.0, (step + 1) / (0.1 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
