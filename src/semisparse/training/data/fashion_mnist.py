"""Fashion-MNIST, as Debian packs it or torchvision fetches it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets

from semisparse.errors import DataError
from semisparse.training.data import transforms
from semisparse.training.data.fetch import fetch
from semisparse.training.data.idx import read_idx
from semisparse.training.data.images import Labelled
from semisparse.training.data.source import DATA, Source

# Debian's package dataset-fashion-mnist, then ours.
_ROOTS = (Path("/usr/share/datasets/fashion-mnist"), DATA / "fashion-mnist")
_IMAGES, _LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"
_FILES = {f"{part}{kind}" for part in ("train", "t10k") for kind in (_IMAGES, _LABELS)}
_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def fashion_mnist(root: Path | None, download: bool) -> Source:
    """In `root` or where Debian has it; arguments and errors as `splits.load`."""
    roots = [root] if root else _ROOTS
    folder = _folder(roots)
    if folder is None and download:
        target = str(roots[-1])
        fetch("fashion-mnist", roots[-1], lambda: datasets.FashionMNIST(target, download=True))
        folder = _folder(roots)
    if folder is None:
        raise DataError(
            f"Fashion-MNIST is not in {' or '.join(map(str, roots))}; fetch it with --download, "
            "install Debian's package dataset-fashion-mnist, or give the folder of its IDX files "
            "as --data-root."
        )

    def part(prefix: str) -> Labelled:
        images = read_idx(folder, f"{prefix}{_IMAGES}")
        labels = read_idx(folder, f"{prefix}{_LABELS}")
        if len(images) != len(labels) or not len(images):
            raise DataError(
                f"{folder} holds {len(images)} {prefix} images and {len(labels)} labels; "
                "remove them and fetch Fashion-MNIST again."
            )
        return Labelled(torch.from_numpy(images)[:, None], labels.astype(np.int64))

    return Source(
        part("train"),
        val=None,
        test=part("t10k"),
        classes=_CLASSES,
        normalisation=((0.286,), (0.353,)),
        image_size=32,
        preparation=transforms.unaltered,
    )


def _folder(roots: Sequence[Path]) -> Path | None:
    for root in roots:
        # torchvision's downloader nests its files so.
        for folder in (root, root / "FashionMNIST" / "raw"):
            found = {path.name.removesuffix(".gz") for path in folder.glob("*-ubyte*")}
            if found >= _FILES:
                return folder
    return None
