"""Masks against lower resolution where every pixel counts: segmentation of composed scenes.

    python benchmarks/segmentation.py --out runs/segmentation

Scenes are 64x64 pixels with three to six garments of Fashion-MNIST, of 14 to 28 pixels, on a
cloudy background; the class of every pixel is asked for. With `--scenes road` the camera is fixed:
garments lie on a road, the same in every scene, smaller where it is further away, and only its
pixels count. A smaller input is scaled down, and the network's answers up again, outside of what
is timed. Finished pieces are files in the folder, so the command can be stopped and repeated. Ends
with results.json and results.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import latency
import torch
from descent import descend
from folder import keep_settings
from torch import Tensor, nn
from torch.nn import functional

from semisparse.bench.machine import describe
from semisparse.config import SparsityConfig
from semisparse.files import writing
from semisparse.region import rows_of
from semisparse.sparsifier import Sparsifier
from semisparse.training.calibrate import recalibrate, statistics_of
from semisparse.training.data import load

SIZE = 64
CLASSES = 11  # ten garments and the background
BATCH = 32
LAYOUT = torch.channels_last

IGNORED = 255  # the class of pixels that do not count
CALIBRATION_SCENES = 300


@dataclass(frozen=True)
class Method:
    """One way to a cheaper network.

    Attributes:
        masks: on the dense network; None for none.
        size: that SIZE is scaled to.
        crop: only the smallest rectangle around the road is looked at.
        trained: fine-tuned towards the dense network, or else only recalibrated, where that brings
            its answers nearer.
    """

    masks: SparsityConfig | None = None
    size: int = SIZE
    crop: bool = False
    trained: bool = True


def _road(margin: int = 0) -> Tensor:
    """The pixels of the road, and those that are less than a margin away, bool [SIZE, SIZE]."""
    middles = (torch.arange(SIZE) + 0.5) / SIZE
    y, x = torch.meshgrid(middles, middles, indexing="ij")
    near = (y - 0.15) / 0.85
    road = (near > 0) & ((x - 0.62 + 0.14 * near).abs() < 0.06 + 0.32 * near)
    return functional.max_pool2d(road[None].double(), 2 * margin + 1, 1, margin)[0] > 0


# What the filters see around the road is context too.
MARGIN = 2
ROAD = _road()
ROAD_ROWS, ROAD_COLUMNS = (_road(MARGIN).any(dim).nonzero()[:, 0] for dim in (1, 0))
ROAD_BOX = tuple(slice(int(side[0]), int(side[-1]) + 1) for side in (ROAD_ROWS, ROAD_COLUMNS))


def _block_last(sparsity: float, **changes: Any) -> SparsityConfig:
    return SparsityConfig(sparsity, per_layer={"*": 0.0, "block-last": sparsity}, **changes)


METHODS = {
    "dense": Method(),
    **{
        f"block-last {sparsity}{suffix}": Method(_block_last(sparsity, **changes))
        for sparsity in (0.5, 0.75)
        for suffix, changes in {
            "": {},
            ", alternate": {"alternate": True},
            ", alternate, mean": {"alternate": True, "fill": "mean"},
        }.items()
    },
    "uniform 0.3": Method(SparsityConfig(0.3)),
    "uniform 0.5": Method(SparsityConfig(0.5)),
    **{
        f"{name}{'' if trained else ', untrained'}": Method(*method, trained=trained)
        for trained in (True, False)
        for name, method in {
            **{f"resolution {size}": (None, size) for size in (56, 52, 48, 44, 40)},
            **{
                f"region, margin {margin}": (SparsityConfig(0, region=rows_of(_road(margin))),)
                for margin in (0, MARGIN, 4)
            },
            # Means only where they cost next to nothing.
            "region, margin 2, block-last 0.5": (
                _block_last(
                    0.5,
                    alternate=True,
                    per_layer_fill={"block-last": "mean"},
                    region=rows_of(_road(MARGIN)),
                ),
            ),
            "crop": (None, SIZE, True),
            **{f"crop, resolution {size}": (None, size, True) for size in (56, 52, 48)},
        }.items()
    },
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
    parser.add_argument("--scenes", default="anywhere", choices=("anywhere", "road"))
    parser.add_argument("--dense-steps", type=int, default=1500, help="of the dense training")
    parser.add_argument("--steps", type=int, default=300, help="of fine-tuning")
    parser.add_argument("--train-scenes", type=int, default=8000)
    parser.add_argument("--test-scenes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=100, help="samples of each latency; 0: none")
    options = parser.parse_args()
    keep_settings(options, free=("seeds", "methods", "rounds"))
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
    """Images [N, 1, SIZE, SIZE], about normal, and the class of each pixel, uint8, or IGNORED."""
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
            side, top, left = _place(options.scenes, draw)
            garment = _resized(picture[None] / picture.max(), (side, side))[0, 0]
            inside = garment > 0.15
            place = (slice(top, top + side), slice(left, left + side))
            canvas[place][inside] = garment[inside]
            label[place][inside] = kind + 1
        image[0] = canvas
    if options.scenes == "road":
        labels[:, ~ROAD] = IGNORED
    images = (images - 0.35) / 0.3
    with writing(path) as draft:
        torch.save((images, labels), draft)
    return images, labels


def _place(scenes: str, draw: Callable[[int, int], int]) -> tuple[int, int, int]:
    """Side of a garment, and its first row and column."""
    if scenes == "anywhere":
        side = draw(14, 29)
        return side, draw(0, SIZE - side + 1), draw(0, SIZE - side + 1)
    middles = ROAD.nonzero()
    while True:
        row, column = middles[draw(0, len(middles))].tolist()
        side = draw(10, 14) + 14 * row // SIZE
        top, left = row - side // 2, column - side // 2
        if min(top, left) >= 0 and max(top, left) + side <= SIZE:
            return side, top, left


def _resized(images: Tensor, sides: tuple[int, ...]) -> Tensor:
    return functional.interpolate(images, sides, mode="bilinear", antialias=True)


def _view(pixels: Tensor, method: Method) -> Tensor:
    """What a method looks at of [..., SIZE, SIZE]."""
    return pixels[..., ROAD_BOX[0], ROAD_BOX[1]] if method.crop else pixels


def _prepared(images: Tensor, method: Method) -> Tensor:
    images = _view(images, method)
    if method.size != SIZE:
        images = _resized(images, tuple(s * method.size // SIZE for s in images.shape[-2:]))
    return images.contiguous(memory_format=LAYOUT)


def _full(logits: Tensor, method: Method) -> Tensor:
    """Logits of every pixel that a method looks at."""
    sides = _view(ROAD, method).shape
    return functional.interpolate(logits.float(), size=sides, mode="bilinear")


def _target(logits: Tensor, method: Method) -> Tensor:
    """Those of the dense network for the same pixels."""
    return _view(_full(logits, METHODS["dense"]), method)


def _dense(options: argparse.Namespace, seed: int) -> nn.Module:
    """The trained dense network of a seed."""
    path = options.out / f"dense-{seed}.pt"
    torch.manual_seed(seed)
    model = Segmenter().to(memory_format=LAYOUT)
    if not path.exists():
        _train(model, _scenes(options, "train"), options.dense_steps, 0.2, seed, METHODS["dense"])
        with writing(path) as draft:
            torch.save(model.state_dict(), draft)
        print(path.stem, flush=True)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def _score(options: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    path = options.out / f"{name}-{seed}.json"
    if not path.exists():
        scored = _made(options, name, seed)
        with writing(path) as draft:
            draft.write_text(json.dumps(scored))
        print(path.stem, flush=True)
    scores: dict[str, float] = json.loads(path.read_text())
    return scores


def _made(options: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    method = METHODS[name]
    scenes = _scenes(options, "train")
    test, labels = _scenes(options, "test")
    model = _dense(options, seed)
    targets = _outputs(model, scenes[0], METHODS["dense"]).half() if method.trained else None
    reference = _outputs(model, test, METHODS["dense"])
    calibration, classes = (part[:CALIBRATION_SCENES] for part in scenes)
    answers = _outputs(model, calibration, METHODS["dense"])
    seen = statistics_of(model, calibration)
    sparsifier = None
    if method.masks is not None:
        config = replace(method.masks, seed=seed)
        sparsifier = Sparsifier(model, scenes[0][:1], config, options.steps)
    if method.trained:
        _train(model, scenes, options.steps, 0.1, seed, method, sparsifier, targets)
    if sparsifier is not None:
        sparsifier.freeze()
    if not method.trained:
        untouched = copy.deepcopy(model)
        recalibrate(model, _prepared(calibration, method), before=seen)
        model = min(
            (model, untouched),
            key=lambda m: _compare(_outputs(m, calibration, method), classes, answers, method)[
                "divergence"
            ],
        )
    return _compare(_outputs(model, test, method), labels, reference, method)


def _train(
    model: nn.Module,
    scenes: tuple[Tensor, Tensor],
    steps: int,
    learning_rate: float,
    seed: int,
    method: Method,
    sparsifier: Sparsifier | None = None,
    targets: Tensor | None = None,
) -> None:
    """With targets, the logits of a teacher, the loss is 0.9 of the distance to them at temperature
    2, and 0.1 of the task's.
    """
    images, labels = scenes

    def loss_of(taken: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(_prepared(images[taken], method))
        logits = _full(logits, method)
        classes = _view(labels[taken], method).long()
        loss = functional.cross_entropy(logits, classes, ignore_index=IGNORED)
        if targets is not None:
            target = _target(targets[taken], method)
            apart = _divergence(logits / 2, target / 2, classes != IGNORED)
            loss = 0.1 * loss + 0.9 * 4 * apart
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


def _divergence(logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean over the pixels that count, in nats."""
    own, other = functional.log_softmax(logits, 1), functional.log_softmax(target, 1)
    apart = functional.kl_div(own, other, reduction="none", log_target=True).sum(1)
    return apart[counted].mean()


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor, method: Method) -> Tensor:
    model.eval()
    return torch.cat([model(_prepared(part, method)) for part in images.split(100)])


def _compare(
    outputs: Tensor, labels: Tensor, reference: Tensor, method: Method
) -> dict[str, float]:
    """Mean intersection over union of the classes, right pixels, and divergence from the dense."""
    table = torch.zeros(CLASSES, CLASSES, dtype=torch.long)
    divergences = []
    for own, label, dense in zip(
        outputs.split(100), labels.split(100), reference.split(100), strict=True
    ):
        logits, classes = _full(own, method), _view(label, method)
        counted = classes != IGNORED
        pairs = classes[counted].long() * CLASSES + logits.argmax(1)[counted]
        table += torch.bincount(pairs, minlength=CLASSES**2).view(CLASSES, CLASSES)
        apart = _divergence(logits, _target(dense, method), counted)
        divergences += len(logits) * [float(apart)]
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
    networks = {}
    for name in dict.fromkeys([*options.methods, "dense"]):
        method, path = METHODS[name], folder / f"{name}.onnx"
        example = _prepared(torch.zeros(1, 1, SIZE, SIZE), method).contiguous()
        if not path.exists():
            _export(method.masks, example, path)
        networks[name] = path, example
    found = latency.measure(networks, options.rounds)
    return {name: 1e6 * found[name].least for name in networks}


def _export(config: SparsityConfig | None, example: Tensor, path: Path) -> None:
    torch.manual_seed(0)
    model = Segmenter().eval()
    if config is not None:
        Sparsifier(model, example, config, 1).freeze()
    latency.export(model, example, path)


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
