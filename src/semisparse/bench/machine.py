"""The machine that the figures are from, and how fast it could be at best."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semisparse import native
from semisparse.doctor import diagnose
from semisparse.errors import LibraryError

_COPY_BYTES = 64 << 20  # beyond the last-level cache of one core on most machines
_SECONDS = 0.1
_TRIALS = 3


@dataclass(frozen=True)
class Peak:
    """What the machine can do at a number of threads.

    Attributes:
        threads: measured at once.
        flops: FLOP/s of fused multiply-adds from registers, an FMA being two.
        copy: bytes/s of copying from memory to memory, read plus written.
    """

    threads: int
    flops: float
    copy: float


def describe() -> dict[str, Any]:
    """CPU, versions, instruction set and kernels, in plain values.

    Raises:
        LibraryError: the installation is not well, so its speed would say nothing.
    """
    found = diagnose()
    if not found.healthy:
        raise LibraryError(found.problems[0])
    return {
        "cpu": found.cpu,
        "cores": len(os.sched_getaffinity(0)),
        "governor": _governor(),
        "versions": found.versions,
        "isa": found.isa,
        "kernels": [name for name, usable in found.kernels.items() if usable],
    }


def measure_peak(threads: int) -> Peak:
    """Measures the peaks on `threads` threads at once; takes about half a second.

    Raises:
        LibraryError: the operator library is missing.
    """
    isa = native.isa()
    with ThreadPoolExecutor(threads) as pool:

        def total(measure: Callable[..., float], *arguments: object) -> float:
            # The best of several: a neighbour's burst lowers a measurement, nothing raises it.
            return max(
                sum(
                    future.result()
                    for future in [pool.submit(measure, *arguments) for _ in range(threads)]
                )
                for _ in range(_TRIALS)
            )

        return Peak(
            threads,
            total(native.measure_fma, isa, _SECONDS),
            total(native.measure_copy, _COPY_BYTES, _SECONDS),
        )


def _governor() -> str | None:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        return path.read_text().strip()
    except OSError:  # virtual machines and containers do not show it
        return None
