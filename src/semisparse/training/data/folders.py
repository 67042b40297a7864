"""Image folders: one folder of images per class, or images without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision import datasets

from semisparse.errors import DataError
from semisparse.training.data.images import Files, Labelled
from semisparse.training.data.source import Source, photos


def image_folder(path: Path) -> Source:
    """Classes in `path`, or in folders `train` and perhaps `val` and `test` of it."""
    train = path / "train" if (path / "train").is_dir() else path
    labelled, classes = class_folders(train)

    def part(name: str) -> Labelled | None:
        if train == path or not (path / name).is_dir():
            return None
        return class_folders_like(classes, path / name, train)

    return photos(labelled, part("val"), part("test"), classes)


def unlabelled(path: Path) -> Source | None:
    """The images that lie right in `path` or its folder `train`, `None` if there are none."""
    folder = path / "train" if (path / "train").is_dir() else path
    extensions = datasets.folder.IMG_EXTENSIONS
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in extensions)
    return photos(Labelled(Files(files), np.zeros(len(files), np.int64))) if files else None


def class_folders(path: Path) -> tuple[Labelled, tuple[str, ...]]:
    """The images of every folder in `path`, and the names of those; `DataError` without any."""
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


def class_folders_like(classes: tuple[str, ...], path: Path, other: Path) -> Labelled:
    """As `class_folders`; `DataError` unless it finds the classes that `other` has."""
    labelled, found = class_folders(path)
    if found != classes:
        odd = sorted(set(found) ^ set(classes))
        raise DataError(
            f"{path} and {other} do not have the same classes: {len(odd)} are in one of them only, "
            f"such as {odd[0]}; give both the same folders."
        )
    return labelled
