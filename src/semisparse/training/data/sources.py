"""Data sets by name, in the splits that they come with."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torchvision import datasets

from semisparse.errors import DataError
from semisparse.training.data import transforms
from semisparse.training.data.idx import read_idx
from semisparse.training.data.images import Files, Labelled
from semisparse.training.data.transforms import Preparation

# Mean and deviation of each channel of images in [0, 1].
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Source:
    """The splits that a data set comes with, and what is usual for it.

    What it lacks of validation and test images is held out of the training images, the fraction
    `held_out` of each class. `image_size` is the default.
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


_DATA = Path("data")
# Debian's package dataset-fashion-mnist, then ours.
_FASHION_MNIST_ROOTS = (Path("/usr/share/datasets/fashion-mnist"), _DATA / "fashion-mnist")
_FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_PHOTOS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FOLDER = "imagefolder:"


def open_source(name: str, root: str | Path | None = None, download: bool = False) -> Source:
    """The data set `name`; arguments and errors as `splits.load`."""
    if name in _OPENERS:
        return _OPENERS[name](Path(root) if root is not None else None, download)
    path = _folder_of(name)
    if path is None:
        raise _unknown(name)
    return _image_folder(path)


def open_unlabelled(name: str) -> Source | None:
    """The images that lie right in PATH or PATH/train of `imagefolder:PATH`, `None` if none do."""
    path = _folder_of(name)
    if path is None:
        return None
    folder = path / "train" if (path / "train").is_dir() else path
    extensions = datasets.folder.IMG_EXTENSIONS
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in extensions)
    return _photos(Labelled(Files(files), np.zeros(len(files), np.int64))) if files else None


def _folder_of(name: str) -> Path | None:
    path = name.removeprefix(_FOLDER)
    return Path(path) if path and name.startswith(_FOLDER) else None


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


def _fashion_mnist(root: Path | None, download: bool) -> Source:
    if download:
        target = root or _FASHION_MNIST_ROOTS[-1]
        _fetch("fashion-mnist", target, lambda: datasets.FashionMNIST(str(target), download=True))
    folder = _fashion_mnist_folder([root] if root else _FASHION_MNIST_ROOTS)

    def part(prefix: str) -> Labelled:
        images = read_idx(folder, f"{prefix}-images-idx3-ubyte")
        labels = read_idx(folder, f"{prefix}-labels-idx1-ubyte")
        if len(images) != len(labels) or not len(images):
            raise DataError(
                f"{folder} holds {len(images)} {prefix} images and {len(labels)} labels; "
                "fetch Fashion-MNIST again."
            )
        return Labelled(torch.from_numpy(images)[:, None], labels.astype(np.int64))

    return Source(
        part("train"),
        val=None,
        test=part("t10k"),
        classes=_FASHION_MNIST_CLASSES,
        normalisation=((0.286,), (0.353,)),
        image_size=32,
        preparation=transforms.unaltered,
    )


def _fashion_mnist_folder(roots: Sequence[Path]) -> Path:
    for root in roots:
        # torchvision's downloader nests its files so.
        for folder in (root, root / "FashionMNIST" / "raw"):
            if any(folder.glob("train-images-idx3-ubyte*")):
                return folder
    raise DataError(
        f"Fashion-MNIST is not in {' or '.join(map(str, roots))}; fetch it with --download, "
        "install Debian's package dataset-fashion-mnist, or give the folder of its IDX files as "
        "--data-root."
    )


def _cifar10(root: Path | None, download: bool) -> Source:
    statistics = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return _cifar("cifar10", datasets.CIFAR10, statistics, root, download)


def _cifar100(root: Path | None, download: bool) -> Source:
    statistics = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    return _cifar("cifar100", datasets.CIFAR100, statistics, root, download)


def _cifar(
    name: str,
    kind: type[datasets.CIFAR10],
    statistics: Normalisation,
    root: Path | None,
    download: bool,
) -> Source:
    train, test = _published(
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


def _flowers102(root: Path | None, download: bool) -> Source:
    parts = [{"split": split} for split in ("train", "val", "test")]
    train, val, test = _published(
        "flowers102", datasets.Flowers102, parts, "flowers-102", root, download
    )
    return _photos(_files(train), _files(val), _files(test), tuple(datasets.Flowers102.classes))


def _food101(root: Path | None, download: bool) -> Source:
    parts = [{"split": split} for split in ("train", "test")]
    train, test = _published("food101", datasets.Food101, parts, "food-101", root, download)
    return _photos(_files(train), None, _files(test), tuple(train.classes))


def _files(published: datasets.Flowers102 | datasets.Food101) -> Labelled:
    # They have no public attributes for what their items are made of.
    return Labelled(Files(published._image_files), np.array(published._labels))


def _imagenet(root: Path | None, download: bool) -> Source:
    root = root or _DATA / "imagenet"
    train, val = root / "train", root / "val"
    if download and not (train.is_dir() and val.is_dir()):
        # They may not be passed on, so torchvision unpacks what was fetched by hand.
        _fetch(
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
    labelled, classes = _class_folders(train)
    # The published validation images are what the field reports on, so they are tested on.
    test = _class_folders_like(classes, val, train)
    return _photos(labelled, None, test, classes, held_out=0.02)


def _image_folder(path: Path) -> Source:
    train = path / "train" if (path / "train").is_dir() else path
    labelled, classes = _class_folders(train)

    def part(name: str) -> Labelled | None:
        if train == path or not (path / name).is_dir():
            return None
        return _class_folders_like(classes, path / name, train)

    return _photos(labelled, part("val"), part("test"), classes)


def _photos(
    train: Labelled,
    val: Labelled | None = None,
    test: Labelled | None = None,
    classes: tuple[str, ...] = (),
    held_out: float = 0.1,
) -> Source:
    return Source(train, val, test, classes, _PHOTOS, 224, transforms.photo, held_out)


def _class_folders(path: Path) -> tuple[Labelled, tuple[str, ...]]:
    if not path.is_dir():
        raise DataError(f"There is no image folder {path}; give a folder with one per class.")
    try:
        found = datasets.ImageFolder(str(path))
    except OSError as error:
        raise DataError(
            f"{path} has no images in class folders ({str(error).splitlines()[0]}); give a folder "
            "with one non-empty folder of images per class."
        ) from error
    files = Files([file for file, _ in found.samples])
    return Labelled(files, np.array(found.targets)), tuple(found.classes)


def _class_folders_like(classes: tuple[str, ...], path: Path, other: Path) -> Labelled:
    labelled, found = _class_folders(path)
    if found != classes:
        raise DataError(
            f"{path} has classes {list(found)}, {other} has {list(classes)}; give both the same "
            "folders."
        )
    return labelled


def _published(
    name: str,
    create: Callable[..., Any],
    parts: Sequence[dict[str, Any]],
    folder: str,
    root: Path | None,
    download: bool,
) -> list[Any]:
    """Parts of one of torchvision's data sets, which lies in `folder` below the root."""
    root = root or _DATA
    # That folder itself may be given too.
    root = root.parent if root.name == folder and not (root / folder).is_dir() else root
    if download:
        _fetch(name, root, lambda: create(str(root), download=True))
    if not (root / folder).is_dir():
        raise DataError(
            f"{name} is not in {root / folder}; repeat the command with --download to fetch it, or "
            f"give the folder that holds {folder} as --data-root."
        )
    try:
        return [create(str(root), **part) for part in parts]
    except _DAMAGE as error:
        raise DataError(
            f"The copy of {name} in {root / folder} is not whole ({error}); remove it, and repeat "
            "the command with --download."
        ) from error


_DAMAGE = (RuntimeError, OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError)


def _fetch(
    name: str,
    root: Path,
    fetch: Callable[[], Any],
    remedy: str = "check the network and the space left, and try again",
) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Of several processes of one run the first fetches, and the others find it done.
        with FileLock(root / f".{name}.lock"):
            fetch()
    except _DAMAGE as error:
        raise DataError(f"{name} cannot be fetched into {root} ({error}); {remedy}.") from error


_OPENERS: dict[str, Callable[[Path | None, bool], Source]] = {
    "imagenet": _imagenet,
    "flowers102": _flowers102,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "food101": _food101,
    "fashion-mnist": _fashion_mnist,
    "digits": _digits,
}
NAMES = (*_OPENERS, f"{_FOLDER}PATH")
