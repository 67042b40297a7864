"""Masks under any Lightning Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, ModelError
from semisparse.sparsifier import Sparsifier


class SparsityCallback(Callback):
    """Attaches masks when fitting starts, drives them, and freezes them when it ends.

    Every optimizer step advances the sparsifier before its first batch, and every batch's loss is
    observed. All state is in the Trainer's checkpoints, so a resumed run has the masks that an
    uninterrupted one would. Logs `sparsity`, the target in force.

    `target` names the submodule of the LightningModule to mask, by default all of it.
    `example_input` is what that submodule is called with, `[N, C, H, W]`; by default the
    LightningModule's `example_input_array`. After fitting, `sparsifier` holds the masks.

    Raises `ModelError` when fitting starts without an example input or gives no loss, and
    `ConfigError` when the number of steps is not known.
    """

    def __init__(
        self,
        config: SparsityConfig,
        example_input: torch.Tensor | None = None,
        target: str = "",
    ) -> None:
        self.config = config
        self.example_input = example_input
        self.target = target
        self.sparsifier: Sparsifier | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or self.sparsifier is not None:
            return
        model: nn.Module = pl_module.get_submodule(self.target)
        example = self.example_input
        if example is None:
            example = pl_module.example_input_array  # type: ignore[assignment]
        if not isinstance(example, torch.Tensor):
            raise ModelError(
                "SparsityCallback has no example input; pass example_input, or set "
                f"example_input_array of {type(pl_module).__name__} to a tensor."
            )
        steps = trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            raise ConfigError(
                f"The sparsity schedule needs a known number of steps, not {steps}; give the "
                "Trainer max_epochs or max_steps."
            )
        self.sparsifier = Sparsifier(model, example.to(pl_module.device), self.config, int(steps))

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._attached.step()
        pl_module.log("sparsity", self._attached.sparsity, on_step=True, on_epoch=False)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, torch.Tensor):
            raise ModelError(
                f"training_step of {type(pl_module).__name__} returned no loss, by which masks "
                "are selected; return the loss or a dict with the key 'loss'."
            )
        self._attached.observe(loss)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.interrupted and not self._attached.frozen:
            self._attached.freeze()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self.sparsifier is None else self.sparsifier.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self._attached.load_state_dict(state_dict)

    @property
    def _attached(self) -> Sparsifier:
        if self.sparsifier is None:
            raise ModelError("SparsityCallback is not attached; it attaches when fitting starts.")
        return self.sparsifier
