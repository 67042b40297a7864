"""Data sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from semisparse.errors import DataError
from semisparse.training.data import published, transforms
from semisparse.training.data.fashion_mnist import fashion_mnist
from semisparse.training.data.folders import image_folder, unlabelled
from semisparse.training.data.images import Labelled
from semisparse.training.data.source import Source

_FOLDER = "imagefolder:"


def open_source(name: str, root: str | Path | None = None, download: bool = False) -> Source:
    """The data set `name`; arguments and errors as `splits.load`."""
    root = Path(root) if root is not None else None
    if name in _OPENERS:
        return _OPENERS[name](root, download)
    path = _folder_of(name, root)
    if path is None:
        raise _unknown(name)
    return image_folder(path)


def open_unlabelled(name: str, root: str | Path | None = None) -> Source | None:
    """The images of `imagefolder:PATH` if they are in no class folders, otherwise `None`."""
    path = _folder_of(name, root)
    return unlabelled(path) if path else None


def _folder_of(name: str, root: str | Path | None) -> Path | None:
    path = name.removeprefix(_FOLDER)
    return Path(root or "", path) if path and name.startswith(_FOLDER) else None


def _unknown(name: str) -> DataError:
    if Path(name).is_dir():
        return DataError(
            f"There is no data set {name!r}; for the folder of that name give {_FOLDER}{name}."
        )
    near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.5)
    guess = f"did you mean {near[0]}? There are" if near else "give one of"
    return DataError(f"There is no data set {name!r}; {guess} {', '.join(NAMES)}.")


def _digits(root: Path | None, download: bool) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    train, test = Labelled(images, bunch.target.astype(np.int64)).hold_out(0.25)
    return Source(
        train,
        val=None,
        test=test,
        classes=tuple(str(digit) for digit in range(10)),
        normalisation=((0.305,), (0.376,)),
        image_size=32,
        preparation=transforms.unaltered,
    )


_OPENERS: dict[str, Callable[[Path | None, bool], Source]] = {
    "imagenet": published.imagenet,
    "flowers102": published.flowers102,
    "cifar10": published.cifar10,
    "cifar100": published.cifar100,
    "food101": published.food101,
    "fashion-mnist": fashion_mnist,
    "digits": _digits,
}
NAMES = (*_OPENERS, f"{_FOLDER}PATH")
