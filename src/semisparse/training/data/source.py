"""A data set as it comes, not yet transformed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from semisparse.training.data import transforms
from semisparse.training.data.images import Labelled
from semisparse.training.data.transforms import Preparation

# Where data sets are by default.
DATA = Path("data")
# Mean and deviation of each channel of images in [0, 1].
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Source:
    """The splits that a data set comes with, and what is usual for it.

    What it lacks of validation and test images is held out of the training images, the fraction
    `held_out` of each class. `image_size` is the default, the side of a square.
    """

    train: Labelled
    val: Labelled | None
    test: Labelled | None
    classes: tuple[str, ...]
    normalisation: Normalisation
    image_size: int
    preparation: Preparation
    held_out: float = 0.1

    @property
    def channels(self) -> int:
        """Channels of an image."""
        mean, _ = self.normalisation
        return len(mean)


def photos(
    train: Labelled,
    val: Labelled | None = None,
    test: Labelled | None = None,
    classes: tuple[str, ...] = (),
    held_out: float = 0.1,
) -> Source:
    """A set of photographs, which are usually treated as those of ImageNet are."""
    return Source(train, val, test, classes, _IMAGENET, 224, transforms.photo, held_out)
