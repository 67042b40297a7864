"""`semisparse demo`: the whole way on real data, from training to measured speedups.

    runs/demo/
        training/KEY/NAME/      one run of `semisparse train` each, dense and sparse
        exports/                ResNet18 as timed
        latency-KEY.json        the figures of the timing
        report.html

Every part is kept under a key of the settings that it depends on, so a second demo does only what
is missing, and changed settings never find the parts of others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import semisparse
from semisparse.cli import options
from semisparse.cli.console import tables_console
from semisparse.config import SparsityConfig
from semisparse.errors import ConfigError, ExportError, LibraryError
from semisparse.image_size import ImageSize

if TYPE_CHECKING:
    from rich.progress import Progress

    from semisparse.report import Report
    from semisparse.training.run import RunResult
    from semisparse.training.settings import TrainSettings

_SPARSITIES = (0.1, 0.2, 0.3)
_FILL = "nearest"
# Twelve epochs are few: with the usual 0.9 one epoch is left for the frozen masks. Test accuracy
# at sparsity 0.3, mean of three seeds: 98.3% with 0.9, 98.9% with 0.5.
_END = 0.5
_TIMED_MODEL = "torchvision/resnet18"
# Library and portable body differ by the order of float32 sums, which is a few 1e-7.
_TOLERANCE = 1e-5


def demo(
    out: Annotated[Path, typer.Option(help="Folder that keeps everything.")] = Path("runs/demo"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train, export and time again what is there already.")
    ] = False,
    sparsity: Annotated[
        list[float] | None,
        typer.Option(help="Sparsities beside dense; repeatable. [0.1 0.2 0.3]", show_default=False),
    ] = None,
    block: Annotated[
        int,
        typer.Option(
            min=1,
            help="Side of the squares of positions that are masked as a whole; 4 fits the tiles "
            "of the 3x3 convolutions that ResNet18 is made of.",
        ),
    ] = 4,
    epochs: Annotated[int, typer.Option(min=1, help="Of each training run.")] = 12,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the timing; all cores if not given.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each candidate.")] = 20,
    image_size: Annotated[
        str,
        typer.Option(
            help="That ResNet18 is timed at: height x width, as 180x320, or one number for a "
            "square, from 32.",
            metavar=options.SIZE,
        ),
    ] = "224",
    as_json: options.Json = False,
) -> None:
    """Train on handwritten digits dense and masked, export, and time ResNet18 masked the same.

    \b
    Examples:
      semisparse demo
      semisparse demo --threads 1 --fresh
      semisparse demo --epochs 3 --sparsity 0.3 --out runs/quick --json
    """
    from rich.console import Console

    from semisparse.report import render, table
    from semisparse.training.progress import bars

    size = ImageSize.of(image_size, least=32)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error}); give another folder.") from error
    sparsities = tuple(sorted({0.0, *(sparsity or _SPARSITIES)}))
    recipes = [_recipe(value, block, epochs) for value in sparsities]
    threads = threads or len(os.sched_getaffinity(0))
    console = Console(stderr=True)
    with bars(console) as progress:
        networks = [_train(recipe, out / "training", fresh, progress) for recipe in recipes]
        latency = _time(out, sparsities, block, threads, rounds, size, fresh, progress)
    report = _report(networks, latency, epochs)
    path = out / "report.html"
    render(report, path)
    if as_json:
        figures = {
            "rows": [{**asdict(row), "limit": row.limit} for row in report.rows],
            "facts": dict(report.facts),
            "report": str(path),
        }
        typer.echo(json.dumps(figures, indent=2))
    else:
        printed = tables_console()
        printed.print(table(report.rows))
        printed.print(f"report: {path}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _Network:
    """A trained network: its run, and its test accuracy in ONNX Runtime.

    accuracy is with the library, portable_accuracy without, difference the norm-relative
    difference of their logits.
    """

    sparsity: float
    folder: Path
    result: RunResult
    accuracy: float
    portable_accuracy: float
    difference: float


def _recipe(sparsity: float, block: int, epochs: int) -> TrainSettings:
    from semisparse.training.settings import TrainSettings

    # All convolutions are masked, as in the network that is timed, so that accuracy and speedup of
    # a row mean the same sparsity.
    return TrainSettings(
        model="semisparse/resnet8",
        data="digits",
        sparsity=SparsityConfig(sparsity, fill=_FILL, block=block, end=_END) if sparsity else None,
        epochs=epochs,
    )


def _train(recipe: TrainSettings, folder: Path, fresh: bool, progress: Progress) -> _Network:
    from semisparse.training import run

    sparsity = recipe.sparsity.sparsity if recipe.sparsity else 0.0
    name = f"sparsity-{sparsity:.1f}" if sparsity else "dense"
    out = folder / _key(recipe.to_dict()) / name
    started = (out / "config.json").is_file() and not fresh
    if not started:
        shutil.rmtree(out, ignore_errors=True)
    result = run.train(recipe, out, resume=started, progress=progress)
    return _evaluate(recipe, sparsity, out, result)


def _evaluate(recipe: TrainSettings, sparsity: float, folder: Path, result: RunResult) -> _Network:
    import numpy as np

    from semisparse.runtime import InferenceSession
    from semisparse.training import data

    test = data.load(recipe.data, image_size=recipe.image_size, whole=recipe.whole).test
    images, labels = zip(*(test[index] for index in range(len(test))), strict=True)
    batch, truth = np.stack([image.numpy() for image in images]), np.array(labels)
    path = folder / "model.onnx"

    def logits(library: bool) -> Any:
        session = InferenceSession(path, library=library)
        return session.run(None, {session.get_inputs()[0].name: batch})[0]

    ours, portable = logits(library=True), logits(library=False)
    difference = float(np.linalg.norm(ours - portable) / np.linalg.norm(portable))
    if not difference <= _TOLERANCE:
        raise ExportError(
            f"{path} differs by {difference:.1e} (norm-relative) with and without the library, "
            f"more than {_TOLERANCE:.0e}; run semisparse check on it."
        )
    return _Network(
        sparsity=sparsity,
        folder=folder,
        result=result,
        accuracy=float((ours.argmax(1) == truth).mean()),
        portable_accuracy=float((portable.argmax(1) == truth).mean()),
        difference=difference,
    )


def _time(
    out: Path,
    sparsities: tuple[float, ...],
    block: int,
    threads: int,
    rounds: int,
    size: ImageSize,
    fresh: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Figures of the timing, measured here or found in `out`.

    `rows` in the order stock ONNX Runtime, then ours by sparsity: `sparsity`, and quartiles of
    `latency_ms` and of `speedup` over the first; `machine` as `bench.machine.describe`.
    """
    from semisparse.bench import compare, machine, models
    from semisparse.bench.peers import PEERS
    from semisparse.files import writing
    from semisparse.runtime import library_path

    if fresh:
        shutil.rmtree(out / "exports", ignore_errors=True)
    description = machine.describe()
    settings = {
        "model": _TIMED_MODEL,
        "image_size": str(size),
        "sparsities": sparsities,
        "fill": _FILL,
        "block": block,
        "threads": threads,
        "rounds": rounds,
        "machine": description,
        "library": hashlib.sha256(library_path().read_bytes()).hexdigest(),
    }
    path = out / f"latency-{_key(settings)}.json"
    if path.is_file() and not fresh:
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    task = progress.add_task("ResNet18", total=None, note="")
    model = models.prepare(
        _TIMED_MODEL,
        out / "exports",
        sparsities=sparsities,
        fills=(_FILL,),
        blocks=(block,),
        image_size=size,
        progress=lambda what: progress.update(task, note=what),
    )
    progress.update(task, note="timing, interleaved")
    stock = PEERS["onnxruntime"]
    run = compare.compare(
        model,
        [stock],
        threads,
        rounds=rounds,
        warmup=3,
        progress=lambda done, total: progress.update(task, completed=done, total=total),
    )
    if stock.name in run.missing:
        raise LibraryError(f"Stock ONNX Runtime was not timed: {run.missing[stock.name]}.")
    figures = {
        "rows": [
            {
                "sparsity": row.sparsity or 0.0,
                "latency_ms": [1e3 * value for value in asdict(row.latency).values()],
                "speedup": list(asdict(row.speedup[stock.name]).values()),
            }
            for row in run.rows
        ],
        "settings": settings,
    }
    with writing(path) as draft:
        draft.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def _report(networks: list[_Network], figures: Mapping[str, Any], epochs: int) -> Report:
    from semisparse import report
    from semisparse.layers import masked_layers
    from semisparse.training import history
    from semisparse.training.saved import load_run

    by_sparsity = {network.sparsity: network for network in networks}
    rows = []
    for index, entry in enumerate(figures["rows"]):
        network = by_sparsity[entry["sparsity"]]
        low, latency, high = entry["latency_ms"]
        slow, speedup, fast = entry["speedup"]
        rows.append(
            report.Row(
                engine="semisparse" if index else "ONNX Runtime",
                sparsity=entry["sparsity"],
                accuracy=network.accuracy if index else network.portable_accuracy,
                latency=latency,
                latency_quartiles=(low, high),
                speedup=speedup,
                speedup_quartiles=(slow, fast),
            )
        )
    curves, masks = [], []
    for network in networks:
        epochs_logged = history.read(network.folder / "metrics.csv")
        curves.append(
            report.Curve(
                network.sparsity,
                [row["train_loss"] for row in epochs_logged],
                [row["val_accuracy"] for row in epochs_logged],
                [row["sparsity"] for row in epochs_logged],
            )
        )
        if network.sparsity:
            layers = masked_layers(load_run(network.folder)[0])
            masks.append(
                report.MaskSet(
                    network.sparsity, {name: m.mask.numpy() for name, m in layers.items()}
                )
            )
    settings = figures["settings"]
    machine = settings["machine"]
    facts = {
        "masks": f"on every convolution, fill {_FILL}, block {settings['block']}",
        "accuracy": f"ResNet8 on scikit-learn's digits at 32x32, epochs {epochs}, one seed; the "
        "exported files in ONNX Runtime",
        "parity": f"with and without the library the logits of the test images differ by at most "
        f"{max(network.difference for network in networks):.1e} (norm-relative)",
        "latency": f"ResNet18 at {settings['image_size']}, random weights, float32, batch 1, "
        f"threads {settings['threads']}, interleaved rounds {settings['rounds']}, medians",
        "speedup": "median of the ratios within a round, so that drift of the machine cancels",
        "CPU": f"{machine['cpu']}, {machine['cores']} cores, instruction set {machine['isa']}",
        "versions": ", ".join(f"{name} {value}" for name, value in machine["versions"].items()),
    }
    return report.Report(rows, curves, masks, facts)


def _key(settings: Mapping[str, Any]) -> str:
    text = json.dumps({"semisparse": semisparse.__version__, **settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]
