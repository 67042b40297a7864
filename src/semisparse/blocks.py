"""The side of the mask blocks from which a convolution's runtime gains most."""

from __future__ import annotations

from collections.abc import Sequence

# Fewer channels are not worth the transforms of Winograd's algorithm.
FEWEST_CHANNELS = 16
# Sides of a plane from which its tiles are of 2 x 2 and of 4 x 4 positions.
SMALL_TILES, LARGE_TILES = 4, 16


def natural_block(
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    groups: int,
    in_channels: int,
    out_channels: int,
    height: int,
    width: int,
) -> int:
    """1, 2 or 4: the side of the squares, in output positions, that a mask is best made of.

    ``height`` and ``width`` are those of the output plane; ``kernel``, ``strides`` and
    ``dilations`` have an entry for each of both.

    Most convolutions are computed position by position, so masks of any shape save what they
    mask: 1. The 3x3 convolutions of stride 1 are two to three times as fast by Winograd's
    algorithm, in tiles of 4x4 or, on small planes, of 2x2 positions, of which only whole ones can
    be skipped. Milliseconds with as many input as output channels, one thread of an EPYC (Zen 4),
    the weights from memory, dense and masked by a half in single positions and in blocks:

    ========== ======== ===== ====== ======== ========
    plane      channels dense single 2x2      4x4
    ========== ======== ===== ====== ======== ========
    56x56            64  0.82   0.82     0.70 **0.44**
    28x28           128  0.67   0.67     0.58 **0.36**
    14x14           256  0.85   0.85 **0.53**     0.44
    7x7             512  1.34   1.22 **0.66**     0.70
    ========== ======== ===== ====== ======== ========

    On the two small planes blocks of 4 are cut at the border, and so few (16 and 4) that a mask
    can hardly choose.
    """
    winograd = (
        tuple(kernel) == (3, 3)
        and tuple(strides) == (1, 1)
        and tuple(dilations) == (1, 1)
        and groups == 1
        and min(in_channels, out_channels) >= FEWEST_CHANNELS
    )
    if not winograd or min(height, width) < SMALL_TILES:
        return 1
    return 4 if min(height, width) >= LARGE_TILES else 2
