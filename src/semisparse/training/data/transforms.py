"""The usual transforms: what each image goes through, and what a whole batch does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchvision.transforms import v2

# Of an image as it is held or decoded, a tensor of the size that all have.
Prepare = Callable[[Any], torch.Tensor]
# Of an image size, how images are prepared for training and for evaluation.
Preparation = Callable[[int], tuple[Prepare, Prepare]]


def photo(size: int) -> tuple[Prepare, Prepare]:
    """Crops of any scale and their mirror images; for evaluation the central square."""
    tail = [v2.PILToTensor()]
    train = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), *tail]
    # The customary margin: 256 for a crop of 224.
    plain = [v2.Resize(size * 8 // 7, antialias=True), v2.CenterCrop(size), *tail]
    return v2.Compose(train), v2.Compose(plain)


def shifted(size: int) -> tuple[Prepare, Prepare]:
    """Shifts by up to 4 pixels of 32 and mirror images (He et al. 2016, section 4.2)."""
    return v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]), _unchanged


def unaltered(size: int) -> tuple[Prepare, Prepare]:
    """For digits, whose mirror images are none, and for clothes that all face the same way."""
    return _unchanged, _unchanged


def finish(size: int, mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """Images `[N, channels, H, W]` of bytes or in [0, 1], resized and normalised."""
    return v2.Compose(
        [
            v2.Resize((size, size), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


def _unchanged(image: torch.Tensor) -> torch.Tensor:
    return image
