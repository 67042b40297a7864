from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from semisparse.selection import Selection


def score(number: int) -> Tensor:
    return torch.full((1, 1), float(number))


def picked(selection: Selection) -> int | None:
    best = selection.best()
    return None if best is None else int(best)


def train(
    seed: int, trend: str, better: int | None = None, steps: int = 300, warm_up: int = 30
) -> int:
    """Pick of a run whose loss has a trend and noise and rises with sparsity, by draw number."""
    rng = np.random.default_rng(seed)
    selection = Selection("best_loss")
    for step in range(steps):
        weight = 1 - (1 - max(step - warm_up, 0) / (steps - warm_up)) ** 2
        if weight > 0:
            selection.draw(score(step))
        loss = {"falling": 3 / (1 + 10 * step / steps), "flat": 1.0, "exploding": 0.1}[trend]
        loss *= 1 + (2 if trend == "exploding" else 0.3) * weight
        loss *= 1 + 0.05 * rng.standard_normal() - (0.5 * weight if step == better else 0)
        selection.observe(loss)
    result = picked(selection)
    assert result is not None
    return result


@pytest.mark.parametrize("trend", ["falling", "flat", "exploding"])
@pytest.mark.parametrize("better", [120, 200, 280])
def test_best_loss_finds_the_better_draw_under_trends(trend: str, better: int) -> None:
    found = [train(seed, trend, better) for seed in range(20)]
    assert sum(draw == better for draw in found) >= 12


@pytest.mark.parametrize("trend", ["falling", "flat", "exploding"])
def test_best_loss_does_not_favour_early_draws(trend: str) -> None:
    assert np.median([train(seed, trend) for seed in range(20)]) > 150


def test_best_loss_takes_any_sign_and_scale_of_loss() -> None:
    losses = np.random.default_rng(0).standard_normal(50)
    picks = set()
    for scale, offset in [(1, 0), (1e-6, 0), (1e6, 0), (1, -100), (1, 100)]:
        selection = Selection("best_loss")
        for number, loss in enumerate(losses):
            selection.draw(score(number))
            selection.observe(scale * loss + offset)
        picks.add(picked(selection))
    assert len(picks) == 1


def test_a_draw_is_judged_by_the_mean_of_its_losses() -> None:
    selection = Selection("best_loss")
    for loss in (1.0, 1.2, 0.8, 1.1, 0.9):
        selection.observe(loss)
    for number, losses in enumerate([(0.1, 1.9), (0.8, 0.8), (1.0, 1.0)]):
        selection.draw(score(number))
        for loss in losses:
            selection.observe(loss)
    assert picked(selection) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_never_picked_and_leave_no_trace(bad: float) -> None:
    clean, dirty = Selection("best_loss"), Selection("best_loss")
    for loss in (1.0, 1.2, 0.8, 1.1, 0.9):
        for selection in (clean, dirty):
            selection.observe(loss)
        dirty.observe(bad)
    for number, loss in enumerate([1.0, 0.9, 1.1, 0.8, 1.0]):
        for selection in (clean, dirty):
            selection.draw(score(number))
            selection.observe(loss)
        dirty.draw(score(100 + number))
        dirty.observe(bad)
    assert picked(dirty) == picked(clean) == 3
    dirty.observe(-5.0)
    assert picked(dirty) == 3


def test_draws_without_a_loss_are_passed_over() -> None:
    selection = Selection("best_loss")
    assert picked(selection) is None
    selection.draw(score(0))
    selection.draw(score(1))
    assert picked(selection) == 1
    selection.observe(1.0)
    selection.draw(score(2))
    assert picked(selection) == 1


@pytest.mark.parametrize(("policy", "number"), [("first", 0), ("last", 4)])
def test_first_and_last_go_by_order(policy: str, number: int) -> None:
    selection = Selection(policy)
    for draw in range(5):
        selection.draw(score(draw))
        selection.observe([1.0, 0.1, 2.0, 0.5, 3.0][draw])
    assert picked(selection) == number
