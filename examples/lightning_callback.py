"""Masks under a Lightning Trainer of one's own: a callback, and nothing else changes.

python examples/lightning_callback.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

import semisparse
from semisparse.training.callback import SparsityCallback  # before Lightning: docs/training.md

import lightning.pytorch as lightning  # isort: skip


class Digits(lightning.LightningModule):
    """Takes images `[N, 1, 8, 8]` and returns logits `[N, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in [(1, 32), (32, 32), (32, 64)]:
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
        self.network = nn.Sequential(*layers, *head)
        self.example_input_array = torch.zeros(1, 1, 8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The loss, by which masks are selected."""
        x, y = batch
        return cross_entropy(self(x), y)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the accuracy."""
        x, y = batch
        self.log("accuracy", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main() -> None:
    """Train with masks, test, export."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sparsity", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("digits.onnx"))
    options = parser.parse_args()

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    data = TensorDataset(images, torch.from_numpy(digits.target))
    train, test = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))

    module = Digits()
    masks = SparsityCallback(semisparse.SparsityConfig(options.sparsity))
    trainer = lightning.Trainer(
        max_epochs=options.epochs, callbacks=[masks], accelerator="cpu", logger=False
    )
    trainer.fit(module, DataLoader(train, batch_size=64, shuffle=True))
    trainer.test(module, DataLoader(test, batch_size=64))
    semisparse.export_onnx(module.eval(), images[:1], options.out)


if __name__ == "__main__":
    main()
