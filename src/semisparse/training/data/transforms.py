"""The usual transforms: what each image goes through, and what a whole batch does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torchvision.transforms import v2

from semisparse.image_size import ImageSize

# Of an image as it is held or decoded, a tensor of the size that all have.
Prepare = Callable[[Any], torch.Tensor]
# Of an image size, and whether nothing may be cut off, how images are prepared for training and
# for evaluation.
Preparation = Callable[[ImageSize, bool], tuple[Prepare, Prepare]]


def photo(size: ImageSize, whole: bool) -> tuple[Prepare, Prepare]:
    """Crops of any scale and their mirror images; for evaluation the centre, of the size's shape.

    Of whole images the mirror images only.
    """
    tail = [v2.PILToTensor()]
    if whole:
        resized = v2.Resize(size, antialias=True)
        return v2.Compose([resized, v2.RandomHorizontalFlip(), *tail]), v2.Compose([resized, *tail])
    train = [crops(size), v2.RandomHorizontalFlip(), *tail]
    # The customary margin: 256 for a crop of 224.
    cover = functools.partial(_covering, height=size.height * 8 // 7, width=size.width * 8 // 7)
    plain = [cover, v2.CenterCrop(size), *tail]
    return v2.Compose(train), v2.Compose(plain)


def shifted(size: ImageSize, whole: bool) -> tuple[Prepare, Prepare]:
    """Shifts by up to 4 pixels of 32 and mirror images (He et al. 2016, section 4.2).

    Of whole images the mirror images only.
    """
    mirrored = v2.RandomHorizontalFlip()
    train = mirrored if whole else v2.Compose([v2.RandomCrop(32, padding=4), mirrored])
    return train, _unchanged


def unaltered(size: ImageSize, whole: bool) -> tuple[Prepare, Prepare]:
    """For digits, whose mirror images are none, and for clothes that all face the same way."""
    return _unchanged, _unchanged


def crops(size: tuple[int, int], least_area: float = 0.08) -> v2.Transform:
    """Random crops, of at least that part of an image, resized to a height and width.

    They are up to a third wider or higher than that shape, as is usual for squares.
    """
    height, width = size
    ratio = (3 / 4 * (width / height), 4 / 3 * (width / height))
    return v2.RandomResizedCrop(size, (least_area, 1.0), ratio, antialias=True)


def finish(size: ImageSize, mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """Images `[N, channels, H, W]` of bytes or in [0, 1], resized and normalised."""
    return v2.Compose(
        [
            v2.Resize(size, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


def _covering(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resized to one of the sides, so that it is no smaller than the other."""
    own_width, own_height = image.size
    if own_height * width <= height * own_width:
        sides = [height, height * own_width // own_height]
    else:
        sides = [width * own_height // own_width, width]
    resized: Image.Image = v2.functional.resize(image, sides, antialias=True)
    return resized


def _unchanged(image: torch.Tensor) -> torch.Tensor:
    return image
