"""Image classification data by name, with fixed train, validation and test splits.

The splits depend on nothing but the data set, so runs with different seeds are tested on the same
images. Selection of masks and checkpoints sees the first two only.
"""

from semisparse.training.data.module import ImageData
from semisparse.training.data.names import NAMES
from semisparse.training.data.source import Normalisation
from semisparse.training.data.splits import Splits, calibration_images, load, validation_images

__all__ = [
    "NAMES",
    "ImageData",
    "Normalisation",
    "Splits",
    "calibration_images",
    "load",
    "validation_images",
]
