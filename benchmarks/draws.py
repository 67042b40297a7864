"""What choosing among draws of masks gains when nothing is trained: accuracy of each draw.

    semisparse train --model semisparse/resnet8 --data fashion-mnist --epochs 3 --out runs/dense
    python benchmarks/draws.py runs/dense --sparsity 0.1 0.2 0.3 --every 8

Each draw is applied as by `semisparse apply`, on unlabelled training images, and tested on every
n-th image of the test split, which has no part in the choice. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from semisparse.config import SparsityConfig
from semisparse.training import saved, settings
from semisparse.training.apply import apply
from semisparse.training.calibrate import run
from semisparse.training.data import calibration_images, load


def main() -> None:
    """Prints one row a sparsity."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a finished run without masks")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--fill", default="nearest")
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--images", type=int, default=500, help="to calibrate on")
    parser.add_argument("--every", type=int, default=1, help="of the test split")
    options = parser.parse_args()

    data = settings.read(options.folder)
    where = (data.data_root, data.image_size)
    images = calibration_images(data.data, options.images, *where, whole=data.whole)
    split = load(data.data, *where, whole=data.whole).test
    tested = [split[index] for index in range(0, len(split), options.every)]
    batch = torch.stack([image for image, _ in tested])
    classes = torch.tensor([label for _, label in tested])

    def accuracy(config: SparsityConfig | None) -> tuple[float, float]:
        """Divergence on the calibration images, and accuracy in percent."""
        model = saved.FinishedRun(options.folder).dense()
        applied = apply(model, images, config, draws=1) if config else None
        right = (run(model, batch).argmax(1) == classes).double()
        return applied.after.divergence if applied else 0.0, 100 * float(right.mean())

    print(f"without masks {accuracy(None)[1]:.1f}%, {len(tested)} test images\n")
    print("| sparsity | mean of the draws | lowest, highest | the draw that is kept |")
    print("|---:|---:|---:|---:|")
    for sparsity in options.sparsity:
        config = SparsityConfig(sparsity, fill=options.fill)
        found = [accuracy(dataclasses.replace(config, seed=s)) for s in range(options.draws)]
        values = torch.tensor([value for _, value in found])
        low, high, mean = values.min(), values.max(), values.mean()
        print(
            f"| {sparsity} | {mean:.1f} | {low:.1f}, {high:.1f} | {min(found)[1]:.1f} |", flush=True
        )


if __name__ == "__main__":
    main()
