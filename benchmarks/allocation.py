"""Tuned masks beside uniform ones and "block-last", at one latency and without training.

    python benchmarks/allocation.py runs/dense --data fashion-mnist

tunes a finished run, or a model by name with --weights, for each speedup, and looks for the
sparsity at which each other choice of layers is predicted to be as fast. All files of a speedup
then take turns in one process, and their accuracy is taken on the test split, before and after
recalibration of batch norm.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from semisparse.bench.peers.onnxruntime import runner, session_options
from semisparse.bench.timing import interleave
from semisparse.cli import trained
from semisparse.config import FILLS, SparsityConfig
from semisparse.export import export_onnx
from semisparse.runtime import InferenceSession
from semisparse.sparsifier import Sparsifier
from semisparse.training.calibrate import recalibrate, run
from semisparse.training.data import load
from semisparse.tune import latency, sensitivity
from semisparse.tune.cache import Cache
from semisparse.tune.search import Tuner
from semisparse.tune.table import LatencyTable

# Beside the tuned ones.
_MASKS = {
    "uniform": {},
    "block-last": {"only": ("block-last",)},
    "block-last, alternate": {"only": ("block-last",), "alternate": True},
}


def main() -> None:
    """Prints a line for each choice at each speedup."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--weights")
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--image-size", help="a number, or HEIGHTxWIDTH")
    parser.add_argument("--whole", action=argparse.BooleanOptionalAction)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--speedups", type=float, nargs="+", default=[1.1, 1.2, 1.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fill", default="nearest", choices=FILLS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--work", type=Path, default=Path("runs/allocation"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    model, images, source = trained.load(
        *(given.model, given.weights, given.num_classes, given.data, None, given.image_size),
        *(given.whole, given.images, 0.01),
        option="--data",
    )
    test = load(
        *(source.name, source.root, source.image_size),
        normalisation=source.normalisation,
        whole=source.whole,
    ).test
    count = min(len(test), given.test_images)
    held_out = torch.stack([test[index][0] for index in range(count)])
    labels = torch.from_numpy(test.source.labels[:count])
    dense = given.work / "dense.onnx"
    export_onnx(model, images[:1], dense)
    settings = latency.Settings(fill=given.fill, rounds=given.rounds)
    table = latency.measure(dense, settings, given.work / "latencies.json", _show)
    config = SparsityConfig(0.5, fill=table.fill)
    candidates = [(unit, o) for unit in table.units for o in unit.options if o.pays]
    cache = Cache(given.work / "sensitivities.json", sensitivity.key(model, images, config))
    costs = sensitivity.measure(model, images, candidates, config, cache, _show)
    tuner = Tuner(model, images, None, config, table, costs)
    print(f"dense: {_accuracy(model, held_out, labels):.2f}%", flush=True)
    for speedup in given.speedups:
        configs = {"tuned": tuner.at_latency(table.seconds / speedup).config}
        for (name, masks), block in itertools.product(_MASKS.items(), (1, "auto")):
            config = SparsityConfig(0.5, fill=table.fill, block=block, **masks)
            sparsity = _sparsity(model, images, table, config, speedup)
            if sparsity is not None:
                configs[f"{name}, block {block}"] = replace(config, sparsity=sparsity)
        _compare(speedup, dense, model, images, held_out, labels, configs, given)


def _sparsity(
    model: nn.Module, images: Tensor, table: LatencyTable, config: SparsityConfig, speedup: float
) -> float | None:
    """Of those layers alike, for that speedup by the table; None where it has none."""
    masked = sensitivity.maskable(model, images[:1], config)
    saved: dict[float, float] = {0.0: 0.0}
    for unit in table.units:
        own = [option for option in unit.options if masked.issuperset(option.layers)]
        side = max((o.block for o in own), default=1) if config.block == "auto" else config.block
        most = max((len(option.layers) for option in own), default=0)
        for option in own:
            if option.block == side and len(option.layers) == most:
                saved.setdefault(option.sparsity, 0.0)
                saved[option.sparsity] += option.saved * unit.seconds
    sparsities = sorted(saved)
    # What noise makes of a small gain must not go down.
    gains = np.maximum.accumulate([saved[sparsity] for sparsity in sparsities])
    needed = table.seconds * (1 - 1 / speedup)
    return float(np.interp(needed, gains, sparsities)) if needed <= gains[-1] else None


def _compare(
    speedup: float,
    dense: Path,
    model: nn.Module,
    images: Tensor,
    held_out: Tensor,
    labels: Tensor,
    configs: dict[str, SparsityConfig],
    given: argparse.Namespace,
) -> None:
    calls = {"dense": runner(_session(dense), images[:1].numpy())}
    accuracies: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, config in configs.items():
            accuracies[name] = []
            for seed in given.seeds:
                masked = copy.deepcopy(model)
                seeded = replace(config, seed=seed)
                Sparsifier(masked, images[:1], seeded, total_steps=1).freeze()
                before = _accuracy(masked, held_out, labels)
                recalibrate(masked, images)
                accuracies[name].append((before, _accuracy(masked, held_out, labels)))
            path = Path(folder, f"{name}.onnx")
            export_onnx(masked, images[:1], path)
            calls[name] = runner(_session(path), images[:1].numpy())
        timing = interleave(calls, given.rounds)
    for name, values in accuracies.items():
        measured = timing.speedup(name, over="dense")
        states = [
            f"{statistics.fmean(state):.2f} ({min(state):.2f} to {max(state):.2f})"
            for state in zip(*values, strict=True)
        ]
        print(
            f"{speedup:g} {name} {configs[name].sparsity:.3f}: measured {measured.median:.3f} "
            f"({measured.low:.3f} to {measured.high:.3f}), untouched {states[0]}, "
            f"recalibrated {states[1]}",
            flush=True,
        )


def _session(path: Path) -> InferenceSession:
    return InferenceSession(path, sess_options=session_options(1))


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100 * float((run(model, images).argmax(1) == labels).double().mean())


def _show(done: int, total: int) -> None:
    print(f"{done} of {total}", end="\r", flush=True)


if __name__ == "__main__":
    main()
