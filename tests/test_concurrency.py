"""Sessions of whole networks, run from several threads at once, against the same runs in turn."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import semisparse
from semisparse.training.models import create

WORKERS = 4
REPEATS = 20
KINDS = {
    "bias": {"fill": "bias"},
    "nearest": {"fill": "nearest"},
    "mean": {"fill": "mean"},
    "blocks": {"block": 4},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A masked residual network with random weights, once for each kind of mask."""
    folder = tmp_path_factory.mktemp("exported")
    example = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    files = {}
    for kind, options in KINDS.items():
        torch.manual_seed(0)
        model = create("semisparse/resnet8", 10).eval()
        config = semisparse.SparsityConfig(0.3, **options)
        semisparse.Sparsifier(model, example, config, total_steps=1).freeze()
        files[kind] = folder / f"{kind}.onnx"
        semisparse.export_onnx(model, example, files[kind])
    return files


def images(worker: int) -> np.ndarray:
    """Other values and another batch for each worker, so that no two need the same memory."""
    return (
        np.random.default_rng(worker)
        .standard_normal((1 + worker % 3, 3, 32, 32))
        .astype(np.float32)
    )


def at_once(sessions: list[semisparse.InferenceSession]) -> None:
    """Worker i runs session i on images of its own, all at the same time, to the bit as alone."""
    alone = [session.run(None, {"input": images(i)})[0] for i, session in enumerate(sessions)]
    together = threading.Barrier(len(sessions))

    def work(worker: int) -> list[np.ndarray]:
        x = images(worker)
        together.wait(timeout=60)
        return [sessions[worker].run(None, {"input": x})[0] for _ in range(REPEATS)]

    with ThreadPoolExecutor(len(sessions)) as pool:
        for expected, outputs in zip(alone, pool.map(work, range(len(sessions))), strict=True):
            for output in outputs:
                np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_compared_with_is_right(kind: str, exported: dict[str, Path]) -> None:
    x = images(2)
    ours, portable = (
        semisparse.InferenceSession(exported[kind], library=library).run(None, {"input": x})[0]
        for library in (True, False)
    )
    np.testing.assert_allclose(ours, portable, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_one_session_serves_several_threads(
    kind: str, threads: int, exported: dict[str, Path]
) -> None:
    session = semisparse.InferenceSession(exported[kind], threads=threads)
    at_once([session] * WORKERS)


@pytest.mark.parametrize("threads", [1, 2])
def test_several_sessions_run_side_by_side(threads: int, exported: dict[str, Path]) -> None:
    at_once(
        [
            semisparse.InferenceSession(path, threads=threads)
            for path in exported.values()
            for _ in range(2)
        ]
    )


def test_sessions_come_and_go_beside_one_that_runs(exported: dict[str, Path]) -> None:
    session = semisparse.InferenceSession(exported["nearest"], threads=2)
    x = images(0)
    (expected,) = session.run(None, {"input": x})

    def come_and_go(kind: str) -> list[np.ndarray]:
        return [
            semisparse.InferenceSession(exported[kind], threads=1).run(None, {"input": x})[0]
            for _ in range(5)
        ]

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(come_and_go, kind) for kind in ("nearest", "bias")]
        while not all(other.done() for other in others):
            np.testing.assert_array_equal(session.run(None, {"input": x})[0], expected)
    for output in others[0].result():
        np.testing.assert_array_equal(output, expected)
    first, *rest = others[1].result()
    for output in rest:
        np.testing.assert_array_equal(output, first)
    assert not np.array_equal(first, expected)
