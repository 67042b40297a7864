"""Batches of images, with images that cannot be read counted and left out."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from typing_extensions import override

from semisparse.errors import DataError
from semisparse.training.data.images import Drawn, ImageSet
from semisparse.training.data.order import EvaluationOrder, TrainingOrder

Batch = tuple[torch.Tensor, torch.Tensor]

_log = logging.getLogger(__name__)


class ImageLoader(DataLoader[Any]):
    """Batches `(images [N, channels, H, W], labels [N])` in a given order.

    Images that cannot be read are left out of their batch, and logged as a warning with the last
    batch. `split` is how messages call the images.

    Raises `DataError` when more than the fraction `max_unreadable` of all images (rounded up)
    cannot be read, or none of a batch can.
    """

    def __init__(
        self,
        images: ImageSet,
        order: TrainingOrder | EvaluationOrder,
        batch_size: int,
        *,
        split: str,
        workers: int = 0,
        max_unreadable: float = 0.01,
        drop_last: bool = False,
    ) -> None:
        super().__init__(
            images,
            batch_size=batch_size,
            sampler=order,
            drop_last=drop_last,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
            # Its own generator, so that making an iterator leaves the training's random state be.
            generator=torch.Generator().manual_seed(0),
        )
        self.unreadable: dict[int, str] = {}
        self.delivered = 0
        self._split = split
        self._limit = math.ceil(max_unreadable * len(images))
        self._count = len(images)
        self._reported = 0

    # torch promises an iterator of a class of its own, and uses it as any.
    @override
    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.delivered = self._start
        drawn: Drawn
        for drawn in super().__iter__():
            self.delivered += 1
            self._note(drawn)
            if self.delivered == len(self):
                self._report()
            yield self._batch(drawn)

    @property
    def _start(self) -> int:
        return 0

    def _batch(self, drawn: Drawn) -> Batch:
        return drawn.images, drawn.labels

    def _note(self, drawn: Drawn) -> None:
        self.unreadable |= drawn.unreadable
        if len(self.unreadable) > self._limit or not len(drawn.labels):
            raise DataError(
                f"{self._share} cannot be read, but max_unreadable lets only {self._limit} be left "
                f"out, and never a whole batch; {self._first_reason}"
            )

    def _report(self) -> None:
        if len(self.unreadable) > self._reported:
            self._reported = len(self.unreadable)
            # Without a handler, logging prints warnings as they are to standard error.
            _log.warning("left out %s; %s", self._share, self._first_reason)

    @property
    def _share(self) -> str:
        return f"{len(self.unreadable)} of the {self._count} images of the {self._split}"

    @property
    def _first_reason(self) -> str:
        return next(iter(self.unreadable.values()))


class TrainingLoader(ImageLoader):
    """Batches of one size, in an order of `TrainingOrder`.

    Images that cannot be read are replaced by others of their batch, and what is left for a last
    batch too small is not drawn. Its state is the epoch and the batches delivered: with it in the
    checkpoint, a run that was interrupted within an epoch goes on with the next batch.
    """

    def __init__(
        self, images: ImageSet, order: TrainingOrder, batch_size: int, **options: Any
    ) -> None:
        super().__init__(
            images, order, batch_size, split="training split", drop_last=True, **options
        )
        self._order = order
        self._size = batch_size

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches have been delivered."""
        return {"epoch": self._order.epoch, "batches": self.delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the epoch of `state`, once it comes, with the batch after those delivered."""
        self._order.resume(state["epoch"], state["batches"] * self._size)

    @property
    @override
    def _start(self) -> int:
        return self._order.start // self._size

    @override
    def _batch(self, drawn: Drawn) -> Batch:
        images, labels, unreadable = drawn
        if unreadable:
            again = torch.arange(self._size) % len(labels)
            images, labels = images[again], labels[again]
        return images, labels


def _unchanged(drawn: Any) -> Any:
    return drawn
