"""The whole benchmark: models times thread counts, and what is asked about them besides."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semisparse.bench import layers, machine, memory
from semisparse.bench.compare import Run, compare
from semisparse.bench.models import prepare
from semisparse.bench.peers import PEERS
from semisparse.config import FILLS
from semisparse.errors import ConfigError
from semisparse.image_size import AnySize, ImageSize

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Settings:
    """What to time.

    Attributes:
        models: names or paths, as `models.prepare` takes them.
        sparsities, fills, blocks, chains, skip, only, alternate, region, image_size: likewise; they
            do not concern exported files.
        threads: one interleaved run for each.
        peers: names of `peers.PEERS`.
        rounds: samples of each candidate in a run.
        warmup: calls of each candidate before them.
        layers: profile every variant layer by layer.
        memory: measure sessions in fresh processes.

    Raises:
        ConfigError: a value is unknown or out of range, or a list is empty.
    """

    models: tuple[str, ...]
    sparsities: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5)
    fills: tuple[str, ...] = ("bias", "nearest")
    blocks: tuple[int | str, ...] = (1,)
    chains: tuple[str, ...] = ("fused",)
    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    alternate: bool = False
    region: tuple[str, ...] = ()
    image_size: AnySize = 224
    threads: tuple[int, ...] = (1, 2)
    peers: tuple[str, ...] = ("onnxruntime", "openvino", "xnnpack", "ncnn")
    rounds: int = 20
    warmup: int = 3
    layers: bool = False
    memory: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", ImageSize.of(self.image_size).plain)
        if unknown := [name for name in self.peers if name not in PEERS]:
            raise ConfigError(f"There is no peer {unknown[0]!r}; known are {', '.join(PEERS)}.")
        if unknown := [fill for fill in self.fills if fill not in FILLS]:
            raise ConfigError(f"There is no fill {unknown[0]!r}; known are {', '.join(FILLS)}.")
        if unknown := [kind for kind in self.chains if kind not in ("fused", "separate")]:
            raise ConfigError(
                f"There is no kind of chains {unknown[0]!r}; known are fused and separate."
            )
        for what in ("models", "sparsities", "fills", "blocks", "chains", "threads"):
            values = getattr(self, what)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"{what} is {list(values)}; give one or more different values.")
        for what, counts in (
            ("blocks", [side for side in self.blocks if isinstance(side, int)]),
            ("threads", self.threads),
            ("rounds", (self.rounds,)),
            ("warmup", (self.warmup,)),
        ):
            if min(counts, default=1) < 1:
                raise ConfigError(f"{what} is {min(counts)}; give 1 or more.")


@dataclass(frozen=True)
class ModelResult:
    """Everything about one model.

    Attributes:
        input_shape: [1, C, H, W].
        flops: of the dense model, on one image.
        runs: one for each number of threads.
    """

    name: str
    input_shape: tuple[int, ...]
    flops: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Results:
    """A benchmark, as `to_dict` writes it to JSON.

    The JSON has the fields of these classes by their names (`Settings`, `ModelResult`,
    `compare.Run` and `compare.Row`, `machine.Peak`, `timing.Quartiles`, `layers.LayerTime`,
    `memory.Footprint`; their docstrings are its schema) and `version`, 2. Times are in seconds,
    memory in bytes, work in operations. Every sample is in it, in the order of the rounds.

    Attributes:
        date: when it began, ISO 8601 in UTC.
        machine: of `machine.describe`.
        peer_versions: by peer asked for, the versions of its packages.
    """

    date: str
    settings: Settings
    machine: dict[str, Any]
    peer_versions: dict[str, dict[str, str]]
    models: tuple[ModelResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"version": FORMAT_VERSION, **dataclasses.asdict(self)}


class Progress:
    """Told what the harness does; this one tells nobody else.

    It must use no CPU between its calls, as it would disturb what is timed.
    """

    def stage(self, what: str) -> None:
        """A new stage begins."""

    def sampled(self, done: int, total: int) -> None:
        """Samples taken of those of the stage."""


def run(
    settings: Settings,
    cache: Path,
    progress: Progress | None = None,
    finished: Callable[[Results], object] = lambda results: None,
) -> Results:
    """Runs the benchmark.

    Args:
        settings: what to time.
        cache: folder that keeps exported and converted files.
        progress: told what goes on.
        finished: called after each model with the results up to and including it.

    Raises:
        SemisparseError: a setting, a model or the installation is not fit to be timed.
    """
    results = Results(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        settings=settings,
        machine=machine.describe(),
        peer_versions={name: PEERS[name].versions() for name in settings.peers},
        models=(),
    )
    for name in settings.models:
        result = _run_model(name, settings, cache, progress or Progress())
        results = dataclasses.replace(results, models=(*results.models, result))
        finished(results)
    return results


def _run_model(name: str, settings: Settings, cache: Path, progress: Progress) -> ModelResult:
    model = prepare(
        name,
        cache,
        sparsities=settings.sparsities,
        fills=settings.fills,
        blocks=settings.blocks,
        chains=settings.chains,
        skip=settings.skip,
        only=settings.only,
        alternate=settings.alternate,
        region=settings.region,
        image_size=settings.image_size,
        progress=progress.stage,
    )
    peers = [PEERS[peer] for peer in settings.peers]
    runs = []
    for threads in settings.threads:
        label = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
        progress.stage(f"timing {label}")
        run = compare(
            model,
            peers,
            threads,
            rounds=settings.rounds,
            warmup=settings.warmup,
            progress=progress.sampled,
        )
        if settings.layers:
            progress.stage(f"profiling {label}")
            profiles = {
                variant.name: layers.profile(model, variant, threads, rounds=settings.rounds)
                for variant in model.variants
            }
            run = dataclasses.replace(run, layers=profiles)
        if settings.memory:
            progress.stage(f"measuring memory of {label}")
            run = dataclasses.replace(
                run, memory=memory.measure(model, threads, repeats=min(5, settings.rounds))
            )
        runs.append(run)
    return ModelResult(name, model.x.shape, model.work.flops, tuple(runs))
