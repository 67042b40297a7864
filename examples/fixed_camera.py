"""A camera that stays where it is: digits on a conveyor belt, told pixel by pixel.

python examples/fixed_camera.py --out belt.onnx

Trains a small network for all of the image, then computes it on the belt only. A minute or two.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, max_pool2d

import semisparse
from semisparse.region import rows_of
from semisparse.training.apply import apply

SIZE = 64
BACKGROUND = 10


def belt() -> Tensor:
    """The pixels of the belt, which runs across the image, bool `[SIZE, SIZE]`."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return (x - y).abs() < 13


def scenes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images `[count, 1, SIZE, SIZE]` and the class of each second pixel, both ways."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    images = 0.3 * torch.from_numpy(rng.random((count, 1, SIZE, SIZE), np.float32))
    classes = torch.full((count, SIZE, SIZE), BACKGROUND)
    for image, labels in zip(images[:, 0], classes, strict=True):
        for start in range(4, SIZE - 12, 14):
            index = rng.integers(len(digits.target))
            y, x = start + rng.integers(-2, 3, 2)
            image[y : y + 8, x : x + 8] += torch.from_numpy(digits.images[index]) / 16
            labels[y : y + 8, x : x + 8] = int(digits.target[index])
    return images, classes[:, ::2, ::2]


def network() -> nn.Module:
    """Takes images `[N, 1, H, W]` and returns logits `[N, 11, H / 2, W / 2]`."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in [(1, 32, 2), (32, 64, 1), (64, 64, 1), (64, 64, 1)]:
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(64, BACKGROUND + 1, 1))


def train(model: nn.Module, steps: int) -> None:
    """Without masks."""
    images, classes = scenes(1000, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        taken = torch.randint(len(images), (16,))
        loss = cross_entropy(model(images[taken]), classes[taken])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def latency(path: Path, image: Tensor) -> float:
    """Of one image, the least of many calls, in milliseconds."""
    session = semisparse.InferenceSession(path)
    name = session.get_inputs()[0].name
    times = []
    for _ in range(200):
        begin = time.perf_counter()
        session.run(None, {name: image.numpy()})
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)


def main() -> None:
    """Train, export, mask, export again, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("belt.onnx"))
    options = parser.parse_args()

    torch.manual_seed(0)
    model = network()
    train(model, options.steps)
    images, classes = scenes(200, seed=1)
    whole = options.out.with_suffix(".whole.onnx")
    semisparse.export_onnx(model.eval(), images[:1], whole)

    # Two pixels wider than the belt: what the filters see around it counts too.
    wide = max_pool2d(belt()[None].float(), 5, 1, 2)[0] > 0
    config = semisparse.SparsityConfig(0, region=rows_of(wide))
    applied = apply(model, images[:100], config)
    semisparse.export_onnx(model, images[:1], options.out)

    on_belt = belt()[::2, ::2]
    with torch.no_grad():
        right = model(images[100:]).argmax(1) == classes[100:]
    before, after = (latency(path, images[:1]) for path in (whole, options.out))
    print(
        f"{100 * min(applied.sparsities.values()):.0f}% of the positions and more are left out; "
        f"{100 * applied.before.agreement:.1f}% of the belt's pixels keep their class, accuracy "
        f"there {100 * right[:, on_belt].double().mean():.1f}%; {before:.2f} ms for the whole "
        f"image, {after:.2f} ms for the belt, {options.out}"
    )


if __name__ == "__main__":
    main()
