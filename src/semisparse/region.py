"""The part of the images that matters, where a camera always sees it at the same place.

A configuration has it as rows of ``"#"``, inside, and ``"."``, outside: a picture of any size, over
the whole input of the network.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from semisparse.errors import MaskError
from semisparse.masks import check_mask, propagate

# Cells along a side at most: 4 KiB of text, as fine as a plane of a network for 224x224 images that
# is not among its first.
_FINEST = 64


def rows_of(inside: Tensor) -> tuple[str, ...]:
    """The rows of a configuration for a region that is given pixel by pixel.

    Sides of more than 64 pixels are divided into 64 cells, which are inside where any of their
    pixels is.

    Args:
        inside: bool ``[H, W]``, of any resolution.

    Raises:
        MaskError: for a tensor that is no bool map or has no pixel inside.
    """
    check_mask(inside)
    if not bool(inside.any()):
        raise MaskError(f"a region of {list(inside.shape)} has no pixel inside; mark what matters.")
    cells = _pooled(inside.cpu(), *(min(side, _FINEST) for side in inside.shape))
    return tuple("".join("#" if cell else "." for cell in row) for row in cells.tolist())


@functools.lru_cache(maxsize=64)
def on_plane(rows: tuple[str, ...], height: int, width: int) -> Tensor:
    """The positions of a plane that overlap the region, bool ``[height, width]``.

    Args:
        rows: of a :class:`SparsityConfig`, at least one.
        height: of the plane.
        width: of the plane.
    """
    # Kept for callers in any mode, and an inference tensor would be of no use to autograd.
    with torch.inference_mode(False):
        cells = torch.tensor([[cell == "#" for cell in row] for row in rows])
        return _pooled(cells, height, width)


def within(rows: Sequence[str], outputs: Tensor) -> Tensor:
    """What a model returned for the region.

    Args:
        rows: of a :class:`SparsityConfig`; empty for everything.
        outputs: ``[N, C, H, W]``, of which ``[N, C, positions]`` is returned, or ``[N, C]``, which
            is of no place in particular.
    """
    if not rows or outputs.dim() < 4:
        return outputs
    return outputs[:, :, on_plane(tuple(rows), *outputs.shape[2:]).to(outputs.device)]


def _pooled(inside: Tensor, height: int, width: int) -> Tensor:
    return propagate(inside.double(), height, width) > 0
