"""A data set's splits, ready to be drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from semisparse.errors import DataError
from semisparse.image_size import AnySize, ImageSize
from semisparse.training.data import transforms
from semisparse.training.data.images import ImageSet, Labelled
from semisparse.training.data.loader import ImageLoader
from semisparse.training.data.names import open_source, open_unlabelled
from semisparse.training.data.order import EvaluationOrder
from semisparse.training.data.source import Normalisation, Source


@dataclass(frozen=True)
class Splits:
    """Three data sets of normalised images and class indices, and what they have in common."""

    train: ImageSet
    val: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    channels: int
    image_size: ImageSize
    normalisation: Normalisation


def load(
    name: str,
    root: str | Path | None = None,
    image_size: AnySize | None = None,
    *,
    download: bool = False,
    normalisation: Normalisation | None = None,
    in_place: bool = False,
    whole: bool = False,
) -> Splits:
    """The splits of a data set.

    `name` is one of `NAMES`: `imagenet`, `flowers102`, `cifar10`, `cifar100`, `food101`,
    `fashion-mnist`, `digits`, or `imagefolder:PATH`, where PATH holds one folder of images per
    class, or `train`, `val` and `test` folders of them, of which the last two may be absent.
    `root` is where the data set lies or a relative PATH begins, by default the folder `data` and
    the working directory; a set that is not there is fetched if `download` is true. `image_size`
    is 224 by default, for data sets of small images 32; a pair is height and width.
    `normalisation` is the data set's own by default; another is used where it has as many
    channels. `in_place` prepares the images of training as those of evaluation, so that everything
    stays where it is. `whole` resizes images to `image_size` whatever their shape is, so that
    nothing is cut off, and leaves training the mirror images only.

    Raises `DataError` when the data is unknown, absent, empty or unreadable, and `ConfigError` for
    an `image_size` that is none or has a side below 8.
    """
    source = open_source(name, root, download)
    train, val, test = _split(name, source)
    size = _size(source, image_size)
    augmented, plain = source.preparation(size, whole)
    normalisation = _normalisation(source, normalisation)
    finish = transforms.finish(size, *normalisation)
    return Splits(
        train=ImageSet(train, plain if in_place else augmented, finish),
        val=ImageSet(val, plain, finish),
        test=ImageSet(test, plain, finish),
        classes=source.classes,
        channels=source.channels,
        image_size=size,
        normalisation=normalisation,
    )


def calibration_images(
    name: str,
    count: int,
    root: str | Path | None = None,
    image_size: AnySize | None = None,
    *,
    workers: int = 0,
    download: bool = False,
    normalisation: Normalisation | None = None,
    max_unreadable: float = 0.01,
    whole: bool = False,
) -> torch.Tensor:
    """At most `count` images `[N, channels, height, width]`, without labels.

    They are drawn from the training split, the same ones every time, and prepared as for
    evaluation. Of `imagefolder:PATH` also when the images lie right in PATH or PATH/train, without
    class folders. Up to the fraction `max_unreadable` is left out if it cannot be read. Arguments
    and errors otherwise as `load`.
    """
    if count < 1:
        raise DataError(f"{count} calibration images were asked for; ask for at least 1.")
    source = open_unlabelled(name, root)
    if source is None:
        source = open_source(name, root, download)
        images, _, _ = _split(name, source)
    else:
        images = source.train
    size = _size(source, image_size)
    _, plain = source.preparation(size, whole)
    finish = transforms.finish(size, *_normalisation(source, normalisation))
    training = ImageSet(images, plain, finish)
    drawn, _ = _draw(training, count, "calibration sample", max_unreadable, workers)
    return drawn


def validation_images(
    name: str,
    count: int,
    root: str | Path | None = None,
    image_size: AnySize | None = None,
    *,
    normalisation: Normalisation | None = None,
    max_unreadable: float = 0.01,
    whole: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """At most `count` images `[N, channels, height, width]`, labels `[N]`, and how many classes
    there are; `None` where the images are without labels.

    They are drawn from the validation split, the same ones every time. Arguments and errors
    otherwise as `calibration_images`.
    """
    if open_unlabelled(name, root) is not None:
        return None
    splits = load(name, root, image_size, normalisation=normalisation, whole=whole)
    images, labels = _draw(splits.val, count, "validation sample", max_unreadable)
    return images, labels, len(splits.classes)


def _draw(
    images: ImageSet, count: int, split: str, max_unreadable: float, workers: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """At most `count` of the images and their labels, the same ones every time."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
    some = ImageSet(images.source.take(chosen), images.prepare, images.finish)
    loader = ImageLoader(
        some,
        EvaluationOrder(len(some)),
        64,
        split=split,
        workers=workers,
        max_unreadable=max_unreadable,
    )
    batches, labels = zip(*loader, strict=True)
    return torch.cat(batches), torch.cat(labels)


def _split(name: str, source: Source) -> tuple[Labelled, Labelled, Labelled]:
    train, val, test = source.train, source.val, source.test

    def held_out(split: str) -> tuple[Labelled, Labelled]:
        try:
            return train.hold_out(source.held_out)
        except ValueError as error:
            raise DataError(
                f"{name} has {len(train)} training images of {len(source.classes)} classes, too "
                f"few to hold out a {split} split ({error}); add images or a {split} folder."
            ) from error

    if test is None:
        train, test = held_out("test")
    if val is None:
        train, val = held_out("val")
    return train, val, test


def _size(source: Source, image_size: AnySize | None) -> ImageSize:
    return ImageSize.of(source.image_size if image_size is None else image_size, least=8)


def _normalisation(source: Source, wanted: Normalisation | None) -> Normalisation:
    fits = wanted is not None and len(wanted[0]) == source.channels
    return wanted if wanted is not None and fits else source.normalisation
