"""Data sets that torchvision can fetch or unpack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from semisparse.errors import DataError
from semisparse.training.data import transforms
from semisparse.training.data.fetch import DAMAGE, fetch
from semisparse.training.data.folders import class_folders, class_folders_like
from semisparse.training.data.images import Files, Labelled
from semisparse.training.data.source import DATA, Normalisation, Source, photos


def cifar10(root: Path | None, download: bool) -> Source:
    """CIFAR-10 (Krizhevsky 2009); arguments and errors as `splits.load`."""
    statistics = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return _cifar("cifar10", datasets.CIFAR10, statistics, root, download)


def cifar100(root: Path | None, download: bool) -> Source:
    """CIFAR-100 (Krizhevsky 2009); arguments and errors as `splits.load`."""
    statistics = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return _cifar("cifar100", datasets.CIFAR100, statistics, root, download)


def _cifar(
    name: str,
    kind: type[datasets.CIFAR10],
    statistics: Normalisation,
    root: Path | None,
    download: bool,
) -> Source:
    train, test = _parts(
        name, kind, [{"train": True}, {"train": False}], kind.base_folder, root, download
    )

    def part(published: datasets.CIFAR10) -> Labelled:
        images = torch.from_numpy(published.data).permute(0, 3, 1, 2).contiguous()
        return Labelled(images, np.array(published.targets))

    return Source(
        part(train),
        val=None,
        test=part(test),
        classes=tuple(train.classes),
        normalisation=statistics,
        image_size=32,
        preparation=transforms.shifted,
    )


def flowers102(root: Path | None, download: bool) -> Source:
    """Oxford 102 Flower (Nilsback & Zisserman 2008); arguments and errors as `splits.load`."""
    parts = [{"split": split} for split in ("train", "val", "test")]
    train, val, test = _parts(
        "flowers102", datasets.Flowers102, parts, "flowers-102", root, download
    )
    return photos(_files(train), _files(val), _files(test), tuple(datasets.Flowers102.classes))


def food101(root: Path | None, download: bool) -> Source:
    """Food-101 (Bossard et al. 2014); arguments and errors as `splits.load`."""
    parts = [{"split": split} for split in ("train", "test")]
    train, test = _parts("food101", datasets.Food101, parts, "food-101", root, download)
    return photos(_files(train), None, _files(test), tuple(train.classes))


def _files(published: datasets.Flowers102 | datasets.Food101) -> Labelled:
    # They have no public attributes for what their items are made of.
    return Labelled(Files(published._image_files), np.array(published._labels))


def imagenet(root: Path | None, download: bool) -> Source:
    """ImageNet-1K (ILSVRC 2012); arguments and errors as `splits.load`."""
    root = root or DATA / "imagenet"
    train, val = root / "train", root / "val"
    if download and not (train.is_dir() and val.is_dir()):
        # They may not be passed on, so torchvision unpacks what was fetched by hand.
        fetch(
            "imagenet",
            root,
            lambda: [datasets.ImageNet(root, split) for split in ("train", "val")],
            "put the archives from https://image-net.org there",
        )
    if not (train.is_dir() and val.is_dir()):
        raise DataError(
            f"ImageNet is not in {root}, which lacks the folder train or val; put the archives "
            "from https://image-net.org (images of training and validation, development kit) "
            "there and repeat the command with --download, which unpacks them, or give the folder "
            "that holds train and val as --data-root."
        )
    labelled, classes = class_folders(train)
    # The published validation images are what the field reports on, so they are tested on.
    test = class_folders_like(classes, val, train)
    return photos(labelled, None, test, classes, held_out=0.02)


def _parts(
    name: str,
    create: Callable[..., Any],
    parts: Sequence[dict[str, Any]],
    folder: str,
    root: Path | None,
    download: bool,
) -> list[Any]:
    """Parts of one of torchvision's data sets, which lies in `folder` below the root."""
    root = root or DATA
    # That folder itself may be given too.
    root = root.parent if root.name == folder and not (root / folder).is_dir() else root
    if download:
        fetch(name, root, lambda: create(str(root), download=True))
    if not (root / folder).is_dir():
        raise DataError(
            f"{name} is not in {root / folder}; repeat the command with --download to fetch it, or "
            f"give the folder that holds {folder} as --data-root."
        )
    try:
        return [create(str(root), **part) for part in parts]
    except DAMAGE as error:
        raise DataError(
            f"The copy of {name} in {root / folder} is not whole; remove it, and repeat the "
            "command with --download."
        ) from error
