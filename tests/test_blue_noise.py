from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from semisparse.blue_noise import TILE, blue_noise_score
from semisparse.masks import mask_from_score, source_map

shifts = st.tuples(*2 * [st.floats(0, 1, exclude_max=True)]).map(
    lambda pair: torch.tensor(pair, dtype=torch.float64)
)
sides = st.integers(1, 150)


@given(shifts, sides, sides, st.integers(1, 5), st.floats(0, 0.999))
@settings(max_examples=50)
def test_any_plane_gets_exactly_its_count(
    shift: torch.Tensor, height: int, width: int, block: int, sparsity: float
) -> None:
    score = blue_noise_score(shift, height, width, block)
    assert score.shape == (height, width)
    assert 0 <= float(score.min()) <= float(score.max()) < 1
    mask = mask_from_score(score, sparsity)
    count = height * width
    assert int((~mask).sum()) == min(round(sparsity * count), count - 1)
    for top in range(0, height, block):
        for left in range(0, width, block):
            assert len(score[top : top + block, left : left + block].unique()) == 1


@given(shifts)
def test_a_tile_has_every_rank_once(shift: torch.Tensor) -> None:
    ranks = (blue_noise_score(shift, TILE, TILE) * TILE**2).long().flatten()
    assert torch.equal(ranks.sort().values, torch.arange(TILE**2))


@given(shifts, st.integers(0, 63), st.integers(0, 63))
def test_the_tile_repeats_and_shifts(shift: torch.Tensor, down: int, right: int) -> None:
    score = blue_noise_score(shift, 2 * TILE, 2 * TILE)
    moved = (shift + torch.tensor([down, right]) / TILE) % 1
    # A fraction on the border of two positions may fall to either.
    moved = moved.clamp(max=1 - 2**-53)
    expected = {
        (y, x): score[down + y : down + y + 9, right + x : right + x + 9]
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
        if min(down + y, right + x) >= 0
    }
    assert any(torch.equal(blue_noise_score(moved, 9, 9), part) for part in expected.values())


def reaches(mask: torch.Tensor) -> torch.Tensor:
    """Squared distances of the masked positions from their nearest computed ones."""
    height, width = mask.shape
    source = source_map(mask, "nearest").long()
    y, x = torch.arange(height)[:, None], torch.arange(width)
    return ((source // width - y) ** 2 + (source % width - x) ** 2)[~mask].double()


@pytest.mark.parametrize("side", [7, 14, 28, 32, 56])
@pytest.mark.parametrize(("sparsity", "farthest"), [(0.1, 1), (0.2, 1), (0.3, 2), (0.5, 4)])
def test_masked_positions_have_computed_neighbours(
    side: int, sparsity: float, farthest: float
) -> None:
    # A few positions at corners may be farther away than their four neighbours: where, depends
    # on the shift, so these are always the same ones.
    corners = torch.cartesian_prod(*2 * [torch.arange(0, 1, 1 / 8, dtype=torch.float64)])
    masks = [mask_from_score(blue_noise_score(shift, side, side), sparsity) for shift in corners]
    distances = torch.cat([reaches(mask) for mask in masks])
    assert distances.max() <= farthest
    assert (distances > 1).double().mean() < 0.01


def test_neighbours_are_nearer_than_in_random_masks() -> None:
    def farthest(scores: list[torch.Tensor]) -> float:
        return sum(float(reaches(mask_from_score(score, 0.5)).max()) for score in scores)

    generator = torch.Generator().manual_seed(0)
    random = [torch.rand(28, 28, generator=generator) for _ in range(10)]
    shift = [torch.rand(2, dtype=torch.float64, generator=generator) for _ in range(10)]
    even = [blue_noise_score(s, 28, 28) for s in shift]
    assert farthest(even) < 0.6 * farthest(random)
