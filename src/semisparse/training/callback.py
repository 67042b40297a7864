"""Masks under any Lightning Trainer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, ModelError, TrainingError
from semisparse.importance import measure
from semisparse.layers import masking_disabled
from semisparse.sparsifier import Sparsifier


class SparsityCallback(Callback):
    """Attaches masks when fitting starts, drives them, and freezes them when it ends.

    Every optimizer step advances the sparsifier before its first batch, and every batch's loss is
    observed. All state is in the Trainer's checkpoints, so a resumed run has the masks that an
    uninterrupted one would. Logs `sparsity`, the target in force. With several devices, the ranks
    compare their masks after every epoch and when the masks are frozen.

    Where the configuration has an importance, `images` is called once, when training starts and
    not when it goes on, for images `[N, C, H, W]` of the training split, some hundreds, on which
    that of the positions is measured; what the first rank finds goes to all.

    `target` names the submodule of the LightningModule to mask, by default all of it.
    `example_input` is what that submodule is called with, `[N, C, H, W]`; by default the
    LightningModule's `example_input_array`. After fitting, `sparsifier` holds the masks.

    Raises `ModelError` when fitting starts without an example input or gives no loss,
    `ConfigError` when the number of steps is not known or images are lacking, and `TrainingError`,
    on every rank, when the masks of the ranks differ.
    """

    def __init__(
        self,
        config: SparsityConfig,
        example_input: torch.Tensor | None = None,
        target: str = "",
        images: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        self.config = config
        self.example_input = example_input
        self.target = target
        self.images = images
        self.sparsifier: Sparsifier | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or self.sparsifier is not None:
            return
        model: nn.Module = pl_module.get_submodule(self.target)
        given = self.example_input
        example = pl_module.example_input_array if given is None else given
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
        # Where the model is by now, which is not yet the device of the training.
        device = next(model.parameters()).device
        self.sparsifier = Sparsifier(model, example.to(device), self.config, int(steps))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # By now a checkpoint, if there is one, has brought what was measured before.
        if not self.config.importance or self._attached.importance is not None:
            return
        if self.images is None:
            raise ConfigError(
                f"SparsityCallback has no images to measure importance "
                f"{self.config.importance:g} on; pass images, a function that returns some hundreds "
                "of the training split."
            )
        model = pl_module.get_submodule(self.target)
        # A region is masked by now.
        with masking_disabled(model):
            found = measure(model, self.images(), self.config.fill, region=self.config.region)
        self._attached.importance = trainer.strategy.broadcast(found)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            before = self._attached.frozen
            self._attached.step()
            if self._attached.frozen and not before:
                self._compare(trainer)
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
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._compare(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.interrupted and not self._attached.frozen:
            self._attached.freeze()
            self._compare(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self.sparsifier is None else self.sparsifier.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict:
            self._attached.load_state_dict(state_dict)

    def _compare(self, trainer: Trainer) -> None:
        if trainer.world_size == 1:
            return
        digests = _digests(self._attached)
        # There, because NCCL reduces on its devices only.
        own = torch.tensor(list(digests.values()), device=trainer.strategy.root_device)
        least, most = (trainer.strategy.reduce(own.clone(), reduce_op=op) for op in ("min", "max"))
        differ = (least != most).tolist()
        names = [name for name, wrong in zip(digests, differ, strict=True) if wrong]
        if names:
            raise TrainingError(
                f"The masks of {', '.join(names)} differ between the {trainer.world_size} "
                f"processes after step {trainer.global_step}; start all of them with the same "
                "seed, configuration and version of semisparse."
            )

    @property
    def _attached(self) -> Sparsifier:
        if self.sparsifier is None:
            raise ModelError("SparsityCallback is not attached; it attaches when fitting starts.")
        return self.sparsifier


def _digests(sparsifier: Sparsifier) -> dict[str, int]:
    """One number for each layer, of its mask and of what the next ones will be drawn from."""
    state = sparsifier.state_dict()
    # DistributedDataParallel overwrites the masks, as all buffers, with those of the first rank,
    # so a rank that went its own way may show in its generator only.
    generator = state["generator"].numpy().tobytes()
    return {
        name: int.from_bytes(
            hashlib.sha256(mask.numpy().tobytes() + generator).digest()[:8], "big", signed=True
        )
        for name, mask in state["masks"].items()
    }
