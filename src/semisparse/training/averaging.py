"""An exponential moving average of the weights, which is tested and exported in their place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from typing_extensions import override


class MovingAverage(WeightAveraging):
    """Averages weights and the statistics of batch norm after every step.

    What is no floating-point number, masks above all, is the model's own at every step. In
    checkpoints `state_dict` is the average, `current_model_state` what training goes on with.
    Lightning validates with the average; once fitting has ended, the model has its values.

    The decay rises to `decay` as `(1 + n) / (10 + n)` in the number of steps, without which the
    first random weights would outweigh all others in a short training.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=_average(decay))

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # The module itself comes to its device only after this.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Not yet, and never for a run that was interrupted after its last step."""

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._average_model is not None
        average = self._average_model.module
        for current, averaged in zip(_tensors(pl_module), _tensors(average), strict=True):
            if current.is_floating_point():
                current.copy_(averaged)
        # What comes after is evaluation, for which there is nothing left to swap.
        self._average_model = None


def _average(decay: float) -> object:
    @torch.no_grad()
    def update(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        """Of tensors of one type: averages move towards the values, or are replaced by them."""
        if averages[0].is_floating_point():
            steps = int(count)
            torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + steps) / (10 + steps)))
        else:
            torch._foreach_copy_(averages, values)

    return update


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return (t.detach() for t in itertools.chain(module.parameters(), module.buffers()))
