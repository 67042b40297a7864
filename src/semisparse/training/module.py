"""Image classification as a Lightning module."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from semisparse.training import recipe
from semisparse.training.distillation import Teacher, distillation_loss
from semisparse.training.settings import TrainSettings

Batch = tuple[torch.Tensor, torch.Tensor]


class Classifier(LightningModule):
    """Trains `model`, `[N, C, H, W] -> [N, num_classes]`, by the recipe of `options`.

    With a teacher the loss is `(1 - distill_alpha)` of the cross entropy with the labels and
    `distill_alpha` of the `distillation_loss`; validation and test have the former only.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        options: TrainSettings,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.teacher = teacher
        self.criterion = nn.CrossEntropyLoss(label_smoothing=options.label_smoothing)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(x)
        return logits

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout becomes a function of seed and step, so that a resumed run repeats an
        # uninterrupted one. Ranks differ, as their images do.
        entropy = np.random.SeedSequence([self.options.seed, self.global_step, self.global_rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        x, y = batch
        logits = self(x)
        loss: torch.Tensor = self.criterion(logits, y)
        if self.teacher is not None:
            soft = distillation_loss(logits, self.teacher(x), self.options.temperature)
            loss = loss.lerp(soft, self.options.distill_alpha)
        return loss

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", self.val_accuracy, batch)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", self.test_accuracy, batch)

    def _evaluate(self, split: str, accuracy: MulticlassAccuracy, batch: Batch) -> None:
        x, y = batch
        logits = self(x)
        accuracy(logits, y)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(y)}
        self.log(f"{split}_loss", self.criterion(logits, y), sync_dist=True, **options)
        self.log(f"{split}_accuracy", accuracy, **options)

    @override
    def configure_optimizers(self) -> Any:
        optimizer = recipe.optimizer(self.model.parameters(), self.options)
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        scheduler = recipe.schedule(optimizer, self.options, steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
