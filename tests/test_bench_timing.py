"""Interleaved timing, on a clock that only the candidates advance."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semisparse.bench.timing import Quartiles, Timing, interleave, latency_clock, wait_until_idle


class Machine:
    """A clock, and candidates whose calls take a given time on a machine that drifts."""

    def __init__(self, drift: float = 1.0) -> None:
        self.now = 0.0
        self.drift = drift
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def candidate(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now += seconds * self.drift ** len(self.calls)

        return call


def timed(machine: Machine, seconds: dict[str, float], **options: int) -> Timing:
    candidates = {name: machine.candidate(name, value) for name, value in seconds.items()}
    return interleave(candidates, clock=machine.clock, settle=lambda: True, **options)


def test_latency_and_speedup_of_a_steady_machine_are_exact() -> None:
    timing = timed(Machine(), {"a": 0.030, "b": 0.060}, rounds=7)
    assert timing.latency("a").median == pytest.approx(0.030)
    assert timing.speedup("a", over="b").median == pytest.approx(2)
    assert timing.speedup("b", over="a").median == pytest.approx(0.5)
    assert timing.fastest(["a", "b"]) == "a"
    assert timing.unsettled == 0


def test_paired_ratios_survive_drift_that_spoils_the_latencies() -> None:
    timing = timed(Machine(drift=1.01), {"a": 0.030, "b": 0.060}, rounds=40)
    ends = timing.samples["a"]
    assert ends[-1] > 1.5 * ends[0]
    assert timing.speedup("a", over="b").median == pytest.approx(2, rel=0.05)


def test_short_calls_are_repeated_until_a_sample_is_long_enough() -> None:
    timing = timed(Machine(), {"short": 0.003, "long": 0.5}, rounds=2)
    assert timing.calls == {"short": 7, "long": 1}
    assert timing.latency("short").median == pytest.approx(0.003)


def test_every_round_has_each_candidate_once_in_an_order_that_changes_with_the_seed() -> None:
    def orders(seed: int) -> list[tuple[str, ...]]:
        machine = Machine()
        timed(machine, dict.fromkeys("abc", 1.0), rounds=12, warmup=1, seed=seed)
        runs = machine.calls[3:]
        assert runs[0::2] == runs[1::2], "an untimed call goes before each sample"
        turns = runs[0::2]
        return [tuple(turns[i : i + 3]) for i in range(0, len(turns), 3)]

    first = orders(seed=1)
    assert all(sorted(order) == ["a", "b", "c"] for order in first)
    assert len(set(first)) > 1
    assert orders(seed=1) == first
    assert orders(seed=2) != first


def test_progress_reaches_its_total() -> None:
    seen: list[tuple[int, int]] = []
    interleave(
        {"a": lambda: None, "b": lambda: None},
        rounds=2,
        warmup=1,
        settle=lambda: True,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_samples_that_began_beside_busy_threads_are_counted() -> None:
    timing = interleave({"a": lambda: None}, rounds=3, settle=lambda: False)
    assert timing.unsettled == 3


class Threads:
    """Another thread that uses `share` of a core until `rest`, and is booked tick by tick."""

    TICK = 0.004

    def __init__(self, share: float, rest: float = math.inf) -> None:
        self.now = 0.0
        self.share = share
        self.rest = rest

    def clock(self) -> float:
        return self.now

    def cpu_clock(self) -> float:
        used = self.share * min(self.now, self.rest)
        return self.TICK * math.floor(used / self.TICK + 1e-6)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def come_to_rest(self, limit: float = 1.0) -> bool:
        return wait_until_idle(limit, clock=self.clock, cpu_clock=self.cpu_clock, sleep=self.sleep)


def test_idle_threads_are_waited_for_once() -> None:
    for share in (0.0, 0.01):
        threads = Threads(share)
        assert threads.come_to_rest()
        assert threads.now < 0.02


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
def test_spinning_threads_are_waited_for_until_they_rest(share: float) -> None:
    threads = Threads(share, rest=0.2)
    assert threads.come_to_rest()
    assert 0.2 <= threads.now < 0.22


@pytest.mark.parametrize("share", [0.5, 1.0, 2.0])
def test_threads_that_spin_on_are_given_up_at_the_limit(share: float) -> None:
    threads = Threads(share)
    assert not threads.come_to_rest(limit=0.1)
    assert 0.1 <= threads.now < 0.12


def test_the_clock_of_the_process_counts_its_other_threads() -> None:
    def spin() -> None:
        while time.thread_time() < 0.05:
            pass

    spinning = threading.Thread(target=spin)
    start = time.process_time()
    spinning.start()
    spinning.join()
    assert time.process_time() - start >= 0.05


@pytest.mark.parametrize("options", [{"rounds": 0}, {"warmup": 0}])
def test_counts_below_one_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        interleave({"a": lambda: None}, **options)


def test_no_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one candidate"):
        interleave({})


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30))
def test_quartiles_are_ordered_and_the_middle_one_is_the_median(values: list[float]) -> None:
    quartiles = Quartiles.of(values)
    assert min(values) <= quartiles.low <= quartiles.median <= quartiles.high <= max(values)
    assert quartiles.median == pytest.approx(statistics.median(values))


def test_the_own_time_of_one_thread_has_no_waiting_in_it():
    for threads, waits in ((1, False), (2, True)):
        clock = latency_clock(threads)
        start = clock()
        time.sleep(0.05)
        assert (clock() - start >= 0.05) == waits
