"""One interleaved run: our files and the peers on one model at one number of threads."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from semisparse.bench.layers import LayerTime
from semisparse.bench.machine import Peak, measure_peak
from semisparse.bench.memory import Footprint
from semisparse.bench.models import Floats, Model, Variant
from semisparse.bench.peers import Peer
from semisparse.bench.peers.onnxruntime import runner, session_options
from semisparse.bench.timing import Quartiles, Timing, interleave
from semisparse.errors import ExportError
from semisparse.runtime import InferenceSession

# Float32 engines differ from torch by 1e-6 or less, also with Winograd's transforms; bfloat16 by
# 4e-3 and float16 by 5e-4. So this tells an engine that computes something else.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Row:
    """A candidate's figures.

    Attributes:
        name: unique in the run.
        sparsity, fill, block, chains: of ours, as in `models.Variant`; None for a peer.
        error: norm-relative difference of the output from torch's.
        flops: operations on one image, masked positions left out.
        limit: dense operations over these operations; 1 / (1 - sparsity) if all of the model is
            masked alike.
        calls: how many calls a sample is the mean of.
        cores: cores' worth of CPU time that it used.
        samples: seconds of one call, one in each round.
        latency: their quartiles.
        speedup: by dense peer, quartiles of the paired ratios: how many times faster this is.
    """

    name: str
    sparsity: float | None
    fill: str | None
    block: int | str | None
    chains: str | None
    error: float
    flops: int
    limit: float
    calls: int
    cores: float
    samples: tuple[float, ...]
    latency: Quartiles
    speedup: dict[str, Quartiles]


@dataclass(frozen=True)
class Run:
    """A model at a number of threads.

    Attributes:
        peak: of the machine, measured just before.
        rows: the peers, then ours.
        missing: by peer asked for that was not timed, the reason.
        fastest_peer: the dense peer with the lowest median; None if there is none.
        unsettled: samples taken while threads of an earlier candidate were still busy.
        layers: by variant, if asked for.
        memory: of the sessions, if asked for.
    """

    threads: int
    peak: Peak
    rows: tuple[Row, ...]
    missing: dict[str, str]
    fastest_peer: str | None
    unsettled: int
    layers: dict[str, tuple[LayerTime, ...]] = field(default_factory=dict)
    memory: tuple[Footprint, ...] = ()


def compare(
    model: Model,
    peers: Sequence[Peer],
    threads: int,
    *,
    rounds: int,
    warmup: int,
    progress: Callable[[int, int], object] | None = None,
) -> Run:
    """Loads everything with `threads` threads, checks the outputs, and times it interleaved.

    A peer that is not installed, cannot run the model, or gives another output is in `missing`.
    Every engine keeps its own way of spinning, and what it loaded is gone before the next run.

    Raises:
        ExportError: one of our own files gives another output than torch.
    """
    candidates: dict[str, Callable[[], Floats]] = {}
    errors: dict[str, float] = {}
    missing: dict[str, str] = {}
    for peer in peers:
        try:
            candidates[peer.name], errors[peer.name] = _load_peer(peer, model, threads)
        except _UnfitError as reason:
            missing[peer.name] = str(reason)
    for variant in model.variants:
        candidates[variant.name] = _load(variant, model, threads)
        errors[variant.name] = _difference(candidates[variant.name](), variant.expected)
        if not errors[variant.name] <= TOLERANCE:
            raise ExportError(
                f"{variant.path} differs from torch by {errors[variant.name]:.1e} (norm-relative), "
                f"more than {TOLERANCE:.0e}; run semisparse check on it."
            )
    peak = measure_peak(threads)
    timing = interleave(candidates, rounds, warmup, progress=progress)
    dense = [peer.name for peer in peers if peer.name in candidates]
    run = Run(
        threads=threads,
        peak=peak,
        rows=tuple(_row(name, model, errors[name], timing, dense) for name in candidates),
        missing=missing,
        fastest_peer=timing.fastest(dense) if dense else None,
        unsettled=timing.unsettled,
    )
    candidates.clear()
    gc.collect()
    return run


class _UnfitError(Exception):
    """Why a peer is not timed."""


def _load_peer(peer: Peer, model: Model, threads: int) -> tuple[Callable[[], Floats], float]:
    if absent := peer.missing():
        raise _UnfitError(f"not installed: {', '.join(absent)}")
    try:
        with _silence():
            run = peer.load(model, threads)
            error = _difference(run(), model.expected)
    # An engine raises whatever it likes; one that fails must not take the others with it.
    except Exception as failure:
        raise _UnfitError(f"cannot run it: {failure}") from failure
    if not error <= TOLERANCE:
        raise _UnfitError(f"its output differs from torch's by {error:.1e}, norm-relative")
    return run, error


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps what engines write to standard error, from C++ too, away from the progress bar."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _load(variant: Variant, model: Model, threads: int) -> Callable[[], Floats]:
    return runner(InferenceSession(variant.path, sess_options=session_options(threads)), model.x)


def _difference(output: Floats, expected: Floats) -> float:
    truth = expected.astype(np.float64)
    return float(np.linalg.norm((output - truth).ravel()) / np.linalg.norm(truth.ravel()))


def _row(name: str, model: Model, error: float, timing: Timing, dense: Sequence[str]) -> Row:
    variant = next((variant for variant in model.variants if variant.name == name), None)
    flops = (variant or model).work.flops
    return Row(
        name=name,
        sparsity=variant.sparsity if variant else None,
        fill=variant.fill if variant else None,
        block=variant.block if variant else None,
        chains=variant.chains if variant else None,
        error=error,
        flops=flops,
        limit=model.work.flops / flops,
        calls=timing.calls[name],
        cores=timing.cores[name],
        samples=timing.samples[name],
        latency=timing.latency(name),
        speedup={peer: timing.speedup(name, over=peer) for peer in dense},
    )
