"""Masks in a training loop of Hugging Face Accelerate, on one device or several.

python examples/accelerate_loop.py
accelerate launch --num-processes 2 --cpu examples/accelerate_loop.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
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

    accelerator = Accelerator()
    set_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    data = TensorDataset(images, torch.from_numpy(digits.target))
    train, test = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))

    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batches = DataLoader(train, batch_size=64, shuffle=True, drop_last=True)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    plain = accelerator.unwrap_model(model)
    # Every process has the same configuration, therefore the same masks.
    sparsifier = semisparse.Sparsifier(
        plain,
        images[:1].to(accelerator.device),
        semisparse.SparsityConfig(options.sparsity),
        total_steps=options.epochs * len(batches),
    )
    # From here on accelerator.save_state and load_state keep the masks too.
    accelerator.register_for_checkpointing(sparsifier)

    for _ in range(options.epochs):
        for x, y in batches:
            sparsifier.step()
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            sparsifier.observe(loss)  # averaged over the processes
    sparsifier.freeze()

    if accelerator.is_main_process:
        plain.eval().cpu()
        with torch.no_grad():
            x, y = next(iter(DataLoader(test, batch_size=len(test))))
            accuracy = (plain(x).argmax(1) == y).float().mean()
        semisparse.export_onnx(plain, images[:1], options.out)
        print(f"sparsity {sparsifier.sparsity:g}, test accuracy {100 * accuracy:.1f}%")
    accelerator.end_training()


if __name__ == "__main__":
    main()
