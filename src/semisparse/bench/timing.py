"""Interleaved timing: candidates take turns, and are compared round by round.

A machine's speed drifts (frequency, neighbours, heat) by more than the differences that matter
here. In every round each candidate gives one sample, so the two samples of a round saw the same
machine; their ratio is free of the drift, and the median over the rounds is free of outliers.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

# CPU time of another thread is booked at the kernel's tick, 4 ms or less on Linux, so a shorter
# look would take a busy thread for an idle one.
_LOOK_SECONDS = 0.008
_BUSY_SHARE = 0.2
# A call keeps at least one core busy, unless it waits for one.
BUSY_CORES = 0.95


@dataclass(frozen=True)
class Quartiles:
    """Lower quartile, median and upper quartile, in the unit of the samples."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Quartiles:
        """Quartiles of the values, interpolated linearly between them; one value is all three."""
        ordered = sorted(values)
        if len(ordered) == 1:
            return cls(ordered[0], ordered[0], ordered[0])
        low, median, high = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(low, median, high)


@dataclass(frozen=True)
class Timing:
    """Samples of one interleaved run.

    Attributes:
        samples: by candidate, the seconds of one call in each round, in the order of the rounds.
        calls: by candidate, how many calls one sample is the mean of.
        cores: by candidate, the median CPU seconds of this process per second of its samples: how
            many cores it really used.
        unsettled: samples taken while threads of an earlier candidate were still busy.
    """

    samples: Mapping[str, tuple[float, ...]]
    calls: Mapping[str, int]
    cores: Mapping[str, float]
    unsettled: int = 0

    def latency(self, name: str) -> Quartiles:
        """Seconds of one call."""
        return Quartiles.of(self.samples[name])

    def speedup(self, name: str, over: str) -> Quartiles:
        """How many times faster `name` is than `over`: quartiles of the paired ratios."""
        pairs = zip(self.samples[over], self.samples[name], strict=True)
        return Quartiles.of(baseline / own for baseline, own in pairs)

    @property
    def disturbed(self) -> bool:
        """Whether other processes took CPU time from a candidate."""
        return any(cores < BUSY_CORES for cores in self.cores.values())

    def fastest(self, names: Iterable[str]) -> str:
        """The one of the names with the lowest median latency."""
        return min(names, key=lambda name: self.latency(name).median)


def latency_clock(threads: int) -> Callable[[], float]:
    """What to time calls of an engine by that computes on so many threads.

    The own time of one thread is its latency on a free core, whatever else the machine does. What
    several threads wait for one another shows on the wall's clock only.
    """
    return time.thread_time if threads == 1 else time.perf_counter


def wait_until_idle(
    limit: float = 1.0,
    *,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
    sleep: Callable[[float], object] = time.sleep,
) -> bool:
    """Sleeps until the other threads of this process use no CPU; False if they still do at limit.

    Engines let their worker threads spin for a while after a call (OpenMP runtimes for up to
    200 ms), which takes the cores from whoever is timed next. Waiting costs no engine its own
    setting, where turning spinning off would slow some and not others.
    """
    deadline = clock() + limit
    while clock() < deadline:
        cpu, wall = cpu_clock(), clock()
        sleep(_LOOK_SECONDS)
        if cpu_clock() - cpu < _BUSY_SHARE * (clock() - wall):
            return True
    return False


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 20,
    warmup: int = 3,
    *,
    min_seconds: float = 0.02,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
    settle: Callable[[], bool] = wait_until_idle,
) -> Timing:
    """Times the candidates in turns: one sample of each in every round, in random order.

    A sample is the mean of as many calls as `min_seconds` takes, so that the clock and the
    interpreter do not count. Before each sample the threads of the others come to rest (`settle`)
    and one call is made that is not timed: the others have just emptied the caches, and latency
    in steady state is what is asked.

    Args:
        candidates: name -> function without arguments that makes one call.
        rounds: samples of each candidate.
        warmup: calls of each candidate before the first round; the fastest one tells how many
            calls make a sample.
        min_seconds: length of a sample, at least.
        seed: of the random orders.
        progress: called with (samples taken, samples in all).
        clock: seconds, of wall time or by `latency_clock`.
        cpu_clock: seconds of CPU time of the process.
        settle: called before each sample; False if the machine did not come to rest.

    Raises:
        ValueError: there is no candidate, or rounds or warmup is below 1.
    """
    if not candidates:
        raise ValueError("interleave needs at least one candidate, got none")
    if rounds < 1 or warmup < 1:
        raise ValueError(f"rounds and warmup must be 1 or more, got {rounds} and {warmup}")

    def timed(call: Callable[[], object], times: int) -> tuple[float, float]:
        cpu, start = cpu_clock(), clock()
        for _ in range(times):
            call()
        wall = clock() - start
        return wall / times, (cpu_clock() - cpu) / wall if wall > 0 else 0.0

    calls = {}
    for name, call in candidates.items():
        settle()
        best = min(timed(call, 1)[0] for _ in range(warmup))
        calls[name] = max(1, math.ceil(min_seconds / best)) if best > 0 else 1

    order = list(candidates)
    shuffle = random.Random(seed).shuffle
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    unsettled = 0
    for done in range(rounds):
        shuffle(order)
        for place, name in enumerate(order):
            unsettled += not settle()
            candidates[name]()
            taken[name].append(timed(candidates[name], calls[name]))
            if progress is not None:
                progress(done * len(order) + place + 1, rounds * len(order))
    return Timing(
        samples={name: tuple(wall for wall, _ in pairs) for name, pairs in taken.items()},
        calls=calls,
        cores={
            name: statistics.median(cores for _, cores in pairs) for name, pairs in taken.items()
        },
        unsettled=unsettled,
    )
