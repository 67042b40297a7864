"""Masks against lower resolution on a trained classifier of photographs, without training.

    python benchmarks/imagenet.py --out runs/imagenet --images FOLDER \
        --model timm/tf_efficientnet_lite0 --weights FILE

The photographs need no labels: what counts is how far a cheaper network's answers are from those
of the network itself at 224. Whatever its size, an image shows the same part of the photograph.
Finished pieces are files in the folder, so the command can be stopped and repeated. Ends with
results.json and results.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import latency
import torch
from folder import keep_settings
from named_masks import named_masks
from PIL import Image
from torch import Tensor, nn

from semisparse.bench.machine import describe
from semisparse.config import SparsityConfig
from semisparse.files import writing
from semisparse.sparsifier import Sparsifier
from semisparse.training import models
from semisparse.training.apply import Change
from semisparse.training.calibrate import recalibrate, run, statistics_of

SIZE = 224
# Of the shorter side of a photograph: as scaled to 256 and cut to 224.
VIEW = 0.875
BATCH = 50
LAYOUT = torch.channels_last


@dataclass(frozen=True)
class Method:
    """One way to a cheaper network.

    Attributes:
        masks: on the network; None for none.
        size: height and width of the images.
    """

    masks: SparsityConfig | None = None
    size: int = SIZE


DENSE = {"dense": Method()}
METHODS = {
    **{
        f"block-last {sparsity}{suffix}": Method(
            SparsityConfig(sparsity, only=["block-last"], **changes)
        )
        for sparsity in (0.3, 0.5, 0.75)
        for suffix, changes in {
            "": {},
            ", alternate": {"alternate": True},
            ", alternate, mean": {"alternate": True, "fill": "mean"},
        }.items()
    },
    **{f"resolution {size}": Method(size=size) for size in (216, 208, 200, 192, 184, 176)},
}


@dataclass(frozen=True)
class Photographs:
    """Files of photographs, and the mean and deviation by channel that a network wants them with."""

    paths: Sequence[Path]
    mean: Sequence[float]
    std: Sequence[float]

    def at(self, size: int) -> Tensor:
        """The middle of each, [N, 3, size, size], normalised."""
        images = torch.stack([self._image(path, size) for path in self.paths])
        return images.contiguous(memory_format=LAYOUT)

    def _image(self, path: Path, size: int) -> Tensor:
        # semisparse.training has made torchvision importable beside a torch without CUDA.
        from torchvision.datasets.folder import pil_loader
        from torchvision.transforms.functional import normalize, to_tensor

        photograph = pil_loader(path)
        side = VIEW * min(photograph.size)
        left, top = ((length - side) / 2 for length in photograph.size)
        box = (left, top, left + side, top + side)
        # Pillow's bicubic filter is as wide as it takes not to alias.
        image = photograph.resize((size, size), Image.Resampling.BICUBIC, box)
        return normalize(to_tensor(image), self.mean, self.std)


class Comparison:
    """A network, changed, beside itself as it is on images of SIZE.

    Args:
        model: in evaluation mode; it is left as it was.
        calibration: to recalibrate on.
        test: that the outputs are compared for.
    """

    def __init__(self, model: nn.Module, calibration: Photographs, test: Photographs) -> None:
        self._model = model
        self._photographs = calibration, test
        self._images = calibration.at(SIZE), test.at(SIZE)
        self._seen = statistics_of(model, self._images[0], BATCH)
        self._reference = run(model, self._images[1])

    def scores(self, method: Method, seed: int) -> dict[str, dict[str, float]]:
        """Divergence and share of the same class, untouched and recalibrated."""
        calibration, test = self._images
        if method.size != SIZE:
            calibration, test = (photographs.at(method.size) for photographs in self._photographs)
        with _masked(self._model, calibration[:1], method.masks, seed):
            untouched = self._change(test)
            recalibrate(self._model, calibration, BATCH, self._seen)
            return {"untouched": untouched, "recalibrated": self._change(test)}

    def _change(self, test: Tensor) -> dict[str, float]:
        change = Change.between(run(self._model, test), self._reference)
        return {"divergence": change.divergence, "same": 100 * change.agreement}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--images", required=True, help="folder of photographs, searched through")
    parser.add_argument("--model", required=True, help="as of semisparse train")
    parser.add_argument("--weights", default="DEFAULT", help="a file, or DEFAULT: published ones")
    parser.add_argument("--classes", type=int, default=1000, help="that the weights are for")
    parser.add_argument("--mean", type=float, nargs="+", help="by channel; else as published")
    parser.add_argument("--std", type=float, nargs="+", help="by channel; else as published")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: only time")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME"
    )
    parser.add_argument(
        "--masks", nargs="+", type=named_masks, default=[], metavar="NAME=FILE", help="more methods"
    )
    parser.add_argument("--test-images", type=int, default=250)
    parser.add_argument("--calibration-images", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=100, help="samples of each latency; 0: none")
    options = parser.parse_args()
    METHODS.update((name, Method(masks)) for name, masks in options.masks)
    options.methods += [name for name, _ in options.masks]
    del options.masks
    torch.set_num_threads(1)
    # What is wrong with these must not become the settings of the folder.
    model = models.create(options.model, options.classes, options.weights, exact=True).eval()
    mean, std = _normalisation(options)
    drawn = _drawn(options)
    keep_settings(options, free=("seeds", "methods", "rounds"))
    paths = [Path(options.images, name) for name in _once(options, "photographs", lambda: drawn)]
    test, calibration = (
        Photographs(part, mean, std)
        for part in (paths[: options.test_images], paths[options.test_images :])
    )
    latencies = _latencies(options, model, test) if options.rounds else {}
    _score(options, model.to(memory_format=LAYOUT), calibration, test)
    _report(options, {"mean": mean, "std": std}, latencies)


def _normalisation(options: argparse.Namespace) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation by channel of RGB in [0, 1]."""
    if options.mean and options.std:
        return options.mean, options.std
    # A file that no one has published is taken for weights trained as the published ones.
    known = models.normalisation(options.model, options.weights) or models.normalisation(
        options.model, "DEFAULT"
    )
    if known is None:
        raise SystemExit(f"How {options.model} wants its images is not known; give --mean, --std.")
    return options.mean or known[0], options.std or known[1]


def _drawn(options: argparse.Namespace) -> list[str]:
    """Names in the folder: the photographs of the test, then those of the calibration."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    folder = Path(options.images)
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in IMG_EXTENSIONS
    )
    count = options.test_images + options.calibration_images
    if len(names) < count:
        raise SystemExit(f"{folder} holds {len(names)} photographs; {count} are asked for.")
    random.Random(0).shuffle(names)
    return names[:count]


def _once(options: argparse.Namespace, name: str, make: Callable[[], Any]) -> Any:
    """What is in a file of the folder, which is made unless it is there."""
    path = options.out / f"{name}.json"
    if not path.exists():
        made = make()
        with writing(path) as draft:
            draft.write_text(json.dumps(made) + "\n")
        print(name, flush=True)
    return json.loads(path.read_text())


@contextmanager
def _masked(
    model: nn.Module, example: Tensor, masks: SparsityConfig | None, seed: int
) -> Iterator[None]:
    """Masks, if any, within the block; after it the model and its statistics are as before."""
    kept = copy.deepcopy(model.state_dict())
    sparsifier = None
    if masks is not None:
        sparsifier = Sparsifier(model, example, replace(masks, seed=seed), 1)
        sparsifier.freeze()
    try:
        yield
    finally:
        if sparsifier is not None:
            sparsifier.detach()
        model.load_state_dict(kept)


def _pieces(options: argparse.Namespace, name: str) -> list[tuple[str, int]]:
    """Files of a method's scores, and their seeds; without masks all seeds are alike."""
    if METHODS[name].masks is None:
        return [(name, seed) for seed in options.seeds[:1]]
    return [(f"{name}-{seed}", seed) for seed in options.seeds]


def _score(
    options: argparse.Namespace, model: nn.Module, calibration: Photographs, test: Photographs
) -> None:
    missing = [
        (file, METHODS[name], seed)
        for name in options.methods
        for file, seed in _pieces(options, name)
        if not (options.out / f"{file}.json").exists()
    ]
    if not missing:
        return
    comparison = Comparison(model, calibration, test)
    for file, method, seed in missing:
        _once(options, file, lambda m=method, s=seed: comparison.scores(m, s))


def _latencies(
    options: argparse.Namespace, model: nn.Module, photographs: Photographs
) -> dict[str, float]:
    """Of the network and every method's, one image on one thread, in ms.

    Networks without masks count with the faster engine. The least of the samples of the thread's
    own time, as in accuracy.py; taken anew for more methods, which have to take turns, or rounds.
    """
    path = options.out / "latencies.json"
    methods = {**DENSE, **{name: METHODS[name] for name in options.methods}}
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["rounds"] >= options.rounds and kept["ms"].keys() >= methods.keys():
            return kept["ms"]
        path.unlink()
    networks = _networks(
        options.out / "models", model, methods, replace(photographs, paths=photographs.paths[:1])
    )

    def measured() -> dict[str, Any]:
        found = latency.measure(networks, options.rounds, min_seconds=0.01)
        return {
            "rounds": options.rounds,
            "ms": {name: 1e3 * taken.least for name, taken in found.items()},
            "engines": {name: taken._asdict() for name, taken in found.items()},
        }

    return _once(options, "latencies", measured)["ms"]


def _networks(
    folder: Path, model: nn.Module, methods: dict[str, Method], photograph: Photographs
) -> dict[str, tuple[Path, Tensor]]:
    """Each method's exported network, and an image for it."""
    folder.mkdir(exist_ok=True)
    networks = {}
    for name, method in methods.items():
        path, example = folder / f"{name}.onnx", photograph.at(method.size).contiguous()
        if not path.exists():
            with _masked(model, example, method.masks, 0):
                latency.export(model, example, path)
        networks[name] = path, example
    return networks


def _report(
    options: argparse.Namespace,
    normalisation: dict[str, Sequence[float]],
    latencies: dict[str, float],
) -> None:
    rows = []
    for name in options.methods:
        paths = [options.out / f"{file}.json" for file, _ in _pieces(options, name)]
        scores = [json.loads(path.read_text()) for path in paths]
        masks = METHODS[name].masks
        rows.append(
            {
                "name": name,
                "masks": None if masks is None else masks.to_dict(),
                "scores": scores,
                "ms": latencies.get(name),
            }
        )
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "methods")}
    # Where they lay on this machine is nobody's business.
    names = {key: Path(settings[key]).name for key in ("images", "weights")}
    dense = latencies.get("dense")
    results = {
        "settings": {**settings, **names, **normalisation},
        "machine": describe(),
        "dense_ms": dense,
        "rows": rows,
    }
    with writing(options.out / "results.json") as draft:
        draft.write_text(json.dumps(results, indent=2) + "\n")
    table = _table(rows, dense)
    with writing(options.out / "results.md") as draft:
        draft.write_text(table)
    print(table)


def _table(rows: list[dict[str, Any]], dense: float | None) -> str:
    """Means and standard deviations over seeds; the shares of the same class are in percent."""
    lines = [
        "| | seeds | divergence | same class | recalibrated | same class | ms | speedup |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    if dense:
        lines.append(f"| dense | | | | | | {dense:.2f} | 1.00x |")
    for row in rows:
        cells = [row["name"], str(len(row["scores"]))]
        for state in ("untouched", "recalibrated"):
            for key, digits in (("divergence", 3), ("same", 1)):
                cells.append(_spread([score[state][key] for score in row["scores"]], digits))
        cells.append(f"{row['ms']:.2f}" if row["ms"] else "")
        cells.append(f"{dense / row['ms']:.2f}x" if row["ms"] and dense else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float], digits: int) -> str:
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else ""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
