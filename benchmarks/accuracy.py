"""Accuracy at equal cost: masks against lower resolution and fewer channels, on Fashion-MNIST.

    python benchmarks/accuracy.py --out runs/accuracy

Every method starts from the same dense weights of a seed, is fine-tuned alike, and sees the test
split once. Finished pieces are files in the folder, so the command can be stopped and repeated,
and several of them can share the work. Ends with results.json, results.md and results.svg.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import latency
import torch
from descent import descend
from folder import keep_settings
from matplotlib.figure import Figure
from named_masks import named_masks
from torch import Tensor, nn
from torch.nn import functional

from semisparse.bench.machine import describe
from semisparse.bench.work import read, work_of
from semisparse.config import SparsityConfig
from semisparse.files import writing
from semisparse.importance import measure
from semisparse.sparsifier import Sparsifier
from semisparse.training.apply import Change, apply
from semisparse.training.calibrate import recalibrate, statistics_of
from semisparse.training.data import load
from semisparse.training.distillation import distillation_loss
from semisparse.training.pruning import prune
from semisparse.training.resnet import SmallResNet

SIZE = 32
BATCH = 500
# A tenth faster to train, in bfloat16, than the default.
LAYOUT = torch.channels_last
IMPORTANCE_IMAGES = 500
# Without instructions for it bfloat16 takes ten times as long as fp32.
PRECISIONS = ("bf16", "fp32")

Images = tuple[Tensor, Tensor]


def inverted_residuals(num_classes: int, input_channels: int, width: int = 32) -> nn.Sequential:
    """MobileNetV2 (arXiv 1801.04381) for images of 32x32: planes of 16x16 and 8x8."""
    # semisparse.training has made torchvision importable beside a torch without CUDA.
    from torchvision.models.mobilenetv2 import InvertedResidual
    from torchvision.ops import Conv2dNormActivation

    wide = 2 * width
    plan = [(width, width, 1)] * 3 + [(width, wide, 2)] + [(wide, wide, 1)] * 2
    return nn.Sequential(
        Conv2dNormActivation(input_channels, width, stride=2, activation_layer=nn.ReLU6),
        *(InvertedResidual(inputs, outputs, stride, 4) for inputs, outputs, stride in plan),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(wide, num_classes),
    )


def convnext(num_classes: int, input_channels: int, width: int = 32) -> nn.Module:
    """ConvNeXt (arXiv 2201.03545) for images of 32x32: planes of 16x16 and 8x8."""
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt, LayerNorm2d
    from torchvision.ops import Conv2dNormActivation

    model = ConvNeXt(
        [CNBlockConfig(width, 2 * width, 3), CNBlockConfig(2 * width, None, 3)],
        layer_scale=1.0,
        num_classes=num_classes,
    )
    # Patches of 2x2 instead of 4x4, of images of any number of channels.
    model.features[0] = Conv2dNormActivation(
        *(input_channels, width, 2, 2, 0), norm_layer=LayerNorm2d, activation_layer=None
    )
    return model


def repvit(num_classes: int, input_channels: int, width: int = 32) -> nn.Module:
    """RepViT (arXiv 2307.09283) for images of 32x32: planes of 16x16 and 8x8."""
    from timm.models.repvit import RepVit

    model = RepVit(
        *(input_channels, SIZE, (width, 2 * width), (2, 2)),
        num_classes=num_classes,
        distillation=False,
    )
    # The second convolution of the stem would make planes of 8x8 and 4x4.
    model.stem.conv2.c.stride = (1, 1)
    return model


def resnet8(num_classes: int, input_channels: int, width: int = 16) -> SmallResNet:
    """The library's, of any width."""
    return SmallResNet(1, num_classes, input_channels, width)


# Of classes and input channels, and by name the width of the first stage.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "inverted-residuals": inverted_residuals,
    "convnext": convnext,
    "repvit": repvit,
}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: optimizer, learning rates from scratch and of fine-tuning, decay."""

    optimizer: str
    rate: float
    tuning_rate: float
    weight_decay: float


SGD = Recipe("sgd", 0.2, 0.05, 5e-4)
# After two epochs of 9,000 images it is right in 72% with SGD and in 79% with AdamW.
ADAMW = Recipe("adamw", 2e-3, 5e-4, 0.05)
RECIPES = {**dict.fromkeys(MODELS, SGD), "convnext": ADAMW, "repvit": ADAMW}


@dataclass(frozen=True)
class Method:
    """One way to a cheaper network.

    Attributes:
        kind: methods of one kind are one curve.
        masks: on the dense network; None for none.
        size: height and width of the images.
        channels: share of the channels that is pruned.
        width: of a narrower network's first stage, trained as long as the dense network; 0 is that
            itself.
        trained: fine-tuned, or else only recalibrated on unlabelled images, where it has masks or
            a size of its own.
        distilled: fine-tuned towards the outputs of the dense network.
        draws: of the masks, if not fine-tuned; the one that changes the outputs least is kept.
    """

    kind: str
    masks: SparsityConfig | None = None
    size: int = SIZE
    channels: float = 0.0
    width: int = 0
    trained: bool = True
    distilled: bool = True
    draws: int = 1


def _block_last(sparsity: float, elsewhere: float = 0.0, **changes: Any) -> SparsityConfig:
    return SparsityConfig(sparsity, per_layer={"*": elsewhere, "block-last": sparsity}, **changes)


def _mixed(sparsity: float, strided: float) -> SparsityConfig:
    """Blocks where the planes are largest, single positions where a layer is computed directly."""
    return SparsityConfig(
        sparsity,
        only=["layer1.*"],
        per_layer={"layer[23].0.conv1": strided},
        block="auto",
        importance=1,
    )


# Those of docs/training.md.
LABELS_ONLY = {
    "dense, labels only": Method("dense", distilled=False),
    **{
        f"{fill} {sparsity}": Method(fill, SparsityConfig(sparsity, fill=fill), distilled=False)
        for sparsity in (0.1, 0.2, 0.3)
        for fill in ("bias", "nearest")
    },
}
# Those of the inverted residuals in docs/accuracy.md.
SINGLE_POSITIONS = {
    "block-last 0.75": Method("block-last", _block_last(0.75)),
    "resolution 26": Method("resolution", size=26),
    "uniform 0.5": Method("uniform", SparsityConfig(0.5)),
    "resolution 22": Method("resolution", size=22),
}
# Those of the alternating masks in docs/accuracy.md, each beside the same in step, and means.
ALTERNATING = {
    **{
        f"{kind} {sparsity}{untrained}{alternate}": Method(
            "untrained" if untrained else kind,
            masks(sparsity, alternate=bool(alternate)),
            trained=not untrained,
        )
        for untrained in ("", ", untrained")
        for kind, masks in (("block-last", _block_last), ("uniform", SparsityConfig))
        for sparsity in (0.2, 0.3, 0.5, 0.75)
        for alternate in ("", ", alternate")
    },
    **{
        f"block-last {sparsity}{untrained}, alternate, mean": Method(
            "untrained" if untrained else "block-last",
            SparsityConfig.block_last(sparsity),
            trained=not untrained,
        )
        for untrained in ("", ", untrained")
        for sparsity in (0.25, 0.5, 0.75)
    },
    **{
        f"resolution {size}, untrained": Method("untrained", size=size, trained=False)
        for size in (30, 27, 24, 22)
    },
    **{
        f"resolution {size}, block-last 0.5, alternate": Method(
            "both", _block_last(0.5, alternate=True), size=size
        )
        for size in (30, 29, 28)
    },
    "resolution 25": Method("resolution", size=25),
}
# Narrower and pruned networks of 32 channels.
FEWER_CHANNELS = {
    **{f"narrow {width}": Method("narrow", width=width) for width in (28, 24, 20, 16)},
    **{f"channels {share}": Method("channels", channels=share) for share in (0.4, 0.5)},
    **{
        f"channels 0.25, block-last {sparsity}, alternate, mean": Method(
            "both", SparsityConfig.block_last(sparsity), channels=0.25
        )
        for sparsity in (0.5, 0.75)
    },
}
METHODS = {
    "dense": Method("dense"),
    "paper 0.3": Method("paper", SparsityConfig.paper(0.3), distilled=False),
    "block-last 0.5": Method("block-last", _block_last(0.5)),
    "resolution 27": Method("resolution", size=27),
    "channels 0.25": Method("channels", channels=0.25),
    "paper 0.2, untrained": Method("untrained", SparsityConfig.paper(0.2), trained=False),
    "uniform 0.2, untrained": Method("untrained", SparsityConfig(0.2), trained=False),
    "block-last 0.34, untrained": Method("untrained", _block_last(0.34), trained=False),
    "block-last 0.34, untrained, 8 draws": Method(
        "untrained", _block_last(0.34), trained=False, draws=8
    ),
    "dense, untrained": Method("untrained", trained=False),
    "uniform 0.2, untrained, importance": Method(
        "untrained", SparsityConfig(0.2, importance=1), trained=False
    ),
    "block-last 0.34, untrained, importance": Method(
        "untrained", _block_last(0.34, importance=1), trained=False
    ),
    "block-last 0.34, untrained, importance, 8 draws": Method(
        "untrained", _block_last(0.34, importance=1), trained=False, draws=8
    ),
    "block-last 0.34, untrained, mean": Method(
        "untrained", _block_last(0.34, fill="mean"), trained=False
    ),
    "block-last 0.34, untrained, importance, mean, 8 draws": Method(
        "untrained", _block_last(0.34, importance=1, fill="mean"), trained=False, draws=8
    ),
    "mixed 0.3": Method("mixed", _mixed(0.3, 0.25)),
    "resolution 24": Method("resolution", size=24),
    "resolution 20": Method("resolution", size=20),
    **{f"narrow {width}": Method("narrow", width=width) for width in (10, 8)},
    "paper 0.5": Method("paper", SparsityConfig.paper(0.5), distilled=False),
    "block-last 0.75, others 0.15": Method("block-last", _block_last(0.75, 0.15)),
    "resolution 23": Method("resolution", size=23),
    "block-last 0.5, blocks": Method("blocks", _block_last(0.5, block="auto")),
    "uniform 0.5, blocks": Method("blocks", SparsityConfig(0.5, block="auto")),
    "channels 0.3": Method("channels", channels=0.3),
}
DEFAULT = list(METHODS)
METHODS = {**LABELS_ONLY, **SINGLE_POSITIONS, **ALTERNATING, **FEWER_CHANNELS, **METHODS}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", default="resnet8", choices=MODELS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: only time")
    parser.add_argument("--methods", nargs="+", default=DEFAULT, choices=METHODS, metavar="NAME")
    parser.add_argument(
        "--masks",
        nargs="+",
        type=named_masks,
        default=[],
        metavar="NAME=FILE",
        help="more methods, fine-tuned and untrained",
    )
    parser.add_argument("--images", type=int, default=54000, help="for fine-tuning; of 54000")
    parser.add_argument("--epochs", type=int, default=2, help="of fine-tuning")
    parser.add_argument("--learning-rate", type=float, help="of fine-tuning; default by model")
    parser.add_argument("--dense-epochs", type=int, default=6, help="of the dense training before")
    parser.add_argument("--dense-images", type=int, default=54000, help="for it; of 54000")
    parser.add_argument("--calibration-images", type=int, default=2000, help="if not fine-tuned")
    parser.add_argument("--test-images", type=int, default=10000, help="of 10000")
    parser.add_argument("--precision", default="bf16", choices=PRECISIONS, help="of training")
    parser.add_argument("--rounds", type=int, default=30, help="samples of each latency; 0: none")
    options = parser.parse_args()
    for name, masks in options.masks:
        METHODS[name] = Method("tuned", masks)
        METHODS[f"{name}, untrained"] = Method("untrained", masks, trained=False)
        options.methods += [name, f"{name}, untrained"]
    del options.masks
    if options.learning_rate is None:
        options.learning_rate = RECIPES[options.model].tuning_rate
    keep_settings(options, free=("seeds", "methods", "rounds"))
    torch.set_num_threads(1)
    if options.rounds:
        timed = _read(options.out / "latencies.json")
        if not timed.keys() >= set(options.methods):
            (options.out / "latencies.json").unlink(missing_ok=True)
        _once(options.out / "latencies.json", lambda: _latencies(options))
    for name in options.methods:
        for seed in options.seeds:
            _once(options.out / f"{name}-{seed}.json", lambda s=seed, n=name: _score(options, n, s))
    _report(options)


def _read(path: Path) -> dict[str, Any]:
    """What `_once` made, or nothing."""
    made: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return made


def _once(path: Path, make: Callable[[], dict[str, Any]]) -> None:
    """Make a file unless it is there or another process is at it."""
    claim = path.with_suffix(".claim")
    with contextlib.suppress(FileExistsError):
        if path.exists():
            return
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        try:
            made = make()
            with writing(path) as draft:
                draft.write_text(json.dumps(made))
            print(path.stem, flush=True)
        finally:
            claim.unlink()


def _score(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    method = METHODS[name]
    model = _dense(options, seed)
    full, classes = (part[: options.images] for part in _data(options, "train"))
    # Always of the full images: the dense network is at hand wherever a smaller one is made of it.
    targets = _outputs(model, full) if method.distilled and method.trained else None
    if method.width:
        model = _dense(options, seed, method.width)
    images = _resized(full, method.size)
    if method.channels:
        prune(model, images[:1], method.channels)
    model.to(memory_format=LAYOUT)
    if method.trained:
        steps = max(1, options.epochs * (len(images) // 64))
        sparsifier = _masked(model, images, method, seed, steps)
        rate = options.learning_rate
        _train(
            *(model, (images, classes), options.epochs, rate, 64, seed, options.precision),
            *(options.model, sparsifier, targets),
        )
        if sparsifier is not None:
            sparsifier.freeze()
    elif method.masks is not None:
        config = replace(method.masks, seed=seed)
        count = options.calibration_images
        apply(model, images[:count], config, draws=method.draws, batch_size=BATCH)
    elif method.size != SIZE:
        count = options.calibration_images
        recalibrate(model, images[:count], BATCH, statistics_of(model, full[:count], BATCH))
    full, classes = (part[: options.test_images] for part in _data(options, "test"))
    outputs = _outputs(model, _resized(full, method.size))
    reference = _reference(options, seed, full)
    return {
        "accuracy": 100 * float((outputs.argmax(1) == classes).double().mean()),
        "divergence": Change.between(outputs, reference).divergence,
    }


def _masked(
    model: nn.Module, images: Tensor, method: Method, seed: int, steps: int
) -> Sparsifier | None:
    if method.masks is None:
        return None
    config = replace(method.masks, seed=seed)
    importance = measure(model, images[:IMPORTANCE_IMAGES]) if config.importance else None
    return Sparsifier(model, images[:1], config, steps, importance)


def _create(architecture: str, width: int) -> nn.Module:
    return MODELS[architecture](10, 1, **({"width": width} if width else {}))


def _dense(options: argparse.Namespace, seed: int, width: int = 0) -> nn.Module:
    """The trained dense network of a seed, or the narrower one."""
    path = options.out / (f"narrow-{width}-{seed}.pt" if width else f"dense-{seed}.pt")
    torch.manual_seed(seed)
    model = _create(options.model, width).to(memory_format=LAYOUT)
    if not path.exists():
        images, classes = (part[: options.dense_images] for part in _data(options, "train"))
        rate = RECIPES[options.model].rate
        _train(
            *(model, (images, classes), options.dense_epochs, rate, 128, seed, options.precision),
            options.model,
        )
        with writing(path) as draft:
            torch.save(model.state_dict(), draft)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def _reference(options: argparse.Namespace, seed: int, images: Tensor) -> Tensor:
    """The outputs of the dense network of a seed for the test images."""
    path = options.out / f"reference-{seed}.pt"
    if not path.exists():
        outputs = _outputs(_dense(options, seed), images)
        with writing(path) as draft:
            torch.save(outputs, draft)
    return torch.load(path, weights_only=True)


def _data(options: argparse.Namespace, part: str) -> Images:
    """All images of a split [N, 1, 32, 32], normalised, and their classes."""
    path = options.out / f"{part}.pt"
    if not path.exists():
        split = getattr(load("fashion-mnist", image_size=SIZE), part)
        pictures, classes = zip(*(split[index] for index in range(len(split))), strict=True)
        with writing(path) as draft:
            torch.save((torch.stack(pictures), torch.tensor(classes)), draft)
    images, classes = torch.load(path, weights_only=True)
    return images, classes


def _resized(images: Tensor, size: int) -> Tensor:
    if size == SIZE:
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _train(
    model: nn.Module,
    data: Images,
    epochs: int,
    learning_rate: float,
    batch: int,
    seed: int,
    precision: str,
    architecture: str,
    sparsifier: Sparsifier | None = None,
    targets: Tensor | None = None,
) -> None:
    """With targets, the logits of a teacher, the loss is 0.9 of the distance to them at temperature
    4, and 0.1 of the task's.
    """

    def loss_of(taken: Tensor) -> Tensor:
        images, classes = data[0][taken].contiguous(memory_format=LAYOUT), data[1][taken]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images).float()
        loss = functional.cross_entropy(logits, classes)
        if targets is not None:
            loss = 0.1 * loss + 0.9 * distillation_loss(logits, targets[taken], 4.0)
        return loss

    steps = epochs * (len(data[0]) // batch)
    batches = _batches(len(data[0]), epochs, batch, torch.Generator().manual_seed(seed))
    recipe = RECIPES[architecture]
    descend(
        *(model, batches, steps, learning_rate, recipe.weight_decay, sparsifier, loss_of),
        recipe.optimizer,
    )


def _batches(count: int, epochs: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        yield from order[: count // batch * batch].split(batch)


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Logits, in float32."""
    model.eval()
    parts = images.split(BATCH)
    return torch.cat([model(part.contiguous(memory_format=LAYOUT)) for part in parts])


def _latencies(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Of every method's network, one image on one thread; it does not depend on the weights.

    Networks without masks are timed in stock ONNX Runtime too.
    """
    folder = options.out / "models"
    folder.mkdir(exist_ok=True)
    networks = {}
    for name in options.methods:
        path, size = folder / f"{name}.onnx", METHODS[name].size
        if not path.exists():
            _export(options.model, METHODS[name], path)
        networks[name] = path, torch.zeros(1, 1, size, size)
    return {
        name: {
            "operations": work_of(read(networks[name][0])).flops,
            "ours": 1e3 * found.ours,
            "stock": None if found.stock is None else 1e3 * found.stock,
        }
        for name, found in latency.measure(networks, options.rounds).items()
    }


def _export(architecture: str, method: Method, path: Path) -> None:
    torch.manual_seed(0)
    model = _create(architecture, method.width).eval()
    example = torch.randn(1, 1, method.size, method.size)
    if method.channels:
        prune(model, example, method.channels)
    sparsifier = _masked(model, example, method, 0, 1)
    if sparsifier is not None:
        sparsifier.freeze()
    latency.export(model, example, path)


def _report(options: argparse.Namespace) -> None:
    figures = _read(options.out / "latencies.json")
    rows = []
    for name in options.methods:
        files = [options.out / f"{name}-{seed}.json" for seed in options.seeds]
        scores = {
            s: json.loads(f.read_text())
            for s, f in zip(options.seeds, files, strict=True)
            if f.exists()
        }
        if scores:
            accuracies = {seed: score["accuracy"] for seed, score in scores.items()}
            divergences = {seed: score["divergence"] for seed, score in scores.items()}
            rows.append(
                {
                    "name": name,
                    "accuracies": accuracies,
                    "divergences": divergences,
                    **figures.get(name, {}),
                }
            )
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "methods")}
    results = {"settings": settings, "machine": describe(), "rows": rows}
    with writing(options.out / "results.json") as draft:
        draft.write_text(json.dumps(results, indent=2) + "\n")
    with writing(options.out / "results.md") as draft:
        draft.write_text(_table(rows))
    timed = [r for r in rows if "ours" in r and METHODS[r["name"]].trained]
    if timed:
        _chart(timed, options.out / "results.svg")
    print(_table(rows))


def _table(rows: list[dict[str, Any]]) -> str:
    """Means and standard deviations over seeds; drops are from the dense network of the seed."""
    dense: dict[str, Any] = next((row for row in rows if row["name"] == "dense"), {})
    lines = [
        "| | seeds | accuracy | drop | divergence | cost | ms, ours | ms, ONNX Runtime | speedup |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        own, base = row["accuracies"], dense.get("accuracies", {})
        drops = [base[seed] - own[seed] for seed in own if seed in base]
        cells = [row["name"], str(len(own)), _spread(list(own.values())), _spread(drops)]
        cells.append(_spread(list(row["divergences"].values()), 3))
        latencies = [""] * 4
        if "operations" in row and dense:
            stock = row["stock"]
            latencies = [
                f"{row['operations'] / dense['operations']:.2f}",
                f"{row['ours']:.3f}",
                f"{stock:.3f}" if stock else "",
                f"{_latency(dense) / _latency(row):.2f}",
            ]
        lines.append(f"| {' | '.join(cells + latencies)} |")
    return "\n".join(lines) + "\n"


def _latency(row: dict[str, Any]) -> float:
    """In the faster engine, in milliseconds."""
    return min(row["ours"], row["stock"] or math.inf)


def _spread(values: list[float], digits: int = 2) -> str:
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else ""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _chart(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over latency, one curve a kind of method; bars are standard deviations of seeds."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for kind in dict.fromkeys(METHODS[row["name"]].kind for row in rows):
        points = sorted((r for r in rows if METHODS[r["name"]].kind == kind), key=_latency)
        accuracies = [list(row["accuracies"].values()) for row in points]
        axes.errorbar(
            [_latency(row) for row in points],
            [statistics.mean(values) for values in accuracies],
            yerr=[statistics.pstdev(values) for values in accuracies],
            marker="o",
            capsize=3,
            label=kind,
        )
    axes.set_xlabel("latency of one image, ms")
    axes.set_ylabel("test accuracy, %")
    axes.legend()
    with writing(path) as draft:
        figure.savefig(draft, format="svg")


if __name__ == "__main__":
    main()
