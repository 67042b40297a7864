"""Masks in a hand-written training loop: handwritten digits, a minute on any machine.

python examples/own_loop.py --sparsity 0.3 --out digits.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

import semisparse


def network() -> nn.Module:
    """Takes images `[N, 1, 8, 8]` and returns logits `[N, 10]`."""
    layers: list[nn.Module] = []
    for inputs, outputs in [(1, 32), (32, 32), (32, 64)]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


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
    batches = DataLoader(train, batch_size=64, shuffle=True)

    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = options.epochs * len(batches)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    config = semisparse.SparsityConfig(options.sparsity)
    sparsifier = semisparse.Sparsifier(model, images[:1], config, total_steps=steps)

    for _ in range(options.epochs):
        for x, y in batches:
            sparsifier.step()  # before the forward pass: the schedule, and new masks
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            sparsifier.observe(loss)  # after it: how good these masks are
        # What a checkpoint holds; load_state_dict takes each of them back.
        state = {"model": model.state_dict(), "sparsifier": sparsifier.state_dict()}
        torch.save(state, options.out.with_suffix(".ckpt"))
    sparsifier.freeze()

    model.eval()
    with torch.no_grad():
        x, y = next(iter(DataLoader(test, batch_size=len(test))))
        accuracy = (model(x).argmax(1) == y).float().mean()
    semisparse.export_onnx(model, images[:1], options.out)
    print(f"sparsity {sparsifier.sparsity:g}, test accuracy {100 * accuracy:.1f}%, {options.out}")


if __name__ == "__main__":
    main()
