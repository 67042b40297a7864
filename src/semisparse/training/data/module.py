"""The data of a run for Lightning."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from typing_extensions import override

from semisparse.errors import DataError
from semisparse.image_size import AnySize
from semisparse.training.data.images import ImageSet
from semisparse.training.data.loader import ImageLoader, TrainingLoader
from semisparse.training.data.order import EvaluationOrder, TrainingOrder, even_batch_size
from semisparse.training.data.source import Normalisation
from semisparse.training.data.splits import load


class ImageData(LightningDataModule):
    """Images `[N, channels, height, width]`, normalised, and their class indices.

    `name`, `root`, `image_size`, `download`, `normalisation`, `in_place` and `whole` as
    `splits.load`. Up to the fraction `max_unreadable` of a split's images are left out if they
    cannot be read.

    What is drawn for training is a function of `seed` and epoch, whatever `workers` is, and can go
    on within an epoch (`TrainingLoader`). Under several ranks each draws its share of every split.

    Raises `DataError` when the data is absent, empty, unreadable, or smaller than a batch, and
    `ConfigError` as `splits.load`.
    """

    def __init__(
        self,
        name: str,
        root: str | Path | None = None,
        image_size: AnySize | None = None,
        batch_size: int = 64,
        workers: int = 0,
        seed: int = 0,
        *,
        download: bool = False,
        normalisation: Normalisation | None = None,
        max_unreadable: float = 0.01,
        in_place: bool = False,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.splits = load(
            *(name, root, image_size),
            download=download,
            normalisation=normalisation,
            in_place=in_place,
            whole=whole,
        )
        self.image_size = self.splits.image_size
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.max_unreadable = max_unreadable
        self._check_batch(ranks=1)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.splits.classes)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.splits.channels

    @property
    def normalisation(self) -> Normalisation:
        """Mean and deviation of each channel, by which images in [0, 1] were normalised."""
        return self.splits.normalisation

    @property
    def example_input(self) -> torch.Tensor:
        """An image of the validation split, `[1, channels, height, width]`."""
        val = self.splits.val
        for index in range(len(val)):
            try:
                return val[index][0][None]
            except DataError as error:
                unreadable = error
        raise unreadable

    @override
    def train_dataloader(self) -> TrainingLoader:
        rank, ranks = self._place
        self._check_batch(ranks)
        order = TrainingOrder(len(self.splits.train), self.seed, rank, ranks)
        return TrainingLoader(
            self.splits.train,
            order,
            self.batch_size,
            workers=self.workers,
            max_unreadable=self.max_unreadable,
        )

    @override
    def val_dataloader(self) -> ImageLoader:
        return self._evaluation(self.splits.val, "validation split")

    @override
    def test_dataloader(self) -> ImageLoader:
        return self._evaluation(self.splits.test, "test split")

    def _evaluation(self, images: ImageSet, split: str) -> ImageLoader:
        rank, ranks = self._place
        count = len(images)
        if count < ranks:
            raise DataError(
                f"The {split} of {self.name} has {count} images, fewer than the {ranks} processes "
                "that share it; use fewer or more data."
            )
        return ImageLoader(
            images,
            EvaluationOrder(count, rank, ranks),
            even_batch_size(count, ranks, self.batch_size),
            split=split,
            workers=self.workers,
            max_unreadable=self.max_unreadable,
        )

    @property
    def _place(self) -> tuple[int, int]:
        """This process's rank, and how many there are."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)

    def _check_batch(self, ranks: int) -> None:
        count = len(self.splits.train) // ranks
        if count < self.batch_size:
            share = f", {count} for each of {ranks} processes" if ranks > 1 else ""
            raise DataError(
                f"The training split of {self.name} has {len(self.splits.train)} images{share}, "
                f"fewer than one batch of {self.batch_size}; use a smaller batch or more data."
            )
