"""In which order images are drawn, on one process or several."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data.distributed import DistributedSampler
from typing_extensions import override

from semisparse.training.data.images import Draw

# Both are samplers of torch's class for several processes, for which Lightning calls `set_epoch`
# and which it does not replace by its own. The class asks for a data set, and takes its length
# alone.


class TrainingOrder(DistributedSampler[Any]):
    """Every epoch another permutation, of which each rank draws its share, all of one length.

    The permutation and the seed of each image's augmentation are functions of seed and epoch
    alone, so neither workers nor an interruption change what is drawn.
    """

    def __init__(self, count: int, seed: int, rank: int = 0, ranks: int = 1) -> None:
        super().__init__(range(count), ranks, rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self._count = count
        self._resumed = (0, 0)

    def resume(self, epoch: int, drawn: int) -> None:
        """Leave out the first `drawn` images of this rank's share of one epoch."""
        self._resumed = (epoch, drawn)

    @property
    def start(self) -> int:
        """How many images of this epoch are left out."""
        epoch, drawn = self._resumed
        return drawn if epoch == self.epoch else 0

    @override
    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self._count)
        seeds = rng.integers(2**63, size=self._count)
        share = order[self.rank :: self.num_replicas][self.start : self.num_samples]
        return (Draw(int(index), int(seeds[index])) for index in share)


class EvaluationOrder(DistributedSampler[Any]):
    """Every image once, in the data set's order; rank `r` of `n` draws every `n`-th from `r` on."""

    def __init__(self, count: int, rank: int = 0, ranks: int = 1) -> None:
        super().__init__(range(count), ranks, rank, shuffle=False)  # type: ignore[arg-type]
        self._share = range(rank, count, ranks)

    @override
    def __iter__(self) -> Iterator[Draw]:
        return (Draw(index, seed=0) for index in self._share)

    @override
    def __len__(self) -> int:
        return len(self._share)


def even_batch_size(count: int, ranks: int, batch_size: int) -> int:
    """The least size from `batch_size` on by which shares of `count >= ranks` images give all
    ranks equally many batches, without which the ranks would wait for each other for ever.
    """
    least, most = count // ranks, -(-count // ranks)
    return next(
        size for size in itertools.count(batch_size) if -(-least // size) == -(-most // size)
    )
