"""Masks against lower resolution where every pixel counts: segmentation of composed scenes.

    python benchmarks/segmentation.py --out runs/segmentation

Scenes are 64x64 pixels with three to six garments of Fashion-MNIST, of 14 to 28 pixels, on a
cloudy background; the class of every pixel is asked for. A smaller input is scaled down, and the
network's answers up again, outside of what is timed. Finished pieces are files in the folder, so
the command can be stopped and repeated; other settings want another folder. Ends with results.json and results.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from descent import descend
from torch import Tensor, nn
from torch.nn import functional

from semisparse.bench.machine import describe
from semisparse.bench.peers.onnxruntime import runner, session_options
from semisparse.bench.timing import interleave
from semisparse.config import SparsityConfig
from semisparse.export import export_onnx
from semisparse.files import writing
from semisparse.runtime import InferenceSession
from semisparse.sparsifier import Sparsifier
from semisparse.training.data import load

SIZE = 64
CLASSES = 11  # ten garments and the background
BATCH = 32
LAYOUT = torch.channels_last

Method = tuple[SparsityConfig | None, int]  # masks and size of the input


def _block_last(sparsity: float, **changes: Any) -> SparsityConfig:
    return SparsityConfig(sparsity, per_layer={"*": 0.0, "block-last": sparsity}, **changes)


METHODS: dict[str, Method] = {
    "dense": (None, SIZE),
    **{
        f"block-last {sparsity}{suffix}": (_block_last(sparsity, **changes), SIZE)
        for sparsity in (0.5, 0.75)
        for suffix, changes in {
            "": {},
            ", alternate": {"alternate": True},
            ", alternate, mean": {"alternate": True, "fill": "mean"},
        }.items()
    },
    **{f"resolution {size}": (None, size) for size in (56, 52, 48, 44, 40)},
    "uniform 0.3": (SparsityConfig(0.3), SIZE),
    "uniform 0.5": (SparsityConfig(0.5), SIZE),
}


class Segmenter(nn.Module):
    """Inverted residuals (arXiv 1801.04381) on planes of 32, 16 and 8, added up on the way back.

    Gives logits `[N, CLASSES, H / 2, W / 2]` of images `[N, 1, H, W]`.
    """

    def __init__(self) -> None:
        super().__init__()
        # semisparse.training has made torchvision importable beside a torch without CUDA.
        from torchvision.models.mobilenetv2 import InvertedResidual
        from torchvision.ops import Conv2dNormActivation

        def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            blocks = [InvertedResidual(inputs, outputs, stride, 4)]
            blocks += [InvertedResidual(outputs, outputs, 1, 4) for _ in range(2)]
            return nn.Sequential(*blocks)

        self.stem = Conv2dNormActivation(1, 16, stride=2, activation_layer=nn.ReLU6)
        self.stage1 = stage(16, 24, 1)
        self.stage2 = stage(24, 40, 2)
        self.stage3 = stage(40, 80, 2)
        self.down3 = nn.Conv2d(80, 40, 1)
        self.mix2 = InvertedResidual(40, 40, 1, 4)
        self.down2 = nn.Conv2d(40, 24, 1)
        self.mix1 = InvertedResidual(24, 24, 1, 4)
        self.head = nn.Conv2d(24, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the images."""
        one = self.stage1(self.stem(x))
        two = self.stage2(one)
        three = self.stage3(two)
        two = self.mix2(two + functional.interpolate(self.down3(three), size=two.shape[-2:]))
        one = self.mix1(one + functional.interpolate(self.down2(two), size=one.shape[-2:]))
        logits: Tensor = self.head(one)
        return logits


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: only time")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME"
    )
    parser.add_argument("--dense-steps", type=int, default=1500, help="of the dense training")
    parser.add_argument("--steps", type=int, default=300, help="of fine-tuning")
    parser.add_argument("--train-scenes", type=int, default=8000)
    parser.add_argument("--test-scenes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=100, help="samples of each latency; 0: none")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    latencies = _latencies(options) if options.rounds else {}
    rows = []
    for name in options.methods:
        scores = [_score(options, name, seed) for seed in options.seeds]
        rows.append({"name": name, "scores": scores, "us": latencies.get(name)})
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "methods")}
    dense = latencies.get("dense")
    results = {"settings": settings, "machine": describe(), "rows": rows, "dense_us": dense}
    with writing(options.out / "results.json") as draft:
        draft.write_text(json.dumps(results, indent=2) + "\n")
    with writing(options.out / "results.md") as draft:
        draft.write_text(_table(rows, dense))
    print(_table(rows, dense))


def _scenes(options: argparse.Namespace, split: str) -> tuple[Tensor, Tensor]:
    """Images [N, 1, SIZE, SIZE], about normal, and the class of each pixel, uint8."""
    path = options.out / f"{split}.pt"
    count = options.train_scenes if split == "train" else options.test_scenes
    if path.exists():
        images, labels = torch.load(path, weights_only=True)
        return images, labels
    garments = getattr(load("fashion-mnist", image_size=28), split)
    generator = torch.Generator().manual_seed(1 if split == "train" else 2)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    images = torch.empty(count, 1, SIZE, SIZE)
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        clouds = torch.rand(1, 1, 8, 8, generator=generator) * 0.5
        canvas = functional.interpolate(clouds, size=(SIZE, SIZE), mode="bicubic")[0, 0]
        canvas = canvas + 0.1 * torch.randn(SIZE, SIZE, generator=generator)
        for _ in range(draw(3, 7)):
            picture, kind = garments[draw(0, len(garments))]
            picture = picture - picture.min()
            side = draw(14, 29)
            garment = _resized(picture[None] / picture.max(), side)[0, 0]
            top, left = draw(0, SIZE - side + 1), draw(0, SIZE - side + 1)
            inside = garment > 0.15
            place = (slice(top, top + side), slice(left, left + side))
            canvas[place][inside] = garment[inside]
            label[place][inside] = kind + 1
        image[0] = canvas
    images = (images - 0.35) / 0.3
    with writing(path) as draft:
        torch.save((images, labels), draft)
    return images, labels


def _resized(images: Tensor, size: int) -> Tensor:
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _prepared(images: Tensor, size: int) -> Tensor:
    images = images if size == SIZE else _resized(images, size)
    return images.contiguous(memory_format=LAYOUT)


def _full(logits: Tensor) -> Tensor:
    """Logits of every pixel."""
    return functional.interpolate(logits.float(), size=(SIZE, SIZE), mode="bilinear")


def _dense(options: argparse.Namespace, seed: int) -> nn.Module:
    """The trained dense network of a seed."""
    path = options.out / f"dense-{seed}.pt"
    torch.manual_seed(seed)
    model = Segmenter().to(memory_format=LAYOUT)
    if not path.exists():
        _train(model, _scenes(options, "train"), options.dense_steps, 0.2, seed)
        with writing(path) as draft:
            torch.save(model.state_dict(), draft)
        print(path.stem, flush=True)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def _score(options: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    path = options.out / f"{name}-{seed}.json"
    if not path.exists():
        scored = _fine_tuned(options, name, seed)
        with writing(path) as draft:
            draft.write_text(json.dumps(scored))
        print(path.stem, flush=True)
    scores: dict[str, float] = json.loads(path.read_text())
    return scores


def _fine_tuned(options: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    config, size = METHODS[name]
    scenes = _scenes(options, "train")
    test, labels = _scenes(options, "test")
    model = _dense(options, seed)
    targets = _outputs(model, scenes[0], SIZE).half()
    reference = _outputs(model, test, SIZE)
    sparsifier = None
    if config is not None:
        config = replace(config, seed=seed)
        sparsifier = Sparsifier(model, scenes[0][:1], config, options.steps)
    _train(model, scenes, options.steps, 0.1, seed, size, sparsifier, targets)
    if sparsifier is not None:
        sparsifier.freeze()
    return _compare(_outputs(model, test, size), labels, reference)


def _train(
    model: nn.Module,
    scenes: tuple[Tensor, Tensor],
    steps: int,
    learning_rate: float,
    seed: int,
    size: int = SIZE,
    sparsifier: Sparsifier | None = None,
    targets: Tensor | None = None,
) -> None:
    """With targets, the logits of a teacher, the loss is 0.9 of the distance to them at temperature
    2, and 0.1 of the task's.
    """
    images, labels = scenes

    def loss_of(taken: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(_prepared(images[taken], size))
        logits = _full(logits)
        loss = functional.cross_entropy(logits, labels[taken].long())
        if targets is not None:
            loss = 0.1 * loss + 0.9 * 4 * _divergence(logits / 2, _full(targets[taken]) / 2)
        return loss

    batches = _batches(len(images), steps, seed)
    descend(model, batches, steps, learning_rate, 1e-4, sparsifier, loss_of)


def _batches(count: int, steps: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left = steps
    while left > 0:
        order = torch.randperm(count, generator=generator)
        batches = order[: count // BATCH * BATCH].split(BATCH)[:left]
        left -= len(batches)
        yield from batches


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the pixels, in nats."""
    own, other = functional.log_softmax(logits, 1), functional.log_softmax(target, 1)
    return functional.kl_div(own, other, reduction="none", log_target=True).sum(1).mean()


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor, size: int) -> Tensor:
    model.eval()
    return torch.cat([model(_prepared(part, size)) for part in images.split(100)])


def _compare(outputs: Tensor, labels: Tensor, reference: Tensor) -> dict[str, float]:
    """Mean intersection over union of the classes, right pixels, and divergence from the dense."""
    table = torch.zeros(CLASSES, CLASSES, dtype=torch.long)
    divergences = []
    for own, label, dense in zip(
        outputs.split(100), labels.split(100), reference.split(100), strict=True
    ):
        logits = _full(own)
        pairs = label.long() * CLASSES + logits.argmax(1)
        table += torch.bincount(pairs.flatten(), minlength=CLASSES**2).view(CLASSES, CLASSES)
        divergences += len(logits) * [float(_divergence(logits, _full(dense)))]
    right = table.diag().double()
    union = table.sum(0) + table.sum(1) - table.diag()
    return {
        "miou": 100 * float((right / union).mean()),
        "pixels": 100 * float(right.sum() / table.sum()),
        "divergence": statistics.mean(divergences),
    }


def _latencies(options: argparse.Namespace) -> dict[str, float]:
    """Of every method's network, one image on one thread, in us; without masks in the faster engine.

    The least of the samples of the thread's own time, as in accuracy.py.
    """
    folder = options.out / "models"
    folder.mkdir(exist_ok=True)
    calls: dict[str, Callable[[], object]] = {}
    for name in dict.fromkeys([*options.methods, "dense"]):
        config, size = METHODS[name]
        path, stock = folder / f"{name}.onnx", folder / f"{name}, stock.onnx"
        example = torch.zeros(1, 1, size, size)
        if not path.exists():
            _export(config, example, path, stock)
        calls[name] = runner(
            InferenceSession(path, sess_options=session_options(1)), example.numpy()
        )
        if stock.exists():
            session = onnxruntime.InferenceSession(stock, session_options(1))
            calls[f"{name}, stock"] = runner(session, example.numpy())
    timing = interleave(
        calls, options.rounds, min_seconds=0.002, clock=time.thread_time, settle=lambda: True
    )
    least = {name: 1e6 * min(taken) for name, taken in timing.samples.items()}
    return {
        name: min(least[name], least.get(f"{name}, stock", math.inf))
        for name in least
        if name in METHODS
    }


def _export(config: SparsityConfig | None, example: Tensor, path: Path, stock: Path) -> None:
    torch.manual_seed(0)
    model = Segmenter().eval()
    if config is not None:
        Sparsifier(model, example, config, 1).freeze()
    else:
        with warnings.catch_warnings(), writing(stock) as draft:
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (example,), draft, dynamo=True, verbose=False, external_data=False
            )
    export_onnx(model, example, path)


def _table(rows: list[dict[str, Any]], dense: float | None) -> str:
    """Means and standard deviations over seeds."""
    lines = [
        "| | mIoU | pixels | divergence | us | speedup |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row["name"]]
        for key, digits in (("miou", 2), ("pixels", 2), ("divergence", 4)):
            values = [score[key] for score in row["scores"]]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}" if values else "")
        cells.append(f"{row['us']:.0f}" if row["us"] else "")
        cells.append(f"{dense / row['us']:.2f}x" if row["us"] and dense else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
