"""Image classification as a Lightning module."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

Batch = tuple[torch.Tensor, torch.Tensor]


class Classifier(LightningModule):
    """Trains `model`, `[N, C, H, W] -> [N, num_classes]`, by SGD with momentum.

    The learning rate falls every step from `learning_rate` to 1% of it, along a cosine or a
    straight line. Weight decay is on weights only, not on biases and batch norm.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        learning_rate: float = 0.1,
        schedule: str = "cosine",
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        label_smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.seed = seed
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(x)
        return logits

    @override
    def on_train_epoch_start(self) -> None:
        # Augmentation and dropout become a function of seed and epoch, so that a resumed run
        # repeats an uninterrupted one. Ranks differ, as their images do.
        entropy = np.random.SeedSequence([self.seed, self.current_epoch, self.global_rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        x, y = batch
        loss: torch.Tensor = self.criterion(self(x), y)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(y))
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
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum)
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        scheduler: torch.optim.lr_scheduler.LRScheduler
        if self.schedule == "linear":
            scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
        else:
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, steps, eta_min=0.01 * self.learning_rate
            )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
