"""Latencies of networks as all benchmarks of accuracy have them: one image, one thread."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import onnxruntime
import torch
from torch import Tensor, nn

from semisparse.bench.peers.onnxruntime import runner, session_options
from semisparse.bench.timing import interleave
from semisparse.export import export_onnx
from semisparse.files import writing
from semisparse.layers import masked_layers
from semisparse.runtime import InferenceSession


class Latency(NamedTuple):
    """Seconds in our runtime and, of a network without masks, in stock ONNX Runtime."""

    ours: float
    stock: float | None

    @property
    def least(self) -> float:
        """In the faster engine."""
        return self.ours if self.stock is None else min(self)


def export(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network for `measure`; without masks in standard operators too, beside it."""
    if not masked_layers(model):
        with warnings.catch_warnings(), writing(_stock(path)) as draft:
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (example,), draft, dynamo=True, verbose=False, external_data=False
            )
    export_onnx(model, example, path)


def measure(
    networks: Mapping[str, tuple[Path, Tensor]], rounds: int, min_seconds: float = 0.002
) -> dict[str, Latency]:
    """Of exported networks, each with an image, all in turns."""
    calls: dict[str, Callable[[], object]] = {}
    for name, (path, example) in networks.items():
        image = example.numpy()
        calls[name] = runner(InferenceSession(path, sess_options=session_options(1)), image)
        if _stock(path).exists():
            session = onnxruntime.InferenceSession(_stock(path), session_options(1))
            calls[_stock(path).stem] = runner(session, image)
    # One thread computes, so its own time is the latency on a free core, whatever else runs on the
    # machine; short samples, of which the least counts, for what caches lose to others.
    timing = interleave(
        calls, rounds, min_seconds=min_seconds, clock=time.thread_time, settle=lambda: True
    )
    least = {name: min(taken) for name, taken in timing.samples.items()}
    return {
        name: Latency(least[name], least.get(_stock(path).stem))
        for name, (path, _) in networks.items()
    }


def _stock(path: Path) -> Path:
    return path.with_name(f"{path.stem}, stock.onnx")
