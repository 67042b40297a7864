"""Scores whose lowest ones lie spread evenly: blue noise."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

TILE = 64
# Of the Gaussian by which points crowd each other; Ulichney's choice.
_SIGMA = 1.5
# Of the positions that the first pattern holds; from there ranks go down and up.
_FIRST_SHARE = 0.1


def blue_noise_score(shift: Tensor, height: int, width: int, block: int = 1) -> Tensor:
    """Scores of a plane, one for each of its blocks, cut from the endless repetition of a tile.

    For every count, the blocks of that many lowest scores are spread evenly, without the clumps
    and voids of a random draw, so a masked position is seldom far from a computed one.

    Args:
        shift: float64 ``[2]`` in [0, 1): where in the tile, as a fraction of its sides, the plane
            begins. Planes of one shift have aligned scores.
        height: of the plane.
        width: of the plane.
        block: side of the blocks, as in :func:`semisparse.masks.mask_from_score`.

    Returns:
        float64 ``[height, width]`` in (0, 1), constant over each block.
    """
    top, left = (shift * TILE).long().tolist()
    rows = (top + torch.arange(height) // block) % TILE
    columns = (left + torch.arange(width) // block) % TILE
    # At half a rank, because 0 would stay the lowest score whatever it is weighed by.
    return (_ranks()[rows][:, columns] + 0.5) / TILE**2


@functools.cache
def _ranks() -> Tensor:
    """The order in which void-and-cluster fills a tile that repeats itself, int64 [TILE, TILE].

    R. Ulichney, "The void-and-cluster method for dither array generation", 1993. The tile is
    always the same: draws differ in their shift.
    """
    count = TILE * TILE
    first = int(_FIRST_SHARE * count)
    generator = torch.Generator().manual_seed(0)
    taken = torch.zeros(count, dtype=torch.bool)
    taken[torch.randperm(count, generator=generator)[:first]] = True
    crowding = sum((_crowding_by(p) for p in taken.nonzero()[:, 0].tolist()), torch.zeros(count))
    while True:
        cluster = _tightest(crowding, taken)
        taken[cluster] = False
        crowding = crowding - _crowding_by(cluster)
        void = _emptiest(crowding, taken)
        taken[void] = True
        crowding = crowding + _crowding_by(void)
        if void == cluster:
            break
    ranks = torch.empty(count, dtype=torch.long)
    remaining, around = taken.clone(), crowding
    for rank in reversed(range(first)):
        cluster = _tightest(around, remaining)
        remaining[cluster] = False
        around = around - _crowding_by(cluster)
        ranks[cluster] = rank
    for rank in range(first, count):
        void = _emptiest(crowding, taken)
        taken[void] = True
        crowding = crowding + _crowding_by(void)
        ranks[void] = rank
    return ranks.view(TILE, TILE)


def _tightest(crowding: Tensor, taken: Tensor) -> int:
    return int(torch.where(taken, crowding, -1).argmax())


def _emptiest(crowding: Tensor, taken: Tensor) -> int:
    return int(torch.where(taken, torch.iinfo(torch.long).max, crowding).argmin())


def _crowding_by(position: int) -> Tensor:
    """What a taken position adds to the crowding of every other, flat."""
    row, column = divmod(position, TILE)
    return _kernel().roll((row, column), (0, 1)).flatten()


@functools.cache
def _kernel() -> Tensor:
    side = torch.arange(TILE)
    squared = torch.minimum(side, TILE - side) ** 2
    gaussian = torch.exp(-(squared[:, None] + squared).double() / (2 * _SIGMA**2))
    # Whole numbers, so that sums, and with them the masks, are the same on every machine.
    return (2**30 * gaussian).round().long()
