"""Image classification data by name, with fixed train, validation and test splits.

The splits depend on nothing but the data set, so runs with different seeds are tested on the same
images. Selection of masks and checkpoints sees the first two only.
"""

from __future__ import annotations

import difflib
import gzip
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data.distributed import DistributedSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from typing_extensions import override

from semisparse.errors import DataError

if TYPE_CHECKING:
    Images = Subset[tuple[torch.Tensor, int]]

NAMES = ("digits", "fashion-mnist", "imagefolder:PATH")

_FASHION_MNIST_ROOTS = ("/usr/share/datasets/fashion-mnist", "data/fashion-mnist")
_FASHION_MNIST_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_SPLIT_SEED = 0


class ImageData(LightningDataModule):
    """Images `[N, channels, image_size, image_size]`, normalised, and their class indices.

    `name` is `digits` (scikit-learn's, 8x8 upsampled), `fashion-mnist` (IDX files, gzipped or
    not, in `root`, by default where Debian's package dataset-fashion-mnist puts them) or
    `imagefolder:PATH` (one folder per class; PATH either holds them or holds `train`, `val` and
    `test` folders of them, of which the last two may be absent). `image_size` is 32 by default,
    for image folders 224.

    Raises `DataError` when the data is absent, empty, unreadable, or smaller than a batch.
    """

    def __init__(
        self,
        name: str,
        root: str | Path | None = None,
        image_size: int | None = None,
        batch_size: int = 64,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.splits = load(name, root, image_size)
        self.image_size = self.splits.image_size
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        count = len(self.splits.train)
        if count < batch_size:
            raise DataError(
                f"The training split of {name} has {count} images, fewer than one batch of "
                f"{batch_size}; use a smaller batch or more data."
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.splits.classes)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.splits.channels

    @property
    def example_input(self) -> torch.Tensor:
        """One image of the validation split, `[1, channels, image_size, image_size]`."""
        image, _ = self.splits.val[0]
        return torch.as_tensor(image)[None]

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        # This sampler's order is a function of seed and epoch alone, so a resumed run sees the
        # batches that an uninterrupted one would.
        trainer = self.trainer
        sampler: DistributedSampler[Any] = DistributedSampler(
            self.splits.train,
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            shuffle=True,
            seed=self.seed,
        )
        return self._loader(self.splits.train, sampler=sampler, drop_last=True)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.splits.val)

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.splits.test)

    def _loader(self, images: Images, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            images,
            batch_size=self.batch_size,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Its own generator, so that making an iterator leaves the training's random state be.
            generator=torch.Generator().manual_seed(self.seed),
            **options,
        )


@dataclass(frozen=True)
class Splits:
    """Three data sets of normalised images and class indices, and what they have in common."""

    train: Images
    val: Images
    test: Images
    classes: tuple[str, ...]
    channels: int
    image_size: int


def load(name: str, root: str | Path | None = None, image_size: int | None = None) -> Splits:
    """The splits of a data set; names and errors as `ImageData`."""
    if image_size is not None and image_size < 8:
        raise DataError(f"Image size {image_size} is too small; use at least 8.")
    if name == "digits":
        return _digits(image_size or 32)
    if name == "fashion-mnist":
        return _fashion_mnist(root, image_size or 32)
    if name.startswith("imagefolder:"):
        return _image_folder(Path(name.removeprefix("imagefolder:")), image_size or 224)
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5) or NAMES
    raise DataError(f"There is no data set {name!r}; did you mean {' or '.join(near)}?")


class _Arrays(Dataset[tuple[torch.Tensor, int]]):
    """Grey images `[N, H, W]` held in memory."""

    def __init__(
        self,
        images: torch.Tensor,
        labels: NDArray[np.integer[Any]],
        transform: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index][None]), int(self.labels[index])


def _grey_transform(size: int, mean: float, std: float) -> v2.Compose:
    return v2.Compose(
        [
            v2.Resize((size, size), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([mean], [std]),
        ]
    )


def _split(
    labels: Sequence[int] | NDArray[np.integer[Any]], fraction: float
) -> tuple[list[int], list[int]]:
    """Indices of a stratified split: the rest, and `fraction` of each class."""
    rest, part = train_test_split(
        np.arange(len(labels)), test_size=fraction, random_state=_SPLIT_SEED, stratify=labels
    )
    return rest.tolist(), part.tolist()


def _digits(size: int) -> Splits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float() / 16
    labels = bunch.target
    data = _Arrays(images, labels, _grey_transform(size, 0.305, 0.376))
    rest, test = _split(labels, 0.25)
    train, val = _split(labels[rest], 0.1)
    return Splits(
        Subset(data, [rest[i] for i in train]),
        Subset(data, [rest[i] for i in val]),
        Subset(data, test),
        tuple(str(digit) for digit in range(10)),
        1,
        size,
    )


def _fashion_mnist(root: str | Path | None, size: int) -> Splits:
    roots = [root] if root is not None else _FASHION_MNIST_ROOTS
    folder = _fashion_mnist_folder([Path(candidate) for candidate in roots])
    transform = _grey_transform(size, 0.286, 0.353)

    def part(prefix: str) -> _Arrays:
        images = _read_idx(folder, f"{prefix}-images-idx3-ubyte")
        labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte")
        if len(images) != len(labels) or not len(images):
            raise DataError(
                f"{folder} holds {len(images)} {prefix} images and {len(labels)} labels; "
                "fetch Fashion-MNIST again."
            )
        return _Arrays(torch.from_numpy(images), labels, transform)

    train, test = part("train"), part("t10k")
    rest, val = _split(train.labels, 0.1)
    return Splits(
        Subset(train, rest),
        Subset(train, val),
        Subset(test, range(len(test))),
        _FASHION_MNIST_CLASSES,
        1,
        size,
    )


def _fashion_mnist_folder(roots: Sequence[Path]) -> Path:
    for root in roots:
        # torchvision's downloader nests its files so.
        for folder in (root, root / "FashionMNIST" / "raw"):
            if any(folder.glob("train-images-idx3-ubyte*")):
                return folder
    raise DataError(
        f"Fashion-MNIST is not in {' or '.join(map(str, roots))}; install Debian's package "
        "dataset-fashion-mnist, or give the folder of its IDX files as data root."
    )


def _read_idx(folder: Path, name: str) -> NDArray[np.uint8]:
    """An unsigned-byte IDX file: two zeros, type 8, the rank, big-endian sizes, the data."""
    packed = folder / f"{name}.gz"
    path = packed if packed.is_file() else folder / name
    try:
        raw = gzip.decompress(path.read_bytes()) if path == packed else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); fetch Fashion-MNIST again.") from error
    rank = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    shape = tuple(int(size) for size in np.frombuffer(raw[4 : 4 + 4 * rank], ">u4"))
    values: NDArray[np.uint8] = np.frombuffer(raw[4 + 4 * rank :], np.uint8).copy()
    if rank == 0 or len(values) != math.prod(shape):
        raise DataError(
            f"{path} is not a whole IDX file ({len(raw)} bytes, sizes {shape}); fetch "
            "Fashion-MNIST again."
        )
    images: NDArray[np.uint8] = values.reshape(shape)
    return images


_IMAGENET = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def _image_folder(path: Path, size: int) -> Splits:
    tail = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), _IMAGENET]
    augment = v2.Compose(
        [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), *tail]
    )
    # The customary margin: 256 for a crop of 224.
    plain = v2.Compose([v2.Resize(size * 8 // 7, antialias=True), v2.CenterCrop(size), *tail])
    train_path = path / "train" if (path / "train").is_dir() else path
    train, evaluated = _open_folder(train_path, augment), _open_folder(train_path, plain)
    indices = list(range(len(train)))

    def held_out(name: str) -> Images:
        nonlocal indices
        if train_path != path and (path / name).is_dir():
            held = _open_folder(path / name, plain)
            if held.classes != train.classes:
                raise DataError(
                    f"{path / name} has classes {held.classes}, {train_path} has "
                    f"{train.classes}; give both the same folders."
                )
            return Subset(held, range(len(held)))
        labels = [train.targets[i] for i in indices]
        try:
            rest, part = _split(labels, 0.1)
        except ValueError as error:
            raise DataError(
                f"{train_path} has {len(labels)} images of {len(train.classes)} classes, too few "
                f"to hold out a {name} split ({error}); add images or a {name} folder."
            ) from error
        held_indices = [indices[i] for i in part]
        indices = [indices[i] for i in rest]
        return Subset(evaluated, held_indices)

    test, val = held_out("test"), held_out("val")
    return Splits(Subset(train, indices), val, test, tuple(train.classes), 3, size)


def _open_folder(path: Path, transform: Callable[[Any], torch.Tensor]) -> ImageFolder:
    if not path.is_dir():
        raise DataError(f"There is no image folder {path}; give a folder with one per class.")
    try:
        return ImageFolder(str(path), transform)
    except (FileNotFoundError, OSError) as error:
        raise DataError(
            f"{path} has no images in class folders ({str(error).splitlines()[0]}); give a folder "
            "with one non-empty folder of images per class."
        ) from error
