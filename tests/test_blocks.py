"""Which blocks suit a layer, against what the library makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from semisparse import native
from semisparse.blocks import natural_block


def block_of(
    size: int = 28,
    channels: int = 64,
    kernel: int = 3,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> int:
    """Of a square layer with as many input as output channels."""
    both = channels, channels
    pair = (kernel, kernel), (stride, stride), (dilation, dilation)
    return natural_block(*pair, groups, *both, size, size)


def test_large_planes_want_large_blocks():
    assert [block_of(size) for size in (56, 28, 16, 14, 7, 4, 3, 1)] == [4, 4, 4, 2, 2, 2, 1, 1]
    assert natural_block((3, 3), (1, 1), (1, 1), 1, 64, 64, 56, 7) == 2


def test_layers_that_are_not_computed_in_tiles_want_single_positions():
    assert block_of(kernel=1) == block_of(stride=2) == block_of(dilation=2) == 1
    assert block_of(groups=64) == block_of(channels=8) == 1
    assert natural_block((3, 1), (1, 1), (1, 1), 1, 64, 64, 28, 28) == 1
    assert natural_block((3, 3), (1, 2), (1, 1), 1, 64, 64, 28, 28) == 1


@pytest.mark.parametrize(
    ("size", "channels"),
    [(56, 64), (28, 128), (14, 256), (7, 512), (32, 16), (16, 32), (8, 64), (16, 128), (8, 256)],
)
def test_the_library_computes_half_masked_layers_in_tiles_of_their_natural_block(size, channels):
    block = block_of(size, channels)
    rng = np.random.default_rng(size)
    blocks = rng.permutation((-(-size // block)) ** 2).reshape(-(-size // block), -1) % 2 == 0
    mask = np.ascontiguousarray(blocks.repeat(block, 0).repeat(block, 1)[:size, :size])
    source = native.source_map(mask, "nearest")
    weights = np.ones((channels, channels, 3, 3), np.float32)
    conv = native.Conv(weights, source=source, pads=(1, 1, 1, 1))
    assert f"_{block}x{block} + " in conv.kernel
