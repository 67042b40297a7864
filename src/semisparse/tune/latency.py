"""What masks save in each layer, measured where the model is to run. Imports no torch."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from semisparse import ops
from semisparse.bench import machine
from semisparse.bench.layers import node_samples
from semisparse.bench.peers.onnxruntime import runner, session_options
from semisparse.bench.timing import interleave, latency_clock
from semisparse.bench.work import Layer, read
from semisparse.config import FILLS
from semisparse.errors import ConfigError, LibraryError
from semisparse.feeds import random_feeds
from semisparse.runtime import InferenceSession
from semisparse.tune.cache import Cache
from semisparse.tune.table import FORMAT_VERSION, LatencyTable, Option, Unit
from semisparse.tune.variants import Place, can_mask, places, put_masks

# Samples that a mean and its error are of.
_FEWEST = 4
# What the profiler counts in.
_MICROSECOND = 1e-6
# Mean noise of the shares beyond which more samples are taken, and how often. On a busy machine, at
# a noise of 0.07, a sparsity of 0.75 seemed to save less than 0.625.
_QUIET = 0.02
_TRIES = 5
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        sparsities: to choose from, each in (0, 1).
        fill: of masked positions, "nearest", "bias" or "mean".
        block: side of the squares that are masked as a whole, or "auto" for a choice.
        threads: of the session.
        rounds: samples of each layer at each sparsity.

    Raises:
        ConfigError: a value is out of range.
    """

    sparsities: tuple[float, ...] = SPARSITIES
    fill: str = "nearest"
    block: int | str = "auto"
    threads: int = 1
    rounds: int = 30

    def __post_init__(self) -> None:
        if not self.sparsities or not all(0 < value < 1 for value in self.sparsities):
            raise ConfigError(
                f"The sparsities are {list(self.sparsities)}; give some between 0 and 1."
            )
        if self.fill not in FILLS:
            raise ConfigError(f"There is no fill {self.fill!r}; known are {', '.join(FILLS)}.")
        if self.block != "auto" and (not isinstance(self.block, int) or self.block < 1):
            raise ConfigError(f"The block is {self.block!r}; give auto, or a side from 1.")
        if self.threads < 1 or self.rounds < 4:
            raise ConfigError(
                f"threads is {self.threads} and rounds is {self.rounds}; give 1 or more threads "
                "and 4 or more rounds."
            )


def measure(
    path: Path,
    settings: Settings,
    cache: Path,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> LatencyTable:
    """Times each convolution of a file dense and at each sparsity.

    All convolutions of a copy of the file are masked alike, and the copy and the file take turns
    under ONNX Runtime's profiler: so a layer finds the caches as in use, its weights in memory,
    and its two times come from the same moment. Layers that one mask spares are timed together
    with the one that has it.

    Args:
        path: an exported model without masks, of one input.
        settings: how.
        cache: a file that keeps what is measured, so that an interrupted measurement goes on.
        progress: called with (steps done, steps in all).

    Raises:
        ConfigError: the model has several inputs.
        FileFormatError: the file is damaged, has masks, or was not exported by semisparse.
        LibraryError: the installation is not well, or the library does not serve the file.
        MissingExtraError: onnx is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        meter = _Meter(path, settings, Path(folder))
        model = read(path)
        found = places(model, settings.block)
        described = machine.describe()
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        conditions = [settings.fill, settings.block, settings.threads, settings.rounds]
        key = {"file": digest, "settings": conditions, "cpu": described["cpu"]}
        known = Cache(cache, {"version": FORMAT_VERSION, **key})
        steps = [
            (index, sparsity)
            for index in range(max(len(place.choices) for place in found))
            for sparsity in settings.sparsities
        ]
        if "dense" not in known:
            known["dense"] = meter.dense(found)
        for done, (index, sparsity) in enumerate(steps):
            progress(done, len(steps))
            name = f"{index} {sparsity:g}"
            if name in known:
                continue
            masked = {
                place: place.choices[index]
                for place in found
                if index < len(place.choices) and can_mask(place, place.choices[index], sparsity)
            }
            copy = put_masks(model, masked, sparsity, settings.fill)
            known[name] = meter.saved(copy, masked, known["dense"][1])
    progress(len(steps), len(steps))
    total, _, seconds = known["dense"]
    units = tuple(
        _unit(place, seconds[_name(place)], [(i, s, known[f"{i} {s:g}"]) for i, s in steps])
        for place in found
    )
    return LatencyTable(
        described,
        settings.threads,
        settings.fill,
        settings.block,
        meter.input_shape,
        total,
        units,
    )


def check_fits(table: LatencyTable, source: Path, path: Path) -> None:
    """Whether a table, from the file `source`, is of the model in the file `path`.

    Raises:
        ConfigError: it is of another one, or of another input size.
        FileFormatError: as `measure`.
    """
    here = [_signature(place.layers) for place in places(read(path), table.block)]
    there = [tuple(zip(u.layers, u.weights, u.planes, strict=True)) for u in table.units]
    for ours, theirs in zip_longest(here, there, fillvalue=()):
        if ours != theirs:
            raise ConfigError(
                f"{source} is not of this model: it has {theirs or 'no layer'} where the model has "
                f"{ours or 'no layer'}; measure this model, at the same image size."
            )


def _signature(layers: Sequence[Layer]) -> tuple[tuple[str, tuple[int, ...], tuple[int, int]], ...]:
    return tuple((layer.name, layer.weights, layer.plane) for layer in layers)


def _unit(
    place: Place, seconds: float, steps: Iterable[tuple[int, float, dict[str, list[float]]]]
) -> Unit:
    return Unit(
        layers=tuple(layer.name for layer in place.layers),
        weights=tuple(layer.weights for layer in place.layers),
        planes=tuple(layer.plane for layer in place.layers),
        seconds=seconds,
        options=tuple(
            Option(*place.choices[index], sparsity, *saved[_name(place)])
            for index, sparsity, saved in steps
            if _name(place) in saved
        ),
    )


def _name(place: Place) -> str:
    return ops.STAGE_SEPARATOR.join(place.nodes)


class _Meter:
    """Times places of a file's copies beside those of the file."""

    def __init__(self, path: Path, settings: Settings, folder: Path) -> None:
        self._path, self._settings, self._folder = path, settings, folder
        session = self._session(path, profiled=False)
        # What the values are does not change the time.
        feeds = list(random_feeds(session, 0).values())
        if len(feeds) != 1:
            raise ConfigError(
                f"{path} has {len(feeds)} inputs; only models of one input can be tuned."
            )
        self._x = feeds[0]
        self.input_shape = tuple(self._x.shape)

    def dense(self, places: Collection[Place]) -> tuple[float, float, dict[str, float]]:
        """Seconds of the file, of what the profiler adds to a node, and of the places by name."""
        totals: list[float] = []
        nodes: dict[str, list[float]] = defaultdict(list)
        for tries in range(1, _TRIES + 1):
            plain, profiled = (self._session(self._path, profiled=flag) for flag in (False, True))
            timing = interleave(
                {"plain": runner(plain, self._x), "profiled": runner(profiled, self._x)},
                self._settings.rounds,
                min_seconds=0.0,
                # By the wall's clock a busy machine interrupts the whole model far more often than
                # any node: 32 ms where the nodes took 11.6, so no masks seemed to be worth anything.
                clock=latency_clock(self._settings.threads),
            )
            totals += timing.samples["plain"]
            for name, calls in self._all_rounds(profiled).items():
                nodes[name] += calls
            total, error = _undisturbed(np.array(totals), tries)
            if error < _QUIET / 4 * total:
                break
        every = {name: _undisturbed(np.array(calls), tries)[0] for name, calls in nodes.items()}
        # Nodes cannot take longer than the model. Of small ones it is a large part: 2.5 us of each
        # node, and so of 25 of 450, for which masks seemed to save a twentieth less than they do.
        added = max(0.0, sum(every.values()) - total) / len(every)
        samples = self._samples(nodes, places)
        seconds = {name: _undisturbed(calls, tries)[0] for name, calls in samples.items()}
        return (
            total,
            added,
            {_name(p): max(seconds[_name(p)] - added * len(p.nodes), _MICROSECOND) for p in places},
        )

    def saved(
        self, copy: onnx.ModelProto, places: Collection[Place], added: float
    ) -> dict[str, tuple[float, float]]:
        """By place, the share of its time that the masks of the copy save, and its noise.

        What the profiler adds to each node is in the time with masks and in that without.
        """
        path = self._folder / "masked.onnx"
        path.write_bytes(copy.SerializeToString())
        before: list[dict[str, NDArray[np.float64]]] = []
        after: list[dict[str, NDArray[np.float64]]] = []
        for _ in range(_TRIES):
            dense, masked = (self._session(file, profiled=True) for file in (self._path, path))
            interleave(
                {"dense": runner(dense, self._x), "masked": runner(masked, self._x)},
                self._settings.rounds,
                min_seconds=0.0,
            )
            before.append(self._samples(self._all_rounds(dense), places))
            after.append(self._samples(self._all_rounds(masked), places))
            result = {_name(p): self._share(p, before, after, added) for p in places}
            if sum(noise for _, noise in result.values()) < _QUIET * len(result):
                break
        return result

    def _share(
        self,
        place: Place,
        before: Sequence[Mapping[str, NDArray[np.float64]]],
        after: Sequence[Mapping[str, NDArray[np.float64]]],
        added: float,
    ) -> tuple[float, float]:
        (whole, error), (left, other) = (
            _undisturbed(np.concatenate([each[_name(place)] for each in samples]), len(samples))
            for samples in (before, after)
        )
        own = max(whole - added * len(place.nodes), _MICROSECOND)
        return (whole - left) / own, math.hypot(error, other) / own

    def _session(self, path: Path, *, profiled: bool) -> InferenceSession:
        options = session_options(self._settings.threads)
        options.enable_profiling = profiled
        options.profile_file_prefix = str(self._folder / "profile")
        return InferenceSession(path, sess_options=options)

    def _samples(
        self, samples: Mapping[str, Sequence[float]], places: Collection[Place]
    ) -> dict[str, NDArray[np.float64]]:
        """Seconds of each place from those of its nodes."""
        result = {}
        for place in places:
            if missing := [name for name in place.nodes if name not in samples]:
                raise LibraryError(
                    f"ONNX Runtime runs {missing[0]} of {self._path} by its portable body, because "
                    "the operator library does not know it; reinstall semisparse, or export again."
                )
            result[_name(place)] = np.array([samples[name] for name in place.nodes]).sum(0)
        return result

    def _all_rounds(self, session: InferenceSession) -> dict[str, list[float]]:
        """Seconds of each node in the rounds, without the call that precedes each sample."""
        last = 2 * self._settings.rounds
        return {name: calls[-last:][1::2] for name, calls in node_samples(session).items()}


def _undisturbed(samples: NDArray[np.float64], tries: int = 1) -> tuple[float, float]:
    """Mean of the fastest quarter of the samples, or of four, and its standard error.

    Of samples of several tries, as many as of one.

    Other programs only ever make a sample longer. On a core that three others wanted too, the
    shares that masks save in 18 nodes were off by 0.02 to 0.04 in this way, by 0.04, 0.3 and 1.0
    with the mean of the middle half of the paired differences. The profiler counts whole
    microseconds, of which a mean tells parts and a quantile does not.
    """
    fastest = np.sort(samples)[: max(_FEWEST, len(samples) // tries // 4)]
    spread = max(float(fastest[-1] - fastest[0]), _MICROSECOND)
    return max(float(fastest.mean()), _MICROSECOND), spread / len(fastest) ** 0.5
