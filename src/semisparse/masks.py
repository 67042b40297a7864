"""Pure functions from a score map to masks, and from a mask to its source map.

All maps are over one output plane, ``[height, width]``, on the CPU. A mask is bool, True where the
position is computed; a source map is int32 and defined in ``docs/format.md``.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from semisparse.errors import MaskError


def propagate(score: Tensor, height: int, width: int) -> Tensor:
    """Average-pool a score map, weighted by area, to any other size, larger ones too.

    Output cell ``i`` of ``n`` covers the interval ``[i/n, (i+1)/n)`` of the plane's side, and each
    input cell counts by how much of it lies inside.

    Args:
        score: float64 ``[H, W]``.
        height: of the result.
        width: of the result.

    Returns:
        float64 ``[height, width]``.

    Raises:
        MaskError: if the score is not a float64 map or the size is not positive.
    """
    if score.dim() != 2 or score.numel() == 0 or score.dtype != torch.float64:
        raise MaskError(
            "a score map must be a non-empty float64 tensor [H, W], "
            f"got {score.dtype} {list(score.shape)}."
        )
    if height < 1 or width < 1:
        raise MaskError(f"cannot propagate a score map to {height}x{width}; sizes start at 1x1.")
    rows = _overlap(score.shape[0], height)
    columns = _overlap(score.shape[1], width)
    return rows @ score @ columns.T


@functools.lru_cache(maxsize=256)
def _overlap(size: int, pooled: int) -> Tensor:
    """Weights ``[pooled, size]`` of area-weighted pooling along one side; each row sums to 1."""
    # In units of 1 / (size * pooled) of the side every boundary is a whole number: no rounding.
    inner = torch.arange(size) * pooled
    outer = (torch.arange(pooled) * size)[:, None]
    shared = torch.minimum(inner + pooled, outer + size) - torch.maximum(inner, outer)
    return shared.clamp(min=0).double() / size


def _blocks(height: int, width: int, block: int) -> tuple[Tensor, Tensor]:
    """Each position's block as a row-major index, int64 ``[height, width]``, and their areas."""
    row = torch.arange(height)[:, None] // block
    column = torch.arange(width) // block
    index = row * (-(-width // block)) + column
    return index, index.flatten().bincount()


def _ordered_blocks(score: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Each position's block and the areas, as of `_blocks`, and the blocks in order of score."""
    height, width = score.shape
    index, areas = _blocks(height, width, block)
    means = index.flatten().bincount(score.flatten()) / areas
    return index, areas, means.argsort(stable=True)


def _outside(inside: Tensor | None, index: Tensor, count: int) -> Tensor:
    """Which of the blocks hold no position of the region, bool ``[count]``."""
    if inside is None:
        return torch.zeros(count, dtype=torch.bool)
    return index.flatten().bincount(inside.flatten().double(), minlength=count) == 0


def can_mask(
    sparsity: float, height: int, width: int, block: int = 1, inside: Tensor | None = None
) -> bool:
    """Whether :func:`mask_from_score` masks anything, for some score at least."""
    index, areas = _blocks(height, width, block)
    outside = _outside(inside, index, len(areas))
    within = areas[~outside]
    wanted = round(sparsity * int(within.sum()))
    return bool(outside.any()) or (len(within) > 1 and 2 * wanted > int(within.min()))


def take_turn(score: Tensor, turn: int, block: int = 1, inside: Tensor | None = None) -> Tensor:
    """The score of one of several layers that take turns at which positions they compute.

    The blocks keep their order, but it begins elsewhere: half of the plane's area behind the
    score's own beginning at the first turn, then a quarter, three quarters, an eighth and so on
    (the van der Corput sequence). So up to a sparsity of 0.5 the turns 0 and 1, and 2 and 3, share
    no masked position, and at 0.75 the four of them together compute every position once: up to
    one block each, where blocks do not come out even.

    Args:
        score: ``[H, W]``.
        turn: from 0, which keeps the order as it is.
        block: side of the blocks, as in :func:`mask_from_score`.
        inside: the region whose area counts, as in :func:`mask_from_score`.

    Returns:
        float64 ``[H, W]`` in (0, 1), constant over each block.
    """
    index, areas, order = _ordered_blocks(score, block)
    begin = int(f"{turn:b}"[::-1], 2) / 2 ** turn.bit_length()
    within = areas * ~_outside(inside, index, len(areas))
    middles = (within[order].cumsum(0) - within[order] / 2) / within.sum()
    order = order[((middles + begin) % 1).argsort(stable=True)]
    return ((order.argsort().double() + 0.5) / len(areas))[index]


def mask_from_score(
    score: Tensor, sparsity: float, block: int = 1, inside: Tensor | None = None
) -> Tensor:
    """Mask the square blocks of lowest score, of a region or of the whole plane.

    Blocks of ``block`` by ``block`` positions tile the plane from its origin; those at the right
    and bottom edges are cut. A block's score is the mean over its positions, so it is the score
    map pooled, weighted by area, to the part of the plane that the block covers. Blocks are taken
    in order of score, of equal ones the one of lower row-major index first, until the number of
    masked positions is nearest to ``round(sparsity * H * W)``; of two numbers equally near it is
    the smaller. One block always stays computed, so that ``"nearest"`` has a source; hence a plane
    that one block covers stays dense. A higher sparsity only ever adds masked blocks.

    With a region all blocks that lie outside of it, whole, are masked, and of the others so many
    as if they were the plane.

    Args:
        score: ``[H, W]``, without NaN.
        sparsity: in [0, 1).
        block: side in positions, from 1.
        inside: the region, bool ``[H, W]`` with at least one True; None for the whole plane.

    Raises:
        MaskError: for a score that is not such a map, or a sparsity or block out of range.
    """
    if score.dim() != 2 or score.numel() == 0:
        raise MaskError(f"a score map must have a shape [H, W], got {list(score.shape)}.")
    if not 0 <= sparsity < 1:
        raise MaskError(f"sparsity is {sparsity}, but must lie in [0, 1).")
    if block < 1:
        raise MaskError(f"block is {block}, but is the side of a square and starts at 1.")
    if bool(score.isnan().any()):
        raise MaskError(f"a score map of {list(score.shape)} holds NaN; scores must be ordered.")
    index, areas, order = _ordered_blocks(score, block)
    outside = _outside(inside, index, len(areas))
    order = torch.cat([order[outside[order]], order[~outside[order]]])
    spared = int(areas[outside].sum())
    wanted = spared + round(sparsity * (score.numel() - spared))
    # Positions masked after taking none, one, two ... all but one of the blocks.
    masked = areas[order].cumsum(0) - areas[order]
    taken = int((masked - wanted).abs().argmin())
    computed = torch.ones(len(areas), dtype=torch.bool)
    computed[order[:taken]] = False
    return computed[index]


def source_map(mask: Tensor, fill: str) -> Tensor:
    """The position that each position takes its linear part from.

    Args:
        mask: bool ``[H, W]``.
        fill: ``"bias"`` (masked positions get -1) or ``"nearest"`` (they get the row-major index
            of the nearest computed position: Euclidean, ties to the lowest index).

    Returns:
        int32 ``[H, W]``; a computed position holds its own index.

    Raises:
        MaskError: for a mask that is no bool map, another fill, or ``"nearest"`` with no computed
            position.
    """
    check_mask(mask)
    height, width = mask.shape
    count = height * width
    index = torch.arange(count, device=mask.device).view(height, width)
    if fill == "bias":
        return torch.where(mask, index, -1).int()
    if fill != "nearest":
        raise MaskError(
            f"fill is {fill!r}, but must be 'bias' or 'nearest'; for 'mean', which has two "
            "sources, call mean_sources."
        )
    _check_computed(mask)

    # Exact Euclidean distance transform, one axis after the other. A candidate is one number,
    # distance² * count + index, so that the smallest one is the nearest and then the lowest.
    in_column = _nearest_in_column(mask, index)
    best = in_column.clone()
    for shift in range(1, width):
        step = shift * shift * count
        if step > int(best.max()):
            break
        left = torch.minimum(best[:, shift:], in_column[:, :-shift] + step)
        right = torch.minimum(best[:, :-shift], in_column[:, shift:] + step)
        best[:, shift:] = left
        best[:, :-shift] = torch.minimum(best[:, :-shift], right)
    return (best % count).int()


def _nearest_in_column(mask: Tensor, index: Tensor) -> Tensor:
    """``distance² * count + index`` of the nearest computed position of the same column."""
    height, width = mask.shape
    count = height * width
    far = 2 * (height + width)
    row = torch.arange(height, device=mask.device)[:, None].expand(height, width)
    above = torch.where(mask, row, -far).cummax(0).values
    below = torch.where(mask, row, far + height).flip(0).cummin(0).values.flip(0)
    nearest = torch.where(row - above <= below - row, above, below)
    # A column without any computed position has a distance that no real one reaches.
    return (row - nearest) ** 2 * count + nearest.clamp(0, height - 1) * width + index % width


def mean_sources(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The two positions whose linear parts' mean each position takes, and how they are weighted.

    They are the two nearest computed positions: Euclidean, ties to the lowest index. The mean is
    weighted by inverse distance, so at distances ``a <= b`` the second one counts ``a / (a + b)``.

    Args:
        mask: bool ``[H, W]``.

    Returns:
        Row-major indices of the nearest and the second nearest position, int32 ``[2, H, W]``, and
        the weight of the second, float32 ``[H, W]``. A computed position holds its own index twice
        and the weight 0. Where it is the only one, all others hold it so.

    Raises:
        MaskError: for a mask that is no bool map, or one with no computed position.
    """
    check_mask(mask)
    _check_computed(mask)
    height, width = mask.shape
    count = height * width
    index = torch.arange(count, device=mask.device).view(height, width)
    # As in source_map, with the best two candidates in order. This one is above all real ones.
    none = torch.full_like(index, (height + width) ** 2 * count)
    first, second = _two_nearest_in_row(torch.where(mask, index, none).T, none.T, count)
    first, second = _two_nearest_in_row(first.T, second.T, count)
    second = torch.where(mask | (second >= none), first, second)
    near, far = ((code // count).double().sqrt() for code in (first, second))
    weight = torch.where(first == second, 0, near / (near + far))
    return torch.stack([first, second]).remainder(count).int(), weight.float()


def sources_of(mask: Tensor, fill: str) -> tuple[Tensor, ...]:
    """What a layer of any fill takes its outputs from.

    Returns:
        Of :func:`source_map`, or for ``"mean"`` of :func:`mean_sources`.

    Raises:
        MaskError: as they do.
    """
    return mean_sources(mask) if fill == "mean" else (source_map(mask, fill),)


def _two_nearest_in_row(first: Tensor, second: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of all positions of a row the lowest two of the codes there plus ``distance² * count``.

    No two codes of a row are of one source, so a second one differs from the first.
    """
    lowest, next_lowest = first.clone(), second.clone()
    width = first.shape[1]
    for shift in range(1, width):
        step = shift * shift * count
        if step > int(next_lowest.max()):
            break
        for here, there in (
            (slice(shift, None), slice(None, -shift)),
            (slice(None, -shift), slice(shift, None)),
        ):
            other = first[:, there] + step
            higher = torch.maximum(lowest[:, here], other)
            lower = torch.minimum(next_lowest[:, here], second[:, there] + step)
            next_lowest[:, here] = torch.minimum(higher, lower)
            lowest[:, here] = torch.minimum(lowest[:, here], other)
    return lowest, next_lowest


def sparsity_of(mask: Tensor) -> float:
    """Fraction of the positions that are masked."""
    check_mask(mask)
    return 1 - int(mask.sum()) / mask.numel()


def check_mask(mask: Tensor) -> None:
    """Raise MaskError unless ``mask`` is a non-empty bool tensor ``[H, W]``."""
    if mask.dim() != 2 or mask.dtype != torch.bool or mask.numel() == 0:
        raise MaskError(
            "a mask must be a non-empty bool tensor [H, W], True where computed, "
            f"got {mask.dtype} {list(mask.shape)}."
        )


def _check_computed(mask: Tensor) -> None:
    if not bool(mask.any()):
        height, width = mask.shape
        raise MaskError(f"a mask of {height}x{width} has no computed position to be nearest to.")
