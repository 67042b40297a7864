"""Exported files timed against one another, as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from semisparse.bench.peers.onnxruntime import runner, session_options
from semisparse.bench.timing import Timing, interleave, latency_clock
from semisparse.feeds import random_feeds
from semisparse.runtime import InferenceSession


def time_files(
    paths: Mapping[str, Path],
    threads: int,
    rounds: int,
    progress: Callable[[int, int], object] | None = None,
) -> Timing:
    """Samples of every file, by name, each on a random image of its own size, taking turns.

    `rounds` and `progress` as `timing.interleave`. Raises `FileFormatError` for a file that does
    not load.
    """
    candidates = {}
    for name, path in paths.items():
        session = InferenceSession(path, sess_options=session_options(threads))
        (image,) = random_feeds(session, seed=0).values()
        candidates[name] = runner(session, image)
    return interleave(candidates, rounds, progress=progress, clock=latency_clock(threads))
